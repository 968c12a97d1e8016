"""Sections of a report: what a run, or several, let one conclude, as results and as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analyses.comparisons.covariates import correlate_half_depth
from analyses.curves.target_shares import target_shares
from analyses.reports.published import PublishedNumbers
from analyses.reports.tables import (
    agreement_table,
    association_table,
    collapse_table,
    criteria_table,
    gate_table,
    horizon_table,
    joint_table,
    published_table,
    score_table,
    split_table,
    target_table,
)
from analyses.reports.text import Table
from analyses.runs import Run, check_choice
from analyses.scores.scores import score_run
from analyses.verdicts.agreement import compare_collapse_to_horizon, joint_collapse_layer
from analyses.verdicts.collapse import find_collapse_layer
from analyses.verdicts.disagreement import compare_criteria
from analyses.verdicts.first_order import gate_agreement
from analyses.verdicts.held_out import split_estimates
from analyses.verdicts.horizon import find_horizon


@dataclass(frozen=True)
class Options:
    """How a report is made.

    Attributes:
        by: columns that define the groups.
        criterion: by which the horizon is found; every one that the run can carry by default.
        measure: "p" or "log_p".
        target: name of one of the run's targets; its first by default.
        rule: by which the collapse layer is found; "drop" by default.
        split: share of the images that choose a layer, for the section "split".
        covariates: names of the covariates that the section "covariates" is about.
        published: numbers to show beside ours.
        scorer: by which the section "scores" scores answers; each task's own by default.
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
        table: the results as people read them, rounded.
    """

    results: list[Any]
    table: Table


def _collapse(run: Run, options: Options) -> Section:
    results = find_collapse_layer(run, by=options.by, rule=options.rule)
    return Section(results, collapse_table(results))


def _joint(run: Run, options: Options) -> Section:
    results = [joint_collapse_layer(run, rule=options.rule)]
    return Section(results, joint_table(results))


def _horizons(run: Run, options: Options) -> Section:
    results = find_horizon(run, by=options.by, criterion=options.criterion, **options.effect)
    return Section(results, horizon_table(results))


def _criteria(run: Run, options: Options) -> Section:
    results = compare_criteria(run, by=options.by, default=options.criterion or "removal", **options.effect)
    return Section(results, criteria_table(results))


def _agreement(run: Run, options: Options) -> Section:
    results = compare_collapse_to_horizon(
        run, by=options.by, rule=options.rule, criterion=options.criterion or "removal", **options.effect
    )
    return Section(results, agreement_table(results))


def _split(run: Run, options: Options) -> Section:
    criterion = options.criterion or "removal"
    results = split_estimates(run, by=options.by, criterion=criterion, split=options.split, **options.effect)
    return Section(results, split_table(results))


def _covariates(run: Run, options: Options) -> Section:
    results = correlate_half_depth(run, options.covariates, by=options.by, **options.effect)
    return Section(results, association_table(results))


def _targets(run: Run, options: Options) -> Section:
    results = target_shares(run, by=options.by_task)
    return Section(results, target_table(results))


def _scores(run: Run, options: Options) -> Section:
    results = score_run(run, by=options.by_task, scorer=options.scorer)
    return Section(results, score_table(results))


def _gate(run: Run, options: Options) -> Section:
    results = gate_agreement(run, target=options.target)
    return Section(results, gate_table(results))


def _published(run: Run, options: Options) -> Section:
    samples = run.samples
    names = {str(name) for column in ("task", "task_type") for name in samples[column].dropna().unique()}
    theirs = run.config.tokens == "visual"  # all published numbers are of visual tokens
    results = [] if options.published is None or not theirs else options.published.matching(run.config.model, names)
    return Section(results, published_table(results))


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

STANDARD = ("collapse", "horizons", "gate", "published")
UNASKED = ("gate", "published")  # most runs have nothing for these, and that is nothing to report


def make_sections(run: Run, names: Sequence[str] = STANDARD, options: Options | None = None) -> dict[str, Section]:
    """The sections asked for that the run can carry and that have anything to say.

    Args:
        run: the run that the sections are about.
        names: which of `SECTIONS` to make.
        options: how the sections are made.

    Raises:
        HorizonError: a section, or a word in the options, is unknown.
    """
    options = options or Options()
    sections = {}
    for name in names:
        check_choice("section", name, tuple(SECTIONS))
        needed, make = SECTIONS[name]
        if all(set(any_of) & set(run.config.probes) for any_of in needed):
            section = make(run, options)
            if section.results:
                sections[name] = section
    return sections
