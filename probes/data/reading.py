"""From a row of a benchmark's file to a sample: columns, options, answers, prompt (no torch here)."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probes.data.jsonl import own_sample
from probes.data.rows import Row
from probes.data.samples import LETTERS, Picture, Sample, SampleError, fill_template, with_template
from probes.data.tasks import Task, ends_of_questions
from probes.data.video import choose_frames, clip_frames

_LITERAL = re.compile(r"""\[\s*['"].*|\[\s*\]""", re.DOTALL)  # what can only be meant as a list of texts
_NUMBERED = re.compile(r"image_(\d+)")
_MENTION = re.compile(r"<image (\d+)>")
_PLACEHOLDER = re.compile(r"\s*<(?:image|video)>\s*")
_WHOLE = re.compile(r"(\d+)(?:\.0)?")


@dataclass(frozen=True)
class ReadingRule:
    """How the rows of one file become samples.

    Attributes:
        task: columns, prompt and answer rule in force.
        name: the samples' task, where the row has none or the user gives one.
        named: the user gave the task, so that it goes before the rows' own.
        task_type: as the user gives it; else the task's or the row's.
        prompt: the user's template; else the task's.
        folders: where relative image paths are looked up, in this order.
        own: the rows have our own keys.
        with_ocr_tokens: the prompt carries the reference OCR tokens.
        frames: of videos, by count.
        fps: of videos, by rate.
    """

    task: Task
    name: str
    named: bool
    task_type: str | None
    prompt: str | None
    folders: tuple[Path, ...]
    own: bool = False
    with_ocr_tokens: bool = False
    frames: int | None = None
    fps: float | None = None


def to_sample(row: Row, reading: ReadingRule) -> Sample:
    """The sample of a row; where there is none, its `error` says why, with file and line.

    Raises:
        HorizonError: no sample of this kind can be made (PyAV is not installed).
    """
    try:
        if row.error:
            raise SampleError(row.error)
        sample = _own(row, reading) if reading.own else _foreign(row, reading)
        return _with_frames(sample, row, reading)
    except SampleError as error:
        category = first(row.columns, reading.task.category)
        return Sample(
            row.name,
            None,
            "",
            (),
            reading.name,
            reading.task_type or reading.task.task_type,
            "" if blank(category) else str(category),
            error=f"{row.where}: {error}",
        )


def _own(row: Row, reading: ReadingRule) -> Sample:
    sample = own_sample(row, reading.folders[0])
    sample = replace(
        sample,
        task=reading.name if reading.named else sample.task or reading.name,
        task_type=reading.task_type or sample.task_type or reading.task.task_type,
        ocr_tokens=sample.ocr_tokens if reading.with_ocr_tokens else (),
    )
    if reading.task.name:
        sample = replace(sample, question=_bare(sample.question, reading.task))
    return with_template(sample, reading.prompt or (_template(reading, sample.options) if reading.task.name else None))


def _foreign(row: Row, reading: ReadingRule) -> Sample:
    task, columns = reading.task, row.columns
    raw = _question(row, task)
    options = find_options(columns, task)
    category = first(columns, task.category)
    hint = first(columns, task.hint)
    tokens = as_list(first(columns, ("ocr_tokens",))) if reading.with_ocr_tokens else []
    sample = Sample(
        id=_id(row, task),
        image=None,
        question=raw,
        answers=_answers(columns, task, options),
        task=reading.name,
        task_type=reading.task_type or task.task_type or str(columns.get("task_type") or ""),
        category="" if blank(category) else str(category),
        options=options,
        hint="" if blank(hint) else str(hint).strip(),
        ocr_tokens=tuple(map(str, tokens)),
    )
    prompted = fill_template(reading.prompt or _template(reading, options), sample)
    sample = replace(sample, question=prompted, raw_question=raw)
    return _with_pictures(sample, row, reading)


def _template(reading: ReadingRule, options: Sequence[str]) -> str:
    task = reading.task
    return task.prompt if options or not task.open_prompt else task.open_prompt


def _id(row: Row, task: Task) -> str:
    value = first(row.columns, task.id)
    return row.name if blank(value) else str(value)


def _question(row: Row, task: Task) -> str:
    text = first(row.columns, task.question)
    if blank(text):
        raise SampleError(f"no question among the columns {sorted(row.columns)}")
    return _bare(_PLACEHOLDER.sub("\n", str(text)).strip(), task)


def _bare(question: str, task: Task) -> str:
    """A question without the phrases that the task's template adds."""
    for phrase in ends_of_questions(task):
        question = question.removesuffix(phrase).rstrip()
    return question


def first(columns: Mapping[str, Any], names: Sequence[str]) -> Any:
    """What the first column that is there holds, of several names; a blank one gives way to the next."""
    values = [columns[name] for name in names if name in columns]
    return next((value for value in values if not blank(value)), values[0] if values else None)


def blank(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty text or list, or the "nan" that pandas writes."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return value == [] or (isinstance(value, str) and value.strip() in ("", "nan", "NaN"))


def as_list(value: Any, *, literal: bool = True) -> list[Any]:
    """The elements of a list, or of a text that is a Python literal of one; any other value is its only element.

    Literals are parsed, never evaluated.

    >>> as_list("['a', 'b']"), as_list("[unclear]"), as_list(None)
    (['a', 'b'], ['[unclear]'], [])

    Args:
        value: the value of a cell.
        literal: take a text that begins like a list of texts for one.

    Raises:
        SampleError: a text that begins like a list of texts is none.
    """
    if blank(value):
        return []
    if literal and isinstance(value, str) and _LITERAL.fullmatch(value.strip()):
        value = _parse_list(value)
    if not isinstance(value, list | tuple):
        return [value]
    if not all(isinstance(element, str | int | float) for element in value):
        raise SampleError(f"{_short(value)} is no list of texts")
    return list(value)


def _parse_list(text: str) -> list[Any]:
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise SampleError(f"{_short(text)} is no list that can be read") from error
    if not isinstance(values, list):
        raise SampleError(f"{_short(text)} is no list that can be read")
    return values


def find_options(columns: Mapping[str, Any], task: Task) -> tuple[str, ...]:
    """The options of a row: of a column with a list, or of the columns A, B, C, ... until the first blank one."""
    texts = as_list(first(columns, task.options))
    if texts:
        return tuple(str(option).strip() for option in texts)
    lettered = []
    for letter in LETTERS:
        if blank(columns.get(letter)):
            break
        lettered.append(str(columns[letter]).strip())
    return tuple(lettered)


def _answers(columns: Mapping[str, Any], task: Task, options: tuple[str, ...]) -> tuple[str, ...]:
    """The answers by the task's rule; none where the file has no column of them."""
    name = next((name for name in task.answers if name in columns), None)
    if name is None:
        return ()
    cell = first(columns, task.answers)
    if task.answer == "list" and isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _parse_list(cell)
    if options:
        return (_letter(cell, options, numbers_first=task.answer == "index"),)
    answers = [cell] if cell == "nan" else as_list(cell, literal=task.answer != "text")
    texts = tuple(str(answer) for answer in answers)
    if not any(text.strip() for text in texts):
        raise SampleError(f"its answer (column {name!r}) is empty")
    return tuple(map(_yes_or_no, texts)) if task.answer == "yes-no" else texts


def _letter(cell: Any, options: tuple[str, ...], *, numbers_first: bool) -> str:
    """An option's letter, from a letter, an option's text, or a number from 0."""
    answer, letters = str(cell).strip(), LETTERS[: len(options)]
    number = _WHOLE.fullmatch(answer)
    by_number = letters[int(number[1])] if number and int(number[1]) < len(letters) else None
    by_text = letters[options.index(answer)] if answer in options and isinstance(cell, str) else None
    by_letter = answer.upper() if answer.upper() in letters else None
    letter = by_letter or (by_number or by_text if numbers_first else by_text or by_number)
    if letter is None:
        raise SampleError(f"its answer {_short(cell)} is none of the options {', '.join(letters)}: {list(options)}")
    return letter


def _yes_or_no(answer: str) -> str:
    plain = answer.strip().rstrip(".").lower()
    if plain in ("0", "1"):
        return ("No", "Yes")[int(plain)]
    if plain not in ("yes", "no"):
        raise SampleError(f"its answer {answer!r} is neither yes nor no")
    return answer.strip().rstrip(".")


def _with_pictures(sample: Sample, row: Row, reading: ReadingRule) -> Sample:
    """The images that a row names: one, several, or those of image_1, image_2, ... that its text mentions."""
    columns = row.columns
    numbered = {int(match[1]): columns[name] for name in columns if (match := _NUMBERED.fullmatch(name))}
    if numbered:
        text = "\n".join((sample.raw_question, sample.hint, *sample.options))
        mentions = sorted({int(number) for number in _MENTION.findall(text)}) or [1]
        pictures = [picture for number in mentions for picture in _pictures(numbered.get(number), reading)]
        absent = [number for number in mentions if blank(numbered.get(number))]
        if absent:
            raise SampleError(f"its text mentions image {absent[0]}, which is not there")
    else:
        pictures = _pictures(first(columns, reading.task.image), reading)
    if not pictures and not blank(columns.get("video") or columns.get("video_path")):
        return sample
    if not pictures:
        raise SampleError(f"no image among the columns {sorted(columns)}")
    return replace(sample, image=pictures[0]) if len(pictures) == 1 else replace(sample, images=tuple(pictures))


def _pictures(cell: Any, reading: ReadingRule) -> list[Picture]:
    values = cell if isinstance(cell, list) else as_list(cell)
    return [find_file(value, reading.folders) if isinstance(value, str) else value for value in values]


def find_file(name: str, folders: Sequence[Path]) -> Path:
    """A file in the first folder that has it; in the first folder of all where none has.

    Args:
        name: path of the file, relative to one of the folders, or absolute.
        folders: the folders, at least one.
    """
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def _with_frames(sample: Sample, row: Row, reading: ReadingRule) -> Sample:
    """Where a row names a video instead of an image, its frames."""
    path = first(row.columns, ("video_path", "video"))
    if sample.image is not None or sample.images or sample.frames or blank(path):
        return sample
    clip = choose_frames(find_file(str(path), reading.folders), reading.frames, reading.fps)
    return replace(sample, frames=clip_frames(clip), fps=clip.fps)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
