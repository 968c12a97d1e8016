"""The questions that are asked about a picture, in exactly the words that the demo models know.

The words are lower case with spaces around punctuation, and spell "colour" in the British way: this is what the
shipped models were trained on. An answer is one word, or the characters of a text with spaces between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pictures import CHARACTERS, COLORS, SHAPES, Picture, Shape, Text

PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
ORDINALS = ("first", "second", "third", "fourth", "fifth")

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
# The order is that of the shipped tokenizers. Some words ("contain", "left") belong to questions that were tried and
# never learned; they are not asked any more but keep their places.
_SENTENCE_WORDS = (
    "USER: ASSISTANT: what does the text say ? is character last comes after letter contain colour shape of object "
    "how many are there objects a s left right above below yes no in"
)
VOCABULARY = (
    *SPECIAL_TOKENS,
    *_SENTENCE_WORDS.split(),
    *COLORS,
    *SHAPES,
    *PLURALS.values(),
    *NUMBERS,
    *ORDINALS,
    *CHARACTERS,
)

TEXT_WEIGHTS = {"read": 4.0, "kth": 2.0, "last": 1.0, "after": 1.5, "text_color": 0.5}
SCENE_WEIGHTS = {"color": 1.5, "shape": 2.5, "count": 2.0, "count_all": 1.0, "exist": 0.7, "exist_pair": 2.0}


@dataclass(frozen=True)
class Question:
    """A question of one kind with its answer."""

    kind: str
    words: str
    answer: str


def ask(generator: np.random.Generator, picture: Picture, kind: str) -> Question | None:
    """Ask a question of the given kind; None where the picture gives no well-posed one."""
    worded: tuple[str, str] | None = None
    if kind in TEXT_WEIGHTS and picture.text is not None:
        worded = _TEXT_QUESTIONS[kind](generator, picture.text)
    elif kind in SCENE_WEIGHTS and picture.shapes:
        worded = _SCENE_QUESTIONS[kind](generator, picture.shapes)
    return None if worded is None else Question(kind, *worded)


def kind_weights(picture: Picture) -> dict[str, float]:
    """How often each kind is asked about this picture in training, relative to the others."""
    weights = dict(TEXT_WEIGHTS) if picture.text is not None else {}
    return weights | (SCENE_WEIGHTS if picture.shapes else {})


def _read(generator: np.random.Generator, text: Text) -> tuple[str, str]:
    return "what does the text say ?", " ".join(text.string)


def _kth(generator: np.random.Generator, text: Text) -> tuple[str, str]:
    place = generator.integers(len(text.string))
    return f"what is the {ORDINALS[place]} character ?", text.string[place]


def _last(generator: np.random.Generator, text: Text) -> tuple[str, str]:
    return "what is the last character ?", text.string[-1]


def _after(generator: np.random.Generator, text: Text) -> tuple[str, str] | None:
    string = text.string
    places = [i for i in range(len(string) - 1) if string.count(string[i]) == 1]
    if not places:
        return None
    place = places[generator.integers(len(places))]
    return f"what comes after the letter {string[place]} ?", string[place + 1]


def _text_color(generator: np.random.Generator, text: Text) -> tuple[str, str]:
    return "what colour is the text ?", text.color


def _color(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str] | None:
    shape = _one_of_its_kind(generator, shapes, "name")
    return None if shape is None else (f"what colour is the {shape.name} ?", shape.color)


def _shape(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str] | None:
    shape = _one_of_its_kind(generator, shapes, "color")
    return None if shape is None else (f"what shape is the {shape.color} object ?", shape.name)


def _count(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str]:
    names = [shape.name for shape in shapes]
    # three times in four a shape that is there: zero would be the answer too often
    candidates = names if generator.random() < 0.75 else SHAPES
    name = candidates[generator.integers(len(candidates))]
    return f"how many {PLURALS[name]} are there ?", NUMBERS[names.count(name)]


def _count_all(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str]:
    return "how many objects are there ?", NUMBERS[len(shapes)]


def _exist(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str]:
    present = [shape.name for shape in shapes]
    # four shapes at most, so that one of the five is always absent
    absent = [name for name in SHAPES if name not in present]
    answer, candidates = ("yes", present) if generator.random() < 0.5 else ("no", absent)
    return f"is there a {candidates[generator.integers(len(candidates))]} ?", answer


def _exist_pair(generator: np.random.Generator, shapes: tuple[Shape, ...]) -> tuple[str, str] | None:
    """A color with a shape; in most of the absent pairs one of the two, or each by itself, is in the picture."""
    if generator.random() < 0.5:
        shape = shapes[generator.integers(len(shapes))]
        return f"is there a {shape.color} {shape.name} ?", "yes"
    pairs = {(shape.color, shape.name) for shape in shapes}
    for _ in range(10):
        chance = generator.random()
        near_shape, near_color = chance < 0.7, chance < 0.35 or chance >= 0.7
        names = [shape.name for shape in shapes] if near_shape else SHAPES
        colors = [shape.color for shape in shapes] if near_color else list(COLORS)
        color, name = colors[generator.integers(len(colors))], names[generator.integers(len(names))]
        if (color, name) not in pairs:
            return f"is there a {color} {name} ?", "no"
    return None


def _one_of_its_kind(generator: np.random.Generator, shapes: tuple[Shape, ...], attribute: str) -> Shape | None:
    """One of the shapes that share their name (or color) with no other."""
    values = [getattr(shape, attribute) for shape in shapes]
    unique = [shape for shape, value in zip(shapes, values, strict=True) if values.count(value) == 1]
    return unique[generator.integers(len(unique))] if unique else None


_TEXT_QUESTIONS: dict[str, Callable[[np.random.Generator, Text], tuple[str, str] | None]] = {
    "read": _read,
    "kth": _kth,
    "last": _last,
    "after": _after,
    "text_color": _text_color,
}
_SCENE_QUESTIONS: dict[str, Callable[[np.random.Generator, tuple[Shape, ...]], tuple[str, str] | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "count_all": _count_all,
    "exist": _exist,
    "exist_pair": _exist_pair,
}
