"""The information horizon: the layer from which on the visual tokens (or others) no longer change the answer.

A criterion (`analyses/verdicts/criteria.py`) says which effect is looked at and what counts as gone; the search and the
inversion of bands into intervals are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analyses.arrays.depths import half_depths, layer_words, skipped_before
from analyses.arrays.resampling import (
    draw_counts,
    interval_warning,
    percentile_interval,
    resampled_means,
    simultaneous_band,
)
from analyses.curves.effects import NOISE_MEASURES, REMOVED, image_codes, noise_floor, too_little, with_caution
from analyses.runs import Run, check_choice, check_target, split_groups
from analyses.verdicts.criteria import CRITERIA, Limits, criteria_of, method_warning, settle


@dataclass(frozen=True)
class Horizon:
    """The horizon of one group by one criterion, or why none can be named.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples it was found on; empty for all samples together.
        criterion: "removal", "information", ...
        measure: of the effect: "p" or "log_p" as asked for, "correct" or "kl" where the criterion says so.
        target: name of the target.
        context: "removal", or the context of the token grids ("keep-one").
        layer: the horizon, in 0..L, or None.
        censored: the horizon is L: "not before the end".
        interval: (lowest, highest) layer by inverting the simultaneous band; None when no layer is given, or the
            criterion is a point estimate ("vtw").
        reason: why `layer` is None, in words; "" when a layer is given.
        half_depth: depth in layers at which half of the effect at layer 0 is gone, or None.
        half_depth_interval: its bootstrap interval, by expanded percentiles.
        half_depth_reason: why `half_depth` is None; "" when it is given.
        n_layers: L.
        n_samples: samples used. n_images: distinct images among them.
        layers: (layer,) int, the measured ones of 0..L, L last.
        effect: (layer,) mean effect. low: (layer,) lower end of its simultaneous band. high: its upper end.
        threshold: |effect| below it counts as gone, in the unit of the measure.
        noise_floor: of the group's run, in the unit of the measure; NaN for a measure that has none ("correct").
        detector: the parameters that produced all this.
        warning: why intervals and band may not hold what they promise; "" where nothing is the matter.
        skipped: (skipped,) int, layers of the run at which this effect was not measured.
        bracket: (before, at): measured layers between which the horizon lies, where those between them were skipped,
            so that none is named.
        tokens: whose removal it is about: "visual", "text" or "all".
    """

    model: str
    group: dict[str, str]
    criterion: str
    measure: str
    target: str
    context: str
    layer: int | None
    censored: bool
    interval: tuple[int, int] | None
    reason: str
    half_depth: float | None
    half_depth_interval: tuple[float, float] | None
    half_depth_reason: str
    n_layers: int
    n_samples: int
    n_images: int
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
    tokens: str = "visual"


@dataclass(frozen=True)
class HorizonDetector(Limits):
    """Parameters of the search for the horizon; call it on the curves of one group. Its limits are those of `Limits`.

    Attributes:
        resamples: bootstrap resamples of images.
        seed: of the resamples.
        level: of intervals and bands.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95

    def __call__(
        self,
        values: np.ndarray,
        images: np.ndarray,
        *,
        layers: np.ndarray | None = None,
        criterion: str = "removal",
        measure: str = "p",
        noise_floor: float = 0.0,
        effect_floor: float | None = None,
        removal: np.ndarray | None = None,
        counts: np.ndarray | None = None,
        skipped: np.ndarray | None = None,
        tokens: str = "visual",
    ) -> Horizon:
        """Find the horizon of one group.

        Args:
            values: (sample, layer) effects, L last; a sample with a NaN is left out.
            images: (sample,) int cluster codes.
            layers: (layer,) int; 0..L by default.
            criterion: a key of `CRITERIA`.
            measure: "p" or "log_p", of the removal effect and of `values` unless the criterion has its own.
            noise_floor: of the run, in the unit of that measure.
            effect_floor: noise floor of `values` where the criterion has a measure of its own; not held against
                the threshold if None.
            removal: (sample,) removal effect at layer 0, which decides whether there is an effect at all; the
                first column of `values` by default.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.
            skipped: (skipped,) int, layers that could have been measured and were not; none by default. A horizon is
                named only where none of them lies between it and the measured layer before it.
            tokens: whose removal the effects are of; for the words of the result.

        Returns:
            The result, with `model`, `group` and `target` left empty.
        """
        rule = CRITERIA[criterion]
        layers = np.arange(values.shape[1]) if layers is None else layers
        removal = values[:, 0] if removal is None else removal
        used = np.isfinite(values).all(axis=1) & np.isfinite(removal)
        values, removal, images = values[used], removal[used], images[used]
        blank = np.full(len(layers), np.nan)
        result = Horizon(
            model="",
            group={},
            criterion=criterion,
            measure=rule.measure or measure,
            target="",
            context=rule.context,
            layer=None,
            censored=False,
            interval=None,
            reason=_unclaimable(len(values), len(used), len(np.unique(images)), layers, noise_floor),
            half_depth=None,
            half_depth_interval=None,
            half_depth_reason="",
            n_layers=int(layers[-1]),
            n_samples=len(values),
            n_images=len(np.unique(images)),
            layers=layers,
            effect=values.mean(axis=0) if len(values) else blank,
            low=blank,
            high=blank,
            threshold=float("nan"),
            noise_floor=noise_floor if rule.measure is None else float("nan" if effect_floor is None else effect_floor),
            detector=self,
            skipped=np.empty(0, dtype=int) if skipped is None else skipped,
            tokens=tokens,
        )
        if result.reason:
            return replace(result, half_depth_reason=result.reason)
        if counts is None:
            images = np.unique(images, return_inverse=True)[1]
            counts = draw_counts(images.max() + 1, self.resamples, self.seed)
        needed = noise_floor + (self.eligible_p if measure == "p" else self.eligible_log)
        draws = resampled_means(removal[:, None], images, counts)
        least = percentile_interval(draws, self.level, n_clusters=result.n_images)[0, 0]
        reason = "" if least > needed else _no_effect(tokens, removal.mean(), least, needed)
        return self._judge(result, values, images, counts, reason)

    def threshold(self, criterion: str, curves: np.ndarray, noise_floor: float) -> np.ndarray:
        """(...) effect below which |effect| counts as gone, for (..., layer) mean curves of a criterion."""
        return CRITERIA[criterion].threshold(curves, noise_floor, self)

    def settled(self, criterion: str, curves: np.ndarray, noise_floor: float, layers: np.ndarray) -> np.ndarray:
        """(...) horizons by a criterion of (..., layer) mean curves, each against its own threshold."""
        return settle(CRITERIA[criterion], curves, self.threshold(criterion, curves, noise_floor), layers)

    def _judge(
        self, blank: Horizon, values: np.ndarray, images: np.ndarray, counts: np.ndarray, reason: str
    ) -> Horizon:
        """Fill in band, threshold and, unless there is a reason against it, horizon and half depth."""
        rule = CRITERIA[blank.criterion]
        low, high = simultaneous_band(values, images, counts, self.level)
        threshold = self.threshold(blank.criterion, blank.effect, blank.noise_floor)
        warning = interval_warning(values, images)
        judged = replace(blank, low=low, high=high, threshold=float(threshold), warning=warning)
        no_half = "" if rule.half_depth else "half depth is a property of the removal effect"
        judged = replace(judged, half_depth_reason=reason or no_half, reason=reason or self._objection(judged))
        if not judged.reason:
            judged = self._placed(judged)
        if judged.half_depth_reason:
            return judged
        draws = resampled_means(values, images, counts)
        ends = percentile_interval(half_depths(draws, blank.layers), self.level, n_clusters=blank.n_images)
        half = float(half_depths(blank.effect, blank.layers))
        return replace(judged, half_depth=half, half_depth_interval=(float(ends[0]), float(ends[1])))

    def _placed(self, judged: Horizon) -> Horizon:
        """Name the horizon, unless layers were skipped just before it."""
        rule = CRITERIA[judged.criterion]
        layer = int(settle(rule, judged.effect, judged.threshold, judged.layers))
        between = skipped_before(layer, judged.layers, judged.skipped)
        if len(between):
            before = int(judged.layers[judged.layers < layer].max())
            reason = (
                f"it lies after layer {before} and not after layer {layer}: "
                f"the {rule.looks_at} was not measured at {layer_words(between)}"
            )
            return replace(judged, reason=reason, bracket=(before, layer))
        interval = self._inverted(judged) if rule.settles else None
        beware = filter(None, (judged.warning, _taken_on_trust(judged, layer)))
        return replace(
            judged, layer=layer, censored=layer == judged.n_layers, interval=interval, warning="; ".join(beware)
        )

    def _objection(self, found: Horizon) -> str:
        """Why an effect that is there has no horizon by this criterion, or ""."""
        rule = CRITERIA[found.criterion]
        if found.threshold <= found.noise_floor:
            return (
                f"the {rule.looks_at} would count as gone below {found.threshold:.3g}, "
                f"which the noise floor of {found.noise_floor:.3g} hides"
            )
        return self._undecided(found) if rule.flips else ""

    def _undecided(self, found: Horizon) -> str:
        """Which layer the claim hangs on is not known precisely enough, or "".

        Layers up to the last one whose whole interval lies above the threshold are settled: the horizon is later.
        """
        clearly_above = found.low > found.threshold
        after_the_last = np.cumsum(clearly_above[::-1])[::-1] == 0
        widths = np.where(after_the_last, (found.high - found.low) / 2, 0.0)
        if widths.max() <= self.precision:
            return ""
        return (
            f"undecided: the {CRITERIA[found.criterion].looks_at} at layer {found.layers[widths.argmax()]} "
            f"is known to within {100 * widths.max():.2g} points only, needed {100 * self.precision:.2g}"
        )

    def _inverted(self, found: Horizon) -> tuple[int, int]:
        """Invert the simultaneous band.

        The threshold depends on the effect itself (a share of R_0), so it has a band as well. Thresholds grow with
        the curve, so the ends of the band give those of the threshold: the lower end of |effect| is held against
        the largest threshold and the upper end against the smallest. When the band holds the true curve, the
        interval then holds the true horizon: at least the promised coverage, whatever the correlation of R_0 with
        the rest.
        """
        rule = CRITERIA[found.criterion]
        least, most = found.low, found.high
        if not rule.signed:
            least = np.maximum(0.0, np.maximum(found.low, -found.high))
            most = np.maximum(np.abs(found.low), np.abs(found.high))
        largest, smallest = (
            self.threshold(found.criterion, curve, found.noise_floor) for curve in (found.high, found.low)
        )
        first, last = (int(settle(rule, *e, found.layers)) for e in ((least, largest), (most, smallest)))
        return int(skipped_before(first, found.layers, found.skipped).min(initial=first)), last


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
    counts = draw_counts(image_codes(run).max() + 1, detector.resamples, detector.seed) if len(run.ok) else None
    found = []
    for name in criteria_of(run, criterion):
        check_choice(f"measure of the criterion {name!r}", measure, CRITERIA[name].measures)
        curves, removal = CRITERIA[name].effects(run, measure, target)
        floor = noise_floor(run, measure)
        effect_floor = noise_floor(run, curves.measure) if curves.measure in NOISE_MEASURES else None
        for group, rows in groups:
            own = curves.of(rows)
            one = detector(
                own.values,
                own.images,
                layers=own.layers,
                criterion=name,
                measure=measure,
                noise_floor=floor,
                effect_floor=effect_floor,
                removal=removal.of(rows).values[:, 0],
                counts=counts,
                skipped=own.skipped,
                tokens=run.config.tokens,
            )
            named = "; ".join(filter(None, (method_warning(run, name), one.warning)))
            warning = with_caution(named, run)
            found.append(replace(one, model=run.model, group=group, target=target, warning=warning))
    return found


def _unclaimable(n_samples: int, n_measured: int, n_images: int, layers: np.ndarray, floor: float) -> str:
    """Why this input cannot carry a claim, or ""."""
    few = too_little(n_samples, n_measured, n_images)
    if few:
        return few
    if layers[0] != 0:
        return f"layer 0 was not measured (the first is {layers[0]}), so there is no whole effect to compare with"
    if np.isnan(floor):
        return "no noise floor was measured"
    return ""


def _taken_on_trust(found: Horizon, layer: int) -> str:
    """What the skipped layers could change about a horizon that its measured neighbors bracket, or ""."""
    if not len(found.skipped):
        return ""
    earlier, later = found.skipped[found.skipped < layer], found.skipped[found.skipped > layer]
    trusted = [f"no larger at {layer_words(earlier)}"] if len(earlier) else []
    trusted += [f"gone at {layer_words(later)} as well"] if len(later) else []
    looks_at = CRITERIA[found.criterion].looks_at
    return f"not measured at every layer, the {looks_at} is taken to be {' and '.join(trusted)}"


def _no_effect(tokens: str, mean: float, least: float, needed: float) -> str:
    return (
        f"removing {REMOVED[tokens]} at layer 0 has no effect to speak of: {mean:.3g}, "
        f"lower bound {least:.3g}, needed more than {needed:.3g}"
    )
