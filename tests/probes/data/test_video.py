"""Frames of videos: which are taken, what they show, and how they reach a model."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from benchmark_files import write_lines, write_table
from family_processors import PAIRS
from PIL import Image

import probes.data.video
import vlm_horizon as vh
from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample, SampleError
from probes.data.video import choose_frames, clip_frames
from probes.loading.loading import load_model
from probes.models.prompts import encode

STEP = 12  # gray levels from one frame to the next


def write_video(path: Path, n: int = 20, *, fps: int = 10, codec: str = "libx264", first: int = 0) -> Path:
    """Gray frames, each brighter than the one before: a frame's gray says which it is."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"crf": "1", "g": "6"} if codec == "libx264" else {}
        for number in range(first, first + n):
            gray = np.full((32, 32, 3), min(STEP * number, 255), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(images: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(image).mean()) / STEP) for image in images]


def shown(path: Path, **how) -> list[int]:
    clip = choose_frames(path, **how)
    return numbers(Sample("v", None, "?", (), frames=clip_frames(clip)).load_images())


@pytest.mark.parametrize(
    ("how", "expected", "fps"),
    [
        ({"frames": 1}, [0], 1.0),
        ({"frames": 2}, [0, 19], 10 / 19),
        ({"frames": 4}, [0, 6, 13, 19], 30 / 19),
        ({}, [0, 3, 5, 8, 11, 14, 16, 19], 70 / 19),  # 8 by default
        ({"frames": 50}, list(range(20)), 10.0),  # all there are
        ({"fps": 1}, [0, 10], 1.0),
        ({"fps": 2.5}, [0, 4, 8, 12, 16], 2.5),
        ({"fps": 30}, list(range(20)), 10.0),  # no faster than the video
    ],
)
def test_frames_by_count_and_by_rate(tmp_path, how, expected, fps):
    path = write_video(tmp_path / "a.mp4")
    assert shown(path, **how) == expected
    assert choose_frames(path, **how).fps == pytest.approx(fps)


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")])
def test_other_containers(tmp_path, name, codec):
    """Matroska names no number of frames in its header."""
    assert shown(write_video(tmp_path / name, codec=codec), frames=4) == [0, 6, 13, 19]


def test_far_frames_are_searched_from_a_key_frame(tmp_path, monkeypatch):
    """The same frames as without a search, and not by decoding everything before them."""
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(probes.data.video, "SKIP", 0.7)
    assert shown(path, frames=3) == [0, 10, 19]  # 9.5 rounds to even
    assert shown(path, fps=1) == [0, 10]


def test_samples_name_a_video(tmp_path):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4")
    lines = [
        {"id": 1, "video": "clips/a.mp4", "question": "what?", "answers": ["a"]},
        {"id": 2, "video": "clips/none.mp4", "question": "what?", "answers": ["a"]},
        {"id": 3, "video": "set.jsonl", "question": "what?", "answers": ["a"]},
        {"id": 4, "video": "clips/a.mp4", "image": "a.png", "question": "what?", "answers": ["a"]},
    ]
    path = write_lines(tmp_path / "set.jsonl", *lines)
    good, missing, text, both = read_samples(path, frames=3)
    assert (good.id, good.image, good.images, len(good.frames)) == ("1", None, (), 3)
    assert good.fps == pytest.approx(20 / 19)
    assert numbers(good.load_images()) == [0, 10, 19]
    assert missing.error.endswith("clips/none.mp4 does not exist")
    assert "set.jsonl line 3: video" in text.error
    assert "cannot be read" in text.error
    assert both.error == "set.jsonl line 4: image and video are given; one of them is expected"
    table = write_table(
        tmp_path / "MVBench.tsv", "index video question A B answer", ["0", "clips/a.mp4", "?", "x", "y", "B"]
    )
    (sample,) = read_samples(table, fps=1)
    assert (numbers(sample.load_images()), sample.answers) == ([0, 10], ("B",))


def test_a_video_that_is_cut_off_is_named(tmp_path):
    path = write_video(tmp_path / "a.avi", codec="mpeg4")
    whole = path.read_bytes()
    clip = choose_frames(path, frames=4)
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SampleError, match=r"sample 'v': image at 0.00 s of .*a.avi cannot be decoded"):
        Sample("v", None, "?", (), frames=clip_frames(clip)).load_images()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"frames": 4, "fps": 1}, "frames=4 and fps=1 are given: choose frames by count or by rate"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"fps": 0}, "fps is 0; it must be above 0"),
    ],
)
def test_unusable_choices_are_refused_at_once(tmp_path, how, reason):
    path = write_lines(tmp_path / "set.jsonl", {"id": 1, "video": "a.mp4", "question": "what?", "answers": ["a"]})
    with pytest.raises(HorizonError, match=reason):
        read_samples(path, **how)


def test_without_pyav_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(probes.data.video, "find_spec", lambda name: None)
    path = write_lines(tmp_path / "set.jsonl", {"id": 1, "video": "a.mp4", "question": "what?", "answers": ["a"]})
    with pytest.raises(HorizonError, match=r"videos need PyAV: pip install 'vlm-horizon\[video\]'"):
        next(read_samples(path))


def test_frames_reach_a_model_and_their_rule_the_run(tmp_path):
    """A video file, read, encoded and measured by a family that takes frames."""
    (pair,) = [pair for pair in PAIRS if pair.name == "video_llava"]
    model, processor = pair.build()
    probed = load_model(model, processor=processor)
    write_video(tmp_path / "a.mp4")
    line = {"id": 1, "video": "a.mp4", "question": "is shown ?", "answers": ["apple"]}
    path = write_lines(tmp_path / "set.jsonl", line)
    (by_file,) = read_samples(path, frames=4)
    by_hand = Sample("1", None, "is shown ?", ("apple",), frames=tuple(by_file.load_images()), fps=by_file.fps)
    prompts = [encode(probed, sample) for sample in (by_file, by_hand)]
    for name, value in prompts[0].inputs.items():
        np.testing.assert_array_equal(value, prompts[1].inputs[name], err_msg=name)
    assert {grid.image for grid in prompts[0].grids} == {0, 1, 2, 3}
    run = vh.run(probed, read_samples(path, frames=4), tmp_path / "run", probes=("entropy",), progress=False)
    assert run.config.video == "4 frames"
    assert run.config.prompt_example == prompts[0].text
    assert len(run.ok) == 1
    with pytest.raises(HorizonError, match=r"video"):
        vh.run(probed, read_samples(path, fps=2), tmp_path / "run", probes=("entropy",), progress=False)
