"""How many more samples a half depth needs: the law by which the interval narrows, from a pilot run's resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import cluster_sums, draw_counts, percentile_interval, resampled_means
from analyses.curves.effects import removal_effects
from analyses.runs import HorizonError, Run, check_target, split_groups
from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon

MIN_IMAGES = 20  # fewer tell too little about how much images differ
SIZES = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)  # resample sizes, in images of the pilot
EXPONENTS = (0.35, 0.7)  # of the law width ~ images^-exponent; 0.5 for a smooth statistic
PILOTS = 200  # resampled pilots behind the uncertainty of the plan


@dataclass(frozen=True)
class SamplePlan:
    """How many samples one group needs until the interval of its half depth is narrow enough.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        width: that is asked for, in layers.
        width_now: of the pilot's interval, in layers; None without a half depth.
        n_samples: of the pilot. n_images: distinct images among them.
        images: needed in total, never fewer than a pilot needs; None where the pilot cannot carry a plan.
        images_interval: what other pilots of this size would say, 95 %.
        more_images: to add to the pilot's. more_samples: the same, at the pilot's questions an image.
        exponent: of the fitted law width ~ images^-exponent; 0.5 is the square-root law.
        reason: why there is no plan; "" when there is one.
        warning: of the pilot's half depth; "" where nothing is the matter.
        tokens: whose removal the half depth is of: "visual", "text" or "all".
    """

    model: str
    group: dict[str, str]
    width: float
    width_now: float | None
    n_samples: int
    n_images: int
    images: int | None
    images_interval: tuple[int, int] | None
    more_images: int | None
    more_samples: int | None
    exponent: float | None
    reason: str
    warning: str = ""
    tokens: str = "visual"


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
        width: of the interval, in layers.
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
    detector = detector or HorizonDetector()
    curves = removal_effects(run, measure=measure, target=check_target(run, target))
    found = find_horizon(run, by=by, criterion="removal", measure=measure, target=target, detector=detector)
    plans = []
    for horizon, (_, rows) in zip(found, split_groups(run.samples, by), strict=True):
        inside = np.isin(curves.rows, rows) & np.isfinite(curves.values).all(axis=1)
        images = np.unique(curves.images[inside], return_inverse=True)[1]
        plans.append(_plan(horizon, curves.values[inside], images, width))
    return plans


def _plan(found: Horizon, values: np.ndarray, images: np.ndarray, width: float) -> SamplePlan:
    """The plan of one group."""
    ends = found.half_depth_interval
    blank = SamplePlan(
        model=found.model,
        group=found.group,
        width=width,
        width_now=None if ends is None else ends[1] - ends[0],
        n_samples=found.n_samples,
        n_images=found.n_images,
        images=None,
        images_interval=None,
        more_images=None,
        more_samples=None,
        exponent=None,
        reason=found.half_depth_reason,
        warning=found.warning,
        tokens=found.tokens,
    )
    if blank.reason:
        return blank
    if found.n_images < MIN_IMAGES:
        return replace(blank, reason=f"a pilot of {found.n_images} images is too small (at least {MIN_IMAGES})")
    sizes, widths = interval_widths(values, images, found.layers, found.detector)
    if not (widths > 0).all():
        return replace(blank, reason="the half depth does not vary between resamples, so no law can be fitted")
    slope, _ = np.polyfit(np.log(sizes), np.log(widths), 1)
    if not EXPONENTS[0] <= -slope <= EXPONENTS[1]:
        reason = (
            f"the interval narrows with the number of images to the power {slope:.2f}, far from the -0.5 that a plan "
            "rests on: the effect stays near its half over many layers, or a few images decide"
        )
        return replace(blank, exponent=float(-slope), reason=reason)
    needed = float(np.exp((np.log(widths / width) / -slope + np.log(sizes)).mean()))
    low, high = needed * _relative_need(values, images, found.layers, found.detector)
    total = max(int(np.ceil(needed)), MIN_IMAGES)
    more = max(total - found.n_images, 0)
    return replace(
        blank,
        images=total,
        images_interval=(max(int(low), MIN_IMAGES), max(int(np.ceil(high)), MIN_IMAGES)),
        more_images=more,
        more_samples=int(np.ceil(more * found.n_samples / found.n_images)),
        exponent=float(-slope),
    )


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
    seen = [_jackknife_variance(sums, sizes, layers, row) for row in draw_counts(len(sizes), PILOTS, detector.seed)]
    return percentile_interval(
        np.array(seen) / _jackknife_variance(sums, sizes, layers, np.ones(len(sizes))), detector.level
    )


def _jackknife_variance(sums: np.ndarray, sizes: np.ndarray, layers: np.ndarray, counts: np.ndarray) -> float:
    """Jackknife variance of the half depth when image i occurs counts[i] times."""
    drawn = counts > 0
    counts = counts[drawn].astype(float)
    sums, sizes = sums[drawn], sizes[drawn]
    left_out = half_depths((counts @ sums - sums) / (counts @ sizes - sizes)[:, None], layers)
    n = counts.sum()
    return float((n - 1) / n * (counts * (left_out - np.average(left_out, weights=counts)) ** 2).sum())
