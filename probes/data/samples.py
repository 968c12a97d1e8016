"""Samples: an image, a question about it, and the answers that count as right; and the templates of questions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from analyses.runs import HorizonError

FIELDS = ("question", "options", "hint", "ocr_tokens")  # what a question template may name
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # the names of options, in order
_FIELD = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")


class SampleError(HorizonError):
    """One sample cannot be measured. A run records the reason, counts it and goes on."""


def failure_reason(error: Exception) -> str:
    """Return why a sample failed, as a run records it: our own sentence, or the error of another with its type."""
    return str(error) if isinstance(error, HorizonError) else f"{type(error).__name__}: {error}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


class StoredImage(Protocol):
    """An image inside a larger file, read when it is needed, so that samples of a large file stay small."""

    def open(self) -> Image.Image:
        """The image, not yet decoded to RGB; raises OSError where it cannot be read."""
        ...


Picture = Path | Image.Image | StoredImage


@dataclass(frozen=True)
class Sample:
    """One question about one image, several, or the frames of a video.

    Attributes:
        id: unique within its task.
        image: a file, a decoded image, or one inside a larger file; None where `images` or `frames` are given instead.
        question: as the model is asked it, without chat markup.
        answers: what annotators gave; the most frequent normalized one is the gold answer.
        task: the benchmark, for example "textvqa".
        task_type: what kind of seeing it asks for, for example "ocr" or "vqa".
        category: a finer division inside the task, "" if there is none.
        options: the option letters' texts of a multiple-choice question; then answers are letters.
        error: why the row could not be read; a run records such a sample as failed.
        images: several images, in the order in which the prompt shows them.
        frames: the frames of one video, in order.
        fps: frames a second, at which the frames were taken; some families tell the model the time.
        raw_question: the bare question, where `question` is that question put through a template; else "".
        hint: context that goes with the question.
        ocr_tokens: reference text of the image, where the prompt is meant to carry it.
    """

    id: str
    image: Picture | None
    question: str
    answers: tuple[str, ...]
    task: str = ""
    task_type: str = ""
    category: str = ""
    options: tuple[str, ...] = ()
    error: str = ""
    images: tuple[Picture, ...] = ()
    frames: tuple[Picture, ...] = ()
    fps: float = 1.0
    raw_question: str = ""
    hint: str = ""
    ocr_tokens: tuple[str, ...] = ()

    @property
    def n_pictures(self) -> int:
        """Images or frames that a prompt shows; 0 where there is none, or they are given in more than one way."""
        sources = [pictures for pictures in _given(self) if pictures]
        return len(sources[0]) if len(sources) == 1 else 0

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


def _pictures(sample: Sample) -> tuple[Picture, ...]:
    sources = [pictures for pictures in _given(sample) if pictures]
    if not sources:
        raise SampleError(f"sample {sample.id!r} has no image")
    if len(sources) > 1:
        raise SampleError(f"sample {sample.id!r}: give one of image, images and frames, not {len(sources)} of them")
    return sources[0]


def _given(sample: Sample) -> tuple[tuple[Picture, ...], ...]:
    return () if sample.image is None else (sample.image,), sample.images, sample.frames


def _decode(picture: Picture, sample_id: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return _as_rgb(picture, sample_id)
    try:
        with Image.open(picture) if isinstance(picture, Path | str) else picture.open() as image:
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


def with_template(sample: Sample, prompt: str | None) -> Sample:
    """A sample whose bare question is put through a template, instead of any before; None leaves it alone."""
    if prompt is None:
        return sample
    return replace(sample, question=fill_template(prompt, sample), raw_question=sample.raw_question or sample.question)


def check_template(prompt: str | None) -> str:
    """The question template in force; raises HorizonError where it has no `{question}`."""
    if prompt is None:
        return "{question}"
    if "{question}" not in prompt:
        raise HorizonError(f"the prompt template {prompt!r} has no {{question}} in it")
    return prompt


def fill_template(prompt: str, sample: Sample) -> str:
    r"""The question that a template makes of a sample.

    `{question}` is the bare question, `{options}` one line "A. text" an option, `{hint}` the context, `{ocr_tokens}`
    the reference text. A line of the template whose `{options}`, `{hint}` or `{ocr_tokens}` are empty is left out.

    >>> fill_template("{hint}\n{question}\n{options}", Sample("1", None, "which?", ("A",), options=("cat", "dog")))
    'which?\nA. cat\nB. dog'
    """
    values = {
        "question": sample.raw_question or sample.question,
        "options": "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, sample.options, strict=False)),
        "hint": sample.hint,
        "ocr_tokens": ", ".join(sample.ocr_tokens),
    }
    lines = []
    for line in check_template(prompt).split("\n"):
        fields = _FIELD.findall(line)
        if not fields or "question" in fields or any(values[name] for name in fields):
            lines.append(_FIELD.sub(lambda field: values[field[1]], line))
    return "\n".join(lines)
