"""The tables in the README that are made from the code, so that they stay true.

`python -m vlm_horizon.readme README.md` writes each between its two markers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from analyses.runs import HorizonError
from probes.data.tasks import TASKS
from probes.models.families import FAMILIES

TASK_COLUMNS = ("task", "type", "answer", "scorer", "dataset id", "source")
FAMILY_COLUMNS = ("family", "`model_type`", "grids", "placeless tokens", "input", "special")
SPECIAL = {"prefix": "prompt attends both ways", "image": "image attends both ways, sliding layers"}


def task_table() -> str:
    """Return the benchmarks as a Markdown table with one row for each entry of `TASKS`."""
    return _markdown(
        TASK_COLUMNS, [(t.name, t.task_type, t.answer, t.scorer, f"`{t.hub}`", t.source) for t in TASKS.values()]
    )


def family_table() -> str:
    """Return the families as a Markdown table with one row for each entry of `FAMILIES`."""
    rows = []
    for family in FAMILIES.values():
        name = (family.title, f"`{family.name}`")
        if family.refused:
            rows.append((*name, f"refused: {family.refused.split(':')[0]}", "", "", ""))
            continue
        special = [SPECIAL[family.bidirectional]] if family.bidirectional else []
        special += ["deepstack"] if family.deepstack else []
        pictures = "images, video frames" if family.video else "images"
        rows.append((*name, family.grid, family.placeless or "none", pictures, ", ".join(special)))
    return _markdown(FAMILY_COLUMNS, rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with a line feed after every row."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, ("---",) * len(columns), *rows))


TABLES = {"families": family_table, "tasks": task_table}


def write_tables(path: Path) -> None:
    """Replace what stands between the two markers of every table of a file; the file is written once, or not at all.

    Raises:
        HorizonError: the file lacks a marker of one of the tables.
    """
    text = path.read_text()
    for name, table in TABLES.items():
        begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
        before, begin_marker, rest = text.partition(begin)
        _, end_marker, after = rest.partition(end)
        if not begin_marker or not end_marker:
            raise HorizonError(f"{path} has no place for the table of {name}: put {begin} and {end} around it")
        text = f"{before}{begin}\n{table()}{end}{after}"
    path.write_text(text)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
