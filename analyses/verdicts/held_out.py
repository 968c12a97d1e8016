"""Honest selection: a layer chosen on some images and scored on others, beside the same images for both.

A layer that was chosen because its effect is small looks better on the samples that it was chosen on than it is. The
shift between the two says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analyses.arrays.collapse_rules import RULES
from analyses.arrays.resampling import draw_counts, interval_warning, percentile_interval, resampled_means
from analyses.curves.effects import entropy_curves, noise_floor, removal_effects, with_caution
from analyses.runs import HorizonError, Run, check_choice, check_target, split_groups
from analyses.verdicts.collapse import CollapseDetector, CollapseLayer, find_collapse_layer, task_mean
from analyses.verdicts.criteria import CRITERIA, criteria_of, method_warning
from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon

MIN_IMAGES = 4  # two to choose on and two to score on
SAME_SAMPLES = "chosen and scored on the same samples: the estimate flatters the layer"
Choose = Callable[[np.ndarray], int]  # (sample,) bool, the choosing samples -> layer


@dataclass(frozen=True)
class SplitEstimate:
    """What is lost by removing the visual tokens (or others) at a chosen layer, on the choosing samples and on others.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        chosen_by: a criterion of the horizon, or "collapse (<stream>)".
        measure: what is lost at the layer: "p" or "log_p" (mean removal effect R_k), or "correct" (fall in accuracy).
        layers: (repeat,) layer chosen in each split; the one chosen on all samples without a split.
        in_sample: mean loss on the samples that chose the layer.
        in_sample_interval: its interval, layers held fixed.
        held_out: mean loss at the same layers on the other samples; None without a split.
        held_out_interval: its interval, layers held fixed.
        shift: held_out - in_sample; positive if the layer was flattered.
        shift_interval: its interval, layers held fixed.
        n_samples: samples used. n_images: distinct images among them.
        split: share of the images that choose; None if all images do both.
        reason: why there are no numbers; "" when there are.
        warning: what the numbers must not be taken for; "" where nothing is the matter.
        tokens: what is removed: "visual", "text" or "all".
    """

    model: str
    group: dict[str, str]
    chosen_by: str
    measure: str
    layers: np.ndarray
    in_sample: float | None
    in_sample_interval: tuple[float, float] | None
    held_out: float | None
    held_out_interval: tuple[float, float] | None
    shift: float | None
    shift_interval: tuple[float, float] | None
    n_samples: int
    n_images: int
    split: float | None
    reason: str
    warning: str = ""
    tokens: str = "visual"


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
        seed: of splits and resamples.
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
    scored = [removal_effects(run, measure=name, target=target) for name in (measure, "correct")]
    samples, choosers = _choosers(run, criterion, measure, target, detector)
    found = []
    verdicts = _verdicts(run, by, criterion, measure, target, detector)
    for group, rows in split_groups(run.samples, by):
        used = np.array(sorted({*rows} & {*samples} & {*scored[0].rows} & {*scored[1].rows}), dtype=int)
        for curves in scored:
            at = np.searchsorted(curves.rows, used)
            blank = _blank(run.model, group, criterion, curves.measure, curves.images[at], split)
            blank = replace(blank, reason=blank.reason or verdicts[tuple(group.items())])
            blank = replace(blank, tokens=run.config.tokens)
            if criterion in CRITERIA and method_warning(run, criterion):
                blank = replace(blank, chosen_by=f"{criterion} (first order)")
            if not blank.reason:
                choose = choosers(used)
                blank = _scored(blank, curves.values[at], curves.images[at], curves.layers, choose, repeats, seed)
            found.append(replace(blank, warning=with_caution(blank.warning, run)))
    return found


def _blank(
    model: str, group: dict[str, str], criterion: str, measure: str, images: np.ndarray, split: float | None
) -> SplitEstimate:
    """A result without numbers yet, and why it cannot have any."""
    n_images = len(np.unique(images))
    reason = "" if n_images >= MIN_IMAGES else f"{n_images} images are too few to split (at least {MIN_IMAGES})"
    chosen_by = criterion if criterion in CRITERIA else f"collapse ({criterion})"
    nothing = (None,) * 6
    return SplitEstimate(
        model, group, chosen_by, measure, np.array([], int), *nothing, len(images), n_images, split, reason
    )


def _verdicts(
    run: Run,
    by: Sequence[str],
    criterion: str,
    measure: str,
    target: str,
    detector: HorizonDetector | CollapseDetector | None,
) -> dict[tuple[tuple[str, str], ...], str]:
    """Group -> why no layer can be claimed on all of its samples, or "": what cannot be claimed is not scored."""
    if criterion in CRITERIA:
        horizon = detector if isinstance(detector, HorizonDetector) else None
        found: Sequence[Horizon | CollapseLayer] = find_horizon(
            run, by=by, criterion=criterion, measure=measure, target=target, detector=horizon
        )
    else:
        collapse = detector if isinstance(detector, CollapseDetector) else None
        found = find_collapse_layer(run, by=by, streams=[criterion], detector=collapse)
    return {tuple(one.group.items()): "" if one.layer is not None else one.reason for one in found}


def _choosers(
    run: Run,
    criterion: str,
    measure: str,
    target: str,
    detector: HorizonDetector | CollapseDetector | None,
) -> tuple[np.ndarray, Callable[[np.ndarray], Choose]]:
    """Rows that can choose, and a function from the rows of a group to the rule that chooses a layer on a part."""
    if criterion in CRITERIA:
        criteria_of(run, criterion)
        horizon = detector if isinstance(detector, HorizonDetector) else HorizonDetector()
        curves, _ = CRITERIA[criterion].effects(run, measure, target)
        floor = noise_floor(run, measure)

        def from_effects(rows: np.ndarray) -> Choose:
            own = curves.of(rows)
            return lambda part: int(horizon.settled(criterion, own.values[part].mean(axis=0), floor, own.layers))

        return curves.rows[curves.finite], from_effects
    collapse = detector if isinstance(detector, CollapseDetector) else CollapseDetector()
    entropies = entropy_curves(run, criterion)
    before_end = entropies.layers < run.config.n_layers

    def from_entropies(rows: np.ndarray) -> Choose:
        at = np.searchsorted(entropies.rows, rows)
        values = entropies.values[at][:, before_end]
        tasks = entropies.groups["task"].fillna("").to_numpy(str)[at]
        return lambda part: int(RULES[collapse.rule].read(task_mean(values[part], tasks[part])).layers)

    return _finite(entropies.rows, entropies.values[:, before_end]), from_entropies


def _finite(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return rows[np.isfinite(values).all(axis=1)]


def _scored(
    blank: SplitEstimate,
    values: np.ndarray,
    images: np.ndarray,
    layers: np.ndarray,
    choose: Choose,
    repeats: int,
    seed: int,
) -> SplitEstimate:
    """Fill in layers and losses; a layer that was not measured is scored at the next measured one after it."""
    images = np.unique(images, return_inverse=True)[1]
    parts = split_images(images, blank.split, repeats, seed)
    chosen = np.array([choose(part) for part in parts])
    columns = np.searchsorted(layers, chosen)
    counts = draw_counts(blank.n_images, seed=seed)
    warning = interval_warning(values, images)
    estimates, draws = [], []
    for masks in (parts, ~parts):
        losses = [values[mask, [column]][:, None] for mask, column in zip(masks, columns, strict=True) if mask.any()]
        if losses:  # without a split nothing is held out
            estimates.append(float(np.mean([loss.mean() for loss in losses])))
            drawn = [resampled_means(loss, images[mask], counts) for loss, mask in zip(losses, masks, strict=True)]
            draws.append(np.mean(drawn, axis=0)[:, 0])
    ends = [_ends(drawn, blank.n_images) for drawn in (*draws, draws[-1] - draws[0])]
    inside = replace(blank, layers=chosen, in_sample=estimates[0], in_sample_interval=ends[0], warning=warning)
    if blank.split is None:
        return replace(inside, warning="; ".join(filter(None, (SAME_SAMPLES, warning))))
    shift = estimates[1] - estimates[0]
    return replace(inside, held_out=estimates[1], held_out_interval=ends[1], shift=shift, shift_interval=ends[2])


def _ends(draws: np.ndarray, n_images: int) -> tuple[float, float] | None:
    low, high = percentile_interval(draws, n_clusters=n_images)
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def split_images(images: np.ndarray, split: float | None, repeats: int, seed: int) -> np.ndarray:
    """Draw which samples choose, `repeats` times: whole images, at least two on either side.

    Args:
        images: (sample,) int codes, 0..n_images-1.
        split: share of the images that choose; None for all of them, once.
        repeats: splits to draw.
        seed: of the splits.

    Returns:
        (repeat, sample) bool.
    """
    if split is None:
        return np.ones((1, len(images)), dtype=bool)
    n_images = images.max() + 1
    n_choosing = int(np.clip(round(split * n_images), 2, n_images - 2))
    rng = np.random.default_rng(seed)
    return np.array([np.isin(images, rng.permutation(n_images)[:n_choosing]) for _ in range(repeats)])
