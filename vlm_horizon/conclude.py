"""The commands that conclude from run directories: `show`, `compare`, `plan`. None of them needs torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from analyses.comparisons.compare import compare_horizons
from analyses.comparisons.levels import BETWEEN
from analyses.comparisons.planning import plan_samples
from analyses.comparisons.scaling import correlate_models
from analyses.curves.selections import Selection, exclusions, selection_text
from analyses.reports.export import FORMATS, render, to_csv
from analyses.reports.published import load_published
from analyses.reports.sections import SECTIONS, STANDARD, UNASKED, Options, Section, make_sections
from analyses.reports.summary import summarize
from analyses.reports.tables import association_table, difference_table, horizon_table, plan_table
from analyses.reports.text import to_record, with_notes
from analyses.runs import HorizonError, Run, load_runs
from analyses.scores.scorers import SCORERS
from analyses.verdicts.criteria import CRITERIA
from vlm_horizon.arguments import words
from vlm_horizon.shipped import data_path

DEFAULT_PERMUTATIONS = 2000
OUTPUTS = (*FORMATS, "csv", "json")

RunPaths = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]
By = Annotated[str, typer.Option(help="Comma-separated columns: task_type, task, category.")]
Measure = Annotated[str, typer.Option(help="p or log_p.")]
Target = Annotated[str | None, typer.Option(help="Of the runs' targets; their first by default.")]
Output = Annotated[str, typer.Option("--format", help=f"One of {', '.join(OUTPUTS)}; csv and json hold raw numbers.")]
OnlyCorrect = Annotated[bool, typer.Option("--only-correct", help="Only samples whose first token is right.")]
OnlyEffective = Annotated[
    bool, typer.Option("--only-effective", help="Only samples whose removal effect at layer 0 exceeds the noise floor.")
]
Balance = Annotated[
    str | None, typer.Option(help="Equal numbers of samples of each task_type, task or category, drawn at random.")
]
BalanceSeed = Annotated[int, typer.Option(help="Of that draw.")]
AsJson = Annotated[bool, typer.Option("--json", help="Short for --format json.")]


def show(
    runs: RunPaths,
    sections: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(SECTIONS)}.")] = ",".join(STANDARD),
    by: By = "task_type",
    criterion: Annotated[
        str | None, typer.Option(help=f"Horizon criterion, of {', '.join(CRITERIA)}; every possible one by default.")
    ] = None,
    measure: Measure = "p",
    target: Target = None,
    rule: Annotated[str | None, typer.Option(help="Of the collapse layer: drop, relative-drop, two-segment.")] = None,
    split: Annotated[
        float | None, typer.Option(help="Share of the images that choose a layer; scores it on the others.")
    ] = None,
    covariates: Annotated[
        str, typer.Option(help="Of the section covariates: answer_characters, answer_entropy or a sample column.")
    ] = "answer_tokens,n_visual,output_entropy",
    scorer: Annotated[
        str | None, typer.Option(help=f"Of the section scores: {', '.join(SCORERS)}; each task's own by default.")
    ] = None,
    only_correct: OnlyCorrect = False,
    only_effective: OnlyEffective = False,
    balance: Balance = None,
    balance_seed: BalanceSeed = 0,
    output: Output = "text",
    as_json: AsJson = False,
) -> None:
    """Print what each RUN lets one conclude: collapse layers, horizons, intervals, reasons."""
    form = _checked(output, as_json)
    implied = [name for name, given in (("split", split), ("scores", scorer)) if given is not None]
    wanted = tuple(dict.fromkeys((*words(sections), *implied)))
    options = Options(
        by=words(by),
        criterion=criterion,
        measure=measure,
        target=target,
        rule=rule,
        split=0.5 if split is None else split,
        covariates=words(covariates),
        published=load_published(data_path("published", "layers.json")),
        scorer=scorer,
    )
    selection = Selection(only_correct, only_effective, balance, measure, target, balance_seed)
    opened = [selection(run) for run in load_runs(runs)]
    made = [(run, make_sections(run, wanted, options)) for run in opened]
    for run, parts in made:
        for name in wanted:
            if name not in parts and name not in UNASKED:
                print(f"{run.path} carries nothing for the section {name}", file=sys.stderr)
    if form == "csv":
        _print_csv([parts for _, parts in made], wanted)
        return
    if form == "json":
        print(json.dumps([overview(run) | _records(parts) for run, parts in made], indent=2))
        return
    for run, parts in made:
        if form == "text":
            print(headline(run))
        _print_sections(list(parts.values()), form)
    plain = options == replace(Options(), published=options.published)
    if form == "text" and plain:  # sentences are about the defaults
        for sentence in summarize(opened):
            print(f"- {sentence}")


def compare(
    runs: RunPaths,
    between: Annotated[str, typer.Option(help=f"Levels to compare: {', '.join(BETWEEN)}.")] = "task_type",
    within: Annotated[str, typer.Option(help="Compare only levels that agree in these columns.")] = "",
    criterion: Annotated[str, typer.Option(help="Horizon criterion.")] = "removal",
    measure: Measure = "p",
    target: Target = None,
    permutations: Annotated[
        int, typer.Option(help="Of the test of no difference; 0 for none.", min=0)
    ] = DEFAULT_PERMUTATIONS,
    only_correct: OnlyCorrect = False,
    only_effective: OnlyEffective = False,
    balance: Balance = None,
    balance_seed: BalanceSeed = 0,
    output: Output = "text",
    as_json: AsJson = False,
) -> None:
    """Print how much deeper one task type (task, model, ...) lies than another, paired and unpaired."""
    form = _checked(output, as_json)
    opened = select(runs, Selection(only_correct, only_effective, balance, measure, target, balance_seed))
    comparison = compare_horizons(
        opened,
        between=between,
        within=words(within),
        criterion=criterion,
        measure=measure,
        target=target,
        permutations=permutations,
    )
    if not comparison.groups:
        raise HorizonError(f"{', '.join(map(str, runs))} measured no sample: there is nothing to compare")
    across = []
    if between == "model" and len(opened) > 2:
        across = correlate_models(
            opened,
            by=words(within) or ("task_type",),
            measure=measure,
            target=target,
            permutations=permutations or DEFAULT_PERMUTATIONS,
        )
    if form == "json":
        selected = [{"path": str(run.path), "excluded": exclusions(run)} for run in opened]
        record = to_record(comparison) | {"across_models": to_record(across), "runs": selected}
        print(json.dumps(record, indent=2))
        return
    parts = [
        Section(comparison.groups, horizon_table(comparison.groups)),
        Section(comparison.differences, difference_table(comparison)),
    ]
    if across:
        parts.append(Section(across, association_table(across)))
    _print_sections([part for part in parts if part.results], form)


def plan(
    runs: RunPaths,
    width: Annotated[float, typer.Option(help="Width of the half depth's 95 % interval, in layers.")] = 1.0,
    by: By = "task_type",
    measure: Measure = "p",
    target: Target = None,
    only_correct: OnlyCorrect = False,
    only_effective: OnlyEffective = False,
    balance: Balance = None,
    balance_seed: BalanceSeed = 0,
    output: Output = "text",
    as_json: AsJson = False,
) -> None:
    """Print how many more images each RUN needs until the interval of its half depth is that narrow."""
    form = _checked(output, as_json)
    selection = Selection(only_correct, only_effective, balance, measure, target, balance_seed)
    found = [
        one
        for run in select(runs, selection)
        for one in plan_samples(run, width=width, by=words(by), measure=measure, target=target)
    ]
    if not found:
        raise HorizonError(f"{', '.join(map(str, runs))} measured no sample: there is nothing to plan from")
    if form == "json":
        print(json.dumps(to_record(found), indent=2))
        return
    _print_sections([Section(found, plan_table(found))] if found else [], form)


def select(runs: Sequence[Path], selection: Selection) -> list[Run]:
    """Open runs and apply a selection; what was excluded is said on standard error."""
    opened = [selection(run) for run in load_runs(runs)]
    for run in opened:
        if excluded := selection_text(run):
            print(f"{run.path}: {excluded}", file=sys.stderr)
        if run.caution:
            print(f"{run.path}: {run.caution}", file=sys.stderr)
    return opened


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
    taken = "" if run.config.tokens == "visual" or not removed else f"; effects are of {run.config.tokens} tokens"
    counted = f"{len(run.ok)} samples{failed}{right}{grids}{taken}"
    return f"{run.path}: {run.model}{bits}, {run.config.n_layers} layers, {counted}{selected}\n"


def _checked(output: str, as_json: bool) -> str:
    form = "json" if as_json else output
    if form not in OUTPUTS:
        raise HorizonError(f"format {form!r} is unknown; choose from {', '.join(OUTPUTS)}")
    return form


def _records(parts: dict[str, Section]) -> dict[str, Any]:
    return {name: to_record(part.results) for name, part in parts.items()}


def _print_csv(made: Sequence[dict[str, Section]], names: Sequence[str]) -> None:
    """Each section once, with the rows of all runs; a comment line before each if there are several."""
    merged = {name: [one for parts in made if name in parts for one in parts[name].results] for name in names}
    held = {name: results for name, results in merged.items() if results}
    for name, results in held.items():
        title = f"# {name}\n" if len(held) > 1 else ""
        print(title + to_csv(results), end="\n" if len(held) > 1 else "")


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
            shown = RichTable(*map(escape, table.columns), title=Text(table.title), title_justify="left")
            for row in table.rows:
                shown.add_row(*map(Text, row))
            console.print(shown)
            for number, note in enumerate(table.notes, start=1):
                console.print(f"[{number}] {note}", markup=False, highlight=False)
        else:
            print(render(part.table, form), end="\n\n")
