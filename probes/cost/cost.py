"""What a run will cost, before it starts: replays, operations, time, peak memory and disk."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Unpack

import numpy as np

from analyses.runs import HorizonError, RunConfig, RunOptions
from analyses.runs.keywords import RunKeywords
from analyses.runs.signatures import takes_options
from probes.cost.amounts import Amount, planned_amount, scaled_amount
from probes.cost.calibration import time_parts
from probes.cost.disk import disk_parts
from probes.cost.memory import peak, resident_bytes
from probes.cost.meters import memory_parts, part_work
from probes.cost.operations import forward_operations
from probes.cost.units import byte_text, duration_text, operation_text
from probes.cost.workload import Clock, Subject, meet
from probes.data.samples import Sample, SampleError, failure_reason, with_template
from probes.directory.columns import thumbnail
from probes.directory.writer import FLUSH_SAMPLES, FLUSH_SECONDS
from probes.models.probed import ProbedModel
from probes.plans.options import run_config

TRIED = 5  # samples that are tried, at most, until one can be measured
SHARE, LEAST, MOST = 0.03, 0.25, 2.0  # a calibration takes this share of the run's time, between these bounds (s)
WHEN_ASKED = 3.0  # seconds of a calibration where the cost is all that the user wants
PICTURES = 8  # thumbnails from which their mean size is estimated
DICTIONARY_BYTES = 2**20  # parquet stores repeated values once in dictionaries up to this size


@dataclass(frozen=True)
class Cost:
    """The cost of a run, summed over all samples unless said otherwise.

    Attributes:
        samples: the number of samples that are measured.
        grid_samples: the number of these that get token grids.
        replays: the number of ablations, by part: removal, keep-one, leave-one-out, noise floor. For the method "gate"
            its exact checks count, its backward passes do not. With `coarse` the coarse windows and all fine ones
            count, which is the most possible.
        layer_rows: the number of tokens recomputed, summed over layers, by the same parts.
        operations: multiplications and additions, by part: replays, forward passes, entropies, spectra.
        seconds: seconds on this machine, by part, with `record` for thumbnail and hashes; writing is not included.
        memory: bytes by part: resident, capture, and the transient ones (forward, entropies, replays).
        disk: bytes on disk, by part.
        formulas: the formula behind each part of `memory`, in words and numbers.
        shape: the numbers of visual tokens and of all tokens of the sample that stands for all.
        less: conditions under which the run takes less, in words; empty where the numbers are exact.
    """

    samples: int
    grid_samples: int
    replays: dict[str, int]
    layer_rows: dict[str, int]
    operations: dict[str, float]
    seconds: dict[str, float]
    memory: dict[str, int]
    disk: dict[str, int]
    formulas: dict[str, str]
    shape: tuple[int, int]
    less: tuple[str, ...] = ()

    @property
    def total_replays(self) -> int:
        """The number of ablations, over all parts."""
        return sum(self.replays.values())

    @property
    def total_operations(self) -> float:
        """Multiplications and additions, over all parts."""
        return sum(self.operations.values())

    @property
    def total_seconds(self) -> float:
        """Seconds on this machine, over all parts."""
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> int:
        """The largest resident size in bytes; on a GPU the largest memory of torch."""
        return peak(self.memory)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the run directory, or of what is added to it."""
        return sum(self.disk.values())

    def __str__(self) -> str:
        """Return one line with the number of samples and their cost."""
        return f"{self.samples:,} sample{'' if self.samples == 1 else 's'}: {self.summary}"

    @property
    def summary(self) -> str:
        """The cost of the samples in a few words, without their number."""
        return (
            f"{self.total_replays:,} replays, {operation_text(self.total_operations)}, "
            f"about {duration_text(self.total_seconds)}, peak {byte_text(self.peak_bytes)}, "
            f"{byte_text(self.disk_bytes)} on disk" + "".join(f"; less {when}" for when in self.less)
        )


@takes_options(RunOptions)
def estimate_cost(
    model: ProbedModel,
    samples: Sample | Iterable[Sample],
    *,
    n_samples: int | None = None,
    clock: Clock = time.perf_counter,
    **options: Unpack[RunKeywords],
) -> Cost:
    """Return what `run` with the same options would take on this machine, from a few seconds of timing on one sample.

    The first sample that can be measured stands for all: where images differ in size, so will their cost.

    Args:
        model: the model, as `load_model` returns it.
        samples: one sample, or the samples of the run.
        n_samples: the number of samples of the run, with tasks in the same proportions; by default as many as given.
        clock: the function that returns seconds; `time.process_time` is more exact on a busy machine.
        options: of `run`, by name, except those that say how it goes on.

    Raises:
        HorizonError: an option is unusable, there is no sample, or none of the first few can be measured.
    """
    request = RunOptions(**options)
    examples = list(islice([samples] if isinstance(samples, Sample) else samples, request.limit))
    if request.token_layers == "auto":
        raise HorizonError(
            "token_layers 'auto' are not known before they are chosen: name as many layers in their place"
        )
    if n_samples is not None and n_samples < 1:
        raise HorizonError(f"n_samples is {n_samples}; it must be at least 1")
    config, _ = run_config(request, model, examples)
    if n_samples is not None and request.limit is not None:
        n_samples = min(n_samples, request.limit)
    if n_samples is None or not examples:
        amount = planned_amount(examples, request, config)
    else:
        amount = scaled_amount(examples, request, config, n_samples)
    prompted = [with_template(sample, request.prompt) for sample in examples]
    return cost_of(model, prompted, config, amount, budget=WHEN_ASKED, clock=clock)


def cost_of(
    model: ProbedModel,
    samples: Sequence[Sample],
    config: RunConfig,
    amount: Amount,
    *,
    budget: float | None = None,
    clock: Clock = time.perf_counter,
) -> Cost:
    """Return the cost of an amount of work under a configuration that has been checked.

    Args:
        model: the model, as `load_model` returns it.
        samples: the samples, of which the first that can be measured stands for all.
        config: the configuration of the run.
        amount: the amount of work that is left.
        budget: the seconds that the timing may take, about; by default a small share of the run's.
        clock: the function that returns seconds.

    Raises:
        HorizonError: there is no sample, or none of the first few can be measured.
    """
    subject = _first_measurable(model, samples, config, clock)
    works = {part: part_work(subject, part) for part in amount.parts}
    operations = amount.total({part: work.operations for part, work in works.items()})
    part_seconds = time_parts(subject, amount.parts, budget=budget or _budget(subject, operations), clock=clock)
    seconds = amount.total(part_seconds)
    rows = amount.total({part: work.rows for part, work in works.items()})
    replays = amount.total({part: work.replays for part, work in works.items()})
    committed_at_once = FLUSH_SECONDS * amount.samples / max(sum(seconds.values()), 1e-9)
    samples_per_part = int(np.clip(committed_at_once, 1, FLUSH_SAMPLES))
    disk = disk_parts(
        subject,
        config,
        amount.lists,
        samples_a_part=samples_per_part,
        thumbnail_bytes=_mean_thumbnail(samples, samples_per_part),
    )
    memory, formulas = memory_parts(subject, amount.parts)
    prompt = subject.case.captured.prompt
    shape = len(prompt.visual), prompt.n_tokens
    less = tuple(dict.fromkeys(part.less for part in amount.parts if part.less))
    del subject
    gc.collect()  # what is resident now is there when nothing is being measured
    return Cost(
        samples=amount.samples,
        grid_samples=amount.grids,
        replays={part: int(replays.get(part, 0)) for part in rows},
        layer_rows={part: int(count) for part, count in rows.items()},
        operations=operations,
        seconds=seconds,
        memory={"resident": resident_bytes(model.device)} | memory,
        disk=disk,
        formulas=formulas,
        shape=shape,
        less=less,
    )


def _first_measurable(model: ProbedModel, samples: Sequence[Sample], config: RunConfig, clock: Clock) -> Subject:
    if not samples:
        raise HorizonError("there is no sample whose cost could be estimated")
    for sample in samples[:TRIED]:
        try:
            return meet(model, sample, config, clock)
        except Exception as error:  # a run records such a sample and goes on
            reason = failure_reason(error)
    raise HorizonError(f"none of the first {len(samples[:TRIED])} samples can be measured; of the last, {reason}")


def _budget(subject: Subject, operations: dict[str, float]) -> float:
    """Return the seconds for the calibration: a share of the run's time, by the rate of the first forward pass."""
    n_tokens = subject.case.captured.prompt.n_tokens
    forward = subject.vision + forward_operations(subject.weights, n_tokens, subject.places)
    run_seconds = sum(operations.values()) / forward * subject.seconds
    return float(np.clip(SHARE * run_seconds, LEAST, MOST))


def _mean_thumbnail(samples: Sequence[Sample], samples_per_part: int) -> float | None:
    """Return the mean bytes of a thumbnail on disk, from a few samples; None where no picture can be read.

    A part of the run directory stores a repeated picture once.
    """
    sizes = []
    for at in sorted({round(place) for place in np.linspace(0, len(samples) - 1, PICTURES)}):
        try:
            sizes.append(len(thumbnail(samples[at].load_image())))
        except SampleError:  # the run will say so
            continue
    if not sizes:
        return None
    pictures = [sample.image if isinstance(sample.image, Path) else id(sample.image) for sample in samples]
    parts = [set(pictures[start : start + samples_per_part]) for start in range(0, len(pictures), samples_per_part)]
    distinct = sum(map(len, parts)) / len(pictures)
    mean = float(np.mean(sizes))
    return mean * distinct if mean * max(map(len, parts)) < DICTIONARY_BYTES else mean


def announcement(
    model: ProbedModel, config: RunConfig, samples: Sequence[Sample], amount: Amount, *, per_sample: bool = False
) -> str:
    """Return the line before a run: what is left to do and its cost, or why the cost is not known.

    Args:
        model: the model, as `load_model` returns it.
        config: the configuration of the run.
        samples: the samples that are left, or the first few samples of a stream.
        amount: the amount of work that is left.
        per_sample: whether the amount is that of one sample, since the length of a stream is not known.
    """
    if not amount.samples:
        return "nothing is left to measure"
    try:
        cost = cost_of(model, samples, config, amount)
    except HorizonError as error:
        quantity = "samples" if per_sample else f"{amount.samples:,} samples"
        return f"{quantity}: what they take is not known, since {error}"
    return f"as many samples as there come, each: {cost.summary}" if per_sample else str(cost)
