"""The command line: `vlm-horizon demo`, `run`, `tasks`, `cost`, `show`, `compare`, `plan`, `check`, `figures`.

Exit codes: 0 done, 1 some samples failed (listed), 2 unusable arguments, 130 interrupted (what finished is on disk).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.curves.selections import exclusions
from analyses.curves.target_shares import target_shares
from analyses.reports.summary import describe_agreement
from analyses.runs import HorizonError, Run
from analyses.verdicts.first_order import gate_agreement
from vlm_horizon.arguments import Loading, Measuring, ModelName, Reading, completion, with_groups, words
from vlm_horizon.check import check
from vlm_horizon.conclude import RunPaths, compare, plan, show
from vlm_horizon.cost import cost
from vlm_horizon.groups import Samples, say_exclusions
from vlm_horizon.tasks import tasks

if TYPE_CHECKING:
    from probes.data.readers import SampleStream
    from probes.data.samples import Sample

LISTED_FAILURES = 10
FORMATS, WIDTHS = ("pdf", "svg", "png"), ("column", "page")  # of figures; a test holds them to those of `figures`

app = typer.Typer(
    name="vlm-horizon",
    help="Measure where visual tokens live and die with depth in a vision-language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name=app.info.name)
    except (HorizonError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C during a measurement ends with a sentence: the writer has committed what was finished."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Measure where visual tokens live and die with depth in a vision-language model."""
    if version:
        print(f"vlm-horizon {installed_version('vlm-horizon')}")
        raise typer.Exit


for command in (tasks, cost, show, compare, plan, check):
    app.command()(command)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the runs and figures.")] = Path("runs/demo"),
    token_samples: Annotated[int, typer.Option(help="Samples of each task that get token grids.", min=0)] = 100,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each set.", min=1)] = None,
) -> None:
    """Measure the two shipped models on the shipped OCR and VQA sets, draw the figures, and say what follows."""
    from vlm_horizon.demo import run_demo

    with _resumable():
        result = run_demo(out, token_samples=token_samples, limit=limit)
    print()
    for sentence in result.sentences:
        print(f"- {sentence}")
    print(f"\nRuns: {', '.join(str(run.path) for run in result.runs)}")
    print(f"Figures: {len(result.figures)} files in {out / 'figures'}")
    raise typer.Exit(_report_failures(result.runs))


@app.command()
@with_groups
def run(
    model: ModelName,
    data: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or dataset ids (owner/name, owner/name:folder/split).", metavar="DATA..."),
    ],
    loading: Loading,
    reading: Reading,
    measuring: Measuring,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<model> by default.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Measure MODEL on the samples of DATA and write a run directory; the same command resumes."""
    options = measuring.options()  # before torch is imported: a typo is answered at once
    from probes.sweeps.sweep import run as sweep
    from vlm_horizon.adaptive import count_replays, run_adaptive

    measure = partial(run_adaptive, budget=measuring.budget) if measuring.auto else sweep
    streams = reading.open(data)
    probed = loading.load(model)
    out = out or Path("runs") / model.rstrip("/").rsplit("/", 1)[-1]
    samples = _read(streams)
    print(
        f"{probed.name}: {probed.n_layers} layers, {probed.dtype}, {probed.device}; {len(samples)} samples -> {out}",
        file=sys.stderr,
    )
    options |= reading.run_options(streams, samples)
    with _resumable():
        result = measure(probed, samples, out, retry_failed=retry_failed, progress=not quiet, **options)
    if result.config.method == "gate":
        print(describe_agreement(gate_agreement(result)), file=sys.stderr)
    if measuring.coarse is not None and (count := count_replays(result)).all:
        print(f"{count.run} replays for token grids instead of {count.all} at every window and layer", file=sys.stderr)
    for sentence in _remarks(result):
        print(sentence, file=sys.stderr)
    print(f"{len(result.ok)} samples measured in {out}; `vlm-horizon show {out}` concludes", file=sys.stderr)
    raise typer.Exit(_report_failures([result]))


def _read(streams: Sequence[SampleStream]) -> list[Sample]:
    """Return all samples, whose images stay in their files, and print what each stream reads and leaves out."""
    samples: list[Sample] = []
    for stream in streams:
        print(stream.note, file=sys.stderr)
        samples += stream
        for reason, n_rows in stream.left_out.items():
            print(f"  {n_rows} rows left out: {reason}", file=sys.stderr)
    if not samples:
        names = ", ".join(stream.source.name for stream in streams)
        raise HorizonError(f"{names} holds no samples: nothing to measure")
    return samples


def _figure_names(incomplete: str) -> list[str]:
    from figures.paper import FIGURES

    return completion(tuple(FIGURES), several=True)(incomplete)


@app.command()
@with_groups
def figures(
    runs: RunPaths,
    choice: Samples,
    out: Annotated[Path | None, typer.Option(help="Directory; RUN/figures of the first run by default.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Comma-separated figures; all by default.", autocompletion=_figure_names)
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Comma-separated: pdf, svg, png.", autocompletion=completion(FORMATS, several=True))
    ] = ",".join(FORMATS),
    widths: Annotated[
        str, typer.Option(help="Comma-separated: column, page.", autocompletion=completion(WIDTHS, several=True))
    ] = ",".join(WIDTHS),
) -> None:
    """Draw the figures of the literature from one RUN or several."""
    from figures.paper import save_figures

    out = out or runs[0] / "figures"
    opened = choice.open(runs)
    say_exclusions(opened)
    saved = save_figures(opened, out, words(names) if names else None, formats=words(formats), widths=words(widths))
    for name, reason in saved.skipped.items():
        print(f"figure {name} was not drawn: {reason}", file=sys.stderr)
    for path in saved.written:
        print(path)


def _remarks(run: Run) -> list[str]:
    """Return sentences on what limits conclusions: exclusions, targets that hardly vary, answers not generated."""
    remarks = [f"{count} samples excluded: {reason}" for reason, count in exclusions(run).items()]
    for shares in target_shares(run):
        if shares.warning:
            remarks.append(f"target {shares.target} of {' / '.join(shares.group.values()) or 'all'}: {shares.warning}")
    unwritten = run.generations["error"].reindex(run.ok.index).fillna("").loc[lambda reasons: reasons != ""]
    if len(unwritten):
        remarks.append(f"{len(unwritten)} answers could not be written out; the first: {unwritten.iloc[0]}")
    return remarks


def _report_failures(runs: Sequence[Run]) -> int:
    """List the failed samples on standard error and return the exit code: 1 if there are any, else 0."""
    failed = [(run.name, sample["id"], sample["error"]) for run in runs for _, sample in run.failed.iterrows()]
    for name, sample, reason in failed[:LISTED_FAILURES]:
        print(f"failed in {name}: {sample}: {reason}", file=sys.stderr)
    if len(failed) > LISTED_FAILURES:
        print(f"... and {len(failed) - LISTED_FAILURES} more, in the samples table", file=sys.stderr)
    if failed:
        print(f"{len(failed)} samples failed; all others are kept", file=sys.stderr)
    return 1 if failed else 0
