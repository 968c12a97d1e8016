"""The command line: `vlm-horizon demo`, `run`, `tasks`, `cost`, `show`, `compare`, `plan`, `check`, `figures`.

Exit codes: 0 done, 1 some samples failed (listed), 2 unusable arguments, 130 interrupted (what finished is on disk).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from analyses.runs import HorizonError
from vlm_horizon.commands.check import check
from vlm_horizon.commands.conclude import compare, plan, show
from vlm_horizon.commands.cost import cost
from vlm_horizon.commands.figures import figures
from vlm_horizon.commands.run import demo, run
from vlm_horizon.commands.tasks import tasks

app = typer.Typer(
    name="vlm-horizon",
    help="Measure where visual tokens live and die with depth in a vision-language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name=app.info.name)
    except (HorizonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Measure where visual tokens live and die with depth in a vision-language model."""
    if version:
        print(f"vlm-horizon {installed_version('vlm-horizon')}")
        raise typer.Exit


for command in (demo, run, tasks, cost, show, compare, plan, check, figures):
    app.command()(command)
