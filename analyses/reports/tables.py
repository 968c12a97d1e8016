"""Tables of results: one function a kind of result, one row a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analyses.comparisons.compare import Comparison, Difference
from analyses.comparisons.covariates import SampleAssociation
from analyses.comparisons.planning import SamplePlan
from analyses.comparisons.scaling import ModelAssociation
from analyses.curves.target_shares import TargetShare
from analyses.reports.published import Published
from analyses.reports.text import Table, group_text, interval_text, layer_text, model_text, number_text
from analyses.runs import tokens_text
from analyses.scores.scores import Score
from analyses.verdicts.agreement import Agreement, JointCollapseLayer
from analyses.verdicts.collapse import CollapseLayer
from analyses.verdicts.disagreement import CriterionVerdict
from analyses.verdicts.first_order import GateAgreement
from analyses.verdicts.held_out import SplitEstimate
from analyses.verdicts.horizon import NOT_REACHED, Horizon

QUANTITIES = {"half_depth": "half depth", "horizon": "horizon"}


def collapse_table(results: Sequence[CollapseLayer]) -> Table:
    """One row a group and stream: the ECL or why there is none.

    Args:
        results: what `find_collapse_layer` returns.
    """
    columns = (
        *("model", "group", "stream", "rule", "ECL", "interval", "drop (nats)"),
        *("strength", "needed", "agree", "images"),
    )
    rows = [
        (
            r.model,
            group_text(r.group),
            r.stream,
            r.detector.rule,
            layer_text(r.layer, r.reason),
            interval_text(r.interval),
            number_text(r.drop, 3),
            number_text(r.sharpness, 1),
            number_text(r.sharpness_null, 1),
            "-" if math.isnan(r.consistency) else f"{r.consistency:.0%}",
            str(r.n_images),
        )
        for r in results
    ]
    return Table("Entropy collapse layer", columns, rows, warnings_of(results))


def horizon_table(results: Sequence[Horizon]) -> Table:
    """One row a group and criterion: the horizon and the half depth, or why there is none.

    Args:
        results: what `find_horizon` returns.
    """
    columns = (
        *("model", "group", "criterion", "measure", "horizon", "interval", "half depth", "interval"),
        *("effect at 0", "below", "layers", "images", "samples"),
    )
    rows = [
        (
            model_text(r),
            group_text(r.group),
            r.criterion,
            r.measure,
            layer_text(r.layer, r.reason, r.n_layers),
            interval_text(r.interval, end=r.n_layers),
            number_text(r.half_depth, 2),
            interval_text(r.half_depth_interval, 2),
            number_text(r.effect[0], 3),
            number_text(r.threshold, 3),
            str(r.n_layers),
            str(r.n_images),
            str(r.n_samples),
        )
        for r in results
    ]
    return Table("Information horizon", columns, rows, warnings_of(results))


def difference_table(comparison: Comparison) -> Table:
    """One row a difference, a minus b.

    Args:
        comparison: what `compare_horizons` returns.
    """
    columns = ("a", "b", "quantity", "unit", "images", "a - b", "interval", "p", "p (Holm)", "images of a, b")
    rows = [
        (
            d.a,
            d.b,
            QUANTITIES[d.quantity],
            d.unit,
            "shared" if d.paired else "all",
            difference_text(d),
            interval_text(d.interval, 0 if whole(d) else 2, signed=True),
            number_text(d.p_value, 4),
            number_text(d.p_adjusted, 4),
            f"{d.n_a}, {d.n_b}",
        )
        for d in comparison.differences
    ]
    title = f"Differences between levels of {comparison.between}, positive where a lies deeper"
    return Table(title, columns, rows, warnings_of(comparison.differences))


def warnings_of(results: Sequence[Any]) -> tuple[str, ...]:
    """Each warning once, with what it is about."""
    about: dict[str, list[str]] = {}
    for result in results:
        if result.warning:
            where = (
                f"{result.a} and {result.b}"
                if isinstance(result, Difference)
                else f"{model_text(result)}, {group_text(result.group)}"
            )
            about.setdefault(result.warning, []).append(where)
    return tuple(f"{'; '.join(dict.fromkeys(places))}: {warning}" for warning, places in about.items())


def difference_text(difference: Difference) -> str:
    """A difference for people; with one horizon not before the end it is a bound, ">= -3" or "<= 2"."""
    if difference.value is None:
        return f"none: {difference.reason}"
    value = number_text(difference.value, 0 if whole(difference) else 2, signed=True)
    return f"{difference.bound} {value}" if difference.bound else value


def whole(difference: Difference) -> bool:
    """Whether a difference counts whole layers."""
    return difference.quantity == "horizon" and difference.unit == "layers"


def gate_table(results: Sequence[GateAgreement]) -> Table:
    """One row a context and layer: mean rank correlation and overlap."""
    rows = [
        (
            r.context,
            str(r.layer),
            str(r.n_samples),
            number_text(r.rank_correlation, 2),
            number_text(r.top_overlap, 2),
            f"{r.largest_effect:.1e}",
        )
        for r in results
    ]
    columns = ("context", "layer", "samples", "rank correlation", "top-10 % overlap", "largest effect (p)")
    return Table("First-order token information (method gate) against exact values", columns, rows)


def target_table(results: Sequence[TargetShare]) -> Table:
    """One row a group: how many targets there are, and how many samples share the most common one."""
    rows = [
        (
            r.model,
            group_text(r.group),
            r.target,
            str(r.n_samples),
            str(r.n_targets),
            r.most_common,
            number_text(100 * r.share, 0),
            str(r.n_blank),
        )
        for r in results
    ]
    columns = ("model", "group", "target", "samples", "targets", "most common", "share (%)", "bare spaces")
    return Table("How much the target varies", columns, rows, warnings_of(results))


def score_table(results: Sequence[Score]) -> Table:
    """One row a group, scorer and metric: the number, or why there is none."""
    rows = [
        (
            r.model,
            group_text(r.group),
            r.scorer or "-",
            r.metric,
            f"none: {r.reason}" if r.value is None else number_text(r.value, 1 if r.metric == "score" else 3),
            interval_text(r.interval, 1 if r.metric == "score" else 3),
            str(r.n_samples),
            str(r.n_images),
            str(r.n_missing),
            str(r.n_cut),
        )
        for r in results
    ]
    columns = ("model", "group", "scorer", "metric", "value", "interval", "answers", "images", "missing", "cut")
    return Table("Scores of the generated answers", columns, rows, warnings_of(results))


GAPS = ("horizon - ECL", "half depth - ECL", "interval", "of depth")


def joint_table(results: Sequence[JointCollapseLayer]) -> Table:
    """One row a model: the layer that all streams and tasks share, or why there is none."""
    rows = [
        (
            r.model,
            layer_text(r.layer, r.reason),
            interval_text(r.interval),
            number_text(100 * r.consistency, 0),
            number_text(100 * r.vote_share, 0),
        )
        for r in results
    ]
    columns = ("model", "joint ECL", "interval", "resamples that agree (%)", "single curves that agree (%)")
    return Table("One entropy collapse layer for all streams and tasks", columns, rows)


def criteria_table(results: Sequence[CriterionVerdict]) -> Table:
    """One row a group and criterion: its layer beside the default's, and why they differ."""
    rows = [
        (
            model_text(r),
            group_text(r.group),
            r.criterion,
            NOT_REACHED if r.censored else layer_text(r.layer, r.reason),
            interval_text(r.interval, end=r.n_layers),
            "-" if r.shift is None else f"{r.shift:+d}",
            r.why,
            str(r.n_images),
        )
        for r in results
    ]
    columns = ("model", "group", "criterion", "horizon", "interval", "shift", "why", "images")
    return Table("Where the criteria of the horizon disagree", columns, rows)


def agreement_table(results: Sequence[Agreement]) -> Table:
    """One row a group and stream: collapse layer, horizon, half depth, and how far apart they lie."""
    rows = []
    for r in results:
        gaps = {gap.quantity: gap for gap in r.gaps}
        horizon, half = gaps.get("horizon"), gaps.get("half_depth")
        rows.append(
            (
                tokens_text(r.model, r.horizon.tokens),
                group_text(r.group),
                r.stream,
                layer_text(r.collapse.layer, r.collapse.reason),
                layer_text(r.horizon.layer, r.horizon.reason, r.horizon.n_layers),
                number_text(r.horizon.half_depth, 2),
                number_text(horizon.layers if horizon else None, 0, signed=True),
                number_text(half.layers if half else None, 2, signed=True),
                interval_text(half.interval if half else None, 2, signed=True),
                number_text(half.fraction if half else None, 2, signed=True),
            )
        )
    columns = ("model", "group", "stream", "ECL", "horizon", "half depth", *GAPS)
    return Table("Entropy collapse layer against information horizon", columns, rows)


def split_table(results: Sequence[SplitEstimate]) -> Table:
    """One row a group and loss: what removal at the chosen layer costs in sample and held out."""
    rows = []
    for r in results:
        layers = "none: " + r.reason if r.reason else interval_text((r.layers.min(), r.layers.max()))
        pairs = ((r.in_sample, r.in_sample_interval), (r.held_out, r.held_out_interval), (r.shift, r.shift_interval))
        cells = [cell for value, ends in pairs for cell in (number_text(value, 4), interval_text(ends, 4))]
        rows.append((model_text(r), group_text(r.group), r.chosen_by, r.measure, layers, *cells, str(r.n_images)))
    columns = (
        *("model", "group", "chosen by", "loss in", "layers", "in sample", "interval"),
        *("held out", "interval", "shift", "interval", "images"),
    )
    title = "Loss at the chosen layer, on the images that chose it and on others"
    return Table(title, columns, rows, warnings_of(results))


def association_table(results: Sequence[SampleAssociation | ModelAssociation]) -> Table:
    """One row a group and covariate: its rank correlation with half depth."""
    rows = []
    for r in results:
        across = isinstance(r, ModelAssociation)
        what = f"{len(r.values)} models, {r.unit}" if isinstance(r, ModelAssociation) else f"{r.n_samples} samples"
        rows.append(
            (
                "all models" if across else model_text(r),
                group_text(r.group),
                r.covariate,
                f"none: {r.reason}" if r.rho is None else number_text(r.rho, 2, signed=True),
                interval_text(r.interval, 2, signed=True),
                number_text(r.p_value, 4),
                number_text(r.p_adjusted, 4),
                what,
            )
        )
    columns = ("model", "group", "covariate", "Spearman", "interval", "p", "p (Holm)", "over")
    return Table("Half depth against covariates", columns, rows)


def plan_table(results: Sequence[SamplePlan]) -> Table:
    """One row a group: how many more images and samples its half depth needs."""
    rows = [
        (
            model_text(r),
            group_text(r.group),
            str(r.n_images),
            number_text(r.width_now, 2),
            number_text(r.width, 2),
            f"none: {r.reason}" if r.images is None else str(r.images),
            interval_text(r.images_interval),
            "-" if r.more_images is None else str(r.more_images),
            "-" if r.more_samples is None else str(r.more_samples),
        )
        for r in results
    ]
    columns = (
        *("model", "group", "images now", "width now", "width wanted", "images needed", "interval"),
        *("more images", "more samples"),
    )
    return Table("Images until the interval of the half depth is narrow enough", columns, rows, warnings_of(results))


def published_table(results: Sequence[Published]) -> Table:
    """One row a published number of this model."""
    rows = [
        (r.quantity, r.model, r.task or "all tasks", r.stream or "-", str(r.value), str(r.layers), r.how, r.source)
        for r in results
    ]
    columns = ("quantity", "model", "task", "stream", "value", "of layers", "how", "source")
    return Table("Published numbers for this model", columns, rows)
