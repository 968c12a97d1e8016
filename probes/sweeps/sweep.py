"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from analyses.runs import PROBES, Run, RunConfig, load_run
from probes.cost.amounts import Amount
from probes.cost.cost import TRIED, announcement
from probes.data.samples import Sample
from probes.directory.writer import FLUSH_SAMPLES, FLUSH_SECONDS, Record, RunWriter
from probes.measures.generation import generation_row
from probes.models.probed import ProbedModel
from probes.plans.jobs import Chosen, Job, jobs_of
from probes.plans.options import RunOptions
from probes.plans.progress import RunProgress
from probes.replay.batching import BatchPolicy
from probes.sweeps.measure import Encoded, Measured, encode_sample, finish, measure
from probes.sweeps.pipeline import Ahead, Behind

AHEAD, BEHIND = 2, 1  # samples encoded before their turn; samples measured, their states still held, before finished


def run(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    probes: Sequence[str] = PROBES,
    streams: Sequence[str] | None = None,
    targets: Sequence[str] = ("gold",),
    contexts: Sequence[str] = ("keep-one",),
    window: int | None = None,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    method: str = "exact",
    alpha: float = 1.0,
    center: bool = True,
    normalize_rows: bool = True,
    token_samples: int | None = None,
    gate_checks: int = 2,
    spectra: int = 0,
    prompt: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    progress: bool = True,
    sources: Sequence[str] = (),
    overlap: bool = True,
    token_layers: Sequence[int] | str | None = None,
    coarse: int | None = None,
    max_windows: int | None = None,
    only_correct: bool = False,
    generate: int | None = None,
    with_ocr_tokens: bool | None = None,
    video: str | None = None,
    tokens: str = "visual",
) -> Run:
    """Measure every sample and write `out`; samples already there are skipped, so the same call resumes.

    Args:
        model: as loaded.
        samples: their order fixes the row numbers; give the same to resume.
        out: the run directory, new or of the same configuration.
        probes: subset of entropy, removal, information.
        streams: of the entropies; `text:query`, `all:query` are of the prompt's text and of all its tokens. By default
            query, key and hidden, of `tokens`.
        targets: the first is the one that the samples table shows.
        contexts: of the token grids: keep-one, leave-one-out.
        window: side of their windows in tokens; 2 by default.
        layers: cuts of removals and token grids, 0..L-1; all by default. To have them chosen, see `run_adaptive`.
        kind: delete, zero or mean.
        method: of the token grids: "exact", or first order by "gate" (see `token_information`).
        alpha: Renyi order of the entropies.
        center: center tokens before the Gram matrix.
        normalize_rows: scale tokens to length 1 before it.
        token_samples: token grids for the first so many samples of each task only; all by default.
        gate_checks: with the method "gate", hold token grids of the first so many samples of each task against exact
            ones at up to four layers; what the estimates are worth on this model is then part of the run.
        spectra: keep eigenvalues of the first so many samples of each task.
        prompt: question template with `{question}`.
        limit: measure at most the first so many samples.
        shard: (i, n): only rows r with r % n == i, in parts of their own.
        batch_size: ablations at once; by default as many as fit a fixed number of rows.
        seed: recorded; nothing here is drawn at random.
        retry_failed: measure samples again that failed before.
        progress: show a progress bar on standard error.
        sources: where the samples came from, recorded.
        overlap: while the model is at work, read and encode the next samples and finish and write the last ones in
            two threads beside it; the results are the same without.
        token_layers: cuts of the token grids, some of `layers`; all of them by default. "auto": those that
            `run_adaptive` has recorded in `out` so far, none before it did.
        coarse: side of windows to measure first; smaller ones only inside those with an effect above the noise floor.
        max_windows: the smallest windows that are at most so many in a sample, instead of `window`.
        only_correct: exclude samples that the model answers wrong, after one forward pass and before all ablations;
            they are recorded and counted. Another population, hence another configuration; `select_samples` makes
            the same choice afterwards.
        generate: also let the model write out its answer, of at most so many tokens, for `score_run`. No measured
            value depends on it, so a later call can add it to a run that is there.
        with_ocr_tokens: prompts carry reference OCR tokens; by default as the samples say.
        video: how frames of videos were chosen, for example "8 frames"; by default as the first sample says.
        tokens: that removals and token grids take away: visual, text or all (see `removal_curve`). Runs of one model,
            revision and prompt can be compared (`compare_horizons` between "tokens") and drawn together.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    options = RunOptions(
        probes=probes,
        streams=streams,
        targets=targets,
        contexts=contexts,
        window=window,
        layers=layers,
        kind=kind,
        method=method,
        alpha=alpha,
        center=center,
        normalize_rows=normalize_rows,
        token_samples=token_samples,
        gate_checks=gate_checks,
        spectra=spectra,
        prompt=prompt,
        limit=limit,
        shard=shard,
        batch_size=batch_size,
        seed=seed,
        sources=sources,
        token_layers=token_layers,
        coarse=coarse,
        max_windows=max_windows,
        only_correct=only_correct,
        generate=generate,
        with_ocr_tokens=with_ocr_tokens,
        video=video,
        tokens=tokens,
    )
    config, samples = options.config(model, samples)
    total = len(samples) if isinstance(samples, Sequence) else None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    chosen = Chosen(options, retry_failed)
    with RunWriter(out, config, shard=shard) as writer, RunProgress(total, enabled=progress) as bar:
        if progress:
            samples = _announced(model, samples, writer, bar, chosen)
            if not writer.committed:
                bar.say(f"first prompt: {config.prompt_example!r}")
        _sweep(model, islice(samples, limit), writer, bar, chosen, overlap)
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
