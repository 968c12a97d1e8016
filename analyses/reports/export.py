"""Tables for papers and programs: CSV with raw numbers, LaTeX (booktabs) and Markdown with rounded ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from analyses.reports.text import Table, to_record, with_notes
from analyses.runs import HorizonError, check_choice

FORMATS = ("text", "markdown", "latex")

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def render(table: Table, form: str = "text") -> str:
    """One table as text, Markdown or LaTeX; numbers as rounded as the table holds them.

    Args:
        table: a table of results, for example from `horizon_table`.
        form: one of `FORMATS`.

    Raises:
        HorizonError: the format is unknown.
    """
    check_choice("table format", form, FORMATS)
    noted = with_notes(table)
    if form == "text":
        return str(noted)
    return _markdown(noted) if form == "markdown" else _latex(noted)


def to_csv(results: Sequence[Any]) -> str:
    """Raw numbers of results (horizons, collapse layers, differences), one row a result, full precision.

    Groups become columns of their own (`group.task_type`), intervals two columns (`interval.low`, `interval.high`),
    arrays and parameters one JSON cell; what is missing is empty.

    Args:
        results: dataclasses of one kind.

    Raises:
        HorizonError: there is nothing to write.
    """
    if not results:
        raise HorizonError("there is no result to write as CSV")
    rows = [_flatten(to_record(result)) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _flatten(record: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name == "group":
            flat |= {f"group.{column}": label for column, label in value.items()}
        elif name.endswith("interval"):
            flat |= {f"{name}.low": (value or [None])[0], f"{name}.high": (value or [None])[-1]}
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


def _markdown(table: Table) -> str:
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = [f"{number}. {note}" for number, note in enumerate(table.notes, start=1)]
    return "\n".join([f"**{table.title}**", "", *body, *([""] if notes else []), *notes])


def _latex(table: Table) -> str:
    """A tabular with the rules of booktabs; the title as a comment, since captions are the author's."""
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in (table.columns, *table.rows)]
    return "\n".join(
        [
            f"% {table.title}; needs \\usepackage{{booktabs}}",
            *(f"% [{number}] {note}" for number, note in enumerate(table.notes, start=1)),
            rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _escaped(cell: str) -> str:
    return "".join(_LATEX.get(character, character) for character in cell)
