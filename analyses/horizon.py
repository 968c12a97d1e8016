"""The information horizon: the layer from which on the visual tokens no longer change the answer, with its interval.

A criterion (`analyses/criteria.py`) says which effect is looked at and what counts as gone; the search and the
inversion of bands into intervals are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analyses.criteria import CRITERIA, criteria_of
from analyses.depths import half_depths, settled_layer
from analyses.effects import check_choice, check_target, image_codes, noise_floor, split_groups
from analyses.resampling import draw_counts, percentile_interval, resampled_means, simultaneous_band
from analyses.runs import Run


@dataclass(frozen=True)
class Horizon:
    """The horizon of one group by one criterion, or why none can be named.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples it was found on; empty for all samples together.
        criterion: "removal", "information", ...
        measure: "p" or "log_p".
        target: name of the target.
        context: "removal", or the context of the token grids ("keep-one").
        layer: the horizon, in 0..L, or None.
        censored: the horizon is L: "not before the end".
        interval: (lowest, highest) layer by inverting the simultaneous band; None when no layer is given.
        reason: why `layer` is None, in words; "" when a layer is given.
        half_depth: depth in layers at which half of the effect at layer 0 is gone, or None.
        half_depth_interval: its percentile bootstrap interval.
        half_depth_reason: why `half_depth` is None; "" when it is given.
        n_layers: L.
        n_samples: samples used. n_images: distinct images among them.
        layers: (layer,) int, the measured ones of 0..L, L last.
        effect: (layer,) mean effect. low: (layer,) lower end of its simultaneous band. high: its upper end.
        threshold: |effect| below it counts as gone, in the unit of the measure.
        noise_floor: of the group's run, in the unit of the measure.
        detector: the parameters that produced all this.
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


@dataclass(frozen=True)
class HorizonDetector:
    """Parameters of the search for the horizon; call it on the curves of one group.

    Attributes:
        resamples: bootstrap resamples of images.
        seed: of the resamples.
        level: of intervals and bands.
        share: of the reference effect below which an effect counts as gone.
        margin: above the noise floor below which an effect counts as gone, in p or in nats.
        eligible_p: what the effect at layer 0 must exceed above the noise floor, in p.
        eligible_log: the same in log measures, nats.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    share: float = 0.05
    margin: float = 0.01
    eligible_p: float = 0.01
    eligible_log: float = 0.05

    def __call__(
        self,
        values: np.ndarray,
        images: np.ndarray,
        *,
        layers: np.ndarray | None = None,
        criterion: str = "removal",
        measure: str = "p",
        noise_floor: float = 0.0,
        removal: np.ndarray | None = None,
        counts: np.ndarray | None = None,
    ) -> Horizon:
        """Find the horizon of one group.

        Args:
            values: (sample, layer) effects, L last; a sample with a NaN is left out.
            images: (sample,) int cluster codes.
            layers: (layer,) int; 0..L by default.
            criterion: a key of `CRITERIA`.
            measure: "p" or "log_p".
            noise_floor: of the run, in the unit of the measure.
            removal: (sample,) removal effect at layer 0, which decides whether there is an effect at all; the
                first column of `values` by default.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.

        Returns:
            The result, with `model`, `group` and `target` left empty.
        """
        layers = np.arange(values.shape[1]) if layers is None else layers
        removal = values[:, 0] if removal is None else removal
        used = np.isfinite(values).all(axis=1) & np.isfinite(removal)
        values, removal, images = values[used], removal[used], images[used]
        blank = np.full(len(layers), np.nan)
        result = Horizon(
            model="",
            group={},
            criterion=criterion,
            measure=measure,
            target="",
            context=CRITERIA[criterion].context,
            layer=None,
            censored=False,
            interval=None,
            reason=_unclaimable(len(values), len(np.unique(images)), layers, noise_floor),
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
            noise_floor=noise_floor,
            detector=self,
        )
        if result.reason:
            return replace(result, half_depth_reason=result.reason)
        if counts is None:
            images = np.unique(images, return_inverse=True)[1]
            counts = draw_counts(images.max() + 1, self.resamples, self.seed)
        return self._judge(result, values, removal, images, counts)

    def threshold(self, criterion: str, curves: np.ndarray, noise_floor: float) -> np.ndarray:
        """(...) effect below which |effect| counts as gone, for (..., layer) mean curves of a criterion."""
        return CRITERIA[criterion].threshold(curves, noise_floor, self.share, self.margin)

    def _judge(
        self, blank: Horizon, values: np.ndarray, removal: np.ndarray, images: np.ndarray, counts: np.ndarray
    ) -> Horizon:
        """Fill in band, threshold and, where there is an effect, horizon and half depth."""
        draws = resampled_means(values, images, counts)
        low, high = simultaneous_band(values, images, counts, self.level)
        threshold = self.threshold(blank.criterion, blank.effect, blank.noise_floor)
        judged = replace(blank, low=low, high=high, threshold=float(threshold))
        needed = blank.noise_floor + (self.eligible_p if blank.measure == "p" else self.eligible_log)
        least = percentile_interval(resampled_means(removal[:, None], images, counts), self.level)[0, 0]
        if not least > needed:
            reason = (
                f"removing all visual tokens at layer 0 has no effect to speak of: {removal.mean():.3g}, "
                f"lower bound {least:.3g}, needed more than {needed:.3g}"
            )
            return replace(judged, reason=reason, half_depth_reason=reason)
        layer = int(settled_layer(blank.effect, threshold, blank.layers))
        interval = self._inverted(judged)
        judged = replace(judged, layer=layer, censored=layer == blank.n_layers, interval=interval)
        if not CRITERIA[blank.criterion].half_depth:
            return replace(judged, half_depth_reason="half depth is a property of the removal effect")
        ends = percentile_interval(half_depths(draws, blank.layers), self.level)
        half = float(half_depths(blank.effect, blank.layers))
        return replace(judged, half_depth=half, half_depth_interval=(float(ends[0]), float(ends[1])))

    def _inverted(self, found: Horizon) -> tuple[int, int]:
        """Invert the simultaneous band.

        The threshold depends on the effect itself (a share of R_0), so it has a band as well. Thresholds grow with
        the curve, so the ends of the band give those of the threshold: the lower end of |effect| is held against
        the largest threshold and the upper end against the smallest. When the band holds the true curve, the
        interval then holds the true horizon: at least the promised coverage, whatever the correlation of R_0 with
        the rest.
        """
        least = np.maximum(0.0, np.maximum(found.low, -found.high))
        most = np.maximum(np.abs(found.low), np.abs(found.high))
        largest, smallest = (
            self.threshold(found.criterion, curve, found.noise_floor) for curve in (found.high, found.low)
        )
        first = settled_layer(least, largest, found.layers)
        last = settled_layer(most, smallest, found.layers)
        return int(first), int(last)


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

    Criterion "removal": |mean R_k| below the larger of 5 % of R_0 and 0.01 (p, or nats of log p) above the noise
    floor. Criterion "information": the mean of |I_k| over windows and samples (absolute per window, so that windows
    that help and windows that hurt do not cancel) below 5 % of its maximum over k. Samples weigh equally.

    Args:
        run: a run with the probe "removal" or "information".
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        criterion: one of `CRITERIA`; every one that the run can carry by default.
        measure: "p" or "log_p".
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
        for group, rows in groups:
            inside = np.isin(curves.rows, rows)
            one = detector(
                curves.values[inside],
                curves.images[inside],
                layers=curves.layers,
                criterion=name,
                measure=measure,
                noise_floor=floor,
                removal=removal.values[inside, 0],
                counts=counts,
            )
            found.append(replace(one, model=run.model, group=group, target=target))
    return found


def _unclaimable(n_samples: int, n_images: int, layers: np.ndarray, floor: float) -> str:
    """Why this input cannot carry a claim, or ""."""
    if n_samples == 0:
        return "no sample was measured"
    if n_images < 2:
        return "all samples show one image, so nothing is known about others"
    if layers[0] != 0:
        return f"layer 0 was not measured (the first is {layers[0]}), so there is no whole effect to compare with"
    if np.isnan(floor):
        return "no noise floor was measured"
    return ""
