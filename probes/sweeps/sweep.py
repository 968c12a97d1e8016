"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Unpack

from analyses.runs import Run, RunConfig, SweepOptions, load_run
from analyses.runs.keywords import SweepKeywords
from analyses.runs.signatures import takes_options
from probes.cost.amounts import Amount
from probes.cost.cost import TRIED, announcement
from probes.data.samples import Sample
from probes.directory.writer import FLUSH_SAMPLES, FLUSH_SECONDS, Record, RunWriter
from probes.measures.generation import generation_row
from probes.models.probed import ProbedModel
from probes.plans.jobs import Chosen, Job, jobs_of
from probes.plans.options import run_config
from probes.plans.progress import RunProgress
from probes.replay.batching import BatchPolicy
from probes.sweeps.measure import Encoded, Measured, encode_sample, finish, measure
from probes.sweeps.pipeline import Ahead, Behind

AHEAD, BEHIND = 2, 1  # samples encoded before their turn; samples measured, their states still held, before finished


@takes_options(SweepOptions)
def run(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
    **options: Unpack[SweepKeywords],
) -> Run:
    """Measure every sample and write `out`; samples already there are skipped, so the same call resumes.

    Args:
        model: as loaded.
        samples: their order fixes the row numbers; give the same to resume.
        out: the run directory, new or of the same configuration.
        options: by name.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    request = SweepOptions(**options)
    config, samples = run_config(request, model, samples)
    total = len(samples) if isinstance(samples, Sequence) else None
    if request.limit is not None:
        total = request.limit if total is None else min(total, request.limit)
    chosen = Chosen(request, request.retry_failed)
    with RunWriter(out, config, shard=request.shard) as writer, RunProgress(total, enabled=request.progress) as bar:
        if request.progress:
            samples = _announced(model, samples, writer, bar, chosen)
            if not writer.committed:
                bar.say(f"first prompt: {config.prompt_example!r}")
        _sweep(model, islice(samples, request.limit), writer, bar, chosen, request.overlap)
    return load_run(out)


def _sweep(
    model: ProbedModel,
    samples: Iterator[Sample],
    writer: RunWriter,
    bar: RunProgress,
    chosen: Chosen,
    overlap: bool,
) -> None:
    """Measure what is not there yet, in this thread, which alone may trace; the threads beside it do the rest."""
    config = writer.config
    batches = BatchPolicy(config.batch_size)  # what memory did not hold once, it is not asked for again in this sweep
    jobs = jobs_of(samples, writer, bar, chosen)
    encoded = ((job, _encoded(model, job, config)) for job in jobs)
    records = _Records(writer, bar)
    with ExitStack() as threads:
        submit = threads.enter_context(Behind(depth=BEHIND)).submit if overlap else _now
        for job, one in threads.enter_context(Ahead(encoded, depth=AHEAD)) if overlap else encoded:
            # no name for what was measured: it would keep the states until the next sample is measured
            submit(partial(records.keep, *_done(model, job, one, config, batches)))


def _encoded(model: ProbedModel, job: Job, config: RunConfig) -> Encoded | None:
    return None if job.plan is None else encode_sample(model, job.row, job.sample, config, job.plan)


def _done(
    model: ProbedModel, job: Job, encoded: Encoded | None, config: RunConfig, batches: BatchPolicy
) -> tuple[Measured | None, dict[str, Any] | None]:
    """What the model gives for a job: what is measured, and the row of the answer that it writes out."""
    measured = None if encoded is None else measure(model, encoded, config, batches)
    unmeasured = measured is not None and (measured.error or measured.record.excluded)
    if job.answer is None or unmeasured:
        return measured, None
    return measured, generation_row(model, job.row, job.sample, job.answer)


def _now(call: Callable[[], object]) -> None:
    call()


class _Records:
    """Finishes records and commits them, many at a time."""

    def __init__(self, writer: RunWriter, bar: RunProgress) -> None:
        self._writer, self._bar = writer, bar
        self._flushed = time.monotonic()

    def keep(self, measured: Measured | None, answer: dict[str, Any] | None) -> None:
        """Finish one sample's record and hand it to the writer, then the answer to its question.

        Args:
            measured: None where everything measured is on disk.
            answer: a row of `GENERATIONS`; None where none is wanted.
        """
        writer = self._writer
        status = "ok" if measured is None else self._add(finish(measured, writer.config))
        if answer is not None and status == "ok":
            writer.add_generation(answer)
        self._bar.advance(failed=status == "failed", excluded=status == "excluded")
        if len(writer) >= FLUSH_SAMPLES or time.monotonic() - self._flushed > FLUSH_SECONDS:
            writer.flush()
            self._flushed = time.monotonic()

    def _add(self, record: Record) -> str:
        """Hand a record to the writer, unless it failed where an earlier measurement did not; its status."""
        sample = record.sample
        there = self._writer.committed.get(sample["row"])
        if sample["status"] == "failed" and there is not None and there["status"] == "ok":
            self._bar.say(f"{sample['id']}: {sample['error']} (its earlier measurement is kept)")
        else:
            self._writer.add(record)
        return sample["status"]


def _announced(
    model: ProbedModel,
    samples: Iterable[Sample],
    writer: RunWriter,
    bar: RunProgress,
    chosen: Chosen,
) -> Iterable[Sample]:
    """Say what is left to do and what it takes; the samples, of which a stream loses none."""
    stream, limit = iter(samples), chosen.options.limit
    head = list(stream if isinstance(samples, Sequence) else islice(stream, TRIED))
    sure = isinstance(samples, Sequence) or len(head) < TRIED or (limit is not None and limit <= TRIED)
    jobs = list(jobs_of(iter(head[:limit]), writer, None, chosen, read=False))
    measured = [job for job in jobs if job.plan is not None and not job.sample.error]
    if sure and jobs and all(job.plan is None for job in jobs):
        bar.say(f"{len(jobs)} answers to write out; everything else is there")
        return chain(head, stream)
    if not sure and not measured:
        bar.say(f"as many samples as there come; of the first {len(head)} none is to be measured here")
        return chain(head, stream)
    amount = Amount.of(jobs if sure else measured[-1:], writer.config)
    bar.say(announcement(model, writer.config, [job.sample for job in measured], amount, each=not sure))
    return chain(head, stream)
