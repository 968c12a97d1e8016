"""The command `tasks`: which benchmarks are known, and what is asked and scored (no torch)."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("task", "type", "answer", "scorer", "dataset id", "source")


def tasks() -> None:
    """List the known benchmarks: type, answer rule, scorer, dataset id, source and prompt."""
    from probes.tasks import TASKS

    table = Table(title="Known benchmarks, for --task; others work with --question, --answer and --image")
    for name in (*COLUMNS, "prompt"):
        table.add_column(name, overflow="fold")
    for task in TASKS.values():
        cells = (task.name, task.task_type, task.answer, task.scorer, task.hub, task.source, task.prompt)
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


def task_table() -> str:
    """The same without prompts, as the README shows it: a Markdown table, made from the entries."""
    from probes.tasks import TASKS

    rows = [(t.name, t.task_type, t.answer, t.scorer, f"`{t.hub}`", t.source) for t in TASKS.values()]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
