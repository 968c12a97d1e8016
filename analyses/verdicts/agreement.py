"""Do depths agree: one collapse layer for all streams and tasks of a model, and collapse layers against horizons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np
import pandas as pd

from analyses.arrays.collapse_rules import RULES
from analyses.arrays.resampling import percentile_interval
from analyses.curves.effects import entropy_curves, resample_images
from analyses.runs import Run, as_runs, split_groups
from analyses.verdicts.collapse import (
    CollapseDetector,
    CollapseLayer,
    find_collapse_layer,
    group_entropies,
    resampled_curves,
)
from analyses.verdicts.criteria import CRITERIA
from analyses.verdicts.horizon import Horizon, HorizonDetector, HorizonQuery, depth_draws

JOINT_STREAMS = ("query", "key")


@dataclass(frozen=True)
class JointCollapseLayer:
    """One collapse layer for a whole model, or why its streams and tasks do not share one.

    Attributes:
        model: short name of the model.
        layer: the layer at which every stream collapses over all tasks, or None.
        reason: why `layer` is None, in words; "" when a layer is given.
        interval: percentile interval over the resamples in which all streams collapse at one layer; None without one.
        consistency: share of bootstrap resamples in which every stream collapses at that layer at once.
        vote_share: share of the single curves, one a stream and task, that collapse there by themselves.
        votes: DataFrame, one row a stream and task: stream, task, layer (0 where nothing stands out).
        streams: one result a stream, over all tasks.
        n_layers: L.
        detector: the parameters that produced all this.
    """

    model: str
    layer: int | None
    reason: str
    interval: tuple[int, int] | None
    consistency: float
    vote_share: float
    votes: pd.DataFrame
    streams: list[CollapseLayer]
    n_layers: int
    detector: CollapseDetector = field(repr=False)


@dataclass(frozen=True)
class Gap:
    """How much deeper than the collapse the information reaches, in one quantity.

    Attributes:
        quantity: "horizon" or "half_depth".
        layers: that depth minus the ECL; positive where information outlives the collapse. None if it cannot be said.
        interval: percentile interval over common resamples, in layers, or None.
        fraction: the same as a share of the depth L. fraction_interval: its interval.
        censored: the horizon is "not before the end", so the gap is a lower bound.
        reason: why `layers` is None; "" when it is given.
    """

    quantity: str
    layers: float | None
    interval: tuple[float, float] | None
    fraction: float | None
    fraction_interval: tuple[float, float] | None
    censored: bool
    reason: str


@dataclass(frozen=True)
class Agreement:
    """The ECL of one group and stream beside the horizon and half depth of the group.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        stream: whose entropy.
        collapse: its ECL. horizon: the group's horizon and half depth.
        gaps: of the horizon and, where the criterion has one, of the half depth.
    """

    model: str
    group: dict[str, str]
    stream: str
    collapse: CollapseLayer
    horizon: Horizon
    gaps: tuple[Gap, ...]


def joint_collapse_layer(
    run: Run,
    *,
    streams: Sequence[str] | None = None,
    rule: str | None = None,
    detector: CollapseDetector | None = None,
) -> JointCollapseLayer:
    """One collapse layer for the model, as the paper means it: the same for queries and keys and over datasets.

    It exists if every stream, over all tasks with equal weight, has an ECL, these are one layer k, at least the
    detector's share of bootstrap resamples has every stream collapse at k at once, and so does that share of the
    single curves, one a stream and task. With one task nothing is known about others; `votes` shows how many there
    are.

    Args:
        run: a run with the probe "entropy".
        streams: that must agree; those of query and key that the run measured by default, of the tokens that it
            removes or else of the visual ones.
        rule: "drop", "relative-drop" or "two-segment"; the detector's by default.
        detector: parameters.

    Raises:
        HorizonError: unknown stream or rule, or the run holds no entropies.
    """
    names = _joint_streams(run) if streams is None else list(streams)
    singles = find_collapse_layer(run, by=(), streams=names, rule=rule, detector=detector)
    detector = singles[0].detector if singles else detector or CollapseDetector()
    rows = [vote for stream in names for vote in _votes(run, stream, detector)]
    votes = pd.DataFrame(rows, columns=["stream", "task", "layer"])
    reason = _no_common_layer(singles)
    poll = _Poll() if reason else _poll(run, singles, votes)
    reason = reason or poll.objection(singles[0])
    return JointCollapseLayer(
        model=run.model,
        layer=None if reason else singles[0].layer,
        reason=reason,
        interval=None if reason else poll.interval,
        consistency=poll.consistency,
        vote_share=poll.vote_share,
        votes=votes,
        streams=singles,
        n_layers=run.config.n_layers,
        detector=detector,
    )


def compare_collapse_to_horizon(
    run_or_runs: Run | Sequence[Run],
    *,
    by: Sequence[str] = ("task_type",),
    streams: Sequence[str] | None = None,
    rule: str | None = None,
    criterion: str = "removal",
    measure: str = "p",
    target: str | None = None,
    collapse_detector: CollapseDetector | None = None,
    horizon_detector: HorizonDetector | None = None,
) -> list[Agreement]:
    """Hold the ECL of every model, group and stream against the group's information horizon and half depth.

    The intervals of the gaps come from common resamples of the images: the place of each resample's own largest drop
    against its own horizon and half depth.

    Args:
        run_or_runs: one run or several, with the probe "entropy" and what the criterion needs.
        by: columns that define the groups ("task_type", "task", "category"); () for all samples together.
        streams: names of the runs' streams; all by default.
        rule: by which the collapse is found: "drop", "relative-drop" or "two-segment"; the detector's by default.
        criterion: by which the horizon is found, a key of `CRITERIA`; half depth comes with "removal" only.
        measure: "p" or "log_p".
        target: name of one of the runs' targets; their first by default.
        collapse_detector: parameters of the search for the ECL.
        horizon_detector: parameters of the search for the horizon; its resamples, seed and level hold for both.

    Returns:
        One result a run, stream and group; a gap without a value always comes with its reason.

    Raises:
        HorizonError: unknown words, or a run that lacks what is compared.
    """
    query = HorizonQuery(criterion, measure, target, horizon_detector or HorizonDetector())
    drops = replace(
        collapse_detector or CollapseDetector(),
        resamples=query.detector.resamples,
        seed=query.detector.seed,
        level=query.detector.level,
    )
    results = []
    for run in as_runs(run_or_runs):
        groups = split_groups(run.samples, by)
        if not groups:
            continue
        effects, counts = query.effects(run), query.counts(run)
        quantities = ("half_depth", "horizon") if CRITERIA[criterion].half_depth else ("horizon",)
        horizons = query.horizons(effects, groups, counts)
        depths = [
            depth_draws(effects.whole_of(rows), horizon, counts)
            for (_, rows), horizon in zip(groups, horizons, strict=True)
        ]
        collapses = find_collapse_layer(run, by=by, streams=streams, rule=rule, detector=drops)
        # groups run fastest in every list
        for collapse, (_, rows), horizon, draws in zip(collapses, cycle(groups), cycle(horizons), cycle(depths)):
            places = None if collapse.layer is None else _place_draws(run, collapse, rows)
            gaps = tuple(_gap(collapse, horizon, name, draws[name], places) for name in quantities)
            results.append(Agreement(run.model, collapse.group, collapse.stream, collapse, horizon, gaps))
    return results


def _joint_streams(run: Run) -> list[str]:
    """Queries and keys of the tokens that the run removes, or else of the visual ones, as far as it measured them."""
    tokens = run.config.tokens
    of_tokens = JOINT_STREAMS if tokens == "visual" else tuple(f"{tokens}:{name}" for name in JOINT_STREAMS)
    measured = [[name for name in names if name in run.config.streams] for names in (of_tokens, JOINT_STREAMS)]
    return measured[0] or measured[1]


def _no_common_layer(singles: Sequence[CollapseLayer]) -> str:
    """Why the streams name no common layer, or ""."""
    if len(singles) < 2:
        names = ", ".join(single.stream for single in singles) or "none"
        return f"a joint layer needs at least two streams, the run measured {names} of {', '.join(JOINT_STREAMS)}"
    missing = [f"{single.stream}: {single.reason}" for single in singles if single.layer is None]
    if missing:
        return "; ".join(missing)
    if len({single.layer for single in singles}) > 1:
        return f"the streams collapse at different layers: {', '.join(f'{s.stream} {s.layer}' for s in singles)}"
    return ""


def _votes(run: Run, stream: str, detector: CollapseDetector) -> list[tuple[str, str, int]]:
    """(stream, task, layer) of every task's mean curve; layer 0 where nothing stands out."""
    values, _, tasks = _finite_entropies(run, stream, run.samples.index.to_numpy(int))
    return [(stream, str(task), int(detector.picks(values[tasks == task].mean(axis=0)))) for task in np.unique(tasks)]


@dataclass(frozen=True)
class _Poll:
    """How many resamples and single curves collapse at the layer that all streams name."""

    consistency: float = float("nan")
    vote_share: float = float("nan")
    interval: tuple[int, int] | None = None

    def objection(self, single: CollapseLayer) -> str:
        """Why too few of them agree with the layer of one stream, or ""."""
        needed = single.detector.consistency
        for share, what in ((self.consistency, "resamples"), (self.vote_share, "single curves of a stream and task")):
            if share < needed:
                what = f"{what} collapse at layer {single.layer}" + (" in all streams" if what == "resamples" else "")
                return f"only {share:.0%} of the {what}, needed {needed:.0%}"
        return ""


def _poll(run: Run, singles: Sequence[CollapseLayer], votes: pd.DataFrame) -> _Poll:
    """Let resamples and single curves vote on the layer that all streams name."""
    layer, detector = singles[0].layer, singles[0].detector
    rows = run.samples.index.to_numpy(int)
    curves = np.stack([_curve_draws(run, single.stream, rows, detector) for single in singles])
    picks = detector.picks(curves[:, np.isfinite(curves).all(axis=(0, 2))])
    agreed = picks[0, (picks == picks[0]).all(axis=0) & (picks[0] > 0)]
    ends = percentile_interval(agreed, detector.level, method="inverted_cdf")
    return _Poll(
        consistency=float(np.sum(agreed == layer) / picks.shape[1]),
        vote_share=float(np.mean(votes["layer"] == layer)),
        interval=(int(ends[0]), int(ends[1])) if len(agreed) else None,
    )


def _finite_entropies(run: Run, stream: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, images and tasks of the samples with a whole entropy curve."""
    values, images, tasks = group_entropies(run, entropy_curves(run, stream), rows)
    finite = np.isfinite(values).all(axis=1)
    return values[finite], images[finite], tasks[finite]


def _curve_draws(run: Run, stream: str, rows: np.ndarray, detector: CollapseDetector) -> np.ndarray:
    """(resample, layer) mean entropies of a group that has samples."""
    counts = resample_images(run, detector.resamples, detector.seed)
    assert counts is not None, "a collapse was named, so samples were measured"
    return resampled_curves(*_finite_entropies(run, stream, rows), counts)


def _place_draws(run: Run, collapse: CollapseLayer, rows: np.ndarray) -> np.ndarray:
    """(resample,) layer of each resample's largest drop; NaN where it drew none of the group."""
    curves = _curve_draws(run, collapse.stream, rows, collapse.detector)
    known = np.isfinite(curves).all(axis=1)
    places = np.full(len(curves), np.nan)
    places[known] = RULES[collapse.detector.rule].read(curves[known]).layers
    return places


def _gap(
    collapse: CollapseLayer, horizon: Horizon, quantity: str, depths: np.ndarray, places: np.ndarray | None
) -> Gap:
    """One depth minus the ECL."""
    depth: float | None = horizon.layer
    reason = horizon.reason
    if quantity == "half_depth":
        depth, reason = horizon.half_depth, horizon.half_depth_reason
    censored = quantity == "horizon" and horizon.censored
    if collapse.layer is None:
        reason = f"no collapse layer: {collapse.reason}"
    if depth is None or collapse.layer is None or places is None:
        return Gap(quantity, None, None, None, None, censored, reason)
    layers, n = float(depth - collapse.layer), horizon.n_layers
    method = "linear" if quantity == "half_depth" else "inverted_cdf"
    n_images = min(collapse.n_images, horizon.n_images)
    ends = percentile_interval(depths - places, horizon.detector.level, n_clusters=n_images, method=method)
    low, high = map(float, ends)
    return Gap(quantity, layers, (low, high), layers / n, (low / n, high / n), censored, "")
