"""The effects that a horizon is read off: what a criterion looks at in one run, and in each group of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analyses.curves.effects import NOISE_MEASURES, EffectCurves, noise_floor
from analyses.runs import Run, check_choice
from analyses.verdicts.criteria import CRITERIA, Criterion, criteria_of, method_warning


@dataclass(frozen=True)
class GroupEffects:
    """The effects of the samples of one group by one criterion, and what they are held against.

    Attributes:
        values: (sample, layer) effects in the unit of the criterion's measure, L last.
        images: (sample,) int cluster codes of the images.
        layers: (layer,) int, the measured ones of 0..L, ascending.
        removal: (sample,) removal effect at layer 0 in `measure`, which decides whether there is an effect at all.
        criterion: a key of `CRITERIA`.
        measure: "p" or "log_p", of the removal effect, and of `values` unless the criterion has its own.
        noise_floor: noise floor of the run, in the unit of `measure`.
        effect_floor: noise floor of `values` where the criterion has a measure of its own; not held against the
            threshold if None.
        skipped: (skipped,) int, layers that could have been measured and were not. A horizon is named only where
            none of them lies between it and the measured layer before it.
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        target: name of the target.
        tokens: whose removal the effects are of: "visual", "text" or "all".
        method: what the numbers must not be taken for because of how they were measured, or "".
        caution: what the selection of the samples does to every result on the effect, or "".
    """

    values: np.ndarray
    images: np.ndarray
    layers: np.ndarray
    removal: np.ndarray
    criterion: str = "removal"
    measure: str = "p"
    noise_floor: float = 0.0
    effect_floor: float | None = None
    skipped: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    model: str = ""
    group: dict[str, str] = field(default_factory=dict)
    target: str = ""
    tokens: str = "visual"
    method: str = ""
    caution: str = ""

    @property
    def rule(self) -> Criterion:
        """The criterion itself."""
        return CRITERIA[self.criterion]

    @property
    def whole(self) -> np.ndarray:
        """(sample,) bool, whether a sample's curve and its removal effect at layer 0 are numbers throughout."""
        return np.isfinite(self.values).all(axis=1) & np.isfinite(self.removal)

    @property
    def own_floor(self) -> float:
        """Noise floor of `values` in their own unit; NaN for a measure that has none."""
        if self.rule.measure is None:
            return self.noise_floor
        return float("nan") if self.effect_floor is None else self.effect_floor

    def of(self, samples: np.ndarray) -> GroupEffects:
        """The effects of some of the samples, given as a (sample,) bool mask."""
        return replace(self, values=self.values[samples], images=self.images[samples], removal=self.removal[samples])


@dataclass(frozen=True)
class RunEffects:
    """What one criterion looks at in one run.

    Attributes:
        run: the run.
        criterion: a key of `CRITERIA`.
        measure: "p" or "log_p", of the removal effect, and of `curves` unless the criterion has its own.
        target: name of the target.
        curves: one curve a sample, of the effect that the criterion looks at.
        removal: removal effects of the same samples, in `measure`.
        noise_floor: noise floor of the run, in the unit of `measure`.
        effect_floor: noise floor of `curves` in their own unit; None where no floor is measured for it.
    """

    run: Run
    criterion: str
    measure: str
    target: str
    curves: EffectCurves
    removal: EffectCurves
    noise_floor: float
    effect_floor: float | None

    @property
    def whole(self) -> np.ndarray:
        """(sample,) bool, whether a sample has numbers wherever it was measured, and a removal effect at layer 0."""
        return self.curves.finite & np.isfinite(self.removal.values[:, 0])

    def of(self, rows: Sequence[int] | np.ndarray, group: dict[str, str] | None = None) -> GroupEffects:
        """The effects of the samples with these row numbers, over the layers at which all of them were measured."""
        curves = self.curves.of(rows)
        return GroupEffects(
            values=curves.values,
            images=curves.images,
            layers=curves.layers,
            removal=self.removal.of(rows).values[:, 0],
            criterion=self.criterion,
            measure=self.measure,
            noise_floor=self.noise_floor,
            effect_floor=self.effect_floor,
            skipped=curves.skipped,
            model=self.run.model,
            group=group or {},
            target=self.target,
            tokens=self.run.config.tokens,
            method=method_warning(self.run, self.criterion),
            caution=self.run.caution,
        )

    def whole_of(self, rows: Sequence[int] | np.ndarray, group: dict[str, str] | None = None) -> GroupEffects:
        """The same without the samples that have gaps."""
        return self.of(self.curves.rows[np.isin(self.curves.rows, rows) & self.whole], group)


def run_effects(run: Run, criterion: str, measure: str, target: str) -> RunEffects:
    """Read what a criterion looks at in a run.

    Args:
        run: a run that can carry the criterion.
        criterion: a key of `CRITERIA`.
        measure: "p" or "log_p".
        target: one of the run's targets.

    Raises:
        HorizonError: unknown words, or the run did not measure what the criterion needs.
    """
    criteria_of(run, criterion)
    rule = CRITERIA[criterion]
    check_choice(f"measure of the criterion {criterion!r}", measure, rule.measures)
    curves, removal = rule.effects(run, measure, target)
    return RunEffects(
        run=run,
        criterion=criterion,
        measure=measure,
        target=target,
        curves=curves,
        removal=removal,
        noise_floor=noise_floor(run, measure),
        effect_floor=noise_floor(run, curves.measure) if curves.measure in NOISE_MEASURES else None,
    )
