"""The command `tasks`: which benchmarks are known, what is asked and how it is scored."""

from __future__ import annotations

from probes.data.tasks import TASKS


def tasks() -> None:
    """List the known benchmarks, for --task: type, answer rule, scorer, dataset id, and the prompt below."""
    for task in TASKS.values():
        print(f"{task.name:15} {task.task_type:14} {task.answer:7} {task.scorer:9} {task.hub}")
        print(f"    {task.prompt!r}")
    print("\nOthers work with --question, --answer and --image, which name columns; --prompt replaces any prompt.")
