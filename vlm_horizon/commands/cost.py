"""The command `cost`: what a run will take on this machine, before it is started."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from analyses.reports.export import FORMATS, render
from analyses.reports.text import Table, to_record
from analyses.runs import HorizonError, check_choice
from probes.cost.units import byte_text, duration_text, operation_text
from vlm_horizon.commands.arguments import (
    DataOptions,
    Loading,
    Measuring,
    ModelName,
    completion,
    spelled_out,
    with_groups,
)
from vlm_horizon.workflows.adaptive import spread_layers

if TYPE_CHECKING:
    from probes.cost.cost import Cost
    from probes.data.samples import Sample

OUTPUTS = (*FORMATS, "json")
NEUTRAL_SIDE = 336  # pixels, of the image that stands for data
NEUTRAL_QUESTION = "What is shown in the image?"
NEUTRAL_ANSWERS = ("yes", "A", "1", "red", "the")  # the first one that the tokenizer knows is the answer
NEUTRAL_SAMPLES = 100
WITHOUT_DATA = ("task", "task_type", "prompt", "limit")  # the reading options that mean something without data


@with_groups
def cost(
    model: ModelName,
    loading: Loading,
    reading: DataOptions,
    measuring: Measuring,
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or dataset ids, as in run; without, a gray image.", metavar="[DATA...]"),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many; as many as DATA holds, or 100.", min=1)] = None,
    output: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(OUTPUTS)}.", autocompletion=completion(OUTPUTS))
    ] = "text",
) -> None:
    """Print what `run MODEL DATA` with the same options would take: replays, operations, time, memory, disk."""
    check_choice("format", output, OUTPUTS)
    options = measuring.options()
    streams = reading.open(data or ())
    examples = [sample for stream in streams for sample in stream] if data else _neutral(reading)
    if not examples:
        raise HorizonError(f"{', '.join(data or ())} holds no samples: nothing to estimate")
    from probes.cost.cost import estimate_cost

    probed = loading.load(model)
    notes = []
    if measuring.auto:
        options["token_layers"] = spread_layers(probed.n_layers, measuring.budget, options)
        layers = ", ".join(map(str, options["token_layers"]))
        notes.append(f"layers of the token grids are chosen on the way: counted for {layers}, spread over the depth")
    if not data:
        notes.append(
            f"no DATA given: counted for a gray image of {NEUTRAL_SIDE} x {NEUTRAL_SIDE} pixels and the question "
            f"{NEUTRAL_QUESTION!r}"
        )
    number = samples or (len(examples) if data else reading.limit or NEUTRAL_SAMPLES)
    estimate = estimate_cost(probed, examples, n_samples=number, **options, **reading.run_options(streams, examples))
    if output == "json":
        print(json.dumps(cost_record(estimate), indent=2))
        return
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{probed.name}, {probed.dtype}, {probed.device}: {estimate}", end="\n\n")
    for table in (_work_table(estimate), _memory_table(estimate), _disk_table(estimate)):
        print(render(table, output), end="\n\n")


def _neutral(reading: DataOptions) -> list[Sample]:
    """Return samples that ask one question about a gray image, as a benchmark asks it, one for each neutral answer.

    Raises:
        HorizonError: the benchmark is unknown, or an option chooses among data that is not given.
    """
    from PIL import Image

    from probes.data.samples import Sample, with_template
    from probes.data.tasks import UNKNOWN, find_task

    for name, flag in spelled_out(DataOptions).items():
        if name not in WITHOUT_DATA and getattr(reading, name) != getattr(DataOptions, name):
            raise HorizonError(f"--{flag} says how DATA is read, and there is none: give some")
    task = UNKNOWN if reading.task is None else find_task(reading.task)
    if task is None:
        raise HorizonError(f"no benchmark {reading.task!r} is known (`vlm-horizon tasks` lists them): give DATA of it")
    gray = Image.new("RGB", (NEUTRAL_SIDE, NEUTRAL_SIDE), (127, 127, 127))
    samples = [Sample("neutral", gray, NEUTRAL_QUESTION, (answer,), task=task.name) for answer in NEUTRAL_ANSWERS]
    template = (task.open_prompt or task.prompt) if task.name and not reading.prompt else None
    return [with_template(sample, template) for sample in samples]


def cost_record(cost: Cost) -> dict[str, object]:
    """Return a cost as JSON holds it, totals included, in seconds, bytes and single operations."""
    names = ("total_replays", "total_operations", "total_seconds", "peak_bytes", "disk_bytes")
    totals = {name: getattr(cost, name) for name in names}
    return to_record(cost) | to_record(totals)


def _work_table(cost: Cost) -> Table:
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
    rows = [(part, byte_text(size), cost.formulas.get(part, "")) for part, size in cost.memory.items()]
    largest = max((size, part) for part, size in cost.memory.items() if part not in ("resident", "capture"))[1]
    formula = f"resident + capture + {largest}, the largest of the others"
    return Table("Peak memory", ("part", "bytes", "formula"), [*rows, ("peak", byte_text(cost.peak_bytes), formula)])


def _disk_table(cost: Cost) -> Table:
    rows = [(part, byte_text(size)) for part, size in cost.disk.items()]
    return Table("Disk", ("part", "bytes"), [*rows, ("all", byte_text(cost.disk_bytes))])
