"""Endless training batches: packed questions for the whole model, labeled patches for its vision tower."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from checkpoint import END, GRID, IMAGE, N_VISUAL, PATCH, START
from pictures import CHARACTERS, COLORS, SHAPES, Box, Picture, compose_picture, paint
from questions import VOCABULARY, ask, kind_weights

TOKEN_IDS = {word: i for i, word in enumerate(VOCABULARY)}
LEAD = (START, TOKEN_IDS["USER:"])  # what stands before the image
PREFIX = (*LEAD, *[IMAGE] * N_VISUAL)
CONTENT_SHARES = {"text": 0.45, "scene": 0.4, "mixed": 0.15}
PACKED_LENGTH = 64  # tokens of questions and answers behind one image; about seven questions
QUESTION_TRIES = 30
NO_LABEL = -100

N_THINGS = 1 + len(CHARACTERS) + len(SHAPES)  # what a patch shows; 0 is the background
N_PATCH_COLORS = 1 + len(COLORS)
LEAST_COVER = 0.2  # share of a patch that a box must cover to be what the patch shows


@dataclass(frozen=True)
class PackedBatch:
    """Several questions behind each image; each sees the image and itself, at the positions it has when alone.

    Attributes:
        pixels: (picture, channel, 64, 64) float in [-1, 1], as the processor scales them.
        token_ids: (picture, token) int, questions with their answers, without the prefix.
        labels: (picture, token) int, the next token where it belongs to an answer, NO_LABEL elsewhere.
        segments: (picture, token) int, which question a token belongs to; -1 for padding.
        positions: (picture, token) int.
    """

    pixels: torch.Tensor
    token_ids: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class PatchBatch:
    """Pictures with what each patch shows.

    Attributes:
        pixels: (picture, channel, 64, 64) float in [-1, 1].
        things: (picture, patch) int, 0 background, then the characters, then the shapes.
        colors: (picture, patch) int, 0 background, then the colors.
    """

    pixels: torch.Tensor
    things: torch.Tensor
    colors: torch.Tensor


def packed_batch(generator: np.random.Generator, n_pictures: int, lengths: tuple[int, int]) -> PackedBatch:
    """Draw pictures in the shares of CONTENT_SHARES, and fill the room behind each with different questions."""
    pixels = []
    columns = np.zeros((4, n_pictures, PACKED_LENGTH), np.int64)
    token_ids, labels, segments, positions = columns
    labels[:], segments[:] = NO_LABEL, -1
    for row in range(n_pictures):
        content = generator.choice(list(CONTENT_SHARES), p=list(CONTENT_SHARES.values()))
        picture = compose_picture(generator, content, lengths)
        pixels.append(paint(picture, generator))
        start = 0
        for segment, (question, answer) in enumerate(_fitting_questions(generator, picture)):
            end = start + len(question) + len(answer)
            token_ids[row, start:end] = question + answer
            labels[row, start + len(question) - 1 : end] = [*answer, END]
            segments[row, start:end] = segment
            positions[row, start:end] = len(PREFIX) + np.arange(end - start)
            start = end
    return PackedBatch(_scale(pixels), *(torch.from_numpy(column) for column in columns))


def patch_batch(generator: np.random.Generator, n_pictures: int) -> PatchBatch:
    """Draw pictures, half of them texts of one to four characters, with the thing and the color of each patch."""
    pixels = []
    things = np.zeros((n_pictures, GRID, GRID), np.int64)
    colors = np.zeros_like(things)
    for row in range(n_pictures):
        content = ("text", "text", "scene", "mixed")[generator.integers(4)]
        picture = compose_picture(generator, content, lengths=(1, 4))
        pixels.append(paint(picture, generator))
        largest_cover = np.full((GRID, GRID), LEAST_COVER)
        for box, thing, color in _things(picture):
            cover = _patch_cover(box)
            won = cover > largest_cover
            things[row][won], colors[row][won] = thing, color
            largest_cover = np.where(won, cover, largest_cover)
    flat = (n_pictures, N_VISUAL)
    return PatchBatch(_scale(pixels), torch.from_numpy(things.reshape(flat)), torch.from_numpy(colors.reshape(flat)))


def _fitting_questions(generator: np.random.Generator, picture: Picture) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of different questions and their answers, until one does not fit any more."""
    weights = kind_weights(picture)
    shares = np.array(list(weights.values())) / sum(weights.values())
    room, asked = PACKED_LENGTH, set()
    for _ in range(QUESTION_TRIES):
        question = ask(generator, picture, generator.choice(list(weights), p=shares))
        if question is None or question.words in asked:
            continue
        asked.add(question.words)
        question_ids = [TOKEN_IDS[word] for word in [*question.words.split(), "ASSISTANT:"]]
        answer_ids = [TOKEN_IDS[word] for word in question.answer.split()]
        room -= len(question_ids) + len(answer_ids)
        if room < 0:
            return
        yield question_ids, answer_ids


def _things(picture: Picture) -> Iterator[tuple[Box, int, int]]:
    """Box, thing and color label of every character and shape."""
    color_labels = {color: 1 + i for i, color in enumerate(COLORS)}
    if picture.text is not None:
        for character, box in zip(picture.text.string, picture.text.boxes, strict=True):
            yield box, 1 + CHARACTERS.index(character), color_labels[picture.text.color]
    for shape in picture.shapes:
        yield shape.box, 1 + len(CHARACTERS) + SHAPES.index(shape.name), color_labels[shape.color]


def _patch_cover(box: Box) -> np.ndarray:
    """Share of each patch that a box covers: (8, 8) float."""
    edges = np.arange(GRID) * PATCH
    heights = np.clip(np.minimum(box.bottom, edges + PATCH) - np.maximum(box.top, edges), 0, None)
    widths = np.clip(np.minimum(box.right, edges + PATCH) - np.maximum(box.left, edges), 0, None)
    return np.outer(heights, widths) / PATCH**2


def _scale(pixels: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
