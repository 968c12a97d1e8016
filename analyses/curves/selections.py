"""Which samples results are made from: right answers only, an effect at all, equal numbers; every exclusion counted.

The run directory keeps everything that was measured. A selection is a view of it: the same `Run`, with some samples'
status "excluded" and the reason beside it, so that every function that takes a run takes a selection of one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analyses.curves.effects import MEASURES, noise_floor, removal_effects
from analyses.runs import GROUP_COLUMNS, WRONG, HorizonError, Run, check_choice, check_target

NO_TARGET = "without the target"
NO_EFFECT = "without a removal effect at layer 0 above the noise floor"
CIRCULAR = (
    "the samples were chosen by their removal effect at layer 0: that there is an effect is then no finding, and its "
    "size is overstated"
)


@dataclass(frozen=True)
class Selection:
    """Which samples to keep; call it on a run.

    Attributes:
        only_correct: those whose most probable first token, with all visual tokens, is in the target set.
        only_effective: those whose removal effect at layer 0 exceeds the run's noise floor.
        balance: "task_type", "task" or "category" (within its task): equal numbers of samples in each, drawn at
            random from what the rest keeps.
        measure: in which the effect is taken, "p" or "log_p".
        target: one of the run's targets; the first by default. Whether a sample is answered right is judged by the
            first target that is not the model's own token.
        seed: random seed of the draw that balances.
    """

    only_correct: bool = False
    only_effective: bool = False
    balance: str | None = None
    measure: str = "p"
    target: str | None = None
    seed: int = 0

    @property
    def trivial(self) -> bool:
        """Whether every sample is kept."""
        return not (self.only_correct or self.only_effective or self.balance)

    def __call__(self, run: Run) -> Run:
        """The run with the other samples excluded; see `select_samples`."""
        if self.trivial:
            return run
        check_choice("measure", self.measure, [name for name in MEASURES if name in ("p", "log_p")])
        target = check_target(run, self.target)
        left_out = dict(run.left_out)

        def leave_out(rows: pd.Index, reason: str) -> None:
            left_out.update({int(row): reason for row in rows if row not in left_out})

        if self.only_correct:
            leave_out(run.ok.index.difference(pd.Index(_right_rows(run, target))), WRONG)
        if (self.only_effective or self.balance) and {"removal", "information"} & set(run.config.probes):
            effects = removal_effects(run, measure=self.measure, target=target)
            leave_out(run.ok.index.difference(pd.Index(effects.rows)), NO_TARGET)
        if self.only_effective:
            leave_out(_rows_without_effect(run, self.measure, target), NO_EFFECT)
        if self.balance:
            rest = run.ok[~run.ok.index.isin(list(left_out))]
            leave_out(_surplus(rest, self.balance, self.seed), f"drawn out to balance {self.balance}")
        return replace(run, left_out=left_out, caution=CIRCULAR if self.only_effective else run.caution)


def select_samples(
    run: Run,
    *,
    only_correct: bool = False,
    only_effective: bool = False,
    balance: str | None = None,
    measure: str = "p",
    target: str | None = None,
    seed: int = 0,
) -> Run:
    """A view of a run with some samples excluded, for every function that takes a run.

    Selecting on the effect and then testing for it is circular: results on the effect of such a run carry that as
    their warning. The noise floor stays that of all measured samples.

    Args:
        run: a run as it was loaded, or an earlier selection of it.
        only_correct: keep samples that the model answers right, by its most probable first token.
        only_effective: keep samples whose removal effect at layer 0 exceeds the run's noise floor.
        balance: "task_type", "task" or "category" (within its task): keep equal numbers of each.
        measure: in which the effect is taken, "p" or "log_p".
        target: one of the run's targets; the first by default.
        seed: random seed of the draw that balances.

    Returns:
        The run; `Run.excluded` lists the others with the reason, `exclusions` counts them.

    Raises:
        HorizonError: unknown words, or the run did not measure what the selection needs.
    """
    return Selection(only_correct, only_effective, balance, measure, target, seed)(run)


def exclusions(run: Run) -> dict[str, int]:
    """Reason -> number of samples excluded for it, by the run itself or by a selection; the most frequent first.

    Args:
        run: a run as it was loaded, or a selection of it.
    """
    return dict(Counter(run.excluded["error"]).most_common())


def selection_text(run: Run) -> str:
    """What was excluded, for people: "120 of 240 samples: 80 answered wrong, 40 without ..."; "" where nothing was."""
    counts = exclusions(run)
    if not counts:
        return ""
    n_kept = len(run.ok)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return f"{n_kept} of {n_kept + sum(counts.values())} samples: {reasons}"


def _right_rows(run: Run, target: str) -> np.ndarray:
    """Rows answered right, by the target or, where that is the model's own token, by the first that is not.

    Raises:
        HorizonError: nothing in the run says what is right.
    """
    if run.config.only_correct:
        return run.ok.index.to_numpy(int)
    judges = [name for name in (target, *run.config.targets) if name != "greedy"]
    if not judges:
        raise HorizonError(
            f"run {run.name} measured the target greedy only, which is right by definition: run it again with gold"
        )
    rows, _, correct = run.matrix("correct", context="removal", target=judges[0])
    if not len(rows) and len(run.ok) and judges[0] != "greedy-correct":
        raise HorizonError(f"run {run.name} says of no sample whether it was answered right: it measured no target")
    return rows[correct[:, -1] == 1] if len(rows) else rows


def _rows_without_effect(run: Run, measure: str, target: str) -> pd.Index:
    effects = removal_effects(run, measure=measure, target=target)
    floor = noise_floor(run, measure)
    if effects.layers[0] != 0:
        raise HorizonError(f"run {run.name} has no effect at layer 0 (its first cut is {effects.layers[0]})")
    if np.isnan(floor) and len(effects.rows):
        raise HorizonError(f"run {run.name} measured no noise floor to hold the effect against")
    return pd.Index(effects.rows[~(effects.values[:, 0] > floor)])


def _surplus(samples: pd.DataFrame, column: str, seed: int) -> pd.Index:
    """Rows beyond the size of the smallest group, drawn at random."""
    check_choice("column to balance", column, GROUP_COLUMNS)
    if column == "category" and not samples["category"].fillna("").any():
        raise HorizonError("no sample has a category to balance over")
    columns = ["task", "category"] if column == "category" else [column]
    groups = [rows.index for _, rows in samples.groupby([samples[name].fillna("") for name in columns])]
    least = min(map(len, groups), default=0)
    rng = np.random.default_rng(seed)
    return pd.Index([row for rows in groups for row in rng.permutation(rows)[least:]], dtype=int)
