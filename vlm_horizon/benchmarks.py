"""The command `tasks`: which benchmarks are known, what is asked and how it is scored; and the README's table of them.

`python -m vlm_horizon.benchmarks README.md` writes the table between its two markers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from probes.tasks import TASKS

BEGIN, END = "<!-- tasks: begin -->", "<!-- tasks: end -->"
COLUMNS = ("task", "type", "answer", "scorer", "dataset id", "source")


def tasks() -> None:
    """List the known benchmarks, for --task: type, answer rule, scorer, dataset id, and the prompt below."""
    for task in TASKS.values():
        print(f"{task.name:15} {task.task_type:14} {task.answer:7} {task.scorer:9} {task.hub}")
        print(f"    {task.prompt!r}")
    print("\nOthers work with --question, --answer and --image, which name columns; --prompt replaces any prompt.")


def task_table() -> str:
    """The benchmarks as a Markdown table, one row an entry of `TASKS`."""
    rows = [(t.name, t.task_type, t.answer, t.scorer, f"`{t.hub}`", t.source) for t in TASKS.values()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows))


def write_table(path: Path) -> None:
    """Replace what stands between the two markers of a file by the table."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{task_table()}{END}{after}")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
