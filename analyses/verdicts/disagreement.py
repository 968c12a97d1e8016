"""Where the criteria of the horizon disagree with the default one, and why, in words that carry the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.curves.findings import RemovalFinding
from analyses.runs import METHOD_TABLE, HorizonError, Run, as_runs, tokens_text
from analyses.verdicts.criteria import CRITERIA, is_above
from analyses.verdicts.horizon import NOT_REACHED, Horizon, HorizonDetector, find_horizon

CAUTIONS = tuple(method.caution for method in METHOD_TABLE.values() if method.caution)


@dataclass(frozen=True)
class CriterionVerdict(RemovalFinding):
    """What one criterion says of one group, beside what the default says.

    Attributes:
        criterion: a key of `CRITERIA`. measure: of its effect.
        layer: its horizon, or None. interval: of it, or None.
        censored: the horizon is "not before the end".
        shift: its layer minus the default's; None if either is missing.
        apart: the two intervals have no layer in common; None if either is missing.
        why: what differs from the default, and why.
        n_layers: L.
    """

    criterion: str
    measure: str
    layer: int | None
    interval: tuple[int, int] | None
    censored: bool
    shift: int | None
    apart: bool | None
    why: str
    n_layers: int


def compare_criteria(
    run_or_runs: Run | Sequence[Run],
    *,
    by: Sequence[str] = ("task_type",),
    default: str = "removal",
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
) -> list[CriterionVerdict]:
    """Find the horizon by every criterion that each run can carry, and say where and why they disagree.

    Args:
        run_or_runs: one run or several.
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        default: the criterion that the others are held against; the runs must carry it.
        measure: "p" or "log_p".
        target: name of one of the runs' targets; their first by default.
        detector: parameters.

    Returns:
        One verdict a run, group and criterion, the default first in each group.

    Raises:
        HorizonError: unknown words, or a run that cannot carry the default.
    """
    return [
        verdict
        for run in as_runs(run_or_runs)
        for verdict in explain_criteria(
            find_horizon(run, by=by, measure=measure, target=target, detector=detector), default=default
        )
    ]


def explain_criteria(horizons: Sequence[Horizon], *, default: str = "removal") -> list[CriterionVerdict]:
    """Hold the horizons of one run by several criteria against those by the default, group by group.

    Args:
        horizons: results of `find_horizon` on one run, in any order.
        default: the criterion that the others are held against.

    Raises:
        HorizonError: a group has no result by the default.
    """
    groups: dict[tuple[str, ...], list[Horizon]] = {}
    for horizon in horizons:
        groups.setdefault((tokens_text(horizon.model, horizon.tokens), *horizon.group.values()), []).append(horizon)
    verdicts = []
    for name, members in groups.items():
        reference = next((member for member in members if member.criterion == default), None)
        if reference is None:
            raise HorizonError(
                f"no horizon by the criterion {default!r} to hold the others against: {' / '.join(name)}"
            )
        others = [member for member in members if member is not reference]
        verdicts += [_verdict(member, reference) for member in (reference, *others)]
    return verdicts


def _verdict(horizon: Horizon, reference: Horizon) -> CriterionVerdict:
    shift = None if horizon.layer is None or reference.layer is None else horizon.layer - reference.layer
    apart = None
    if horizon.interval is not None and reference.interval is not None:
        apart = horizon.interval[0] > reference.interval[1] or reference.interval[0] > horizon.interval[1]
    return CriterionVerdict(
        model=horizon.model,
        group=horizon.group,
        criterion=horizon.criterion,
        measure=horizon.measure,
        layer=horizon.layer,
        interval=horizon.interval,
        censored=horizon.censored,
        reason=horizon.reason,
        n_samples=horizon.n_samples,
        n_images=horizon.n_images,
        shift=shift,
        apart=apart,
        why="the default" if horizon is reference else _why(horizon, reference, shift, apart),
        n_layers=horizon.n_layers,
        tokens=horizon.tokens,
    )


def _why(horizon: Horizon, reference: Horizon, shift: int | None, apart: bool | None) -> str:
    """Everything that sets a criterion apart from the default, as sentences without their full stop."""
    if shift is None:
        parts = [_missing(horizon, reference)]
    elif shift == 0:
        parts = ["neither is reached before the end" if horizon.censored else "the same layer"]
    else:
        parts = [_deeper(horizon, reference) if shift > 0 else _shallower(horizon, reference)]
        if apart is False:
            parts.append("the intervals overlap, so the difference may be chance")
    if horizon.layer is not None:
        parts += _peculiarities(horizon, both_censored=reference.censored)
    parts += [caution for caution in CAUTIONS if caution in horizon.warning]
    if horizon.n_samples != reference.n_samples:
        parts.append(f"it rests on {horizon.n_samples} samples, the default on {reference.n_samples}")
    return "; ".join(parts)


def _missing(candidate: Horizon, reference: Horizon) -> str:
    if candidate.reason == reference.reason:
        return "none by the default either, for the same reason"
    missing = [f"{horizon.criterion}: {horizon.reason}" for horizon in (candidate, reference) if horizon.layer is None]
    return f"no layer to compare ({'; '.join(missing)})"


def _deeper(horizon: Horizon, reference: Horizon) -> str:
    """It is still there at the layer before its own horizon, where the default's effect is gone."""
    before = int(horizon.layers[horizon.layers < horizon.layer].max())
    return f"deeper: at layer {before} the {_state(horizon, before)}, while the {_state(reference, before)}"


def _shallower(horizon: Horizon, reference: Horizon) -> str:
    """The default's effect is still there at the layer before its horizon."""
    before = int(reference.layers[reference.layers < reference.layer].max())
    return f"shallower: at layer {before} the {_state(reference, before)}, while the {_state(horizon, before)}"


def _peculiarities(horizon: Horizon, *, both_censored: bool) -> list[str]:
    """What the rule of this criterion leaves out of sight, where that matters here.

    That the horizon is not before the end is left out if neither is, since that was said before.
    """
    rule = CRITERIA[horizon.criterion]
    later = horizon.layers >= horizon.layer
    above = later & is_above(rule, horizon.effect, horizon.threshold)
    parts = []
    if not rule.settles:
        back = ", ".join(map(str, horizon.layers[above]))
        parts.append("the first crossing, a point estimate" + (f"; above again at {back}" if back else ""))
    if rule.signed and (horizon.effect[later] < -horizon.threshold).any():
        rise = -horizon.effect[later].min()
        parts.append(f"only a {rule.looks_at} counts, not that it rises by up to {rise:.3g} there")
    if horizon.censored and not both_censored:
        parts.append(NOT_REACHED)
    return parts


def _state(horizon: Horizon, layer: int) -> str:
    """Whether an effect is still there at a layer: "... is still 0.08 (gone below 0.04)", "... is gone (0.02, ...)"."""
    rule = CRITERIA[horizon.criterion]
    where = int(np.searchsorted(horizon.layers, layer, side="right")) - 1  # the last one measured up to there
    value, bound = horizon.effect[where], "up to" if rule.inclusive else "below"
    there = "" if horizon.layers[where] == layer else f" at layer {horizon.layers[where]}, where it was last measured"
    if is_above(rule, horizon.effect, horizon.threshold)[where]:
        return f"{rule.looks_at} is still {value:.3g} (gone {bound} {horizon.threshold:.3g}){there}"
    return f"{rule.looks_at} is gone ({value:.3g}, {bound} {horizon.threshold:.3g}){there}"
