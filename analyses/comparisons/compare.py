"""Comparisons of depth: between groups of a run, and between models, revisions and prompts; paired and unpaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.arrays.permutation import half_depth_p_value, on_grid
from analyses.arrays.resampling import draw_counts, percentile_interval
from analyses.comparisons.adjustment import Tested, adjusted
from analyses.comparisons.levels import Level, find_levels, pair_levels
from analyses.runs import Run, as_runs
from analyses.verdicts.horizon import Horizon, HorizonDetector, HorizonQuery, depth_draws


@dataclass(frozen=True)
class Difference(Tested):
    """One difference of depth, a minus b.

    Attributes:
        a: label of the first level. b: label of the second.
        quantity: "half_depth" or "horizon".
        unit: "layers" or "fraction" (of depth, k / L).
        value: a minus b; positive if a lies deeper. None where it cannot be said.
        interval: percentile interval over the common cluster resamples, so that what an image is like cancels; None
            without a value. Of horizons it is narrower than what the levels' own intervals leave open, which come
            from bands over whole curves; in simulation it covered at least 0.99. Of a bound, it is one too.
        paired: only what was asked in both levels was used: the same images, or across runs the same questions on
            the same images.
        n_a: images behind a. n_b: images behind b.
        censored: at least one horizon is "not before the end", so the difference is a bound, not a value.
        reason: why `value` is None; "" when it is given.
        p_value: of the permutation test that R_k / R_0 curves are exchangeable between a and b; None for horizons
            and where there is no value. p_adjusted: over all half depths of one call in this unit and pairing.
        warning: why the interval may not hold what it promises, by level; "" where nothing is the matter.
        bound: of a censored difference, what it is to `value`: ">=" if a is not reached before the end, "<=" if b.
    """

    a: str
    b: str
    quantity: str
    unit: str
    value: float | None
    interval: tuple[float, float] | None
    paired: bool
    n_a: int
    n_b: int
    censored: bool
    reason: str
    warning: str = ""
    bound: str = ""


@dataclass(frozen=True)
class Comparison:
    """Horizons of several levels and all their differences.

    Attributes:
        between: what differs between the levels: one of `analyses.comparisons.levels.BETWEEN`.
        groups: one horizon a level, by the criterion compared.
        differences: of every pair of levels, by quantity, unpaired before paired, layers before fraction.
    """

    between: str
    groups: list[Horizon]
    differences: list[Difference]


def compare_horizons(
    run_or_runs: Run | Sequence[Run],
    *,
    between: str = "task_type",
    within: Sequence[str] = (),
    criterion: str = "removal",
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
    permutations: int = 2000,
) -> Comparison:
    """Compare the depth of information between groups of samples, models, revisions, prompts or removed tokens.

    Half depth is the primary quantity; horizons are compared as they are, censored at L. Every difference is given
    unpaired (all images) and paired, in layers and as a fraction of depth. Groups are paired on the images asked in
    both, so that what an image is like cancels; models, revisions, prompts and tokens on the questions asked on the
    same images in both. Runs that take away different tokens are compared between "tokens" only. All intervals come
    from one set of resamples of the images of all runs.

    Half depths carry a permutation p-value, and one adjusted by Holm's method. A family is all differences of one
    call that share unit and pairing: unpaired and paired answer one question twice, so they are not added up.
    Between models of different L, p-values in layers and in fractions of depth test two hypotheses and may disagree.

    Args:
        run_or_runs: one run or several. Between models, revisions, prompts or tokens: two or more. Otherwise levels
            are compared within each.
        between: one of `analyses.comparisons.levels.BETWEEN`.
        within: columns whose values are kept apart: only levels that agree in them are compared.
        criterion: one of `CRITERIA`; half depth exists for "removal" only.
        measure: "p" or "log_p".
        target: name of one of the runs' targets; their first by default.
        detector: parameters; its seed is that of the permutations too.
        permutations: relabelings to draw for a p-value; 0 leaves p-values out.

    Returns:
        The horizon of every level, and the difference of every pair of levels.

    Raises:
        HorizonError: unknown words, no two runs that differ in what is compared across runs, or a run that lacks
            what is compared.
    """
    detector = detector or HorizonDetector()
    query = HorizonQuery(criterion, measure, target, detector)
    levels = find_levels(as_runs(run_or_runs), query, between=between, within=within)
    n_images = 1 + max((level.effects.images.max(initial=-1) for level in levels), default=-1)
    counts = draw_counts(n_images, detector.resamples, detector.seed) if n_images else None
    sides = [_measured(level, detector, counts) for level in levels]
    differences = []
    for i, j in pair_levels(levels, between, within):
        shared = np.intersect1d(levels[i].keys, levels[j].keys)
        restricted = [_restricted(side, shared, detector, counts) for side in (sides[i], sides[j])]
        differences += _differences((sides[i], sides[j]), (restricted[0], restricted[1]), permutations)
    return Comparison(between, [side.horizon for side in sides], adjusted(differences, lambda d: (d.unit, d.paired)))


@dataclass(frozen=True)
class _Depth:
    """One depth of one level, in layers."""

    value: float | None
    draws: np.ndarray  # (resample,); empty where there is no interval
    reason: str
    censored: bool


@dataclass(frozen=True)
class _Side:
    """A level, its horizon, and the bootstrap draws of its depths in layers, empty where there is no interval."""

    level: Level
    horizon: Horizon
    draws: dict[str, np.ndarray]  # quantity -> (resample,)

    def depth(self, quantity: str) -> _Depth:
        """The half depth or the horizon."""
        horizon, draws = self.horizon, self.draws[quantity]
        if quantity == "half_depth":
            return _Depth(horizon.half_depth, draws, horizon.half_depth_reason, censored=False)
        known = draws if horizon.interval is not None else np.array([])
        return _Depth(horizon.layer, known, horizon.reason, horizon.censored)


def _measured(level: Level, detector: HorizonDetector, counts: np.ndarray | None) -> _Side:
    horizon = detector.judge(level.effects, counts)
    return _Side(level, horizon, depth_draws(level.effects, horizon, counts))


def _restricted(side: _Side, keys: np.ndarray, detector: HorizonDetector, counts: np.ndarray | None) -> _Side:
    """The same on the samples with one of these keys."""
    level = side.level.only(keys)
    return side if len(level.keys) == len(side.level.keys) else _measured(level, detector, counts)


def _differences(everything: tuple[_Side, _Side], shared: tuple[_Side, _Side], permutations: int) -> list[Difference]:
    """All differences of one pair of levels, a minus b, on all samples and on the shared ones."""
    half_depth = everything[0].level.effects.rule.half_depth
    sides = {False: everything, True: shared}
    p_values = {paired: _p_values(a, b, permutations) for paired, (a, b) in sides.items()}
    return [
        _difference(a, b, quantity, unit, paired=paired, p_value=p_values[paired].get((quantity, unit)))
        for quantity in (("half_depth", "horizon") if half_depth else ("horizon",))
        for paired, (a, b) in sides.items()
        for unit in ("layers", "fraction")
    ]


def _difference(a: _Side, b: _Side, quantity: str, unit: str, *, paired: bool, p_value: float | None) -> Difference:
    depth_a, depth_b = a.depth(quantity), b.depth(quantity)
    reason = _reason(a, b, quantity, paired=paired)
    value = interval = None
    if not reason and depth_a.value is not None and depth_b.value is not None:
        scale_a, scale_b = (1, 1) if unit == "layers" else (a.horizon.n_layers, b.horizon.n_layers)
        value = depth_a.value / scale_a - depth_b.value / scale_b
        if len(depth_a.draws) and len(depth_b.draws):
            method = "linear" if quantity == "half_depth" else "inverted_cdf"
            draws = depth_a.draws / scale_a - depth_b.draws / scale_b
            least = min(a.horizon.n_images, b.horizon.n_images)
            low, high = percentile_interval(draws, a.horizon.detector.level, n_clusters=least, method=method)
            interval = (float(low), float(high))
    return Difference(
        a=a.level.label,
        b=b.level.label,
        quantity=quantity,
        unit=unit,
        value=value,
        interval=interval,
        paired=paired,
        n_a=a.horizon.n_images,
        n_b=b.horizon.n_images,
        censored=depth_a.censored or depth_b.censored,
        reason=reason,
        bound="" if value is None else ">=" if depth_a.censored else "<=" if depth_b.censored else "",
        p_value=p_value,
        warning="; ".join(f"{side.level.label}: {side.horizon.warning}" for side in (a, b) if side.horizon.warning),
    )


def _reason(a: _Side, b: _Side, quantity: str, *, paired: bool) -> str:
    """Why a difference cannot be said, or ""."""
    if paired and not len(a.level.keys):
        what = "image" if a.level.source == b.level.source else "question on an image"
        return f"no {what} was asked in both"
    for side in (a, b):
        if side.depth(quantity).value is None:
            return f"{side.level.label}: {side.depth(quantity).reason}"
    both = a.depth(quantity).censored and b.depth(quantity).censored
    return "neither horizon is reached before the end" if both else ""


def _p_values(a: _Side, b: _Side, permutations: int) -> dict[tuple[str, str], float]:
    """("half_depth", unit) -> permutation p-value of the difference; empty where there is none.

    Between models of different L curves are exchanged layer by layer (a shorter model has no effect after its end)
    for the p-value in layers, and at the same fraction of depth for that in fractions.
    """
    if not permutations or a.horizon.half_depth is None or b.horizon.half_depth is None:
        return {}
    layers = _p_value(a, b, (1, 1), permutations)
    scales = (a.horizon.n_layers, b.horizon.n_layers)
    fraction = layers if scales[0] == scales[1] else _p_value(a, b, scales, permutations)
    return {("half_depth", "layers"): layers, ("half_depth", "fraction"): fraction}


def _p_value(a: _Side, b: _Side, scales: tuple[int, int], permutations: int) -> float:
    """Permutation p-value with the layers of each side divided by its scale."""
    levels = (a.level, b.level)
    layers = [level.effects.layers / scale for level, scale in zip(levels, scales, strict=True)]
    grid = np.union1d(*layers)
    curves = [on_grid(level.effects.values, at, grid) for level, at in zip(levels, layers, strict=True)]
    images_a, images_b = (level.effects.images for level in levels)
    seed = a.horizon.detector.seed
    return half_depth_p_value(curves[0], images_a, curves[1], images_b, grid, permutations=permutations, seed=seed)
