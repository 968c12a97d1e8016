"""Render the held-out sample sets: data/demo-samples/{ocr,vqa}.jsonl and their images.

    python data/make/render_demo_samples.py

The kinds come in fixed proportions, and every picture and question is taken as it is drawn; no model is asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pictures import Picture, compose_picture, paint
from PIL import Image
from questions import Question, ask

SAMPLES = Path(__file__).parents[1] / "demo-samples"
# no training and no analysis of the models ever drew from it
SEED = 64_064
MIXED_SHARE = 0.25  # of the pictures with text, as in training

# One round of questions. Each picture that is asked "read" is asked "text_color" as well, so that the two sets can be
# compared on the same pictures; the six kinds about shapes come equally often.
OCR_ROUND = ("read", "kth", "read", "last") * 2
VQA_ROUND = (
    *("text_color", "color", "count"),
    *("text_color", "shape", "exist"),
    *("text_color", "count_all"),
    *("text_color", "exist_pair"),
)
ROUNDS = 30


@dataclass(frozen=True)
class DemoSample:
    """One line of a sample set."""

    id: str
    image: str  # path relative to the sample set
    question: str
    answers: list[str]
    task: str
    task_type: str
    category: str


@dataclass(frozen=True)
class DemoSet:
    """A sample set with the pictures that it is about."""

    samples: list[DemoSample]
    pictures: dict[str, np.ndarray]  # pixels by path


def draw_question(generator: np.random.Generator, kind: str, content: str) -> tuple[Picture, Question]:
    """Draw pictures until one can be asked that kind of question."""
    while True:
        picture = compose_picture(generator, content)
        question = ask(generator, picture, kind)
        if question is not None:
            return picture, question


def draw_text_content(generator: np.random.Generator) -> str:
    """Draw what is on a picture with text."""
    return "mixed" if generator.random() < MIXED_SHARE else "text"


def make_sets(rounds: int = ROUNDS) -> tuple[DemoSet, DemoSet]:
    """The OCR set and the VQA set. Fewer rounds give the first samples of the full sets."""
    ocr, vqa = DemoSet([], {}), DemoSet([], {})
    pairs: list[tuple[str, np.ndarray, Question]] = []
    for number, kind in enumerate(OCR_ROUND * rounds):
        generator = np.random.default_rng([SEED, 0, number])
        picture, question = draw_question(generator, kind, draw_text_content(generator))
        path, pixels = f"images/text-{number:03d}.png", paint(picture, generator)
        _append(ocr, "ocr", path, pixels, question)
        if kind == "read":
            text_color = ask(generator, picture, "text_color")
            assert text_color is not None  # it has a text
            pairs.append((path, pixels, text_color))
    paired: Iterator[tuple[str, np.ndarray, Question]] = iter(pairs)
    for number, kind in enumerate(VQA_ROUND * rounds):
        if kind == "text_color":
            _append(vqa, "vqa", *next(paired))
            continue
        generator = np.random.default_rng([SEED, 1, number])
        picture, question = draw_question(generator, kind, "scene")
        _append(vqa, "vqa", f"images/scene-{number:03d}.png", paint(picture, generator), question)
    return ocr, vqa


def save_set(demo_set: DemoSet, path: Path) -> None:
    """Write a sample set as JSONL, and its images beside it."""
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(sample)) for sample in demo_set.samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for image, pixels in demo_set.pictures.items():
        Image.fromarray(pixels).save(path.parent / image, optimize=True)


def _append(demo_set: DemoSet, task_type: str, path: str, pixels: np.ndarray, question: Question) -> None:
    demo_set.pictures[path] = pixels
    demo_set.samples.append(
        DemoSample(
            id=f"{task_type}-{len(demo_set.samples):03d}",
            image=path,
            question=question.words,
            answers=[question.answer],
            task=f"demo-{task_type}",
            task_type=task_type,
            category=question.kind,
        )
    )


def main() -> None:
    """Parse the command line, draw and save both sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SAMPLES, help="directory to write to (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="8 OCR and 10 VQA samples each (default: 30)")
    arguments = parser.parse_args()
    for demo_set, name in zip(make_sets(arguments.rounds), ("ocr", "vqa"), strict=True):
        save_set(demo_set, arguments.out / f"{name}.jsonl")
        print(f"{name}: {len(demo_set.samples)} samples about {len(demo_set.pictures)} images")


if __name__ == "__main__":
    main()
