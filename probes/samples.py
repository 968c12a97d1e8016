"""Samples: an image, a question about it, and the answers that count as right; and the readers of sample files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from analyses.runs import HorizonError

PICTURES = ("image", "images", "frames")


class SampleError(HorizonError):
    """One sample cannot be measured. A run records the reason, counts it and goes on."""


@dataclass(frozen=True)
class Sample:
    """One question about one image, several, or the frames of a video.

    Attributes:
        id: unique within its task.
        image: a file, or a decoded image; None where `images` or `frames` are given instead.
        question: as the user asks it, without chat markup.
        answers: what annotators gave; the most frequent normalized one is the gold answer.
        task: the benchmark, for example "textvqa".
        task_type: what kind of seeing it asks for, for example "ocr" or "vqa".
        category: a finer division inside the task, "" if there is none.
        options: the option letters' texts of a multiple-choice question; then answers are letters.
        error: why the row could not be read; a run records such a sample as failed.
        images: several images, in the order in which the prompt shows them.
        frames: the frames of one video, in order.
        fps: frames a second, at which the frames were taken; some families tell the model the time.
    """

    id: str
    image: Path | Image.Image | None
    question: str
    answers: tuple[str, ...]
    task: str = ""
    task_type: str = ""
    category: str = ""
    options: tuple[str, ...] = ()
    error: str = ""
    images: tuple[Path | Image.Image, ...] = ()
    frames: tuple[Path | Image.Image, ...] = ()
    fps: float = 1.0

    def load_image(self) -> Image.Image:
        """Decode the image, or the first of several, to RGB.

        Raises:
            SampleError: the sample has no image, or its file is missing or unreadable.
        """
        return _decode(_pictures(self)[0], self.id)

    def load_images(self) -> list[Image.Image]:
        """Decode the image, all images, or all frames to RGB, in order.

        Raises:
            SampleError: there is none, they are given in more than one way, or a file is missing or unreadable.
        """
        return [_decode(picture, self.id) for picture in _pictures(self)]


def _pictures(sample: Sample) -> tuple[Path | Image.Image, ...]:
    image = () if sample.image is None else (sample.image,)
    given = [pictures for pictures in (image, sample.images, sample.frames) if pictures]
    if not given:
        raise SampleError(f"sample {sample.id!r} has no image")
    if len(given) > 1:
        raise SampleError(f"sample {sample.id!r}: give one of image, images and frames, not {len(given)} of them")
    return given[0]


def _decode(picture: Path | Image.Image, sample_id: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return _as_rgb(picture, sample_id)
    try:
        with Image.open(picture) as image:
            return _as_rgb(image, sample_id)
    except FileNotFoundError as error:
        raise SampleError(f"sample {sample_id!r}: image {picture} does not exist") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises them all
        raise SampleError(f"sample {sample_id!r}: image {picture} cannot be decoded ({error})") from error


def _as_rgb(image: Image.Image, sample_id: str) -> Image.Image:
    """8-bit RGB. Pillow clips wider pixels to 255, so 16-bit pictures are scaled; EXIF rotation is not applied.

    Benchmarks' own code reads images without EXIF rotation, so that is what models are scored on.
    """
    if image.mode == "F":
        raise SampleError(
            f"sample {sample_id!r}: the image holds floats, whose range nothing tells: save it with 8 bits"
        )
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise SampleError(
                f"sample {sample_id!r}: the image holds {wide.min()} to {wide.max()}: save it with 8 bits"
            )
        image = Image.fromarray((wide // 257 if image.mode != "I" or wide.max() > 255 else wide).astype(np.uint8))
    return image.convert("RGB")


def image_sha256(image: Image.Image) -> str:
    """Hex sha256 of size and RGB pixels: the same picture in two files or formats is one cluster."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def pictures_sha256(images: Sequence[Image.Image]) -> str:
    """`image_sha256` of a single image; of several one digest over all, in order.

    Two samples that share some of their images but not all are two clusters.
    """
    digests = [image_sha256(image) for image in images]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_samples(
    path: str | Path,
    *,
    task: str | None = None,
    task_type: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
) -> Iterator[Sample]:
    """Read a JSONL file, one object a line with the keys id, image, question, answers (or answer).

    Instead of `image`, `images` may list several and `frames` the frames of a video (with `fps`, frames a second).
    Optional keys are task, task_type, category and options. Image paths are relative to the file. A line that does
    not parse or lacks a key is yielded as a Sample whose `error` says so, with its line number.

    Args:
        path: the file.
        task: overrides the lines' task; by default the file's stem where a line names none.
        task_type: overrides the lines' task type.
        limit: at most so many samples.
        prompt: question template, with `{question}` where the question goes.

    Raises:
        HorizonError: the file does not exist or is not JSONL, or the template has no `{question}`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise HorizonError(f"no sample file at {path}: give a JSONL file with id, image, question and answers")
    if path.suffix.lower() not in {".jsonl", ".json"}:
        raise HorizonError(f"{path} is not a JSONL file (its name ends in {path.suffix!r})")
    with path.open("rb") as file:
        if file.read(64).lstrip().startswith(b"["):
            raise HorizonError(f"{path} holds one JSON array; write one object a line (JSONL)")
    if limit is not None and limit < 1:
        raise HorizonError(f"limit is {limit}; it must be at least 1")
    template = check_template(prompt)
    return islice(_read_lines(path, task, task_type, template), limit)


def with_template(sample: Sample, prompt: str | None) -> Sample:
    """A sample whose question is put through a template; None leaves it alone."""
    if prompt is None:
        return sample
    return replace(sample, question=check_template(prompt).replace("{question}", sample.question))


def check_template(prompt: str | None) -> str:
    """The question template in force; raises HorizonError where it has no `{question}`."""
    if prompt is None:
        return "{question}"
    if "{question}" not in prompt:
        raise HorizonError(f"the prompt template {prompt!r} has no {{question}} in it")
    return prompt


def _read_lines(path: Path, task: str | None, task_type: str | None, template: str) -> Iterator[Sample]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                yield _sample_of(record, path, number, task, task_type, template)
            except (ValueError, RecursionError, SampleError) as error:
                reason = str(error) if isinstance(error, SampleError) else f"not valid JSON ({error})"
                yield _unread(path, number, task, task_type, reason)


def _unread(path: Path, number: int, task: str | None, task_type: str | None, reason: str) -> Sample:
    where = f"{path.name} line {number}"
    name = f"{path.stem}:{number}"
    return Sample(name, None, "", (), task or path.stem, task_type or "", error=f"{where}: {reason}")


def _sample_of(record: Any, path: Path, number: int, task: str | None, task_type: str | None, template: str) -> Sample:
    if not isinstance(record, dict):
        raise SampleError(f"a JSON {type(record).__name__} where an object is expected")
    given = [key for key in PICTURES if record.get(key)]
    missing = [key for key, there in (("image", given), ("question", record.get("question"))) if not there]
    if missing:
        raise SampleError(f"no {' and no '.join(missing)} among the keys {sorted(record)}")
    if len(given) > 1:
        raise SampleError(f"{' and '.join(given)} are given; one of them is expected")
    odd = [f"{key} is {record[key]!r}" for key in ("image", "question") if not isinstance(record.get(key) or "", str)]
    if odd:
        raise SampleError(f"{' and '.join(odd)}; a text is expected")
    pictures = _picture_paths(record, path)
    options = record.get("options") or []
    if not isinstance(options, list):
        raise SampleError(f"options are {options!r}; a list of texts is expected")
    answers = record.get("answers", record.get("answer"))
    answers = [answers] if isinstance(answers, str | int | float) else answers
    if not isinstance(answers, list) or not all(isinstance(answer, str | int | float) for answer in answers):
        raise SampleError(f"answers are {answers!r}; a text or a list of texts is expected")
    return Sample(
        id=f"{path.stem}:{number}" if record.get("id") is None else str(record["id"]),
        image=pictures[0] if given == ["image"] else None,
        question=template.replace("{question}", record["question"]),
        answers=tuple(str(answer) for answer in answers),
        task=task or str(record.get("task") or path.stem),
        task_type=task_type or str(record.get("task_type") or ""),
        category=str(record.get("category") or ""),
        options=tuple(str(option) for option in options),
        images=pictures if given == ["images"] else (),
        frames=pictures if given == ["frames"] else (),
        fps=_frame_rate(record),
    )


def _picture_paths(record: dict[str, Any], path: Path) -> tuple[Path, ...]:
    """The files that a line names, whichever of the three keys it uses."""
    key = next(key for key in PICTURES if record.get(key))
    names = [record[key]] if key == "image" else record[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SampleError(f"{key} are {names!r}; a list of paths is expected")
    return tuple(path.parent / name for name in names)


def _frame_rate(record: dict[str, Any]) -> float:
    rate = record.get("fps", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise SampleError(f"fps is {rate!r}; a number above 0 is expected")
    return float(rate)
