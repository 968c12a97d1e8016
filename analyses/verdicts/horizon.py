"""The information horizon: the layer from which on the visual tokens (or others) no longer change the answer.

A criterion (`analyses/verdicts/criteria.py`) says which effect is looked at and what counts as gone; the search and the
inversion of bands into intervals are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import (
    draw_counts,
    interval_warning,
    percentile_interval,
    resampled_means,
    simultaneous_band,
)
from analyses.curves.effects import REMOVED, resample_images, too_little
from analyses.curves.findings import RemovalFinding
from analyses.runs import Run, check_target, split_groups
from analyses.verdicts.criteria import CRITERIA, Limits, criteria_of, settle
from analyses.verdicts.group_effects import GroupEffects, RunEffects, run_effects
from analyses.verdicts.placement import MeanCurve, Placement, place

NOT_REACHED = "not before the end"  # in words, a horizon at layer L
Groups = Sequence[tuple[dict[str, str], np.ndarray]]  # (column -> value, row numbers of the samples) of each


@dataclass(frozen=True)
class Horizon(RemovalFinding):
    """The horizon of one group by one criterion, or why none can be named; `reason` is that of a missing layer.

    Attributes:
        criterion: "removal", "information", ...
        measure: of the effect: "p" or "log_p" as asked for, "correct" or "kl" where the criterion says so.
        target: name of the target.
        context: "removal", or the context of the token grids ("keep-one").
        layer: the horizon, in 0..L, or None.
        censored: the horizon is L: "not before the end".
        interval: (lowest, highest) layer by inverting the simultaneous band; None when no layer is given, or the
            criterion is a point estimate ("vtw").
        half_depth: depth in layers at which half of the effect at layer 0 is gone, or None.
        half_depth_interval: its bootstrap interval, by expanded percentiles.
        half_depth_reason: why `half_depth` is None; "" when it is given.
        n_layers: L.
        layers: (layer,) int, the measured ones of 0..L, L last.
        effect: (layer,) mean effect. low: (layer,) lower end of its simultaneous band. high: its upper end.
        threshold: |effect| below it counts as gone, in the unit of the measure.
        noise_floor: of the group's run, in the unit of the measure; NaN for a measure that has none ("correct").
        detector: the parameters that produced all this.
        warning: why intervals and band may not hold what they promise; "" where nothing is the matter.
        skipped: (skipped,) int, layers of the run at which this effect was not measured.
        bracket: (before, at): measured layers between which the horizon lies, where those between them were skipped,
            so that none is named.
    """

    criterion: str
    measure: str
    target: str
    context: str
    layer: int | None
    censored: bool
    interval: tuple[int, int] | None
    half_depth: float | None
    half_depth_interval: tuple[float, float] | None
    half_depth_reason: str
    n_layers: int
    layers: np.ndarray
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    threshold: float
    noise_floor: float
    detector: HorizonDetector = field(repr=False)
    warning: str = ""
    skipped: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    bracket: tuple[int, int] | None = None


@dataclass(frozen=True)
class _HalfDepth:
    """The depth in layers at which half of an effect is gone, with its interval, or the reason why there is none."""

    depth: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class HorizonDetector(Limits):
    """Parameters of the search for the horizon; call it on the curves of one group. Its limits are those of `Limits`.

    Attributes:
        resamples: bootstrap resamples of images.
        seed: random seed of the resamples.
        level: coverage of intervals and bands, in 0..1.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def __call__(
        self, values: np.ndarray, images: np.ndarray, *, counts: np.ndarray | None = None, **about: Any
    ) -> Horizon:
        """Find the horizon of one group of curves.

        Args:
            values: (sample, layer) effects, L last; a sample with a NaN is left out.
            images: (sample,) int cluster codes.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.
            about: what `GroupEffects` says besides of such effects. By default the layers are 0..L, the removal
                effect is the first column of `values`, and the criterion is "removal".

        Returns:
            The horizon, or the reason why there is none.
        """
        about = {name: value for name, value in about.items() if value is not None}
        about = {"layers": np.arange(values.shape[1]), "removal": values[:, 0]} | about
        return self.judge(GroupEffects(values, images, **about), counts)

    def judge(self, effects: GroupEffects, counts: np.ndarray | None = None) -> Horizon:
        """Find the horizon of one group.

        Args:
            effects: effects of the group; a sample with a NaN is left out.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.
        """
        whole, n_layers = effects.of(effects.whole), int(effects.layers[-1])
        images, n_images = whole.images, len(np.unique(whole.images))
        warning = ""
        reason = _unclaimable(whole, len(effects.values), n_images)
        if reason:
            curve, placement, half = _unknown_curve(whole), Placement(reason=reason), _HalfDepth(reason=reason)
        else:
            if counts is None:
                images = np.unique(images, return_inverse=True)[1]
                counts = draw_counts(images.max() + 1, self.resamples, self.seed)
            warning = interval_warning(whole.values, images)
            curve = self._mean_curve(whole, images, counts)
            reason = self._missing_effect(whole, images, counts)
            placement = Placement(reason=reason) if reason else place(curve, self)
            half = _HalfDepth(reason=reason) if reason else self._half_depth(whole, curve, images, counts)
        return Horizon(
            model=effects.model,
            group=effects.group,
            criterion=effects.criterion,
            measure=effects.rule.measure or effects.measure,
            target=effects.target,
            context=effects.rule.context,
            layer=placement.layer,
            censored=placement.layer == n_layers,
            interval=placement.interval,
            reason=placement.reason,
            half_depth=half.depth,
            half_depth_interval=half.interval,
            half_depth_reason=half.reason,
            n_layers=n_layers,
            n_samples=len(whole.values),
            n_images=n_images,
            layers=curve.layers,
            effect=curve.effect,
            low=curve.low,
            high=curve.high,
            threshold=curve.threshold,
            noise_floor=curve.noise_floor,
            detector=self,
            warning="; ".join(filter(None, (effects.method, warning, placement.warning, effects.caution))),
            skipped=curve.skipped,
            bracket=placement.bracket,
            tokens=effects.tokens,
        )

    def threshold(self, criterion: str, curves: np.ndarray, noise_floor: float) -> np.ndarray:
        """(...) effect below which |effect| counts as gone, for (..., layer) mean curves of a criterion."""
        return CRITERIA[criterion].threshold(curves, noise_floor, self)

    def settled(self, criterion: str, curves: np.ndarray, noise_floor: float, layers: np.ndarray) -> np.ndarray:
        """(...) horizons by a criterion of (..., layer) mean curves, each against its own threshold."""
        return settle(CRITERIA[criterion], curves, self.threshold(criterion, curves, noise_floor), layers)

    def _mean_curve(self, effects: GroupEffects, images: np.ndarray, counts: np.ndarray) -> MeanCurve:
        """The mean effect with its simultaneous band and its threshold."""
        mean = effects.values.mean(axis=0)
        low, high = simultaneous_band(effects.values, images, counts, self.level)
        threshold = float(self.threshold(effects.criterion, mean, effects.own_floor))
        return MeanCurve(
            effects.criterion, effects.layers, effects.skipped, mean, low, high, threshold, effects.own_floor
        )

    def _missing_effect(self, effects: GroupEffects, images: np.ndarray, counts: np.ndarray) -> str:
        """Why the removal effect at layer 0 is too small to speak of, or ""."""
        least_effect = self.least_effect(effects.measure, effects.noise_floor)
        draws = resampled_means(effects.removal[:, None], images, counts)
        bound = percentile_interval(draws, self.level, n_clusters=len(np.unique(images)))[0, 0]
        if bound > least_effect:
            return ""
        return (
            f"removing {REMOVED[effects.tokens]} at layer 0 has no effect to speak of: {effects.removal.mean():.3g}, "
            f"lower bound {bound:.3g}, needed more than {least_effect:.3g}"
        )

    def _half_depth(
        self, effects: GroupEffects, curve: MeanCurve, images: np.ndarray, counts: np.ndarray
    ) -> _HalfDepth:
        """The half depth of the mean effect with its interval, where the criterion has one."""
        if not effects.rule.half_depth:
            return _HalfDepth(reason="half depth is a property of the removal effect")
        draws = half_depths(resampled_means(effects.values, images, counts), curve.layers)
        low, high = percentile_interval(draws, self.level, n_clusters=len(np.unique(images)))
        return _HalfDepth(float(half_depths(curve.effect, curve.layers)), (float(low), float(high)))


@dataclass(frozen=True)
class HorizonQuery:
    """Which horizon is asked for.

    Attributes:
        criterion: a key of `CRITERIA`.
        measure: "p" or "log_p", of the removal effect and of a criterion that has no measure of its own.
        target: one of the run's targets; the first if None.
        detector: parameters of the search.
    """

    criterion: str = "removal"
    measure: str = "p"
    target: str | None = None
    detector: HorizonDetector = field(default_factory=HorizonDetector)

    def effects(self, run: Run) -> RunEffects:
        """What the criterion looks at in a run; raises HorizonError where the run cannot carry it."""
        return run_effects(run, self.criterion, self.measure, check_target(run, self.target))

    def counts(self, run: Run) -> np.ndarray | None:
        """(resample, image) how often each image of a run is drawn; None if nothing was measured."""
        return resample_images(run, self.detector.resamples, self.detector.seed)

    def horizons(self, effects: RunEffects, groups: Groups, counts: np.ndarray | None) -> list[Horizon]:
        """The horizon of every group of samples, from what the criterion looks at and common draws of the images."""
        return [self.detector.judge(effects.of(rows, group), counts) for group, rows in groups]


def find_horizon(
    run: Run,
    *,
    by: Sequence[str] = ("task_type",),
    criterion: str | None = None,
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
) -> list[Horizon]:
    """Find the information horizon of every group: the layer from which on the mean effect stays below a threshold.

    Samples weigh equally. Every criterion asks first that the task has an effect at all: that the lower bound of the
    removal effect at layer 0 lies above noise floor and margin.

    - "removal": |mean R_k| below the larger of 5 % of R_0 and 0.01 (p, or nats of log p) above the noise floor.
    - "information": the mean of |I_k| over windows and samples (absolute per window, so that windows that help and
      windows that hurt do not cancel) below 5 % of its maximum over k.
    - "spread": the standard deviation of I_k over a sample's windows, averaged over samples, below 5 % of its maximum.
    - "accuracy": the share of samples whose argmax first token is in the target set falls by at most 1 point; a rise
      is no fall. Undecided, thus None, where that fall is not known to within 1 point.
    - "kl": mean KL(removed || all) at most 0.003 nats.
    - "vtw": the same, but the first layer where it holds, whatever comes later, and without an interval.

    Args:
        run: a run with the probe "removal" or "information".
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        criterion: one of `CRITERIA`; every one that the run can carry by default, those on first-order token grids
            (method "gate") only if asked for.
        measure: "p" or "log_p", of the removal effect and of every criterion that has no measure of its own.
        target: one of the run's targets; the first by default.
        detector: parameters.

    Returns:
        One result a group and criterion; `None` as the layer always comes with its reason.

    Raises:
        HorizonError: unknown criterion, measure, target or column, or the run lacks what the criterion needs.
    """
    detector = detector or HorizonDetector()
    target = check_target(run, target)
    groups = split_groups(run.samples, by)
    queries = [HorizonQuery(name, measure, target, detector) for name in criteria_of(run, criterion)]
    counts = resample_images(run, detector.resamples, detector.seed)
    return [horizon for query in queries for horizon in query.horizons(query.effects(run), groups, counts)]


def depth_draws(effects: GroupEffects, horizon: Horizon, counts: np.ndarray | None) -> dict[str, np.ndarray]:
    """The depths of every resample of a group, for differences with other depths from the same resamples.

    Args:
        effects: effects of the group, without gaps.
        horizon: the horizon of these effects.
        counts: (resample, cluster) how often each image was drawn.

    Returns:
        half_depth: (resample,) half depths in layers; horizon: (resample,) horizons. NaN where a resample drew none of
        the images; empty where the group has no such depth.
    """
    draws = {"half_depth": np.array([]), "horizon": np.array([])}
    if counts is None or (horizon.half_depth is None and horizon.layer is None):
        return draws
    means = resampled_means(effects.values, effects.images, counts)
    if horizon.half_depth is not None:
        draws["half_depth"] = half_depths(means, effects.layers)
    if horizon.layer is not None:
        settled = horizon.detector.settled(effects.criterion, means, effects.noise_floor, effects.layers)
        draws["horizon"] = np.where(np.isfinite(means).all(axis=1), settled, np.nan)
    return draws


def _unclaimable(effects: GroupEffects, n_measured: int, n_images: int) -> str:
    """Why these effects, whole ones of so many that were measured, cannot carry a claim, or ""."""
    few = too_little(len(effects.values), n_measured, n_images)
    if few:
        return few
    if effects.layers[0] != 0:
        first = effects.layers[0]
        return f"layer 0 was not measured (the first is {first}), so there is no whole effect to compare with"
    return "no noise floor was measured" if np.isnan(effects.noise_floor) else ""


def _unknown_curve(effects: GroupEffects) -> MeanCurve:
    """The mean effect, if any sample has one, without a band and a threshold."""
    unknown = np.full(len(effects.layers), np.nan)
    mean = effects.values.mean(axis=0) if len(effects.values) else unknown
    return MeanCurve(
        effects.criterion, effects.layers, effects.skipped, mean, unknown, unknown, float("nan"), effects.own_floor
    )
