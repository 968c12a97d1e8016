"""How many more samples a half depth needs: the law by which the interval narrows, from a pilot run's resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import cluster_sums, draw_counts, percentile_interval, resampled_means
from analyses.curves.findings import RemovalFinding
from analyses.runs import HorizonError, Run, split_groups
from analyses.verdicts.group_effects import GroupEffects
from analyses.verdicts.horizon import Horizon, HorizonDetector, HorizonQuery

MIN_IMAGES = 20  # fewer tell too little about how much images differ
SIZES = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)  # resample sizes, in images of the pilot
EXPONENTS = (0.35, 0.7)  # of the law width ~ images^-exponent; 0.5 for a smooth statistic
PILOTS = 200  # resampled pilots behind the uncertainty of the plan


@dataclass(frozen=True)
class SamplePlan(RemovalFinding):
    """How many samples one group needs until the interval of its half depth is narrow enough.

    Attributes:
        width: the width that the interval is to have, in layers.
        width_now: width of the pilot's interval, in layers; None without a half depth.
        images: needed in total, never fewer than a pilot needs; None where the pilot cannot carry a plan.
        images_interval: 95 % interval of what other pilots of this size would say.
        more_images: images to add to the pilot's. more_samples: samples to add, at the pilot's questions an image.
        exponent: exponent of the fitted law width ~ images^-exponent; 0.5 is the square-root law.
        warning: why the interval of the pilot may not hold what it promises; "" where nothing is the matter.
    """

    width: float
    width_now: float | None
    images: int | None
    images_interval: tuple[int, int] | None
    more_images: int | None
    more_samples: int | None
    exponent: float | None
    warning: str = ""


def plan_samples(
    run: Run,
    *,
    width: float = 1.0,
    by: Sequence[str] = ("task_type",),
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
) -> list[SamplePlan]:
    """Say how many more samples it takes until the 95 % interval of the half depth is `width` layers wide.

    Images of the pilot are resampled at half to four times their number; the law width ~ images^-exponent is fitted
    to the intervals that result and solved for the width. How far plans from other pilots of the same size would
    lie apart is taken from resampled pilots: by the square-root law the number of images goes with the variance of
    the half depth, here its jackknife variance over images.

    Args:
        run: the pilot, with the probe "removal".
        width: the width that the interval is to have, in layers.
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        measure: "p" or "log_p".
        target: one of the run's targets; the first by default.
        detector: parameters of the half depth and its interval.

    Returns:
        One plan a group; None with the reason where there is no half depth, too few images, or no law.

    Raises:
        HorizonError: a width that is not positive, unknown words, or a run without removal curves.
    """
    if not width > 0:
        raise HorizonError(f"width is {width}, but an interval must be wider than 0 layers")
    query = HorizonQuery("removal", measure, target, detector or HorizonDetector())
    groups, effects = split_groups(run.samples, by), query.effects(run)
    horizons = query.horizons(effects, groups, query.counts(run))
    return [_plan(horizon, effects.whole_of(rows), width) for horizon, (_, rows) in zip(horizons, groups, strict=True)]


@dataclass(frozen=True)
class _Need:
    """How many images an interval of some width needs, and the law that says so, or the reason why none does."""

    images: float | None = None
    images_interval: tuple[float, float] | None = None
    exponent: float | None = None
    reason: str = ""


def _plan(horizon: Horizon, effects: GroupEffects, width: float) -> SamplePlan:
    """The plan of one group."""
    ends = horizon.half_depth_interval
    need = _need(horizon, effects, width)
    images = interval = more = None
    if need.images is not None and need.images_interval is not None:
        images = max(int(np.ceil(need.images)), MIN_IMAGES)
        low, high = need.images_interval
        interval = (max(int(low), MIN_IMAGES), max(int(np.ceil(high)), MIN_IMAGES))
        more = max(images - horizon.n_images, 0)
    return SamplePlan(
        model=horizon.model,
        group=horizon.group,
        width=width,
        width_now=None if ends is None else ends[1] - ends[0],
        n_samples=horizon.n_samples,
        n_images=horizon.n_images,
        images=images,
        images_interval=interval,
        more_images=more,
        more_samples=None if more is None else int(np.ceil(more * horizon.n_samples / horizon.n_images)),
        exponent=need.exponent,
        reason=need.reason,
        warning=horizon.warning,
        tokens=horizon.tokens,
    )


def _need(horizon: Horizon, effects: GroupEffects, width: float) -> _Need:
    """Fit the law by which the interval of the half depth narrows, and solve it for a width in layers."""
    if horizon.half_depth_reason:
        return _Need(reason=horizon.half_depth_reason)
    if horizon.n_images < MIN_IMAGES:
        return _Need(reason=f"a pilot of {horizon.n_images} images is too small (at least {MIN_IMAGES})")
    values, layers, detector = effects.values, horizon.layers, horizon.detector
    images = np.unique(effects.images, return_inverse=True)[1]
    sizes, widths = interval_widths(values, images, layers, detector)
    if not (widths > 0).all():
        return _Need(reason="the half depth does not vary between resamples, so no law can be fitted")
    slope, _ = np.polyfit(np.log(sizes), np.log(widths), 1)
    if not EXPONENTS[0] <= -slope <= EXPONENTS[1]:
        reason = (
            f"the interval narrows with the number of images to the power {slope:.2f}, far from the -0.5 that a plan "
            "rests on: the effect stays near its half over many layers, or a few images decide"
        )
        return _Need(exponent=float(-slope), reason=reason)
    images_needed = float(np.exp((np.log(widths / width) / -slope + np.log(sizes)).mean()))
    low, high = images_needed * _relative_need(values, images, layers, detector)
    return _Need(images_needed, (low, high), float(-slope))


def interval_widths(
    values: np.ndarray, images: np.ndarray, layers: np.ndarray, detector: HorizonDetector
) -> tuple[np.ndarray, np.ndarray]:
    """Widths of half depth intervals from resamples of other sizes than the pilot's.

    Args:
        values: (sample, layer) removal effects.
        images: (sample,) int cluster codes, 0..n_images-1.
        layers: (layer,) int, 0 first and L last.
        detector: its number of resamples, seed and level.

    Returns:
        sizes: (size,) images in a resample. widths: (size,) in layers.
    """
    n_images = images.max() + 1
    sizes = np.unique(np.round(n_images * np.array(SIZES)).astype(int))
    widths = []
    for size in sizes:
        counts = draw_counts(n_images, detector.resamples, detector.seed, size=int(size))
        draws = half_depths(resampled_means(values, images, counts), layers)
        widths.append(np.ptp(percentile_interval(draws, detector.level, n_clusters=int(size))))
    return sizes, np.array(widths)


def _relative_need(values: np.ndarray, images: np.ndarray, layers: np.ndarray, detector: HorizonDetector) -> np.ndarray:
    """(2,) ends of the 95 % interval of (variance that a pilot of this size sees) / (variance that this one sees)."""
    _, sums, sizes = cluster_sums(values, images)
    pilots = draw_counts(len(sizes), PILOTS, detector.seed)
    variances = np.array([_jackknife_variance(sums, sizes, layers, counts) for counts in pilots])
    variance = _jackknife_variance(sums, sizes, layers, np.ones(len(sizes)))
    return percentile_interval(variances / variance, detector.level)


def _jackknife_variance(sums: np.ndarray, sizes: np.ndarray, layers: np.ndarray, counts: np.ndarray) -> float:
    """Jackknife variance of the half depth when image i occurs counts[i] times."""
    present = counts > 0
    counts = counts[present].astype(float)
    sums, sizes = sums[present], sizes[present]
    left_out = half_depths((counts @ sums - sums) / (counts @ sizes - sizes)[:, None], layers)
    n = counts.sum()
    return float((n - 1) / n * (counts * (left_out - np.average(left_out, weights=counts)) ** 2).sum())
