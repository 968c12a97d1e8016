"""The commands that measure: `run`, and `demo` on what ships with the package. Both resume after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.curves.selections import exclusions
from analyses.curves.target_shares import target_shares
from analyses.reports.summary import describe_agreement
from analyses.runs import HorizonError, Run, short_name
from analyses.verdicts.first_order import gate_agreement
from vlm_horizon.commands.arguments import DataOptions, Loading, Measuring, ModelName, with_groups

if TYPE_CHECKING:
    from probes.data.readers import SampleStream
    from probes.data.samples import Sample

LISTED_FAILURES = 10


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C during a measurement ends with a sentence: the writer has committed what was finished."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; what was finished is on disk, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None


def demo(
    out: Annotated[Path, typer.Option(help="Directory of the runs and figures.")] = Path("runs/demo"),
    token_samples: Annotated[int, typer.Option(help="Samples of each task that get token grids.", min=0)] = 100,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each set.", min=1)] = None,
) -> None:
    """Measure the two shipped models on the shipped OCR and VQA sets, draw the figures, and say what follows."""
    from vlm_horizon.workflows.demo import run_demo

    with _resumable():
        result = run_demo(out, token_samples=token_samples, limit=limit)
    print()
    for sentence in result.sentences:
        print(f"- {sentence}")
    print(f"\nRuns: {', '.join(str(run.path) for run in result.runs)}")
    print(f"Figures: {len(result.figures)} files in {out / 'figures'}")
    raise typer.Exit(_report_failures(result.runs))


@with_groups
def run(
    model: ModelName,
    data: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or dataset ids (owner/name, owner/name:folder/split).", metavar="DATA..."),
    ],
    loading: Loading,
    reading: DataOptions,
    measuring: Measuring,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<model> by default.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Measure MODEL on the samples of DATA and write a run directory; the same command resumes."""
    options = measuring.options()  # before torch is imported: a typo is answered at once
    from probes.sweeps.sweep import run as sweep
    from vlm_horizon.workflows.adaptive import count_replays, run_adaptive

    measure = partial(run_adaptive, budget=measuring.budget) if measuring.auto else sweep
    streams = reading.open(data)
    samples = _read(streams)
    probed = loading.load(model)
    out = out or Path("runs") / short_name(model)
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
