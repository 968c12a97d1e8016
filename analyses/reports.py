"""Sections of a report: what a run, or several, let one conclude, as results and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyses.agreement import Agreement, JointCollapseLayer, compare_collapse_to_horizon, joint_collapse_layer
from analyses.answer_tables import score_table, target_table
from analyses.collapse import find_collapse_layer
from analyses.covariates import SampleAssociation, correlate_half_depth
from analyses.disagreement import CriterionVerdict, compare_criteria
from analyses.effects import check_choice
from analyses.first_order import gate_agreement, gate_table
from analyses.horizon import find_horizon
from analyses.planning import SamplePlan
from analyses.published import Published, PublishedNumbers
from analyses.runs import Run, tokens_text
from analyses.scaling import ModelAssociation
from analyses.scores import score_run
from analyses.selection import SplitEstimate, split_estimates
from analyses.tables import (
    NOT_REACHED,
    Table,
    collapse_table,
    group_text,
    horizon_table,
    interval_text,
    layer_text,
    model_text,
    number_text,
    warnings_of,
)
from analyses.targets import target_shares


@dataclass(frozen=True)
class Options:
    """How a report is made.

    Attributes:
        by: columns that define the groups.
        criterion: of the horizon; every one that the run can carry by default.
        measure: "p" or "log_p".
        target: of the run; its first by default.
        rule: of the collapse layer; the default rule by default.
        split: share of the images that choose a layer, for the section "split".
        covariates: of the section "covariates".
        published: numbers to show beside ours.
        scorer: of the section "scores"; each task's own by default.
    """

    by: tuple[str, ...] = ("task_type",)
    criterion: str | None = None
    measure: str = "p"
    target: str | None = None
    rule: str | None = None
    split: float = 0.5
    covariates: tuple[str, ...] = ("answer_tokens", "n_visual", "output_entropy")
    published: PublishedNumbers | None = field(default=None, repr=False)
    scorer: str | None = None

    @property
    def effect(self) -> dict[str, Any]:
        """What every measured effect is asked for with."""
        return {"measure": self.measure, "target": self.target}

    @property
    def by_task(self) -> tuple[str, ...]:
        """The columns and the task: what answers and their scores belong to."""
        return tuple(dict.fromkeys((*self.by, "task")))


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        results: dataclasses of one kind, raw numbers.
        table: the same for people.
    """

    results: list[Any]
    table: Table


def _collapse(run: Run, options: Options) -> Section:
    found = find_collapse_layer(run, by=options.by, rule=options.rule)
    return Section(found, collapse_table(found))


def _joint(run: Run, options: Options) -> Section:
    found = [joint_collapse_layer(run, rule=options.rule)]
    return Section(found, joint_table(found))


def _horizons(run: Run, options: Options) -> Section:
    found = find_horizon(run, by=options.by, criterion=options.criterion, **options.effect)
    return Section(found, horizon_table(found))


def _criteria(run: Run, options: Options) -> Section:
    found = compare_criteria(run, by=options.by, default=options.criterion or "removal", **options.effect)
    return Section(found, criteria_table(found))


def _agreement(run: Run, options: Options) -> Section:
    found = compare_collapse_to_horizon(
        run, by=options.by, rule=options.rule, criterion=options.criterion or "removal", **options.effect
    )
    return Section(found, agreement_table(found))


def _split(run: Run, options: Options) -> Section:
    criterion = options.criterion or "removal"
    found = split_estimates(run, by=options.by, criterion=criterion, split=options.split, **options.effect)
    return Section(found, split_table(found))


def _covariates(run: Run, options: Options) -> Section:
    found = correlate_half_depth(run, options.covariates, by=options.by, **options.effect)
    return Section(found, association_table(found))


def _targets(run: Run, options: Options) -> Section:
    found = target_shares(run, by=options.by_task)
    return Section(found, target_table(found))


def _scores(run: Run, options: Options) -> Section:
    found = score_run(run, by=options.by_task, scorer=options.scorer)
    return Section(found, score_table(found))


def _gate(run: Run, options: Options) -> Section:
    found = gate_agreement(run, target=options.target)
    return Section(found, gate_table(found))


def _published(run: Run, options: Options) -> Section:
    samples = run.samples
    names = {str(name) for column in ("task", "task_type") for name in samples[column].dropna().unique()}
    theirs = run.config.tokens == "visual"  # all published numbers are of visual tokens
    found = [] if options.published is None or not theirs else options.published.matching(run.config.model, names)
    return Section(found, published_table(found))


# name -> (probes that it needs one of, how it is made)
SECTIONS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Run, Options], Section]]] = {
    "collapse": ((("entropy",),), _collapse),
    "joint": ((("entropy",),), _joint),
    "horizons": ((("removal", "information"),), _horizons),
    "criteria": ((("removal",),), _criteria),
    "agreement": ((("entropy",), ("removal",)), _agreement),
    "split": ((("removal",),), _split),
    "covariates": ((("removal",),), _covariates),
    "gate": ((("information",),), _gate),
    "published": ((), _published),
    "targets": ((), _targets),
    "scores": ((), _scores),
}
GAPS = ("horizon - ECL", "half depth - ECL", "interval", "of depth")
STANDARD = ("collapse", "horizons", "gate", "published")
UNASKED = ("gate", "published")  # most runs have nothing for these, and that is nothing to report


def make_sections(run: Run, names: Sequence[str] = STANDARD, options: Options | None = None) -> dict[str, Section]:
    """The sections asked for that the run can carry and that have anything to say.

    Args:
        run: what was measured.
        names: of `SECTIONS`.
        options: how.

    Raises:
        HorizonError: a section, or a word in the options, is unknown.
    """
    options = options or Options()
    made = {}
    for name in names:
        check_choice("section", name, tuple(SECTIONS))
        needed, make = SECTIONS[name]
        if all(set(any_of) & set(run.config.probes) for any_of in needed):
            section = make(run, options)
            if section.results:
                made[name] = section
    return made


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
