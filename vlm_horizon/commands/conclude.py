"""The commands that conclude from run directories: `show`, `compare`, `plan`. None of them needs torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from analyses.comparisons.compare import compare_horizons
from analyses.comparisons.levels import BETWEEN
from analyses.comparisons.planning import plan_samples
from analyses.comparisons.scaling import correlate_models
from analyses.curves.selections import exclusions, selection_text
from analyses.reports.export import render, to_csv
from analyses.reports.published import load_published
from analyses.reports.sections import SECTIONS, STANDARD, UNASKED, Options, Section, make_sections
from analyses.reports.summary import summarize
from analyses.reports.tables import association_table, difference_table, horizon_table, plan_table
from analyses.reports.text import to_record, with_notes
from analyses.runs import HorizonError, Run
from analyses.runs.options import Option
from analyses.scores.scorers import SCORERS
from analyses.verdicts.criteria import CRITERIA
from vlm_horizon.commands.arguments import with_groups, words
from vlm_horizon.commands.groups import Effect, Output, Samples, say_exclusions
from vlm_horizon.shipped import data_path

DEFAULT_PERMUTATIONS = 2000

RunPaths = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]
BY = "Comma-separated columns: task_type, task, category."


@dataclass(frozen=True)
class Report:
    """What a report holds."""

    PANEL: ClassVar = "Report"

    sections: Annotated[str, Option(text=f"comma-separated, of {', '.join(SECTIONS)}.")] = ",".join(STANDARD)
    by: Annotated[str, Option(text=BY)] = "task_type"
    criterion: Annotated[
        str | None, Option(text=f"horizon criterion, of {', '.join(CRITERIA)}; every possible one by default.")
    ] = None
    rule: Annotated[str | None, Option(text="of the collapse layer: drop, relative-drop, two-segment.")] = None
    split: Annotated[float | None, Option(text="share of the images that choose a layer; scores it on the others.")] = (
        None
    )
    covariates: Annotated[
        str, Option(text="of the section covariates: answer_characters, answer_entropy or a sample column.")
    ] = "answer_tokens,n_visual,output_entropy"
    scorer: Annotated[
        str | None, Option(text=f"of the section scores: {', '.join(SCORERS)}; each task's own by default.")
    ] = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sections that are asked for, by name or by an option that is about one of them."""
        implied = [name for name, value in (("split", self.split), ("scores", self.scorer)) if value is not None]
        return tuple(dict.fromkeys((*words(self.sections), *implied)))

    def options(self, effect: Effect) -> Options:
        """How the sections are made, with the published numbers that come with the package."""
        return Options(
            by=words(self.by),
            criterion=self.criterion,
            measure=effect.measure,
            target=effect.target,
            rule=self.rule,
            split=0.5 if self.split is None else self.split,
            covariates=words(self.covariates),
            published=load_published(data_path("published", "layers.json")),
            scorer=self.scorer,
        )


@dataclass(frozen=True)
class Levels:
    """What is compared."""

    PANEL: ClassVar = "Comparison"

    between: Annotated[str, Option(text=f"levels to compare: {', '.join(BETWEEN)}.")] = "task_type"
    within: Annotated[str, Option(text="compare only levels that agree in these columns.")] = ""
    criterion: Annotated[str, Option(text="horizon criterion.")] = "removal"
    permutations: Annotated[int, Option(text="of the test of no difference; 0 for none.", least=0)] = (
        DEFAULT_PERMUTATIONS
    )


@with_groups
def show(runs: RunPaths, report: Report, effect: Effect, samples: Samples, output: Output) -> None:
    """Print what each RUN lets one conclude: collapse layers, horizons, intervals, reasons."""
    form, names, options = output.form, report.names, report.options(effect)
    opened = samples.open(runs, effect)
    reports = [(run, make_sections(run, names, options)) for run in opened]
    for run, sections in reports:
        for name in names:
            if name not in sections and name not in UNASKED:
                print(f"{run.path} carries nothing for the section {name}", file=sys.stderr)
    if form == "csv":
        _print_csv([sections for _, sections in reports], names)
        return
    if form == "json":
        records = [
            overview(run) | {name: to_record(section.results) for name, section in sections.items()}
            for run, sections in reports
        ]
        print(json.dumps(records, indent=2))
        return
    for run, sections in reports:
        if form == "text":
            print(headline(run))
        _print_sections(list(sections.values()), form)
    plain = options == replace(Options(), published=options.published)
    if form == "text" and plain:  # sentences are about the defaults
        horizons = [sections["horizons"].results for _, sections in reports if "horizons" in sections]
        for sentence in summarize(opened, horizons=horizons if len(horizons) == len(opened) else None):
            print(f"- {sentence}")


@with_groups
def compare(runs: RunPaths, levels: Levels, effect: Effect, samples: Samples, output: Output) -> None:
    """Print how much deeper one task type (task, model, ...) lies than another, paired and unpaired."""
    form = output.form
    opened = samples.open(runs, effect)
    say_exclusions(opened)
    comparison = compare_horizons(
        opened,
        between=levels.between,
        within=words(levels.within),
        criterion=levels.criterion,
        measure=effect.measure,
        target=effect.target,
        permutations=levels.permutations,
    )
    if not comparison.groups:
        raise HorizonError(f"{', '.join(map(str, runs))} measured no sample: there is nothing to compare")
    across = []
    if levels.between == "model" and len(opened) > 2:
        across = correlate_models(
            opened,
            by=words(levels.within) or ("task_type",),
            measure=effect.measure,
            target=effect.target,
            permutations=levels.permutations or DEFAULT_PERMUTATIONS,
        )
    if form == "json":
        excluded = [{"path": str(run.path), "excluded": exclusions(run)} for run in opened]
        record = to_record(comparison) | {"across_models": to_record(across), "runs": excluded}
        print(json.dumps(record, indent=2))
        return
    parts = [
        Section(comparison.groups, horizon_table(comparison.groups)),
        Section(comparison.differences, difference_table(comparison)),
    ]
    if across:
        parts.append(Section(across, association_table(across)))
    _print_sections([part for part in parts if part.results], form)


@with_groups
def plan(
    runs: RunPaths,
    effect: Effect,
    samples: Samples,
    output: Output,
    width: Annotated[float, typer.Option(help="Width of the half depth's 95 % interval, in layers.")] = 1.0,
    by: Annotated[str, typer.Option(help=BY)] = "task_type",
) -> None:
    """Print how many more images each RUN needs until the interval of its half depth is that narrow."""
    form = output.form
    opened = samples.open(runs, effect)
    say_exclusions(opened)
    plans = [
        sample_plan
        for run in opened
        for sample_plan in plan_samples(run, width=width, by=words(by), measure=effect.measure, target=effect.target)
    ]
    if not plans:
        raise HorizonError(f"{', '.join(map(str, runs))} measured no sample: there is nothing to plan from")
    if form == "json":
        print(json.dumps(to_record(plans), indent=2))
        return
    _print_sections([Section(plans, plan_table(plans))], form)


def overview(run: Run) -> dict[str, Any]:
    """What a run is, in a few values."""
    return {
        "path": str(run.path),
        "model": run.model,
        "layers": run.config.n_layers,
        "measured": len(run.ok),
        "failed": len(run.failed),
        "method": run.config.method,
        "tokens": run.config.tokens,
        "excluded": exclusions(run),
        "caution": run.caution,
        "accuracy": accuracy(run),
    }


def accuracy(run: Run) -> dict[str, float]:
    """Share of samples whose most probable token is in the target set, by task type; none for the model's own token."""
    if run.config.targets[0].startswith("greedy"):
        return {}
    right = run.ok.dropna(subset=["correct"])
    shares = right.groupby("task_type")["correct"].agg(lambda column: column.astype(bool).mean())
    return {str(name): float(share) for name, share in shares.items()}


def headline(run: Run) -> str:
    """One line on a run."""
    shares = ", ".join(f"{name or 'all'} {share:.1%}" for name, share in accuracy(run).items())
    failed = f", {len(run.failed)} failed" if len(run.failed) else ""
    selected = f"\n{excluded}" if (excluded := selection_text(run)) else ""
    right = f"; first token right: {shares}" if shares else ""
    bits = f" (states of the model quantized to {run.config.quantization})" if run.config.quantization else ""
    grids = "; token grids are first order (method gate)" if run.config.method == "gate" else ""
    removed = {"removal", "information"} & set(run.config.probes)
    effects = "" if run.config.tokens == "visual" or not removed else f"; effects are of {run.config.tokens} tokens"
    counts = f"{len(run.ok)} samples{failed}{right}{grids}{effects}"
    return f"{run.path}: {run.model}{bits}, {run.config.n_layers} layers, {counts}{selected}\n"


def _print_csv(reports: Sequence[dict[str, Section]], names: Sequence[str]) -> None:
    """Each section once, with the rows of all runs; a comment line before each if there are several."""
    by_section = {
        name: [result for sections in reports if name in sections for result in sections[name].results]
        for name in names
    }
    filled = {name: results for name, results in by_section.items() if results}
    for name, results in filled.items():
        title = f"# {name}\n" if len(filled) > 1 else ""
        print(title + to_csv(results), end="\n" if len(filled) > 1 else "")


def _print_sections(parts: Sequence[Section], form: str) -> None:
    """CSV with a comment line before each part if there are several; else tables, drawn as such in a terminal."""
    console = Console()
    for part in parts:
        if form == "csv":
            title = f"# {part.table.title}\n" if len(parts) > 1 else ""
            print(title + to_csv(part.results))
        elif form == "text" and console.is_terminal:
            table = with_notes(part.table)
            # as Text: what stands in brackets is no markup
            drawing = RichTable(*map(escape, table.columns), title=Text(table.title), title_justify="left")
            for row in table.rows:
                drawing.add_row(*map(Text, row))
            console.print(drawing)
            for number, note in enumerate(table.notes, start=1):
                console.print(f"[{number}] {note}", markup=False, highlight=False)
        else:
            print(render(part.table, form), end="\n\n")
