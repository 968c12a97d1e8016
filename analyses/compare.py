"""Comparisons of depth between task types, tasks, categories and models, paired on shared images and unpaired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from analyses.criteria import CRITERIA, criteria_of
from analyses.depths import half_depths, settled_layer
from analyses.effects import GROUP_COLUMNS, check_choice, check_target, noise_floor, split_groups
from analyses.horizon import Horizon, HorizonDetector
from analyses.resampling import cluster_codes, draw_counts, percentile_interval, resampled_means
from analyses.runs import HorizonError, Run

BETWEEN = (*GROUP_COLUMNS, "model")


@dataclass(frozen=True)
class Difference:
    """One difference of depth, a minus b.

    Attributes:
        a: label of the first level. b: label of the second.
        quantity: "half_depth" or "horizon".
        unit: "layers" or "fraction" (of depth, k / L).
        value: a minus b; positive if a lies deeper. None where it cannot be said.
        interval: percentile interval over the common cluster resamples, or None.
        paired: only images asked in both levels were used.
        n_a: images behind a. n_b: images behind b.
        censored: at least one horizon is "not before the end", so the difference is a bound, not a value.
        reason: why `value` is None; "" when it is given.
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


@dataclass(frozen=True)
class Comparison:
    """Horizons of several levels and all their differences.

    Attributes:
        between: what differs between the levels: "task_type", "task", "category" or "model".
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
) -> Comparison:
    """Compare the depth of information between task types, tasks, categories or models.

    Half depth is the primary quantity; horizons are compared as they are, censored at L. Every difference is given
    unpaired (all images) and paired (only images asked in both levels, so that what an image is like cancels), in
    layers and as a fraction of depth. All intervals come from one set of resamples of the images of all runs.

    Args:
        run_or_runs: one run or several. Between models: two or more. Otherwise levels are compared within each.
        between: one of `BETWEEN`.
        within: columns whose values are kept apart: only levels that agree in them are compared.
        criterion: one of `CRITERIA`; half depth exists for "removal" only.
        measure: "p" or "log_p".
        target: of the runs; their first by default.
        detector: parameters.

    Returns:
        The horizon of every level, and the difference of every pair of levels.

    Raises:
        HorizonError: unknown words, one run only between models, or a run that lacks what is compared.
    """
    runs = [run_or_runs] if isinstance(run_or_runs, Run) else list(run_or_runs)
    detector = detector or HorizonDetector()
    check_choice("comparison", between, tuple(name for name in BETWEEN if name not in within))
    needed = 2 if between == "model" else 1
    if len(runs) < needed:
        raise HorizonError(f"a comparison between {between} levels needs at least {needed} run(s), got {len(runs)}")
    columns = [*within, *([] if between == "model" else [between])]
    levels = [level for i, run in enumerate(runs) for level in _levels(run, i, columns, criterion, measure, target)]
    codes = cluster_codes(name for level in levels for name in level.hashes)
    counts = draw_counts(codes.max() + 1, detector.resamples, detector.seed) if len(codes) else None
    ends = np.cumsum([len(level.hashes) for level in levels])
    levels = [
        replace(level, images=images, label=_label(level, runs))
        for level, images in zip(levels, np.split(codes, ends[:-1]), strict=True)
    ]
    pairs = [
        (a, b)
        for a, b in combinations(levels, 2)
        if (a.source != b.source) == (between == "model") and all(a.group[c] == b.group[c] for c in within)
    ]
    differences = [difference for a, b in pairs for difference in _differences(a, b, detector, counts)]
    return Comparison(between, [level.detect(detector, counts) for level in levels], differences)


@dataclass(frozen=True)
class _Level:
    """One side of comparisons: the finite curves of one group of one run."""

    run: Run
    source: int  # which of the runs
    group: dict[str, str]
    criterion: str
    measure: str
    target: str
    values: np.ndarray  # (sample, layer)
    removal: np.ndarray  # (sample,) removal effect at layer 0
    hashes: np.ndarray  # (sample,) names of the images
    layers: np.ndarray
    floor: float
    images: np.ndarray  # (sample,) cluster codes over all levels of the comparison
    label: str = ""

    def only(self, images: np.ndarray) -> _Level:
        """The samples that show one of these images."""
        inside = np.isin(self.images, images)
        cut = {name: getattr(self, name)[inside] for name in ("values", "removal", "hashes", "images")}
        return replace(self, **cut)

    def detect(self, detector: HorizonDetector, counts: np.ndarray | None) -> Horizon:
        """The horizon of these samples."""
        found = detector(
            self.values,
            self.images,
            layers=self.layers,
            criterion=self.criterion,
            measure=self.measure,
            noise_floor=self.floor,
            removal=self.removal,
            counts=counts,
        )
        return replace(found, model=self.run.model, group=self.group, target=self.target)


def _levels(
    run: Run, source: int, columns: Sequence[str], criterion: str, measure: str, target: str | None
) -> list[_Level]:
    """One level a group of samples, images not numbered yet."""
    criteria_of(run, criterion)
    check_choice(f"measure of the criterion {criterion!r}", measure, CRITERIA[criterion].measures)
    target = check_target(run, target)
    curves, removal = CRITERIA[criterion].effects(run, measure, target)
    floor = noise_floor(run, measure)
    finite = np.isfinite(curves.values).all(axis=1) & np.isfinite(removal.values[:, 0])
    hashes = curves.groups["image_sha256"].fillna("").to_numpy(str)
    found = []
    for group, rows in split_groups(run.samples, columns):
        inside = finite & np.isin(curves.rows, rows)
        arrays = (curves.values[inside], removal.values[inside, 0], hashes[inside])
        found.append(
            _Level(run, source, group, criterion, measure, target, *arrays, curves.layers, floor, curves.images[inside])
        )
    return found


def _label(level: _Level, runs: Sequence[Run]) -> str:
    """Name of a level: its group, after its model if there are several runs, and the run if models are namesakes."""
    group = " / ".join(level.group.values())
    if len(runs) == 1:
        return group or level.run.model
    namesakes = sum(run.model == level.run.model for run in runs)
    model = level.run.model if namesakes == 1 else f"{level.run.model} ({level.run.name})"
    return f"{model}: {group}" if group else model


@dataclass(frozen=True)
class _Depth:
    """One depth of one level with its bootstrap draws, in layers."""

    label: str
    value: float | None
    reason: str
    draws: np.ndarray  # (resample,)
    n_layers: int
    n_images: int
    censored: bool
    level: float


def _differences(a: _Level, b: _Level, detector: HorizonDetector, counts: np.ndarray | None) -> list[Difference]:
    """All differences of one pair of levels, a minus b."""
    shared = np.intersect1d(a.images, b.images)
    sides = {False: (a, b), True: (a.only(shared), b.only(shared))}
    depths = {paired: [_depths(side, detector, counts) for side in pair] for paired, pair in sides.items()}
    missing = "" if len(shared) else "no image was asked in both"
    return [
        _difference(depths[paired][0][quantity], depths[paired][1][quantity], quantity, unit, paired, missing)
        for quantity in depths[False][0]
        for paired in (False, True)
        for unit in ("layers", "fraction")
    ]


def _depths(side: _Level, detector: HorizonDetector, counts: np.ndarray | None) -> dict[str, _Depth]:
    """Half depth, where the criterion has one, and horizon of a level."""
    found = side.detect(detector, counts)
    half, settled = np.array([]), np.array([])
    if found.layer is not None and counts is not None:
        means = resampled_means(side.values, side.images, counts)
        drawn = np.isfinite(means).all(axis=1)
        threshold = detector.threshold(side.criterion, means, side.floor)
        half = half_depths(means, side.layers)
        settled = np.where(drawn, settled_layer(means, threshold, side.layers), np.nan)
    common: dict[str, Any] = {
        "label": side.label,
        "n_layers": found.n_layers,
        "n_images": found.n_images,
        "level": detector.level,
    }
    reason = found.half_depth_reason
    depths = {
        "half_depth": _Depth(value=found.half_depth, reason=reason, draws=half, censored=False, **common),
        "horizon": _Depth(value=found.layer, reason=found.reason, draws=settled, censored=found.censored, **common),
    }
    return depths if CRITERIA[side.criterion].half_depth else {"horizon": depths["horizon"]}


def _difference(a: _Depth, b: _Depth, quantity: str, unit: str, paired: bool, missing: str) -> Difference:
    reason = (missing if paired else "") or next(
        (f"{side.label}: {side.reason}" for side in (a, b) if side.value is None), ""
    )
    if not reason and a.censored and b.censored:
        reason = "neither horizon is reached before the end"
    blank = Difference(
        a.label, b.label, quantity, unit, None, None, paired, a.n_images, b.n_images, a.censored or b.censored, reason
    )
    if reason or a.value is None or b.value is None:
        return blank
    scale_a, scale_b = (1, 1) if unit == "layers" else (a.n_layers, b.n_layers)
    method = "linear" if quantity == "half_depth" else "inverted_cdf"
    low, high = percentile_interval(a.draws / scale_a - b.draws / scale_b, a.level, method=method)
    return replace(blank, value=a.value / scale_a - b.value / scale_b, interval=(float(low), float(high)))
