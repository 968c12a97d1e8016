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
from typing import Annotated

import typer

from analyses.first_order import describe_agreement, gate_agreement
from analyses.runs import CONTEXTS, KINDS, METHODS, PROBES, TARGETS, TOKENS, HorizonError, Run
from analyses.subsets import Selection, exclusions
from analyses.targets import target_shares
from vlm_horizon.arguments import STREAM_HELP, parse_layers
from vlm_horizon.benchmarks import tasks
from vlm_horizon.check import check
from vlm_horizon.conclude import (
    Balance,
    BalanceSeed,
    OnlyCorrect,
    OnlyEffective,
    RunPaths,
    compare,
    plan,
    select,
    show,
    words,
)
from vlm_horizon.cost import cost

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
    data: Annotated[
        list[str],
        typer.Argument(help="Files, folders, or dataset ids (owner/name, owner/name:folder/split).", metavar="DATA..."),
    ],
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/<model> by default.")] = None,
    probes: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(PROBES)}.")] = ",".join(PROBES),
    streams: Annotated[str | None, typer.Option(help=f"{STREAM_HELP} query, key and hidden by default.")] = None,
    targets: Annotated[str, typer.Option(help=f"Of {', '.join(TARGETS)}; the first leads.")] = "gold",
    contexts: Annotated[str, typer.Option(help=f"Of the token grids: {', '.join(CONTEXTS)}.")] = "keep-one",
    window: Annotated[
        int | None, typer.Option(help="Side of the token grids' windows, in tokens; 2 by default.")
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option(help="The smallest windows that are at most so many, instead of --window.")
    ] = None,
    coarse: Annotated[
        int | None,
        typer.Option(help="Windows of this side first; --window only inside those with an effect above the floor."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Cuts, as 0,4,8 or 0-7; all by default. auto: token grids only around the horizons."),
    ] = None,
    layer_budget: Annotated[
        int | None,
        typer.Option(
            help="With --layers auto: token grids for so many layers a sample; by default a quarter, at least 8."
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help=f"Removal kind: {', '.join(KINDS)}.")] = "delete",
    method: Annotated[
        str, typer.Option(help=f"Of the token grids: {', '.join(METHODS)} (first order, by backward passes).")
    ] = "exact",
    gate_checks: Annotated[
        int, typer.Option(help="With --method gate: samples of each task that also get exact values.", min=0)
    ] = 2,
    alpha: Annotated[float, typer.Option(help="Renyi order of the entropies.")] = 1.0,
    token_samples: Annotated[
        int | None, typer.Option(help="Token grids for the first so many samples of each task; all by default.", min=0)
    ] = None,
    spectra: Annotated[
        int, typer.Option(help="Keep eigenvalues of the first so many samples of each task.", min=0)
    ] = 0,
    task: Annotated[
        str | None, typer.Option(help="The benchmark (see `vlm-horizon tasks`); guessed from DATA's name if clear.")
    ] = None,
    task_type: Annotated[str | None, typer.Option(help="Overrides the samples' task type.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Question template with {question} in it, and if you like {options}, {hint}, {ocr_tokens}."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each of DATA.")] = None,
    seed: Annotated[int | None, typer.Option(help="Takes a random subset of --limit samples, not the first.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help='Only rows like "split=val" or "n>3", by column; may be repeated.')
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Column of the question; for a folder of images the question itself.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Column of the answers; for a folder of images the answer itself.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Column of the image.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that image and video paths are relative to.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Answers to a LLaVA question file.")] = None,
    with_ocr_tokens: Annotated[
        bool, typer.Option("--with-ocr-tokens", help="Put the reference OCR tokens into the prompt (TextVQA).")
    ] = False,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dataset ids.")] = None,
    frames: Annotated[int | None, typer.Option(help="Of videos: so many frames; 8 by default.")] = None,
    fps: Annotated[float | None, typer.Option(help="Of videos: so many frames a second instead.")] = None,
    shard: Annotated[str, typer.Option(help="i/n: only every n-th sample, from the i-th (0-based).")] = "0/1",
    batch_size: Annotated[int | None, typer.Option(help="Ablations at once.", min=1)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    attn: Annotated[str, typer.Option(help="Attention: sdpa, eager, or flash where it is exact.")] = "sdpa",
    device_map: Annotated[str | None, typer.Option(help="As in transformers.")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit (needs bitsandbytes).")] = None,
    only_correct: Annotated[
        bool, typer.Option("--only-correct", help="Exclude what the model answers wrong, before all ablations.")
    ] = False,
    generate: Annotated[
        int | None, typer.Option(help="Also write out whole answers of at most so many tokens, to be scored.", min=1)
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Measure again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    tokens: Annotated[
        str, typer.Option(help=f"That removals and token grids take away: {', '.join(TOKENS)}; entropies follow.")
    ] = "visual",
) -> None:
    """Measure MODEL on the samples of DATA and write a run directory; the same command resumes."""
    from probes.models import load_model
    from probes.readers import read_samples
    from probes.samples import Sample
    from probes.sweep import run as sweep
    from probes.video import frame_rule
    from vlm_horizon.adaptive import count_replays, run_adaptive

    auto = layers is not None and layers.strip() == "auto"
    if layer_budget is not None and not auto:
        raise HorizonError(f"--layer-budget {layer_budget} says how --layers auto chooses: give both or neither")
    measure = partial(run_adaptive, budget=layer_budget) if auto else partial(sweep, layers=parse_layers(layers))
    read = [
        read_samples(
            name,
            task=task,
            task_type=task_type,
            limit=limit,
            prompt=prompt,
            seed=seed,
            category=category or (),
            where=where or (),
            question=question,
            answer=answer,
            image=image,
            with_ocr_tokens=with_ocr_tokens,
            revision=data_revision,
            images_dir=images,
            annotations=annotations,
            frames=frames,
            fps=fps,
        )
        for name in data
    ]
    probed = load_model(
        model, revision=revision, dtype=dtype, attn=attn, device_map=device_map, quantization=quantization
    )
    out = out or Path("runs") / model.rstrip("/").rsplit("/", 1)[-1]
    samples: list[Sample] = []  # their images stay in the files
    for stream in read:
        print(stream.note, file=sys.stderr)
        samples += stream
        for reason, n_rows in stream.left_out.items():
            print(f"  {n_rows} rows left out: {reason}", file=sys.stderr)
    if not samples:
        raise HorizonError(f"{', '.join(data)} holds no samples: nothing to measure")
    print(
        f"{probed.name}: {probed.n_layers} layers, {probed.dtype}, {probed.device}; {len(samples)} samples -> {out}",
        file=sys.stderr,
    )
    video = next((rule for sample in samples if (rule := frame_rule(sample.frames))), "")
    with _resumable():
        measured = measure(
            probed,
            samples,
            out,
            probes=words(probes),
            streams=None if streams is None else words(streams),
            targets=words(targets),
            contexts=words(contexts),
            window=window,
            max_windows=max_windows,
            coarse=coarse,
            kind=kind,
            method=method,
            gate_checks=gate_checks,
            alpha=alpha,
            token_samples=token_samples,
            spectra=spectra,
            prompt=prompt,
            shard=_parse_shard(shard),
            batch_size=batch_size,
            retry_failed=retry_failed,
            progress=not quiet,
            sources=[stream.source.name for stream in read],
            with_ocr_tokens=with_ocr_tokens,
            video=video,
            only_correct=only_correct,
            generate=generate,
            tokens=tokens,
        )
    if measured.config.method == "gate":
        print(describe_agreement(gate_agreement(measured)), file=sys.stderr)
    if coarse is not None and (count := count_replays(measured)).all:
        print(f"{count.run} replays for token grids instead of {count.all} at every window and layer", file=sys.stderr)
    for sentence in _remarks(measured):
        print(sentence, file=sys.stderr)
    print(f"{len(measured.ok)} samples measured in {out}; `vlm-horizon show {out}` concludes", file=sys.stderr)
    raise typer.Exit(_report_failures([measured]))


@app.command()
def figures(
    runs: RunPaths,
    out: Annotated[Path | None, typer.Option(help="Directory; RUN/figures of the first run by default.")] = None,
    names: Annotated[str | None, typer.Option(help="Comma-separated figures; all by default.")] = None,
    formats: Annotated[str, typer.Option(help="Comma-separated: pdf, svg, png.")] = "pdf,svg,png",
    widths: Annotated[str, typer.Option(help="Comma-separated: column, page.")] = "column,page",
    only_correct: OnlyCorrect = False,
    only_effective: OnlyEffective = False,
    balance: Balance = None,
    balance_seed: BalanceSeed = 0,
) -> None:
    """Draw the figures of the literature from one RUN or several."""
    from figures.paper import save_figures

    out = out or runs[0] / "figures"
    selected = select(runs, Selection(only_correct, only_effective, balance, seed=balance_seed))
    saved = save_figures(selected, out, words(names) if names else None, formats=words(formats), widths=words(widths))
    for name, reason in saved.skipped.items():
        print(f"figure {name} was not drawn: {reason}", file=sys.stderr)
    for path in saved.written:
        print(path)


def _remarks(run: Run) -> list[str]:
    """What to know of a run before concluding from it: exclusions, targets that hardly vary, answers not written."""
    found = [f"{count} samples excluded: {reason}" for reason, count in exclusions(run).items()]
    for shares in target_shares(run):
        if shares.warning:
            found.append(f"target {shares.target} of {' / '.join(shares.group.values()) or 'all'}: {shares.warning}")
    unwritten = run.generations["error"].reindex(run.ok.index).fillna("").loc[lambda reasons: reasons != ""]
    if len(unwritten):
        found.append(f"{len(unwritten)} answers could not be written out; the first: {unwritten.iloc[0]}")
    return found


def _parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise HorizonError(f"shard {text!r} cannot be read; write it as i/n, for example 0/4")
    return int(index), int(count)


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
