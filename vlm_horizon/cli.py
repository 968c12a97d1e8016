"""The command line: `vlm-horizon demo`, `run`, `show`, `compare`, `figures`.

Exit codes: 0 done, 1 some samples failed (listed), 2 unusable arguments, 130 interrupted (what finished is on disk).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from analyses.collapse import find_collapse_layer
from analyses.compare import compare_horizons
from analyses.horizon import find_horizon
from analyses.runs import CONTEXTS, KINDS, PROBES, STREAMS, TARGETS, HorizonError, Run, load_runs
from analyses.summary import summarize
from analyses.tables import Table, collapse_table, difference_table, horizon_table, to_record

LISTED_FAILURES = 10

app = typer.Typer(
    name="vlm-horizon",
    help="Measure where visual tokens live and die with depth in a vision-language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        app(args=None if arguments is None else list(arguments))
    except HorizonError as error:
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


RunPaths = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory of the runs and figures.")] = Path("runs/demo"),
    token_samples: Annotated[int, typer.Option(help="Samples of each task that get token grids.", min=0)] = 100,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each set.", min=1)] = None,
) -> None:
    """Measure the two shipped models on the shipped OCR and VQA sets, draw the figures, and say what follows."""
    from vlm_horizon.demo import run_demo

    with _resumable():
        found = run_demo(out, token_samples=token_samples, limit=limit)
    print()
    for sentence in found.sentences:
        print(f"- {sentence}")
    print(f"\nRuns: {', '.join(str(run.path) for run in found.runs)}")
    print(f"Figures: {len(found.figures)} files in {out / 'figures'}")
    raise typer.Exit(_report_failures(found.runs))


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.")],
    data: Annotated[list[Path], typer.Argument(help="Sample files (JSONL).", metavar="DATA...")],
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<model> by default.")] = None,
    probes: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(PROBES)}.")] = ",".join(PROBES),
    streams: Annotated[str, typer.Option(help=f"Of the entropies: {', '.join(STREAMS)}.")] = "query,key,hidden",
    targets: Annotated[str, typer.Option(help=f"Of {', '.join(TARGETS)}; the first leads.")] = "gold",
    contexts: Annotated[str, typer.Option(help=f"Of the token grids: {', '.join(CONTEXTS)}.")] = "keep-one",
    window: Annotated[int, typer.Option(help="Side of the token grids' windows, in tokens.")] = 2,
    layers: Annotated[str | None, typer.Option(help="Cuts, as 0,4,8 or 0-7; all by default.")] = None,
    kind: Annotated[str, typer.Option(help=f"Removal kind: {', '.join(KINDS)}.")] = "delete",
    alpha: Annotated[float, typer.Option(help="Renyi order of the entropies.")] = 1.0,
    token_samples: Annotated[
        int | None, typer.Option(help="Token grids for the first so many samples of each task; all by default.", min=0)
    ] = None,
    spectra: Annotated[
        int, typer.Option(help="Keep eigenvalues of the first so many samples of each task.", min=0)
    ] = 0,
    task: Annotated[str | None, typer.Option(help="Overrides the samples' task.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Overrides the samples' task type.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question template with {question} in it.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each file.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: only every n-th sample, from the i-th (0-based).")] = "0/1",
    batch_size: Annotated[int | None, typer.Option(help="Ablations at once.", min=1)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    attn: Annotated[str, typer.Option(help="Attention implementation: sdpa or eager.")] = "sdpa",
    device_map: Annotated[str | None, typer.Option(help="As in transformers.")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
) -> None:
    """Measure MODEL on the samples of DATA and write a run directory; the same command resumes."""
    from probes.models import load_model
    from probes.samples import read_samples
    from probes.sweep import run as sweep

    files = [read_samples(path, task=task, task_type=task_type, limit=limit) for path in data]
    probed = load_model(
        model, revision=revision, dtype=dtype, attn=attn, device_map=device_map, quantization=quantization
    )
    out = out or Path("runs") / model.rstrip("/").rsplit("/", 1)[-1]
    samples = [sample for file in files for sample in file]
    print(
        f"{probed.name}: {probed.n_layers} layers, {probed.dtype}, {probed.device}; {len(samples)} samples -> {out}",
        file=sys.stderr,
    )
    with _resumable():
        measured = sweep(
            probed,
            samples,
            out,
            probes=_words(probes),
            streams=_words(streams),
            targets=_words(targets),
            contexts=_words(contexts),
            window=window,
            layers=_parse_layers(layers),
            kind=kind,
            alpha=alpha,
            token_samples=token_samples,
            spectra=spectra,
            prompt=prompt,
            shard=_parse_shard(shard),
            batch_size=batch_size,
            retry_failed=retry_failed,
            progress=not quiet,
            sources=[str(path) for path in data],
        )
    print(f"{len(measured.ok)} samples measured in {out}; `vlm-horizon show {out}` concludes", file=sys.stderr)
    raise typer.Exit(_report_failures([measured]))


@app.command()
def show(
    runs: RunPaths,
    by: Annotated[str, typer.Option(help="Comma-separated columns: task_type, task, category.")] = "task_type",
    criterion: Annotated[str | None, typer.Option(help="Horizon criterion; every possible one by default.")] = None,
    measure: Annotated[str, typer.Option(help="p or log_p.")] = "p",
    as_json: AsJson = False,
) -> None:
    """Print entropy collapse layers and information horizons of each RUN, with intervals and reasons."""
    records = []
    for opened in load_runs(runs):
        probes = opened.config.probes
        collapses = find_collapse_layer(opened, by=_words(by)) if "entropy" in probes else []
        horizons = (
            find_horizon(opened, by=_words(by), criterion=criterion, measure=measure)
            if {"removal", "information"} & set(probes)
            else []
        )
        if as_json:
            records.append(_overview(opened) | {"collapse": to_record(collapses), "horizons": to_record(horizons)})
            continue
        print(_headline(opened))
        for table in [collapse_table(collapses)] * bool(collapses) + [horizon_table(horizons)] * bool(horizons):
            _print_table(table)
    if as_json:
        print(json.dumps(records, indent=2))
    else:
        for sentence in summarize(load_runs(runs)):
            print(f"- {sentence}")


@app.command()
def compare(
    runs: RunPaths,
    between: Annotated[str, typer.Option(help="task_type, task, category or model.")] = "task_type",
    within: Annotated[str, typer.Option(help="Compare only levels that agree in these columns.")] = "",
    criterion: Annotated[str, typer.Option(help="Horizon criterion.")] = "removal",
    measure: Annotated[str, typer.Option(help="p or log_p.")] = "p",
    as_json: AsJson = False,
) -> None:
    """Print how much deeper one task type (task, category, model) lies than another, paired and unpaired."""
    opened = load_runs(runs)
    comparison = compare_horizons(opened, between=between, within=_words(within), criterion=criterion, measure=measure)
    if as_json:
        print(json.dumps(to_record(comparison), indent=2))
        return
    _print_table(horizon_table(comparison.groups))
    _print_table(difference_table(comparison))


@app.command()
def figures(
    runs: RunPaths,
    out: Annotated[Path | None, typer.Option(help="Directory; RUN/figures of the first run by default.")] = None,
    names: Annotated[str | None, typer.Option(help="Comma-separated figures; all by default.")] = None,
    formats: Annotated[str, typer.Option(help="Comma-separated: pdf, svg, png.")] = "pdf,svg,png",
    widths: Annotated[str, typer.Option(help="Comma-separated: column, page.")] = "column,page",
) -> None:
    """Draw the figures of the literature from one RUN or several."""
    from figures.paper import save_figures

    out = out or runs[0] / "figures"
    saved = save_figures(
        load_runs(runs), out, _words(names) if names else None, formats=_words(formats), widths=_words(widths)
    )
    for name, reason in saved.skipped.items():
        print(f"figure {name} was not drawn: {reason}", file=sys.stderr)
    for path in saved.written:
        print(path)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _parse_layers(text: str | None) -> list[int] | None:
    """Read "0,4,8" or "0-7" as layers."""
    if text is None:
        return None
    layers: list[int] = []
    for word in _words(text):
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise HorizonError(f"layers {text!r} cannot be read; write them as 0,4,8 or 0-7")
        layers += range(int(first), int(last if dash else first) + 1)
    return layers


def _parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise HorizonError(f"shard {text!r} cannot be read; write it as i/n, for example 0/4")
    return int(index), int(count)


def _overview(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "model": run.model,
        "layers": run.config.n_layers,
        "measured": len(run.ok),
        "failed": len(run.failed),
        "accuracy": _accuracy(run),
    }


def _accuracy(run: Run) -> dict[str, float]:
    """Share of samples whose most probable first token is in the target set, by task type."""
    right = run.ok.dropna(subset=["correct"])
    shares = right.groupby("task_type")["correct"].agg(lambda column: column.astype(bool).mean())
    return {str(name): float(share) for name, share in shares.items()}


def _headline(run: Run) -> str:
    shares = ", ".join(f"{name or 'all'} {share:.1%}" for name, share in _accuracy(run).items())
    failed = f", {len(run.failed)} failed" if len(run.failed) else ""
    return (
        f"\n{run.path}: {run.model}, {run.config.n_layers} layers, {len(run.ok)} samples{failed}; "
        f"first token right: {shares or 'not measured'}\n"
    )


def _print_table(table: Table) -> None:
    """As wide as the terminal where there is one; plain aligned text where the output is piped."""
    console = Console()
    if not console.is_terminal:
        print(table, end="\n\n")
        return
    shown = RichTable(*table.columns, title=table.title, title_justify="left")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def _report_failures(runs: Sequence[Run]) -> int:
    """List what failed on standard error; the exit code."""
    failed = [(run.name, sample["id"], sample["error"]) for run in runs for _, sample in run.failed.iterrows()]
    for name, sample, reason in failed[:LISTED_FAILURES]:
        print(f"failed in {name}: {sample}: {reason}", file=sys.stderr)
    if len(failed) > LISTED_FAILURES:
        print(f"... and {len(failed) - LISTED_FAILURES} more, in the samples table", file=sys.stderr)
    if failed:
        print(f"{len(failed)} samples failed; all others are kept", file=sys.stderr)
    return 1 if failed else 0
