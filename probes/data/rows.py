"""Rows of sample files: what every reader yields, and which of them a user wants (no torch here)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analyses.runs import HorizonError

_CONDITION = re.compile(r"\s*(.+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One row of a file, whatever its format.

    Attributes:
        where: file and line, for a reason that a user can look up.
        name: the sample's id where the row has none.
        columns: what the row holds, by name.
        error: why it cannot be read; the columns are then those that could be, if any.
    """

    where: str
    name: str
    columns: Mapping[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Condition:
    """One comparison of a column with a value, as in `split=val`, `n>3` or `category!=math`.

    Both sides are compared as numbers where both are some, else as text. A list matches `=` if one of its elements
    does. A row without the column, or with nothing in it, matches `!=` only.
    """

    column: str
    sign: str
    value: str

    def holds(self, row: Row) -> bool:
        """Whether a row matches."""
        cell = row.columns.get(self.column)
        if self.sign == "!=":
            return not self._equals(cell)
        if self.sign == "=":
            return self._equals(cell)
        if cell is None or isinstance(cell, list):
            return False
        left, right = _numbers(cell, self.value) or (str(cell), self.value)
        less, equal = left < right, left == right  # type: ignore[operator]
        return {"<": less, "<=": less or equal, ">": not less and not equal, ">=": not less}[self.sign]

    def _equals(self, cell: Any) -> bool:
        values = cell if isinstance(cell, list) else [cell]
        pairs = [_numbers(value, self.value) or (str(value), self.value) for value in values if value is not None]
        return any(left == right for left, right in pairs)


def parse_conditions(texts: tuple[str, ...]) -> tuple[Condition, ...]:
    """Read conditions on columns.

    Args:
        texts: as in `split=val`, `n>3`, `category!=math`; also `==`, `<`, `<=`, `>=`.

    Raises:
        HorizonError: one cannot be read.
    """
    conditions = []
    for text in texts:
        parts = _CONDITION.fullmatch(text)
        if parts is None:
            raise HorizonError(f"condition {text!r} cannot be read; write it as split=val, n>3 or category!=math")
        conditions.append(Condition(parts[1], "=" if parts[2] == "==" else parts[2], parts[3]))
    return tuple(conditions)


def _numbers(first: Any, second: str) -> tuple[float, float] | None:
    try:
        return float(first), float(second)
    except (TypeError, ValueError):
        return None
