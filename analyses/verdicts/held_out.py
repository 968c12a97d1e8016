"""Honest selection: a layer chosen on some images and scored on others, beside the same images for both.

A layer that was chosen because its effect is small looks better on the samples that it was chosen on than it is. The
shift between the two says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from analyses.arrays.collapse_rules import RULES
from analyses.arrays.resampling import draw_counts, interval_warning, percentile_interval, resampled_means
from analyses.curves.effects import EffectCurves, entropy_curves, removal_effects, with_caution
from analyses.curves.findings import RemovalFinding
from analyses.runs import HorizonError, Run, check_choice, check_target, split_groups
from analyses.verdicts.collapse import CollapseDetector, CollapseLayer, find_collapse_layer, task_mean
from analyses.verdicts.criteria import CRITERIA, method_warning
from analyses.verdicts.horizon import Horizon, HorizonDetector, HorizonQuery

MIN_IMAGES = 4  # two to choose on and two to score on
SAME_SAMPLES = "chosen and scored on the same samples: the estimate flatters the layer"
Choose = Callable[[np.ndarray], int]  # (sample,) bool, the choosing samples -> layer


@dataclass(frozen=True)
class SplitEstimate(RemovalFinding):
    """What is lost by removing the visual tokens (or others) at a chosen layer, on the choosing samples and on others.

    Attributes:
        chosen_by: a criterion of the horizon, or "collapse (<stream>)".
        measure: what is lost at the layer: "p" or "log_p" (mean removal effect R_k), or "correct" (fall in accuracy).
        layers: (repeat,) layer chosen in each split; the one chosen on all samples without a split.
        in_sample: mean loss on the samples that chose the layer.
        in_sample_interval: its interval, layers held fixed.
        held_out: mean loss at the same layers on the other samples; None without a split.
        held_out_interval: its interval, layers held fixed.
        shift: held_out - in_sample; positive if the layer was flattered.
        shift_interval: its interval, layers held fixed.
        split: share of the images that choose; None if all images do both.
        warning: what the numbers must not be taken for; "" where nothing is the matter.
    """

    chosen_by: str
    measure: str
    layers: np.ndarray
    in_sample: float | None
    in_sample_interval: tuple[float, float] | None
    held_out: float | None
    held_out_interval: tuple[float, float] | None
    shift: float | None
    shift_interval: tuple[float, float] | None
    split: float | None
    warning: str = ""


@dataclass(frozen=True)
class _Splits:
    """How the images are split: the share that chooses (None for all), how often, and the seed of it."""

    share: float | None
    repeats: int
    seed: int


@dataclass(frozen=True)
class _Losses:
    """The layers that were chosen and the mean losses there, each with its interval; None where there are none."""

    layers: np.ndarray = field(default_factory=lambda: np.array([], int))
    in_sample: float | None = None
    in_sample_interval: tuple[float, float] | None = None
    held_out: float | None = None
    held_out_interval: tuple[float, float] | None = None
    shift: float | None = None
    shift_interval: tuple[float, float] | None = None
    warning: str = ""


def split_estimates(
    run: Run,
    *,
    by: Sequence[str] = ("task_type",),
    criterion: str = "removal",
    measure: str = "p",
    target: str | None = None,
    split: float | None = 0.5,
    repeats: int = 20,
    seed: int = 0,
    detector: HorizonDetector | CollapseDetector | None = None,
) -> list[SplitEstimate]:
    """Choose a layer on a random part of the images, and score it on the rest and on the same part.

    An image is never split: all of its questions choose, or all are held out. Estimates are averaged over seeded
    splits; intervals are cluster bootstraps over images at the layers that were chosen. The rule that chooses is the
    point estimate of the horizon, or the largest fall of the entropy; whether a layer can be claimed at all is said
    by `find_horizon` and `find_collapse_layer`.

    Args:
        run: a run with the probe "removal", and with "entropy" to choose by a collapse.
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        criterion: one of `CRITERIA`, or the name of a stream of the run, for its entropy collapse layer.
        measure: "p" or "log_p", of the loss and of criteria that have no measure of their own.
        target: one of the run's targets; the first by default.
        split: share of the images that choose, between 0 and 1. None: all images choose and score, which is flagged.
        repeats: splits to average over.
        seed: random seed of splits and resamples.
        detector: parameters of the horizon or, for a stream, of the collapse.

    Returns:
        Two results a group: the loss in `measure`, and the fall in accuracy.

    Raises:
        HorizonError: a share outside 0..1, unknown words, or a run that lacks what is asked for.
    """
    if split is not None and not 0 < split < 1:
        raise HorizonError(f"split is {split}, but the share of the images that choose must lie between 0 and 1")
    check_choice("measure", measure, ("p", "log_p"))
    check_choice("criterion or stream", criterion, (*CRITERIA, *run.config.streams))
    target = check_target(run, target)
    target = check_target(run, target)
    splits = _Splits(split, repeats, seed)
    losses = [removal_effects(run, measure=name, target=target) for name in (measure, "correct")]
    if criterion in CRITERIA:
        horizon_detector = detector if isinstance(detector, HorizonDetector) else HorizonDetector()
        choice = _choice_by_horizon(run, HorizonQuery(criterion, measure, target, horizon_detector), by)
    else:
        collapse_detector = detector if isinstance(detector, CollapseDetector) else CollapseDetector()
        choice = _choice_by_collapse(run, criterion, collapse_detector, by)
    results = []
    for (group, rows), objection in zip(split_groups(run.samples, by), choice.objections, strict=True):
        members = np.array(sorted({*rows} & {*choice.rows} & {*losses[0].rows} & {*losses[1].rows}), dtype=int)
        for curves in losses:
            results.append(_estimate(run, group, choice, curves.of(members), objection, splits))
    return results


@dataclass(frozen=True)
class _Choice:
    """A rule that chooses a layer on some samples of a group.

    Attributes:
        name: what results give as `chosen_by`.
        rows: (sample,) row numbers of the samples that it can look at.
        chooser: row numbers of a group -> the rule that chooses a layer on a part of these samples.
        objections: of each group, why no layer can be claimed on all of its samples, or "": what cannot be claimed is
            not scored.
    """

    name: str
    rows: np.ndarray
    chooser: Callable[[np.ndarray], Choose]
    objections: list[str]


def _choice_by_horizon(run: Run, query: HorizonQuery, by: Sequence[str]) -> _Choice:
    """Choose the point estimate of the horizon."""
    effects = query.effects(run)
    horizons = query.horizons(effects, split_groups(run.samples, by), query.counts(run))

    def chooser(rows: np.ndarray) -> Choose:
        curves, floor = effects.curves.of(rows), effects.noise_floor
        return lambda part: int(
            query.detector.settled(query.criterion, curves.values[part].mean(axis=0), floor, curves.layers)
        )

    name = f"{query.criterion} (first order)" if method_warning(run, query.criterion) else query.criterion
    return _Choice(name, effects.curves.rows[effects.curves.finite], chooser, _objections(horizons))


def _choice_by_collapse(run: Run, stream: str, detector: CollapseDetector, by: Sequence[str]) -> _Choice:
    """Choose the layer of the largest fall of the mean entropy."""
    entropies = entropy_curves(run, stream)
    values = entropies.values[:, entropies.layers < run.config.n_layers]
    tasks = entropies.groups["task"].fillna("").to_numpy(str)

    def chooser(rows: np.ndarray) -> Choose:
        inside = np.isin(entropies.rows, rows)
        read = RULES[detector.rule].read
        return lambda part: int(read(task_mean(values[inside][part], tasks[inside][part])).layers)

    whole = np.isfinite(values).all(axis=1)
    collapses = find_collapse_layer(run, by=by, streams=[stream], detector=detector)
    return _Choice(f"collapse ({stream})", entropies.rows[whole], chooser, _objections(collapses))


def _objections(results: Sequence[Horizon | CollapseLayer]) -> list[str]:
    return ["" if result.layer is not None else result.reason for result in results]


def _estimate(
    run: Run, group: dict[str, str], choice: _Choice, curves: EffectCurves, objection: str, splits: _Splits
) -> SplitEstimate:
    """The losses of one group in one measure, or why there are none."""
    n_images = len(np.unique(curves.images))
    few = "" if n_images >= MIN_IMAGES else f"{n_images} images are too few to split (at least {MIN_IMAGES})"
    reason = few or objection
    losses = _Losses() if reason else _score(curves, choice.chooser(curves.rows), splits)
    return SplitEstimate(
        model=run.model,
        group=group,
        chosen_by=choice.name,
        measure=curves.measure,
        layers=losses.layers,
        in_sample=losses.in_sample,
        in_sample_interval=losses.in_sample_interval,
        held_out=losses.held_out,
        held_out_interval=losses.held_out_interval,
        shift=losses.shift,
        shift_interval=losses.shift_interval,
        n_samples=len(curves.rows),
        n_images=n_images,
        split=splits.share,
        reason=reason,
        warning=with_caution(losses.warning, run),
        tokens=run.config.tokens,
    )


def _score(curves: EffectCurves, choose: Choose, splits: _Splits) -> _Losses:
    """Layers and losses over the splits; a layer that was not measured is scored at the next measured one after it."""
    values, images = curves.values, np.unique(curves.images, return_inverse=True)[1]
    n_images = int(images.max()) + 1
    parts = split_images(images, splits.share, splits.repeats, splits.seed)
    layers = np.array([choose(part) for part in parts])
    columns = np.searchsorted(curves.layers, layers)
    counts = draw_counts(n_images, seed=splits.seed)
    warning = interval_warning(values, images)
    estimates, draws = [], []
    for masks in (parts, ~parts):
        losses = [values[mask, [column]][:, None] for mask, column in zip(masks, columns, strict=True) if mask.any()]
        if losses:  # without a split nothing is held out
            estimates.append(float(np.mean([loss.mean() for loss in losses])))
            resampled = [resampled_means(loss, images[mask], counts) for loss, mask in zip(losses, masks, strict=True)]
            draws.append(np.mean(resampled, axis=0)[:, 0])
    in_sample_interval = _ends(draws[0], n_images)
    if splits.share is None:
        warning = "; ".join(filter(None, (SAME_SAMPLES, warning)))
        return _Losses(layers, estimates[0], in_sample_interval, warning=warning)
    return _Losses(
        layers=layers,
        in_sample=estimates[0],
        in_sample_interval=in_sample_interval,
        held_out=estimates[1],
        held_out_interval=_ends(draws[1], n_images),
        shift=estimates[1] - estimates[0],
        shift_interval=_ends(draws[1] - draws[0], n_images),
        warning=warning,
    )


def _ends(draws: np.ndarray, n_images: int) -> tuple[float, float] | None:
    low, high = percentile_interval(draws, n_clusters=n_images)
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def split_images(images: np.ndarray, split: float | None, repeats: int, seed: int) -> np.ndarray:
    """Draw which samples choose, `repeats` times: whole images, at least two on either side.

    Args:
        images: (sample,) int codes, 0..n_images-1.
        split: share of the images that choose; None for all of them, once.
        repeats: splits to draw.
        seed: random seed of the splits.

    Returns:
        (repeat, sample) bool.
    """
    if split is None:
        return np.ones((1, len(images)), dtype=bool)
    n_images = images.max() + 1
    n_choosing = int(np.clip(round(split * n_images), 2, n_images - 2))
    rng = np.random.default_rng(seed)
    return np.array([np.isin(images, rng.permutation(n_images)[:n_choosing]) for _ in range(repeats)])
