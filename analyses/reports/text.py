"""Results as tables for people and as records for programs: rounded text on one side, plain JSON on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.runs import tokens_text
from analyses.verdicts.horizon import NOT_REACHED


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: what the table shows.
        columns: headings.
        rows: cells, one tuple a row, as long as `columns`.
        notes: sentences under the table, numbered from 1.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Aligned plain text, columns two spaces apart."""
        widths = [max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)]
        lines = [self.columns, tuple("-" * width for width in widths), *self.rows]
        body = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        notes = (f"[{number}] {note}" for number, note in enumerate(self.notes, start=1))
        return "\n".join([self.title, *(line.rstrip() for line in body), *notes])


def with_notes(table: Table) -> Table:
    """The same table with long cells moved below it: "none: <reason>" becomes "none [1]".

    >>> with_notes(Table("t", ("ECL",), [("none: flat",), ("3",), ("none: flat",)]))
    Table(title='t', columns=('ECL',), rows=[('none [1]',), ('3',), ('none [1]',)], notes=('flat',))
    """
    numbers: dict[str, int] = {}

    def shortened(cell: str) -> str:
        word, colon, reason = cell.partition(": ")
        if not colon or word != "none":
            return cell
        return f"none [{numbers.setdefault(reason, len(table.notes) + len(numbers) + 1)}]"

    rows = [tuple(shortened(cell) for cell in row) for row in table.rows]
    return replace(table, rows=rows, notes=(*table.notes, *numbers))


def layer_text(layer: int | None, reason: str, n_layers: int | None = None) -> str:
    """A layer for people: "4", "not before the end", or "none: <reason>".

    >>> layer_text(8, "", 8), layer_text(None, "one image")
    ('not before the end', 'none: one image')
    """
    if layer is None:
        return f"none: {reason}"
    return NOT_REACHED if layer == n_layers else str(layer)


def interval_text(
    interval: tuple[float, float] | None, digits: int = 0, *, end: int | None = None, signed: bool = False
) -> str:
    """An interval for people; an upper end at the layer `end` reads "end", none at all "-".

    >>> interval_text((3, 8)), interval_text((3, 8), end=8), interval_text((-0.04, 1.0), 2, signed=True)
    ('[3, 8]', '[3, end]', '[-0.04, +1.00]')
    """
    if interval is None:
        return "-"
    low, high = (number_text(value, digits, signed=signed) for value in interval)
    low, high = ("end" if value == end else text for value, text in zip(interval, (low, high), strict=True))
    return f"[{low}, {high}]"


def number_text(value: float | None, digits: int, *, signed: bool = False) -> str:
    """A number with fixed digits; "-" where there is none, and never a negative zero.

    >>> number_text(-0.001, 2), number_text(1.25, 1, signed=True), number_text(None, 2)
    ('0.00', '+1.2', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    rounded = round(float(value), digits) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def group_text(group: dict[str, str]) -> str:
    """A group for people: its values, or "all"."""
    return " / ".join(group.values()) or "all"


def model_text(result: Any) -> str:
    """The model of a result for people, and the removed tokens where these are not the visual ones.

    Args:
        result: with `model`, `group` and, if it is about removals, `tokens`.
    """
    in_group = "tokens" in result.group
    return str(result.model) if in_group else tokens_text(result.model, getattr(result, "tokens", "visual"))


def to_record(result: Any) -> Any:
    """A result (or a list of results) as JSON holds it: dicts, lists, plain numbers, None for what is not a number.

    Tables become lists of rows.

    Raises:
        TypeError: something in it has no place in JSON.

    >>> to_record([np.float64("nan"), np.int64(3), (1.5, None)])
    [None, 3, [1.5, None]]
    """
    if is_dataclass(result) and not isinstance(result, type):
        return {f.name: to_record(getattr(result, f.name)) for f in fields(result)}
    if isinstance(result, dict):
        return {str(key): to_record(value) for key, value in result.items()}
    if isinstance(result, pd.DataFrame):
        return to_record(result.to_dict("records"))
    if isinstance(result, np.ndarray | list | tuple):
        return [to_record(value) for value in result]
    if isinstance(result, np.generic):
        return to_record(result.item())
    if isinstance(result, float):
        return result if math.isfinite(result) else None
    if result is None or isinstance(result, bool | int | str):
        return result
    raise TypeError(f"{type(result).__name__} has no place in JSON")
