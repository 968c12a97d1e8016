"""The table of families in the README, made from the code so that it stays true.

`python -m vlm_horizon.families README.md` writes it between its two markers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from analyses.runs import HorizonError
from probes.families import FAMILIES

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
_EXTRA = {"prefix": "prompt attends both ways", "image": "image attends both ways, sliding layers"}


def families_table() -> str:
    """The families as a Markdown table, one row an entry of `FAMILIES`."""
    rows = [
        "| family | `model_type` | grids | placeless tokens | input | special |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES.values():
        name = f"| {family.title} | `{family.name}` |"
        if family.refused:
            rows.append(f"{name} refused: {family.refused.split(':')[0]} | | | |")
            continue
        special = [_EXTRA[family.bidirectional]] if family.bidirectional else []
        special += ["deepstack"] if family.deepstack else []
        takes = "images, video frames" if family.video else "images"
        rows.append(f"{name} {family.grid} | {family.placeless or 'none'} | {takes} | {', '.join(special)} |")
    return "\n".join(rows) + "\n"


def write_table(path: Path) -> None:
    """Replace what stands between the two markers of a file by the table.

    Raises:
        HorizonError: the file lacks a marker.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise HorizonError(f"{path} has no place for the table: put {BEGIN} and {END} around it")
    path.write_text(f"{before}{BEGIN}\n{families_table()}{END}{after}")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
