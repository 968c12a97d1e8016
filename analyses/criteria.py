"""Criteria of the information horizon: which effect each looks at, and below what the effect counts as gone.

To add one, write the function that makes its curves and the one that makes its threshold, and register both in
`CRITERIA`; the search for the layer, its interval and the tables are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analyses.effects import EffectCurves, check_choice, information_magnitude, removal_effects
from analyses.runs import HorizonError, Run


@dataclass(frozen=True)
class Criterion:
    """What is looked at, and below what it counts as gone.

    Attributes:
        context: where its numbers come from: "removal", or the context of the token grids.
        probe: what the run must have measured.
        measures: that it is defined for.
        effects: (run, measure, target) -> its curves, and the removal effects of the same samples.
        threshold: ((..., layer) curve, noise floor, share, margin) -> (...) threshold, which never falls when the
            curve rises anywhere.
        half_depth: whether half depth is defined for it.
    """

    context: str
    probe: str
    measures: tuple[str, ...]
    effects: Callable[[Run, str, str], tuple[EffectCurves, EffectCurves]]
    threshold: Callable[[np.ndarray, float, float, float], np.ndarray]
    half_depth: bool = False


def _removal_curves(run: Run, measure: str, target: str) -> tuple[EffectCurves, EffectCurves]:
    curves = removal_effects(run, measure=measure, target=target)
    return curves, curves


def _removal_threshold(curve: np.ndarray, floor: float, share: float, margin: float) -> np.ndarray:
    return np.maximum(share * curve[..., 0], floor + margin)


def _information_curves(run: Run, measure: str, target: str) -> tuple[EffectCurves, EffectCurves]:
    return information_magnitude(run, context="keep-one", measure=measure, target=target)


def _information_threshold(curve: np.ndarray, floor: float, share: float, margin: float) -> np.ndarray:
    return share * curve.max(axis=-1)


CRITERIA = {
    "removal": Criterion("removal", "removal", ("p", "log_p"), _removal_curves, _removal_threshold, half_depth=True),
    "information": Criterion("keep-one", "information", ("p", "log_p"), _information_curves, _information_threshold),
}


def criteria_of(run: Run, criterion: str | None = None) -> list[str]:
    """The criterion asked for, or every one that the run can carry.

    Raises:
        HorizonError: the criterion is unknown, or the run did not measure what it needs.
    """

    def carried(name: str) -> bool:
        rule = CRITERIA[name]
        return rule.probe in run.config.probes and rule.context in ("removal", *run.config.contexts)

    if criterion is None:
        return [name for name in CRITERIA if carried(name)]
    check_choice("criterion", criterion, tuple(CRITERIA))
    if not carried(criterion):
        rule = CRITERIA[criterion]
        raise HorizonError(
            f"the criterion {criterion!r} needs the probe {rule.probe!r} in the context {rule.context!r}, "
            f"which run {run.name} did not measure"
        )
    return [criterion]
