"""Do depths agree: one collapse layer for all streams and tasks of a model, and collapse layers against horizons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle

import numpy as np
import pandas as pd

from analyses.arrays.collapse_rules import RULES
from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.curves.effects import entropy_curves, image_codes, noise_floor
from analyses.runs import Run, split_groups, tokens_text
from analyses.verdicts.collapse import (
    CollapseDetector,
    CollapseLayer,
    find_collapse_layer,
    group_entropies,
    resampled_curves,
)
from analyses.verdicts.criteria import CRITERIA
from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon

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
    asked = _joint_streams(run) if streams is None else list(streams)
    singles = find_collapse_layer(run, by=(), streams=asked, rule=rule, detector=detector)
    detector = singles[0].detector if singles else detector or CollapseDetector()
    votes = [vote for stream in asked for vote in _votes(run, stream, detector)]
    undecided = JointCollapseLayer(
        model=run.model,
        layer=None,
        reason=_no_common_layer(singles),
        interval=None,
        consistency=float("nan"),
        vote_share=float("nan"),
        votes=pd.DataFrame(votes, columns=["stream", "task", "layer"]),
        streams=singles,
        n_layers=run.config.n_layers,
        detector=detector,
    )
    return undecided if undecided.reason else _judge_jointly(run, undecided)


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
        streams: of the runs; all by default.
        rule: of the collapse: "drop", "relative-drop" or "two-segment"; the detector's by default.
        criterion: of the horizon; half depth comes with "removal" only.
        measure: "p" or "log_p".
        target: of the runs; their first by default.
        collapse_detector: parameters of the search for the ECL.
        horizon_detector: parameters of the search for the horizon; its resamples, seed and level hold for both.

    Returns:
        One result a run, stream and group; a gap without a value always comes with its reason.

    Raises:
        HorizonError: unknown words, or a run that lacks what is compared.
    """
    runs = [run_or_runs] if isinstance(run_or_runs, Run) else list(run_or_runs)
    around = horizon_detector or HorizonDetector()
    drops = replace(
        collapse_detector or CollapseDetector(), resamples=around.resamples, seed=around.seed, level=around.level
    )
    found = []
    for run in runs:
        groups = split_groups(run.samples, by)
        if not groups:
            continue
        horizons = find_horizon(run, by=by, criterion=criterion, measure=measure, target=target, detector=around)
        depths = _depth_draws(run, groups, horizons, measure)
        collapses = find_collapse_layer(run, by=by, streams=streams, rule=rule, detector=drops)
        # groups run fastest in every list
        for collapse, (_, rows), horizon, drawn in zip(collapses, cycle(groups), cycle(horizons), cycle(depths)):
            places = _place_draws(run, collapse, rows) if collapse.layer is not None else None
            gaps = tuple(_gap(collapse, horizon, quantity, draws, places) for quantity, draws in drawn.items())
            found.append(Agreement(run.model, collapse.group, collapse.stream, collapse, horizon, gaps))
    return found


def describe_agreement(found: Agreement) -> str:
    """One sentence on the collapse and the horizon of one group and stream."""
    group = " / ".join(found.group.values())
    collapse, horizon = found.collapse, found.horizon
    where = ", ".join(part for part in (tokens_text(found.model, horizon.tokens), group, found.stream) if part)
    if collapse.layer is None:
        known = "" if horizon.layer is None else f" (the horizon is {_layer_words(horizon)})"
        return f"{where}: no collapse to hold against the horizon{known}, because {collapse.reason}."
    start = f"{where}: the entropy collapses at layer {collapse.layer}"
    if horizon.layer is None:
        return f"{start}, and there is no horizon to hold against it, because {horizon.reason}."
    gaps = "; ".join(_gap_words(gap) for gap in found.gaps)
    return f"{start}, the horizon is {_layer_words(horizon)}: {gaps}."


def agreement_frame(results: Sequence[Agreement]) -> pd.DataFrame:
    """One row a model, group, stream and quantity, raw numbers; None where there is nothing to say."""
    records = []
    for found in results:
        labels = {"model": found.model, **found.group, "stream": found.stream, "criterion": found.horizon.criterion}
        labels |= {"tokens": found.horizon.tokens}
        ends = {"collapse_layer": found.collapse.layer, "horizon": found.horizon.layer}
        depth = {**ends, "half_depth": found.horizon.half_depth, "n_layers": found.horizon.n_layers}
        records += [{**labels, "rule": found.collapse.detector.rule, **depth, **asdict(gap)} for gap in found.gaps]
    return pd.DataFrame(records).astype(object).where(lambda frame: frame.notna(), None)


def _joint_streams(run: Run) -> list[str]:
    """Queries and keys of the tokens that the run removes, or else of the visual ones, as far as it measured them."""
    tokens = run.config.tokens
    own = JOINT_STREAMS if tokens == "visual" else tuple(f"{tokens}:{name}" for name in JOINT_STREAMS)
    asked = [[name for name in names if name in run.config.streams] for names in (own, JOINT_STREAMS)]
    return asked[0] or asked[1]


def _no_common_layer(singles: Sequence[CollapseLayer]) -> str:
    """Why the streams name no common layer, or ""."""
    if len(singles) < 2:
        names = ", ".join(one.stream for one in singles) or "none"
        return f"a joint layer needs at least two streams, the run measured {names} of {', '.join(JOINT_STREAMS)}"
    missing = [f"{one.stream}: {one.reason}" for one in singles if one.layer is None]
    if missing:
        return "; ".join(missing)
    if len({one.layer for one in singles}) > 1:
        return f"the streams collapse at different layers: {', '.join(f'{s.stream} {s.layer}' for s in singles)}"
    return ""


def _votes(run: Run, stream: str, detector: CollapseDetector) -> list[tuple[str, str, int]]:
    """(stream, task, layer) of every task's mean curve; layer 0 where nothing stands out."""
    values, _, tasks = _finite_entropies(run, stream, run.samples.index.to_numpy(int))
    return [(stream, str(task), int(detector.picks(values[tasks == task].mean(axis=0)))) for task in np.unique(tasks)]


def _judge_jointly(run: Run, found: JointCollapseLayer) -> JointCollapseLayer:
    """Let resamples and single curves vote on the layer that all streams name."""
    layer, detector = found.streams[0].layer, found.detector
    rows = run.samples.index.to_numpy(int)
    curves = np.stack([_curve_draws(run, one.stream, rows, detector) for one in found.streams])
    picks = detector.picks(curves[:, np.isfinite(curves).all(axis=(0, 2))])
    agreed = picks[0, (picks == picks[0]).all(axis=0) & (picks[0] > 0)]
    judged = replace(
        found,
        consistency=float(np.sum(agreed == layer) / picks.shape[1]),
        vote_share=float(np.mean(found.votes["layer"] == layer)),
    )
    for share, what in ((judged.consistency, "resamples"), (judged.vote_share, "single curves of a stream and task")):
        if share < detector.consistency:
            what = f"{what} collapse at layer {layer}" + (" in all streams" if what == "resamples" else "")
            return replace(judged, reason=f"only {share:.0%} of the {what}, needed {detector.consistency:.0%}")
    first, last = percentile_interval(agreed, detector.level, method="inverted_cdf")
    return replace(judged, layer=layer, interval=(int(first), int(last)))


def _finite_entropies(run: Run, stream: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, images and tasks of the samples with a whole entropy curve."""
    values, images, tasks = group_entropies(run, entropy_curves(run, stream), rows)
    used = np.isfinite(values).all(axis=1)
    return values[used], images[used], tasks[used]


def _curve_draws(run: Run, stream: str, rows: np.ndarray, detector: CollapseDetector) -> np.ndarray:
    """(resample, layer) mean entropies of a group."""
    counts = draw_counts(image_codes(run).max() + 1, detector.resamples, detector.seed)
    return resampled_curves(*_finite_entropies(run, stream, rows), counts)


def _place_draws(run: Run, collapse: CollapseLayer, rows: np.ndarray) -> np.ndarray:
    """(resample,) layer of each resample's largest drop; NaN where it drew none of the group."""
    curves = _curve_draws(run, collapse.stream, rows, collapse.detector)
    drawn = np.isfinite(curves).all(axis=1)
    places = np.full(len(curves), np.nan)
    places[drawn] = RULES[collapse.detector.rule].read(curves[drawn]).layers
    return places


def _depth_draws(
    run: Run, groups: Sequence[tuple[dict[str, str], np.ndarray]], horizons: Sequence[Horizon], measure: str
) -> list[dict[str, np.ndarray]]:
    """Quantity -> (resample,) depths of every group; no draws where the group has no horizon."""
    first = horizons[0]
    rule, detector = CRITERIA[first.criterion], first.detector
    curves, removal = rule.effects(run, measure, first.target)
    quantities = ("half_depth", "horizon") if rule.half_depth else ("horizon",)
    floor = noise_floor(run, measure)
    found = []
    for (_, rows), horizon in zip(groups, horizons, strict=True):
        if horizon.layer is None:
            found.append(dict.fromkeys(quantities, np.array([])))
            continue
        counts = draw_counts(image_codes(run).max() + 1, detector.resamples, detector.seed)
        inside = np.isin(curves.rows, rows) & curves.finite & np.isfinite(removal.values[:, 0])
        own = curves.of(curves.rows[inside])
        means = resampled_means(own.values, own.images, counts)
        settled = detector.settled(horizon.criterion, means, floor, own.layers)
        draws = {"horizon": np.where(np.isfinite(means).all(axis=1), settled, np.nan)}
        found.append({"half_depth": half_depths(means, own.layers), **draws} if rule.half_depth else draws)
    return found


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


def _layer_words(horizon: Horizon) -> str:
    return "not before the end" if horizon.censored else f"layer {horizon.layer}"


def _gap_words(gap: Gap) -> str:
    """What a gap allows to say."""
    name = {"horizon": "the horizon", "half_depth": "half of the effect"}[gap.quantity]
    if gap.layers is None or gap.interval is None or gap.fraction is None:
        return f"{name} cannot be compared ({gap.reason})"
    low, high = gap.interval
    bound = ", a lower bound" if gap.censored else ""
    number = f"{gap.layers:+.3g} layers [{low:+.3g}, {high:+.3g}], {gap.fraction:+.0%} of the depth{bound}"
    if low > 0:
        return f"{name} lies beyond the collapse ({number})"
    if high < 0:
        return f"{name} lies before the collapse ({number})"
    return f"{name} cannot be told apart from the collapse ({number})"
