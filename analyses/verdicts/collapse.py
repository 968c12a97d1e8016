"""The entropy collapse layer (ECL): the drop of matrix entropy that stands out, or None with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analyses.arrays.collapse_rules import RESOLUTION, RULES
from analyses.arrays.resampling import draw_counts, interval_warning, percentile_interval, resampled_means
from analyses.curves.effects import EffectCurves, entropy_curves, resample_images, too_little
from analyses.curves.findings import Finding
from analyses.runs import HorizonError, Run, check_choice, split_groups

MIN_LAYERS = 5  # below it fewer than three other steps are left to compare the largest with


@dataclass(frozen=True)
class CollapseLayer(Finding):
    """Where the entropy of one stream collapses in one group, or why no layer can be named (`reason`).

    Attributes:
        stream: "query", "key", "hidden", ...
        layer: the ECL, in 1..L-1 ("prune from the input of this layer on"), or None.
        n_layers: L.
        layers: (layer,) int, 0..L-1.
        curve: (layer,) mean entropy in nats; tasks weigh equally.
        low: (layer,) lower end of the pointwise bootstrap band, nats. high: its upper end.
        drop: largest one-step drop S_{k-1} - S_k, nats; by the rule "two-segment" the shift of the level.
        sharpness: how far it stands out: distance of the drop from the median of the other steps, in their robust
            standard deviations; by the rule "two-segment" the gain in BIC over one segment.
        sharpness_null: what exchangeable steps exceed with probability 1 - level, on the same scale.
        consistency: share of bootstrap resamples whose own largest drop is at the same layer and stands out too.
        interval: percentile interval of the layers of the resamples' largest drops; None when no layer is given.
        detector: the parameters that produced all this.
        task_consistency: share of the single tasks' curves whose own largest drop is there and stands out too.
        warning: why interval and band may not hold what they promise; "" where nothing is the matter.
    """

    stream: str
    layer: int | None
    n_layers: int
    layers: np.ndarray
    curve: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drop: float
    sharpness: float
    sharpness_null: float
    consistency: float
    interval: tuple[int, int] | None
    detector: CollapseDetector = field(repr=False)
    task_consistency: float = float("nan")
    warning: str = ""


@dataclass(frozen=True)
class _Drop:
    """The largest fall of a mean entropy curve by a rule, how far it stands out, and who agrees on its layer."""

    low: np.ndarray  # (layer,) of the band, nats
    high: np.ndarray
    fall: float = float("nan")  # nats
    strength: float = float("nan")
    null: float = float("nan")  # strength that chance alone reaches
    consistency: float = float("nan")
    task_consistency: float = float("nan")
    layer: int = 0
    interval: tuple[int, int] | None = None
    warning: str = ""


@dataclass(frozen=True)
class CollapseDetector:
    """Parameters of the search for the ECL.

    Attributes:
        resamples: bootstrap resamples of images.
        seed: random seed of the resamples and of the null.
        level: coverage of intervals, bands and the sharpness null, in 0..1.
        consistency: least share of resamples, and of single tasks, that must agree.
        null_draws: simulated sets of exchangeable steps behind the sharpness null.
        rule: a key of `RULES`: "drop" (the largest one-step drop), "relative-drop" or "two-segment".
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    consistency: float = 0.8
    null_draws: int = 20_000
    rule: str = "drop"

    def __call__(
        self,
        values: np.ndarray,
        images: np.ndarray,
        tasks: np.ndarray | None = None,
        *,
        counts: np.ndarray | None = None,
        model: str = "",
        group: dict[str, str] | None = None,
        stream: str = "",
    ) -> CollapseLayer:
        """Find the ECL of one set of entropy curves.

        Args:
            values: (sample, layer) entropies in nats over layers 0..L-1; a sample with a NaN is left out.
            images: (sample,) int cluster codes.
            tasks: (sample,) labels; tasks weigh equally. One task by default.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.
            model: whose entropies they are, for the result.
            group: column -> value of the samples, for the result.
            stream: which stream they are of, for the result.

        Returns:
            The ECL, or the reason why there is none.
        """
        whole = np.isfinite(values).all(axis=1)
        tasks = np.zeros(len(values)) if tasks is None else np.asarray(tasks)
        values, images, tasks = values[whole], images[whole], tasks[whole]
        n_images, n_layers = len(np.unique(images)), values.shape[1]
        unknown = np.full(n_layers, np.nan)
        curve = task_mean(values, tasks) if len(values) else unknown
        reason = _unclaimable(len(values), len(whole), n_images, n_layers)
        if reason:
            drop = _Drop(unknown, unknown)
        else:
            if counts is None:
                images = np.unique(images, return_inverse=True)[1]
                counts = draw_counts(images.max() + 1, self.resamples, self.seed)
            drop = self._largest_drop(values, images, tasks, counts)
            reason = self._objection(drop, curve)
        return CollapseLayer(
            model=model,
            group=group or {},
            stream=stream,
            layer=None if reason else drop.layer,
            reason=reason,
            n_layers=n_layers,
            n_samples=len(values),
            n_images=n_images,
            layers=np.arange(n_layers),
            curve=curve,
            low=drop.low,
            high=drop.high,
            drop=drop.fall,
            sharpness=drop.strength,
            sharpness_null=drop.null,
            consistency=drop.consistency,
            interval=None if reason else drop.interval,
            detector=self,
            task_consistency=drop.task_consistency,
            warning=drop.warning,
        )

    def needed(self, n_layers: int) -> float:
        """How far a fall must stand out in curves of so many layers."""
        return RULES[self.rule].null(n_layers, self.level, self.null_draws, self.seed)

    def picks(self, curves: np.ndarray) -> np.ndarray:
        """(...) layer at which each (..., layer) entropy curve collapses by itself; 0 where nothing stands out."""
        reading = RULES[self.rule].read(curves)
        stands_out = (reading.strengths > self.needed(curves.shape[-1])) & (reading.falls > 0)
        return np.where(stands_out, reading.layers, 0)

    def _largest_drop(self, values: np.ndarray, images: np.ndarray, tasks: np.ndarray, counts: np.ndarray) -> _Drop:
        """The largest fall of the mean curve, its band and the agreement of resamples and single tasks."""
        n_images = len(np.unique(images))
        draws = resampled_curves(values, images, tasks, counts)
        low, high = percentile_interval(draws, self.level, n_clusters=n_images)
        draws = draws[np.isfinite(draws).all(axis=1)]
        reading = RULES[self.rule].read(task_mean(values, tasks))
        layer = int(reading.layers)
        alone = np.stack([values[tasks == task].mean(axis=0) for task in np.unique(tasks)])
        places = RULES[self.rule].read(draws).layers
        ends = percentile_interval(places, self.level, n_clusters=n_images, method="inverted_cdf")
        return _Drop(
            low=low,
            high=high,
            fall=float(reading.falls),
            strength=float(reading.strengths),
            null=self.needed(values.shape[1]),
            consistency=float(np.mean(self.picks(draws) == layer)),
            task_consistency=float(np.mean(self.picks(alone) == layer)),
            layer=layer,
            interval=(int(ends[0]), int(ends[1])) if len(places) else None,
            warning=interval_warning(values, images),
        )

    def _objection(self, drop: _Drop, curve: np.ndarray) -> str:
        """Why the largest fall of a curve by the rule is no collapse, or ""."""
        rule = RULES[self.rule]
        if drop.fall <= RESOLUTION * np.abs(curve).max():
            return rule.flat
        if drop.strength <= drop.null:
            return rule.weak.format(fall=drop.fall, layer=drop.layer, strength=drop.strength, needed=drop.null)
        for share, what in ((drop.consistency, "resamples"), (drop.task_consistency, "single tasks")):
            if share < self.consistency:
                return (
                    f"only {share:.0%} of the {what} have a drop into layer {drop.layer} that stands out, "
                    f"needed {self.consistency:.0%}"
                )
        return ""


def _unclaimable(n_samples: int, n_measured: int, n_images: int, n_layers: int) -> str:
    """Why so many whole curves, images and layers cannot carry a claim, or ""."""
    few = too_little(n_samples, n_measured, n_images)
    if few or n_layers >= MIN_LAYERS:
        return few
    return f"{n_layers} layers are too few to tell a sharp drop from the other steps (at least {MIN_LAYERS})"


def find_collapse_layer(
    run: Run,
    *,
    by: Sequence[str] = ("task_type",),
    streams: Sequence[str] | None = None,
    rule: str | None = None,
    detector: CollapseDetector | None = None,
) -> list[CollapseLayer]:
    """Find the entropy collapse layer of every group and stream (EntropyPrune, arXiv 2602.17196, made a definition).

    The curve of a group is the mean over the samples of a task, tasks weighing equally. Layer k in 1..L-1 with the
    largest one-step drop S_{k-1} - S_k is the ECL if the drop is positive, its sharpness exceeds that of
    exchangeable steps, and enough bootstrap resamples of the images, and enough single tasks, reach that same verdict
    by themselves; else None, with the reason. Asking resamples for the verdict and not only for the place of the
    drop keeps a sharpness that lies on its null's edge by chance from counting as a collapse.

    Two other rules ask the same of the largest relative drop (S_{k-1} - S_k) / S_{k-1}, and of the best fit of two
    segments against one (`analyses/arrays/collapse_rules.py`).

    Args:
        run: a run with the probe "entropy".
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        streams: names of the run's streams; all by default.
        rule: "drop", "relative-drop" or "two-segment"; the detector's by default, which is "drop".
        detector: parameters.

    Returns:
        One result a group and stream, groups sorted.

    Raises:
        HorizonError: unknown stream, rule or column, or the run holds no entropies.
    """
    detector = detector or CollapseDetector()
    detector = replace(detector, rule=rule or detector.rule)
    check_choice("rule", detector.rule, tuple(RULES))
    if "entropy" not in run.config.probes:
        raise HorizonError(f"run {run.name} holds no entropies: run it again with the probe 'entropy'")
    groups = split_groups(run.samples, by)
    counts = resample_images(run, detector.resamples, detector.seed)
    results = []
    for stream in run.config.streams if streams is None else streams:
        curves = entropy_curves(run, stream)
        for group, rows in groups:
            entropies = group_entropies(run, curves, rows)
            results.append(detector(*entropies, counts=counts, model=run.model, group=group, stream=stream))
    return results


def group_entropies(run: Run, curves: EffectCurves, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entropies of a group's samples before the final norm, (sample, layer) nats, with their images and tasks."""
    inside = np.isin(curves.rows, rows)
    tasks = curves.groups["task"].fillna("").to_numpy(str)[inside]
    return curves.values[inside][:, curves.layers < run.config.n_layers], curves.images[inside], tasks


def resampled_curves(values: np.ndarray, images: np.ndarray, tasks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean curve of every resample, over the samples of a task, then over the tasks that the resample drew at all.

    Args:
        values: (sample, layer) entropies in nats, finite.
        images: (sample,) int codes into the columns of `counts`.
        tasks: (sample,) labels.
        counts: (resample, cluster).

    Returns:
        (resample, layer) nats; NaN where a resample drew none of these images.
    """
    draws = [resampled_means(values[tasks == task], images[tasks == task], counts) for task in np.unique(tasks)]
    stacked = np.stack(draws)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full_like(total, np.nan), where=known.any(axis=0))


def task_mean(values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """(layer,) mean over tasks of the mean over each task's samples."""
    return np.mean([values[tasks == task].mean(axis=0) for task in np.unique(tasks)], axis=0)
