"""Options that the commands on run directories share, in groups: which samples, which effect, and how it is printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from analyses.curves.selections import Selection, selection_text
from analyses.reports.export import FORMATS
from analyses.runs import Run, check_choice, load_runs
from analyses.runs.options import Option

OUTPUTS = (*FORMATS, "csv", "json")


@dataclass(frozen=True)
class Effect:
    """The effect that results are about."""

    PANEL: ClassVar = "Effect"

    measure: Annotated[str, Option(text="of the effect: p or log_p.")] = "p"
    target: Annotated[str | None, Option(text="of the runs' targets; their first by default.")] = None


@dataclass(frozen=True)
class Samples:
    """The samples that results are made from."""

    PANEL: ClassVar = "Samples"

    only_correct: Annotated[bool, Option(text="only samples whose first token is right.")] = False
    only_effective: Annotated[
        bool,
        Option(text="only samples whose removal effect at layer 0 exceeds the noise floor."),
    ] = False
    balance: Annotated[
        str | None, Option(text="equal numbers of samples of each task_type, task or category, drawn at random.")
    ] = None
    balance_seed: Annotated[int, Option(text="of that draw.")] = 0

    def open(self, paths: Sequence[Path], effect: Effect | None = None) -> list[Run]:
        """Return the runs with only the selected samples; the selection uses this effect, or the default one."""
        effect = effect or Effect()
        selection = Selection(
            only_correct=self.only_correct,
            only_effective=self.only_effective,
            balance=self.balance,
            measure=effect.measure,
            target=effect.target,
            seed=self.balance_seed,
        )
        return [selection(run) for run in load_runs(paths)]


@dataclass(frozen=True)
class Output:
    """How results are printed."""

    PANEL: ClassVar = "Output"

    output: Annotated[
        str, Option(text=f"one of {', '.join(OUTPUTS)}; csv and json hold raw numbers.", flag="format")
    ] = "text"
    as_json: Annotated[bool, Option(text="short for --format json.", flag="json")] = False

    @property
    def form(self) -> str:
        """The format, one of `OUTPUTS`; raises HorizonError for another word."""
        form = "json" if self.as_json else self.output
        check_choice("format", form, OUTPUTS)
        return form


def say_exclusions(runs: Sequence[Run]) -> None:
    """Print on standard error how many samples of each run a selection leaves out, and what that does to results."""
    for run in runs:
        for sentence in filter(None, (selection_text(run), run.caution)):
            print(f"{run.path}: {sentence}", file=sys.stderr)
