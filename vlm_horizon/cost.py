"""The command `cost`: what a run will take on this machine, before it is started."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.export import FORMATS, render
from analyses.runs import CONTEXTS, KINDS, PROBES, TARGETS, HorizonError
from analyses.tables import Table, to_record
from vlm_horizon.arguments import STREAM_HELP, parse_layers
from vlm_horizon.conclude import words

if TYPE_CHECKING:
    from probes.cost import Cost
    from probes.samples import Sample

OUTPUTS = (*FORMATS, "json")
NEUTRAL_SIDE = 336  # pixels, of the image that stands for data
NEUTRAL_QUESTION = "What is shown in the image?"
NEUTRAL_ANSWERS = ("yes", "A", "1", "red", "the")  # the first that the tokenizer knows
NEUTRAL_SAMPLES = 100


def cost(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or dataset ids, as in run; without, a gray image.", metavar="[DATA...]"),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many; as many as DATA holds, or 100.", min=1)] = None,
    probes: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(PROBES)}.")] = ",".join(PROBES),
    streams: Annotated[str, typer.Option(help=STREAM_HELP)] = "query,key,hidden",
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
    task: Annotated[str | None, typer.Option(help="The benchmark, as in run; of our own JSONL only that task.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Question template with {question} in it.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many samples of each file.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Ablations at once.", min=1)] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
    attn: Annotated[str, typer.Option(help="Attention implementation: sdpa or eager.")] = "sdpa",
    device_map: Annotated[str | None, typer.Option(help="As in transformers.")] = None,
    quantization: Annotated[str | None, typer.Option(help="4bit or 8bit.")] = None,
    output: Annotated[str, typer.Option("--format", help=f"One of {', '.join(OUTPUTS)}.")] = "text",
) -> None:
    """Print what `run MODEL DATA` with the same options would take: replays, operations, time, memory, disk."""
    if output not in OUTPUTS:
        raise HorizonError(f"format {output!r} is unknown; choose from {', '.join(OUTPUTS)}")
    cuts = parse_layers(layers)
    given = _samples(data, task, limit)
    from probes.cost import estimate_cost
    from probes.models import load_model

    probed = load_model(
        model, revision=revision, dtype=dtype, attn=attn, device_map=device_map, quantization=quantization
    )
    found = estimate_cost(
        probed,
        given,
        probes=words(probes),
        streams=words(streams),
        targets=words(targets),
        contexts=words(contexts),
        window=window,
        layers=cuts,
        kind=kind,
        alpha=alpha,
        token_samples=token_samples,
        spectra=spectra,
        prompt=prompt,
        batch_size=batch_size,
        n_samples=samples or (len(given) if data else NEUTRAL_SAMPLES),
    )
    if output == "json":
        print(json.dumps(cost_record(found), indent=2))
        return
    if not data:
        print(
            f"no DATA given: counted for a gray image of {NEUTRAL_SIDE} x {NEUTRAL_SIDE} pixels and the question "
            f"{NEUTRAL_QUESTION!r}",
            file=sys.stderr,
        )
    print(f"{probed.name}, {probed.dtype}, {probed.device}: {found}", end="\n\n")
    for table in cost_tables(found):
        print(render(table, output), end="\n\n")


def _samples(data: list[str] | None, task: str | None, limit: int | None) -> list[Sample]:
    """Those of the files, or a neutral one with every answer that some tokenizer may know.

    Raises:
        HorizonError: a file is none, or holds no such sample.
    """
    from PIL import Image

    from probes.readers import read_samples
    from probes.samples import Sample
    from probes.sources import find_source

    if not data:
        gray = Image.new("RGB", (NEUTRAL_SIDE, NEUTRAL_SIDE), (127, 127, 127))
        return [Sample("neutral", gray, NEUTRAL_QUESTION, (answer,), task=task or "") for answer in NEUTRAL_ANSWERS]
    found, kept = [], []
    for name in data:
        own = find_source(name, task=task).own
        read = list(read_samples(name, task=None if own else task, limit=limit))
        found += read
        kept += [sample for sample in read if not own or task in (None, sample.task)]
    if not kept:
        tasks = ", ".join(sorted({sample.task for sample in found})) or "none"
        named = f" of the task {task!r} (tasks there: {tasks})" if task is not None else ""
        raise HorizonError(f"{', '.join(data)} holds no samples{named}: nothing to estimate")
    return kept


def cost_record(cost: Cost) -> dict[str, object]:
    """A cost as JSON holds it, totals included; seconds, bytes, and single operations."""
    totals = {
        "total_replays": cost.total_replays,
        "total_operations": cost.total_operations,
        "total_seconds": cost.total_seconds,
        "peak_bytes": cost.peak_bytes,
        "disk_bytes": cost.disk_bytes,
    }
    return to_record(cost) | to_record(totals)


def cost_tables(cost: Cost) -> list[Table]:
    """Work and time by part, peak memory with its formula, disk."""
    return [_work_table(cost), _memory_table(cost), _disk_table(cost)]


def _work_table(cost: Cost) -> Table:
    from probes.cost import duration_text, operation_text

    parts = [*dict.fromkeys((*cost.operations, *cost.seconds))]
    rows = [
        (
            part,
            f"{cost.replays[part]:,}" if part in cost.replays else "",
            f"{cost.layer_rows[part]:,}" if part in cost.layer_rows else "",
            operation_text(cost.operations[part]) if part in cost.operations else "",
            duration_text(cost.seconds[part]) if part in cost.seconds else "",
        )
        for part in parts
    ]
    total = (
        *("all", f"{cost.total_replays:,}", f"{sum(cost.layer_rows.values()):,}"),
        *(operation_text(cost.total_operations), duration_text(cost.total_seconds)),
    )
    visual, tokens = cost.shape
    note = f"one sample, of {visual:,} visual tokens among {tokens:,}, stands for all"
    grids = f", {cost.grid_samples:,} of them with token grids" if cost.grid_samples else ""
    return Table(
        f"Work: {cost.samples:,} samples{grids}",
        ("part", "replays", "rows x layers", "operations", "time"),
        [*rows, total],
        (note, "time: parts of that sample measured here and scaled up; loading and writing are not in it"),
    )


def _memory_table(cost: Cost) -> Table:
    from probes.cost import byte_text

    rows = [(part, byte_text(held), cost.formulas.get(part, "")) for part, held in cost.memory.items()]
    largest = max((held, part) for part, held in cost.memory.items() if part not in ("resident", "capture"))[1]
    formula = f"resident + capture + {largest}, the largest of the others"
    return Table("Peak memory", ("part", "bytes", "formula"), [*rows, ("peak", byte_text(cost.peak_bytes), formula)])


def _disk_table(cost: Cost) -> Table:
    from probes.cost import byte_text

    rows = [(part, byte_text(held)) for part, held in cost.disk.items()]
    return Table("Disk", ("part", "bytes"), [*rows, ("all", byte_text(cost.disk_bytes))])
