"""JSON Lines: rows of a file with one object a line, and the samples that our own keys make (no torch here)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probes.data.rows import Row
from probes.data.samples import Sample, SampleError

PICTURES = ("image", "images", "frames", "video")


def json_rows(path: Path) -> Iterator[Row]:
    """The lines of a file; one that does not parse, or is no object, carries the reason."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where, name = f"{path.name} line {number}", f"{path.stem}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(where, name, {}, f"not valid JSON ({error})")
                continue
            if isinstance(record, dict):
                yield Row(where, name, record)
            else:
                yield Row(where, name, {}, f"a JSON {type(record).__name__} where an object is expected")


def first_record(path: Path) -> dict[str, Any]:
    """The first line that parses to an object; empty where none does."""
    return next((dict(row.columns) for row in json_rows(path) if not row.error), {})


def own_sample(row: Row, folder: Path) -> Sample:
    """The sample of a line with the keys that the README names; its `video` is left to the caller.

    Args:
        row: the line, parsed.
        folder: the folder that image paths are relative to.

    Raises:
        SampleError: a key is missing or of another kind.
    """
    record = row.columns
    picture_keys = [key for key in PICTURES if record.get(key)]
    absent_keys = [key for key, value in (("image", picture_keys), ("question", record.get("question"))) if not value]
    if absent_keys:
        raise SampleError(f"no {' and no '.join(absent_keys)} among the keys {sorted(record)}")
    if len(picture_keys) > 1:
        raise SampleError(f"{' and '.join(picture_keys)} are given; one of them is expected")
    texts = ("image", "question", "hint", "video")
    wrong_kinds = [f"{key} is {record[key]!r}" for key in texts if not isinstance(record.get(key) or "", str)]
    if wrong_kinds:
        raise SampleError(f"{' and '.join(wrong_kinds)}; a text is expected")
    pictures = _picture_paths(record, picture_keys[0], folder)
    answers = record.get("answers", record.get("answer"))
    answers = [answers] if isinstance(answers, str | int | float) else answers
    return Sample(
        id=row.name if record.get("id") is None else str(record["id"]),
        image=pictures[0] if picture_keys == ["image"] else None,
        question=record["question"],
        answers=_texts(answers, "answers", answers, "a text or a list of texts"),
        task=str(record.get("task") or ""),
        task_type=str(record.get("task_type") or ""),
        category=str(record.get("category") or ""),
        options=_texts(record.get("options") or [], "options", record.get("options"), "a list of texts"),
        images=pictures if picture_keys == ["images"] else (),
        frames=pictures if picture_keys == ["frames"] else (),
        fps=_frame_rate(record),
        hint=str(record.get("hint") or ""),
        ocr_tokens=_texts(record.get("ocr_tokens") or [], "ocr_tokens", record.get("ocr_tokens"), "a list of texts"),
    )


def _texts(values: Any, name: str, original: Any, expected: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
        raise SampleError(f"{name} are {original!r}; {expected} is expected")
    return tuple(map(str, values))


def _picture_paths(record: Any, key: str, folder: Path) -> tuple[Path, ...]:
    """The files that a line names, whichever of the keys it uses."""
    names = [record[key]] if key in ("image", "video") else record[key]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SampleError(f"{key} are {names!r}; a list of paths is expected")
    return tuple(folder / name for name in names)


def _frame_rate(record: Any) -> float:
    rate = record.get("fps", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise SampleError(f"fps is {rate!r}; a number above 0 is expected")
    return float(rate)
