"""Criteria of the information horizon: which effect each looks at, and below what the effect counts as gone.

To add one, write the function that makes its curves and the one that makes its threshold, and register both in
`CRITERIA` with the rule by which it settles; the search, its interval and the tables are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from analyses.arrays.depths import settled_layer
from analyses.curves.effects import EffectCurves, information_curves, removal_effects
from analyses.runs import METHOD_TABLE, HorizonError, Run, check_choice


@dataclass(frozen=True)
class Limits:
    """Below what an effect counts as gone, and above what it counts as there at all.

    Attributes:
        share: of the reference effect below which an effect counts as gone.
        margin: above the noise floor below which an effect counts as gone, in p or in nats.
        fall: in accuracy, as a share of the samples, up to which the answers count as unchanged.
        precision: half-width of the interval of such a fall above which a layer stays undecided.
        eta: KL(removed || all) in nats up to which the output counts as unchanged; VTW's value for LLaVA-1.5-7B.
        eligible_p: what the effect at layer 0 must exceed above the noise floor, in p.
        eligible_log: what it must exceed above the noise floor in log measures, nats.
    """

    share: float = 0.05
    margin: float = 0.01
    fall: float = 0.01
    precision: float = 0.01
    eta: float = 0.003
    eligible_p: float = 0.01
    eligible_log: float = 0.05

    def least_effect(self, measure: str, noise_floor: float) -> float:
        """What the effect at layer 0 must exceed to be there at all, in p or, of log measures, in nats."""
        return noise_floor + (self.eligible_p if measure == "p" else self.eligible_log)


@dataclass(frozen=True)
class Criterion:
    """What is looked at, below what it counts as gone, and from where on.

    Attributes:
        looks_at: the effect in words, as it reads in "the ... at layer 3".
        context: where its numbers come from: "removal", or the context of the token grids.
        probe: name of the probe that the run must have been made with.
        effects: (run, measure, target) -> its curves, and the removal effects of the same samples in `measure`.
        threshold: ((..., layer) curve, noise floor, limits) -> (...) threshold, which never falls when the curve
            rises anywhere.
        measure: of its curves; None if they follow the measure that is asked for.
        measures: that may be asked for: of the removal effect, and of its curves unless `measure` is given.
        signed: only a positive effect counts; else its magnitude does.
        inclusive: an effect that equals the threshold is gone as well.
        settles: the effect must be gone at every later layer, too. Else the first layer where it is gone is taken,
            as a point estimate without an interval.
        flips: the effects are flips of single answers, which few images say little about: the layer is undecided
            where the effect is not known to within `Limits.precision`.
        half_depth: whether half depth is defined for it.
    """

    looks_at: str
    context: str
    probe: str
    effects: Callable[[Run, str, str], tuple[EffectCurves, EffectCurves]]
    threshold: Callable[[np.ndarray, float, Limits], np.ndarray]
    measure: str | None = None
    measures: tuple[str, ...] = ("p", "log_p")
    signed: bool = False
    inclusive: bool = False
    settles: bool = True
    flips: bool = False
    half_depth: bool = False


def method_warning(run: Run, criterion: str) -> str:
    """What a criterion's numbers must not be taken for because of how the run's token grids were measured, or ""."""
    return METHOD_TABLE[run.config.method].caution if CRITERIA[criterion].probe == "information" else ""


def settle(rule: Criterion, curves: np.ndarray, threshold: np.ndarray | float, layers: np.ndarray) -> np.ndarray:
    """Horizons of mean effect curves by the rule of a criterion.

    Args:
        rule: a value of `CRITERIA`.
        curves: (..., layer) mean effects.
        threshold: (...) in the unit of the curves.
        layers: (layer,) int, L last.

    Returns:
        (...) layer; L, "not before the end", where the effect is gone nowhere earlier.

    >>> curve, layers = np.array([0.9, 0.002, 0.1, 0.003, 0.0]), np.arange(5)
    >>> int(settle(CRITERIA["kl"], curve, 0.003, layers)), int(settle(CRITERIA["vtw"], curve, 0.003, layers))
    (3, 1)
    """
    above = is_above(rule, curves, threshold)
    if rule.settles:
        return settled_layer(above.astype(float), 0.5, layers)
    return layers[np.where(above.all(axis=-1), above.shape[-1] - 1, above.argmin(axis=-1))]


def is_above(rule: Criterion, curves: np.ndarray, threshold: np.ndarray | float) -> np.ndarray:
    """(..., layer) bool: where (..., layer) mean effects are not gone."""
    size = curves if rule.signed else np.abs(curves)
    limit = np.asarray(threshold)[..., None]
    return size > limit if rule.inclusive else size >= limit


def criteria_of(run: Run, criterion: str | None = None) -> list[str]:
    """The criterion asked for, or every one that the run can carry.

    Criteria that rest on first-order token grids must be asked for: these rank windows better than they size them.

    Raises:
        HorizonError: the criterion is unknown, or the run did not measure what it needs.
    """

    def carried(name: str) -> bool:
        rule = CRITERIA[name]
        return rule.probe in run.config.probes and rule.context in ("removal", *run.config.contexts)

    if criterion is None:
        return [name for name in CRITERIA if carried(name) and not method_warning(run, name)]
    check_choice("criterion", criterion, tuple(CRITERIA))
    if not carried(criterion):
        rule = CRITERIA[criterion]
        raise HorizonError(
            f"the criterion {criterion!r} needs the probe {rule.probe!r} in the context {rule.context!r}, "
            f"which run {run.name} did not measure"
        )
    return [criterion]


def _removal_curves(run: Run, measure: str, target: str) -> tuple[EffectCurves, EffectCurves]:
    curves = removal_effects(run, measure=measure, target=target)
    return curves, curves


def _stored_curves(stored: str, run: Run, measure: str, target: str) -> tuple[EffectCurves, EffectCurves]:
    """A measure of its own, and the removal effects in the measure asked for; NaN for samples that lack those."""
    curves = removal_effects(run, measure=stored, target=target)
    removal = removal_effects(run, measure=measure, target=target)
    by_row = dict(zip(removal.rows, removal.values, strict=True))
    missing = np.full(len(removal.layers), np.nan)
    aligned = np.array([by_row.get(row, missing) for row in curves.rows]).reshape(-1, len(missing))
    return curves, replace(curves, values=aligned, layers=removal.layers, measure=removal.measure, unit=removal.unit)


def _grid_curves(statistic: str, run: Run, measure: str, target: str) -> tuple[EffectCurves, EffectCurves]:
    curves, removal = information_curves(run, (statistic, "removal"), measure=measure, target=target)
    return curves, removal


def _share_of_first(curve: np.ndarray, floor: float, limits: Limits) -> np.ndarray:
    return np.maximum(limits.share * curve[..., 0], floor + limits.margin)


def _share_of_largest(curve: np.ndarray, floor: float, limits: Limits) -> np.ndarray:
    return limits.share * curve.max(axis=-1)


def _fall(curve: np.ndarray, floor: float, limits: Limits) -> np.ndarray:
    return np.full(curve.shape[:-1], limits.fall)


def _eta(curve: np.ndarray, floor: float, limits: Limits) -> np.ndarray:
    return np.full(curve.shape[:-1], limits.eta)


_KL = Criterion(
    looks_at="mean KL divergence over the vocabulary",
    context="removal",
    probe="removal",
    effects=partial(_stored_curves, "kl"),
    threshold=_eta,
    measure="kl",
    inclusive=True,
)

CRITERIA = {
    "removal": Criterion(
        looks_at="mean removal effect",
        context="removal",
        probe="removal",
        effects=_removal_curves,
        threshold=_share_of_first,
        half_depth=True,
    ),
    "information": Criterion(
        looks_at="mean magnitude of single windows' information",
        context="keep-one",
        probe="information",
        effects=partial(_grid_curves, "magnitude"),
        threshold=_share_of_largest,
    ),
    "spread": Criterion(
        looks_at="spread of information over a sample's windows",
        context="keep-one",
        probe="information",
        effects=partial(_grid_curves, "spread"),
        threshold=_share_of_largest,
    ),
    "accuracy": Criterion(
        looks_at="fall in accuracy",
        context="removal",
        probe="removal",
        effects=partial(_stored_curves, "correct"),
        threshold=_fall,
        measure="correct",
        signed=True,
        inclusive=True,
        flips=True,
    ),
    "kl": _KL,
    "vtw": replace(_KL, settles=False),  # the published search for the layer of VTW, arXiv 2405.05803
}
