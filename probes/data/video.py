"""Frames of videos, by count or by rate, decoded when a sample is measured (PyAV, an optional extra; no torch here)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from analyses.runs import HorizonError
from probes.data.samples import SampleError

FRAMES = 8  # by default
SKIP = 10.0  # seconds: the next frame is searched from the key frame before it where it lies further ahead


@dataclass(frozen=True)
class Clip:
    """Chosen frames of a video.

    Attributes:
        path: the file.
        times: (frame,) seconds from the first frame, ascending.
        rate: frames a second of the video, at which frame times are rounded.
        rule: how the frames were chosen, as a run records it.
    """

    path: Path
    times: tuple[float, ...]
    rate: float
    rule: str

    @property
    def fps(self) -> float:
        """Chosen frames a second; 1 for a single one."""
        if len(self.times) < 2:
            return 1.0
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


@dataclass(frozen=True)
class ClipFrame:
    """One frame of a clip; the clip is decoded as a whole, and the last one kept."""

    clip: Clip
    place: int

    def open(self) -> Image.Image:
        """The frame; raises OSError where the video cannot be decoded."""
        return _decode(self.clip)[self.place].copy()

    def __str__(self) -> str:
        return f"at {self.clip.times[self.place]:.2f} s of {self.clip.path}"


def check_frames(frames: int | None, fps: float | None) -> None:
    """Raise HorizonError unless frames are asked for by count or by rate, or by neither."""
    if frames is not None and fps is not None:
        raise HorizonError(f"frames={frames} and fps={fps:g} are given: choose frames by count or by rate")
    if frames is not None and frames < 1:
        raise HorizonError(f"frames is {frames}; it must be at least 1")
    if fps is not None and not 0 < fps < float("inf"):
        raise HorizonError(f"fps is {fps}; it must be above 0")


def choose_frames(path: Path, frames: int | None = None, fps: float | None = None) -> Clip:
    """Choose frames by count, spread evenly from the first to the last, or by rate from the first on.

    Args:
        path: the video.
        frames: how many; 8 by default, all of a video that has fewer.
        fps: how many a second, instead; at most as many as the video has.

    Raises:
        SampleError: the file is missing, no video, or empty.
        HorizonError: PyAV is not installed, or the choice is unusable.
    """
    check_frames(frames, fps)
    if find_spec("av") is None:
        raise HorizonError("videos need PyAV: pip install 'vlm-horizon[video]'")
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise SampleError(f"{path} has no video stream")
            total, rate = _length(container, container.streams.video[0])
    except FileNotFoundError as error:
        raise SampleError(f"video {path} does not exist") from error
    except (av.FFmpegError, OSError) as error:
        raise SampleError(f"video {path} cannot be read ({error})") from error
    if total == 0:
        raise SampleError(f"video {path} holds no frame")
    if fps is None:
        places = np.linspace(0, total - 1, min(frames or FRAMES, total)).round()
    else:
        places = np.unique(np.arange(0, total, max(rate / fps, 1.0)).round())
        places = places[places < total]
    rule = f"{frames or FRAMES} frames" if fps is None else f"{fps:g} frames a second"
    return Clip(path, tuple((places / rate).tolist()), rate, rule)


def clip_frames(clip: Clip) -> tuple[ClipFrame, ...]:
    """The frames of a clip, in order."""
    return tuple(ClipFrame(clip, place) for place in range(len(clip.times)))


def frame_rule(frames: Sequence[object]) -> str:
    """How a video's frames were chosen; "" for frames that were given as images."""
    return next((frame.clip.rule for frame in frames if isinstance(frame, ClipFrame)), "")


def _length(container: Any, stream: Any) -> tuple[int, float]:
    """Frames and frames a second: from the header where it says both, else from one pass without decoding."""
    rate = float(stream.average_rate or 0)
    if stream.frames and rate:
        return stream.frames, rate
    stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    if len(stamps) < 2:
        return len(stamps), rate or 1.0
    seconds = float((stamps[-1] - stamps[0]) * stream.time_base)
    return len(stamps), (len(stamps) - 1) / seconds


@lru_cache(maxsize=1)
def _decode(clip: Clip) -> list[Image.Image]:
    """The frames of a clip: for each time the first that is shown no more than half a frame before it."""
    import av

    try:
        with av.open(str(clip.path)) as container:
            images = list(_search(container, container.streams.video[0], clip))
    except av.FFmpegError as error:
        raise OSError(str(error)) from error
    if len(images) < len(clip.times):
        raise OSError(f"the video ends before {clip.times[len(images)]:.2f} s")
    return images


def _search(container: Any, stream: Any, clip: Clip) -> Iterator[Image.Image]:
    base = float(stream.time_base)
    origin = (stream.start_time or 0) * base
    decoded, now = container.decode(stream), 0.0
    for time in clip.times:
        if time - now > SKIP:
            container.seek(int((time + origin) / base), stream=stream)
            decoded = container.decode(stream)
        for frame in decoded:
            now = now if frame.pts is None else frame.pts * base - origin
            if now >= time - 0.5 / clip.rate:
                yield frame.to_image()
                break
