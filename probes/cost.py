"""What a run will cost, before it starts: replays, operations, time, peak memory and disk."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analyses.runs import PROBES, HorizonError, RunConfig
from probes.calibration import time_parts
from probes.disk import disk_parts
from probes.entropy import check_alpha
from probes.grids import tile_windows
from probes.information import check_layers
from probes.measure import check_probes, thumbnail
from probes.memory import memory_parts, peak, resident_bytes
from probes.models import ProbedModel
from probes.replay import check_kind
from probes.samples import Sample, SampleError, check_template, with_template
from probes.targets import check_targets
from probes.workload import CHECKS, FLOORS, GRID_PARTS, Clock, SampleWork, Subject, meet, sample_work
from probes.writer import FLUSH_SAMPLES, FLUSH_SECONDS

TRIED = 5  # samples, until one can be measured
SHARE, LEAST, MOST = 0.03, 0.25, 2.0  # a calibration takes this share of the run, but within so many seconds
WHEN_ASKED = 3.0  # seconds, where nothing but the cost is asked for
PICTURES = 8  # thumbnails looked at, for their mean size
DICTIONARY_BYTES = 2**20  # up to here parquet stores what repeats once


@dataclass(frozen=True)
class Amount:
    """How many samples are measured, with token grids, with eigenvalues, and with exact checks of their estimates."""

    samples: int
    grids: int
    spectra: int
    checks: int = 0


@dataclass(frozen=True)
class Cost:
    """What a run takes, all samples together unless said otherwise.

    Attributes:
        samples: measured.
        grid_samples: of these, with token grids.
        replays: ablations run, by part: removal, keep-one, leave-one-out, noise floor. Of the method "gate": 0 for
            its backward passes, and those of its exact checks. With `coarse`: those of the coarse windows, and of all
            fine ones, the most that they can ask for.
        layer_rows: tokens recomputed over all layers, by the same parts.
        operations: multiplications and additions: those of the replays, of the forward passes, entropies, spectra.
        seconds: on this machine, by part, with `record` (thumbnail, hashes) besides; writing is not in it.
        memory: bytes by part: resident, capture, and what comes and goes (forward, entropies, replays).
        disk: bytes by part.
        formulas: what stands behind the parts of `memory`, in words and numbers.
        shape: visual tokens and all tokens of the sample that stands for all.
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

    @property
    def total_replays(self) -> int:
        """Ablations run."""
        return sum(self.replays.values())

    @property
    def total_operations(self) -> float:
        """Multiplications and additions."""
        return sum(self.operations.values())

    @property
    def total_seconds(self) -> float:
        """On this machine."""
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> int:
        """Resident size (on a GPU: memory of torch) at its largest."""
        return peak(self.memory)

    @property
    def disk_bytes(self) -> int:
        """Size of the run directory, or of what is added to it."""
        return sum(self.disk.values())

    def __str__(self) -> str:
        """One line: how many samples, and what they take."""
        return f"{self.samples:,} sample{'' if self.samples == 1 else 's'}: {self.taken}"

    @property
    def taken(self) -> str:
        """What the samples take, in a few words."""
        return (
            f"{self.total_replays:,} replays, {operation_text(self.total_operations)}, "
            f"about {duration_text(self.total_seconds)}, peak {byte_text(self.peak_bytes)}, "
            f"{byte_text(self.disk_bytes)} on disk"
        )


def estimate_cost(
    model: ProbedModel,
    samples: Sample | Iterable[Sample],
    *,
    probes: Sequence[str] = PROBES,
    streams: Sequence[str] = ("query", "key", "hidden"),
    targets: Sequence[str] = ("gold",),
    contexts: Sequence[str] = ("keep-one",),
    window: int = 2,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    alpha: float = 1.0,
    center: bool = True,
    normalize_rows: bool = True,
    token_samples: int | None = None,
    spectra: int = 0,
    prompt: str | None = None,
    batch_size: int | None = None,
    n_samples: int | None = None,
    clock: Clock = time.perf_counter,
) -> Cost:
    """What `run` with the same options would take on this machine. Runs parts of one sample for up to a few seconds.

    The first sample that can be measured stands for all: where images differ in size, so will their cost.

    Args:
        model: as loaded.
        samples: one sample, or those of the run.
        probes: as in `run`, like all up to `batch_size`.
        streams: of the entropies.
        targets: of the answer.
        contexts: of the token grids.
        window: side of their windows in tokens.
        layers: cuts; all by default.
        kind: delete, zero or mean.
        alpha: Renyi order of the entropies.
        center: center tokens before the Gram matrix.
        normalize_rows: scale tokens to length 1 before it.
        token_samples: token grids for the first so many samples of each task only; all by default.
        spectra: eigenvalues of the first so many samples of each task.
        prompt: question template with `{question}`.
        batch_size: ablations at once.
        n_samples: how many samples there will be, tasks in the same proportions; as many as given by default.
        clock: gives seconds; `time.process_time` tells more where a machine is busy.

    Raises:
        HorizonError: an option is unusable, there is no sample, or none of the first few can be measured.
    """
    given = [samples] if isinstance(samples, Sample) else list(samples)
    if n_samples is not None and n_samples < 1:
        raise HorizonError(f"n_samples is {n_samples}; it must be at least 1")
    config = planned_config(
        model,
        probes=tuple(probes),
        streams=tuple(streams) if "entropy" in probes else (),
        targets=tuple(targets),
        contexts=tuple(contexts) if "information" in probes else (),
        window=window,
        layers=None if layers is None else tuple(check_layers(model, layers)),
        kind=kind,
        alpha=alpha,
        center=center,
        normalize_rows=normalize_rows,
        prompt=prompt,
        batch_size=batch_size,
    )
    check_probes(probes, streams, contexts)
    amount = _amount(Counter(sample.task for sample in given), token_samples, spectra, n_samples)
    return cost_of(
        model, [with_template(sample, prompt) for sample in given], config, amount, budget=WHEN_ASKED, clock=clock
    )


def cost_of(
    model: ProbedModel,
    samples: Sequence[Sample],
    config: RunConfig,
    amount: Amount,
    *,
    budget: float | None = None,
    clock: Clock = time.perf_counter,
) -> Cost:
    """`estimate_cost` for a configuration that has been checked.

    Args:
        model: as loaded.
        samples: the first of them that can be measured stands for all.
        config: of the run.
        amount: how many samples are left to measure.
        budget: seconds for the timing, about; by default a small share of the run's.
        clock: gives seconds.

    Raises:
        HorizonError: there is no sample, or none of the first few can be measured.
    """
    grids = amount.grids * bool(config.contexts)
    checks = min(amount.checks, grids) * (config.method == "gate")
    amount = Amount(amount.samples, grids, amount.spectra * bool(config.streams), checks)
    subject = _first_measurable(model, samples, config, clock)
    work = sample_work(model, subject, config)
    seconds = time_parts(
        model,
        subject,
        config,
        work,
        grids=amount.grids > 0,
        spectra=amount.spectra > 0,
        checks=amount.checks > 0,
        budget=budget or _budget(subject, work, amount),
        clock=clock,
    )
    times = _weighted(seconds, amount)
    replays = _weighted({part: done.replays for part, done in work.replays.items()}, amount)
    rows = _weighted({part: done.rows for part, done in work.replays.items()}, amount)
    counted = work.operations | {part: done.operations for part, done in work.replays.items()}
    together = _samples_a_part(sum(times.values()), amount.samples)
    disk = disk_parts(
        model,
        subject,
        config,
        samples=amount.samples,
        grids=amount.grids,
        spectra=amount.spectra,
        samples_a_part=together,
        thumbnail=_mean_thumbnail(samples, together),
    )
    memory, formulas = memory_parts(model, subject, config, work)
    prompt = subject.captured.prompt
    shape = len(prompt.visual), prompt.n_tokens
    del subject
    gc.collect()  # what is resident now is there when nothing is being measured
    return Cost(
        samples=amount.samples,
        grid_samples=amount.grids,
        replays={part: int(count) for part, count in replays.items()},
        layer_rows={part: int(count) for part, count in rows.items()},
        operations=_weighted(counted, amount),
        seconds=times,
        memory={"resident": resident_bytes(model.device)} | memory,
        disk=disk,
        formulas=formulas,
        shape=shape,
    )


def planned_config(model: ProbedModel, **options: Any) -> RunConfig:
    """What `run` would record, as far as it costs anything.

    Raises:
        HorizonError: an option is unusable.
    """
    check_alpha(options["alpha"])
    check_targets(options["targets"])
    tile_windows((), options["window"])
    check_template(options["prompt"])
    check_kind(options["kind"])
    if options["batch_size"] is not None and options["batch_size"] < 1:
        raise HorizonError(f"batch_size is {options['batch_size']}; it must be at least 1")
    return RunConfig(**model.recorded, weights="", **options)


def _amount(tasks: Counter[str], grids: int | None, spectra: int, samples: int | None) -> Amount:
    """Grids and spectra go to the first so many samples of each task; tasks keep their proportions."""
    given = tasks.total()
    scale = samples / given if samples and given else 1.0
    counts = [count * scale for count in tasks.values()]
    some = sum(counts if grids is None else (min(grids, count) for count in counts))
    return Amount(samples or given, round(some), round(sum(min(spectra, count) for count in counts)))


def _first_measurable(model: ProbedModel, samples: Sequence[Sample], config: RunConfig, clock: Clock) -> Subject:
    if not samples:
        raise HorizonError("there is no sample whose cost could be estimated")
    for sample in samples[:TRIED]:
        try:
            return meet(model, sample, config, clock)
        except Exception as error:  # a run records such a sample and goes on
            reason = str(error) if isinstance(error, HorizonError) else f"{type(error).__name__}: {error}"
    raise HorizonError(f"none of the first {len(samples[:TRIED])} samples can be measured; of the last, {reason}")


def _budget(subject: Subject, work: SampleWork, amount: Amount) -> float:
    """Seconds for the calibration, by the rate of the first forward pass."""
    counted = work.operations | {part: done.operations for part, done in work.replays.items()}
    whole = sum(_weighted(counted, amount).values()) / work.operations["forward"] * subject.seconds
    return float(np.clip(SHARE * whole, LEAST, MOST))


def _weighted(each: dict[str, Any], amount: Amount) -> dict[str, float]:
    """One sample's parts for all samples: grids and spectra for some, one noise floor or the other."""
    counts = dict.fromkeys(each, amount.samples) | dict.fromkeys(GRID_PARTS, amount.grids)
    counts |= dict.fromkeys(CHECKS.values(), amount.checks)
    counts |= {"spectra": amount.spectra, FLOORS[False]: amount.samples - amount.grids, FLOORS[True]: amount.grids}
    total = {part: value * counts[part] for part, value in each.items()}
    total = {part: value for part, value in total.items() if counts[part]}
    if FLOORS[True] in total:
        total[FLOORS[False]] = total.get(FLOORS[False], 0) + total.pop(FLOORS[True])
    return total


def _samples_a_part(seconds: float, samples: int) -> int:
    """Samples that a run commits at once."""
    return int(np.clip(FLUSH_SECONDS * samples / max(seconds, 1e-9), 1, FLUSH_SAMPLES))


def _mean_thumbnail(samples: Sequence[Sample], together: int) -> float | None:
    """Bytes a sample, from a few spread over all; a part holds a picture once. None where none can be read."""
    sizes = []
    for at in sorted({round(place) for place in np.linspace(0, len(samples) - 1, PICTURES)}):
        try:
            sizes.append(len(thumbnail(samples[at].load_image())))
        except SampleError:  # the run will say so
            continue
    if not sizes:
        return None
    pictures = [sample.image if isinstance(sample.image, Path) else id(sample.image) for sample in samples]
    parts = [set(pictures[start : start + together]) for start in range(0, len(pictures), together)]
    distinct = sum(map(len, parts)) / len(pictures)
    mean = float(np.mean(sizes))
    return mean * distinct if mean * max(map(len, parts)) < DICTIONARY_BYTES else mean


def announcement(model: ProbedModel, config: RunConfig, samples: Sequence[Sample], amount: Amount | None) -> str:
    """The line before a run: what is left to do, or why that is not known.

    Args:
        model: as loaded.
        config: of the run.
        samples: what is left, or the first few samples of a stream.
        amount: how many; None where the stream's length is not known.
    """
    if amount is not None and not amount.samples:
        return "nothing is left to measure"
    one = amount or Amount(1, 1, 1, 1)
    try:
        cost = cost_of(model, samples, config, one)
    except HorizonError as error:
        known = f"{amount.samples:,} samples" if amount else "samples"
        return f"{known}: what they take is not known, since {error}"
    said = f"as many samples as there come, each: {cost.taken}" if amount is None else str(cost)
    if config.coarse is not None:
        return f"{said}; less where coarse windows show nothing"
    return said


def duration_text(seconds: float) -> str:
    """A time to two digits.

    >>> duration_text(0.4), duration_text(42), duration_text(130), duration_text(9000)
    ('0.4 s', '42 s', '2.2 min', '2.5 h')
    """
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{_two_digits(seconds / divisor)} {unit}"
    return f"{_two_digits(seconds / 3600)} h"


def byte_text(count: float) -> str:
    """Bytes in powers of 1,000.

    >>> byte_text(940), byte_text(14_200_000), byte_text(1.52e9)
    ('940 bytes', '14 MB', '1.5 GB')
    """
    for limit, divisor, unit in ((1e3, 1, "bytes"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if count < limit:
            return f"{_two_digits(count / divisor)} {unit}"
    return f"{_two_digits(count / 1e12)} TB"


def operation_text(count: float) -> str:
    """Floating-point operations.

    >>> operation_text(1.23e12), operation_text(3.4e10)
    ('1.2 TFLOP', '34 GFLOP')
    """
    for limit, divisor, unit in ((1e9, 1e6, "M"), (1e12, 1e9, "G"), (1e15, 1e12, "T")):
        if count < limit:
            return f"{_two_digits(count / divisor)} {unit}FLOP"
    return f"{_two_digits(count / 1e15)} PFLOP"


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
