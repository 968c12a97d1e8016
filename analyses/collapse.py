"""The entropy collapse layer (ECL): the one-step drop of matrix entropy that stands out, or None with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from analyses.effects import entropy_curves, image_codes, split_groups
from analyses.resampling import draw_counts, percentile_interval, resampled_means
from analyses.runs import HorizonError, Run

MIN_LAYERS = 5  # below it fewer than three other steps are left to compare the largest with
RESOLUTION = 1e-5  # relative to the entropy: what float32 states leave uncertain


@dataclass(frozen=True)
class CollapseLayer:
    """Where the entropy of one stream collapses in one group, or why no layer can be named.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples it was found on; empty for all samples together.
        stream: "query", "key", "hidden", ...
        layer: the ECL, in 1..L-1 ("prune from the input of this layer on"), or None.
        reason: why `layer` is None, in words; "" when a layer is given.
        n_layers: L.
        n_samples: samples used. n_images: distinct images among them.
        layers: (layer,) int, 0..L-1.
        curve: (layer,) mean entropy in nats; tasks weigh equally.
        low: (layer,) lower end of the pointwise bootstrap band, nats. high: its upper end.
        drop: largest one-step drop S_{k-1} - S_k, nats.
        sharpness: that drop's distance from the median of the other steps, in their robust standard deviations.
        sharpness_null: the sharpness that exchangeable steps exceed with probability 1 - level.
        consistency: share of bootstrap resamples whose own largest drop is at the same layer and stands out too.
        interval: percentile interval of the resamples' layers; None when no layer is given.
        detector: the parameters that produced all this.
        task_consistency: the same share of the single tasks' curves.
    """

    model: str
    group: dict[str, str]
    stream: str
    layer: int | None
    reason: str
    n_layers: int
    n_samples: int
    n_images: int
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


@dataclass(frozen=True)
class CollapseDetector:
    """Parameters of the search for the ECL.

    Attributes:
        resamples: bootstrap resamples of images.
        seed: of the resamples and of the null.
        level: of intervals, bands and the sharpness null.
        consistency: least share of resamples, and of single tasks, that must agree.
        null_draws: simulated sets of exchangeable steps behind the sharpness null.
    """

    resamples: int = 2000
    seed: int = 0
    level: float = 0.95
    consistency: float = 0.8
    null_draws: int = 20_000

    def __call__(
        self,
        values: np.ndarray,
        images: np.ndarray,
        tasks: np.ndarray | None = None,
        *,
        counts: np.ndarray | None = None,
    ) -> CollapseLayer:
        """Find the ECL of one set of entropy curves.

        Args:
            values: (sample, layer) entropies in nats over layers 0..L-1; a sample with a NaN is left out.
            images: (sample,) int cluster codes.
            tasks: (sample,) labels; tasks weigh equally. One task by default.
            counts: (resample, cluster) drawn before, if several groups are to be resampled together.

        Returns:
            The result, with `model`, `group` and `stream` left empty.
        """
        used = np.isfinite(values).all(axis=1)
        tasks = np.zeros(len(values)) if tasks is None else np.asarray(tasks)
        values, images, tasks = values[used], images[used], tasks[used]
        n_layers = values.shape[1]
        if counts is None and len(values):
            images = np.unique(images, return_inverse=True)[1]
            counts = draw_counts(images.max() + 1, self.resamples, self.seed)
        blank = np.full(n_layers, np.nan)
        result = CollapseLayer(
            model="",
            group={},
            stream="",
            layer=None,
            reason=self._unclaimable(len(values), len(np.unique(images)), n_layers),
            n_layers=n_layers,
            n_samples=len(values),
            n_images=len(np.unique(images)),
            layers=np.arange(n_layers),
            curve=task_mean(values, tasks) if len(values) else blank,
            low=blank,
            high=blank,
            drop=float("nan"),
            sharpness=float("nan"),
            sharpness_null=float("nan"),
            consistency=float("nan"),
            interval=None,
            detector=self,
        )
        if result.reason or counts is None:
            return result
        return self._judge(result, values, images, tasks, counts)

    def _judge(
        self, blank: CollapseLayer, values: np.ndarray, images: np.ndarray, tasks: np.ndarray, counts: np.ndarray
    ) -> CollapseLayer:
        """Fill in drop, sharpness, consistency and the verdict."""
        single = [(values[tasks == task], images[tasks == task]) for task in np.unique(tasks)]
        draws = _mean_over_tasks([resampled_means(v, i, counts) for v, i in single])
        low, high = percentile_interval(draws, self.level)
        draws = draws[np.isfinite(draws).all(axis=1)]
        steps = -np.diff(blank.curve)
        layer = int(steps.argmax()) + 1
        needed = sharpness_null(len(steps), self.level, self.null_draws, self.seed)
        picks = _picks(draws, needed)
        alone = _picks(np.stack([v.mean(axis=0) for v, _ in single]), needed)
        judged = replace(
            blank,
            low=low,
            high=high,
            drop=float(steps.max()),
            sharpness=float(_sharpness_of(blank.curve)),
            sharpness_null=needed,
            consistency=float(np.mean(picks == layer)),
            task_consistency=float(np.mean(alone == layer)),
        )
        reason = self._objection(judged)
        if reason:
            return replace(judged, reason=reason)
        first, last = percentile_interval(picks, self.level, method="inverted_cdf")
        return replace(judged, layer=layer, interval=(int(first), int(last)))

    def _unclaimable(self, n_samples: int, n_images: int, n_layers: int) -> str:
        """Why this input cannot carry a claim, or ""."""
        if n_samples == 0:
            return "no sample was measured"
        if n_images < 2:
            return "all samples show one image, so nothing is known about others"
        if n_layers < MIN_LAYERS:
            return f"{n_layers} layers are too few to tell a sharp drop from the other steps (at least {MIN_LAYERS})"
        return ""

    def _objection(self, found: CollapseLayer) -> str:
        """Why the largest drop is no collapse, or ""."""
        step = int((-np.diff(found.curve)).argmax()) + 1
        if found.drop <= RESOLUTION * np.abs(found.curve).max():
            return "the entropy drops nowhere"
        if found.sharpness <= found.sharpness_null:
            return (
                f"the largest drop ({found.drop:.3g} nats, into layer {step}) does not stand out from the other steps: "
                f"sharpness {found.sharpness:.2g}, needed {found.sharpness_null:.2g}"
            )
        for share, what in ((found.consistency, "resamples"), (found.task_consistency, "single tasks")):
            if share < self.consistency:
                return (
                    f"only {share:.0%} of the {what} have a drop into layer {step} that stands out from their "
                    f"other steps, needed {self.consistency:.0%}"
                )
        return ""


def _sharpness_of(curves: np.ndarray) -> np.ndarray:
    """Sharpness of (..., layer) entropy curves, in float32's resolution of an entropy at least."""
    return sharpness(-np.diff(curves, axis=-1), RESOLUTION * np.abs(curves).max(axis=-1))


def _picks(curves: np.ndarray, needed: float) -> np.ndarray:
    """(curve,) layer of the largest drop of each (curve, layer) entropy curve; 0 where none stands out as needed."""
    steps = -np.diff(curves, axis=-1)
    stands_out = (_sharpness_of(curves) > needed) & (steps.max(axis=-1) > 0)
    return np.where(stands_out, steps.argmax(axis=-1) + 1, 0)


def find_collapse_layer(
    run: Run,
    *,
    by: Sequence[str] = ("task_type",),
    streams: Sequence[str] | None = None,
    detector: CollapseDetector | None = None,
) -> list[CollapseLayer]:
    """Find the entropy collapse layer of every group and stream (EntropyPrune, arXiv 2602.17196, made a definition).

    The curve of a group is the mean over the samples of a task, tasks weighing equally. Layer k in 1..L-1 with the
    largest one-step drop S_{k-1} - S_k is the ECL if the drop is positive, its sharpness exceeds that of
    exchangeable steps, and enough bootstrap resamples of the images, and enough single tasks, reach that same verdict
    by themselves; else None, with the reason. Asking resamples for the verdict and not only for the place of the
    drop keeps a sharpness that lies on its null's edge by chance from counting as a collapse.

    Args:
        run: a run with the probe "entropy".
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        streams: of the run; all by default.
        detector: parameters.

    Returns:
        One result a group and stream, groups sorted.

    Raises:
        HorizonError: unknown stream or column, or the run holds no entropies.
    """
    detector = detector or CollapseDetector()
    if "entropy" not in run.config.probes:
        raise HorizonError(f"run {run.name} holds no entropies: run it again with the probe 'entropy'")
    groups = split_groups(run.samples, by)
    found = []
    counts = None
    for stream in run.config.streams if streams is None else streams:
        curves = entropy_curves(run, stream)
        before_end = curves.layers < run.config.n_layers
        if counts is None and len(run.ok):
            counts = draw_counts(image_codes(run).max() + 1, detector.resamples, detector.seed)
        for group, rows in groups:
            inside = np.isin(curves.rows, rows)
            tasks = curves.groups["task"].fillna("").to_numpy(str)[inside]
            one = detector(curves.values[inside][:, before_end], curves.images[inside], tasks, counts=counts)
            found.append(replace(one, model=run.model, group=group, stream=stream, n_layers=run.config.n_layers))
    return found


def sharpness(steps: np.ndarray, resolution: float | np.ndarray = 0.0) -> np.ndarray:
    """How far the largest step stands out: (largest - median of the others) / (1.4826 MAD of the others).

    Args:
        steps: (..., step) drops; at least two.
        resolution: the robust standard deviation is not taken below it, so that a curve that is flat apart from
            one drop has a finite sharpness, and rounding of a constant curve has none.

    Returns:
        (...) sharpness; 0 where all steps are equal, infinite where only the largest differs and resolution is 0.

    >>> round(float(sharpness(np.array([0.0, 1.0, 10.0, 3.0, 4.0]))), 3)  # the others: median 2, MAD 1.5
    3.597
    """
    ordered = np.sort(steps, axis=-1)
    others = ordered[..., :-1]
    median = np.median(others, axis=-1, keepdims=True)
    deviation = 1.4826 * np.median(np.abs(others - median), axis=-1)
    gap = ordered[..., -1] - median[..., 0]
    deviation = np.maximum(deviation, resolution)
    return np.divide(gap, deviation, out=np.where(gap > 0, np.inf, 0.0), where=deviation > 0)


@cache
def sharpness_null(n_steps: int, level: float = 0.95, draws: int = 20_000, seed: int = 0) -> float:
    """Sharpness that the largest of `n_steps` exchangeable Gaussian steps exceeds with probability 1 - level."""
    steps = np.random.default_rng(seed).standard_normal((draws, n_steps))
    return float(np.quantile(sharpness(steps), level))


def task_mean(values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """(layer,) mean over tasks of the mean over each task's samples."""
    return np.mean([values[tasks == task].mean(axis=0) for task in np.unique(tasks)], axis=0)


def _mean_over_tasks(draws: Sequence[np.ndarray]) -> np.ndarray:
    """(resample, layer) mean over the tasks that a resample drew at all; NaN where it drew none."""
    stacked = np.stack(draws)
    drawn = np.isfinite(stacked)
    total = np.where(drawn, stacked, 0.0).sum(axis=0)
    return np.divide(total, drawn.sum(axis=0), out=np.full_like(total, np.nan), where=drawn.any(axis=0))
