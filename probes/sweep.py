"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from analyses.runs import PROBES, HorizonError, Run, RunConfig, default_streams, load_run
from probes.admission import check_grids
from probes.committed import read_record
from probes.cost import TRIED, Amount, announcement
from probes.entropy import check_alpha
from probes.gate import check_method
from probes.generation import check_limit, generation_row, wants_answer
from probes.grids import check_windows
from probes.information import check_layers
from probes.measure import (
    Encoded,
    Measured,
    Plan,
    check_probes,
    checks_gates,
    encode_sample,
    finish,
    measure,
    wanted_probes,
)
from probes.models import ProbedModel, fingerprint
from probes.pipeline import Ahead, Behind
from probes.progress import RunProgress
from probes.prompts import chat_text, check_tokens
from probes.readers import SampleStream
from probes.replay import check_kind
from probes.samples import Sample, check_template, with_template
from probes.targets import check_targets
from probes.video import frame_rule
from probes.writer import FLUSH_SAMPLES, FLUSH_SECONDS, Record, RunWriter

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
            value depends on it, so a later call can add it to a run that is there. The announced cost leaves it out.
        with_ocr_tokens: prompts carry reference OCR tokens; by default as the samples say.
        video: how frames of videos were chosen, for example "8 frames"; by default as the first sample says.
        tokens: that removals and token grids take away: visual, text or all (see `removal_curve`). Runs of one model,
            revision and prompt can be compared (`compare_horizons` between "tokens") and drawn together.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    check_tokens(tokens)
    streams = default_streams(tokens) if streams is None else streams
    _check_token_layers(model, token_layers, layers)
    _check(model, probes, streams, targets, contexts, layers, kind, alpha, batch_size, shard, limit, prompt, tokens)
    if "information" in probes:
        window = check_windows(window, max_windows, coarse)
        check_method(method, kind, contexts, model.dtype, coarse, tokens)
    else:
        window, max_windows, coarse = check_windows(window, None, None), None, None
    if gate_checks < 0:
        raise HorizonError(f"gate_checks is {gate_checks}; it must be at least 0")
    if only_correct and set(targets) == {"greedy"}:
        raise HorizonError("only_correct needs a target that says what is right: gold beside greedy, or greedy-correct")
    if generate is not None:
        check_limit(generate)
    if isinstance(samples, SampleStream):
        sources = sources or (samples.source.name,)
        with_ocr_tokens = samples.reading.with_ocr_tokens if with_ocr_tokens is None else with_ocr_tokens
    first, samples = _first_readable(samples)
    example = ""
    if first is not None:
        question = with_template(first, prompt).question
        example = chat_text(model, question, n_images=first.n_pictures, video=bool(first.frames))
    config = RunConfig(
        **model.recorded,
        weights=fingerprint(model.model),
        prompt=prompt,
        processor=_processor_digest(model),
        probes=tuple(probes),
        streams=tuple(streams) if "entropy" in probes else (),
        alpha=alpha,
        center=center,
        normalize_rows=normalize_rows,
        targets=tuple(targets),
        contexts=tuple(contexts) if "information" in probes else (),
        window=window,
        layers=None if layers is None or set(layers) >= set(range(model.n_layers)) else tuple(sorted(set(layers))),
        kind=kind,
        method=method if "information" in probes else "exact",
        seed=seed,
        n_parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        versions={name: version(name) for name in ("vlm-horizon", "torch", "transformers", "nnsight", "numpy")},
        device=_device_name(model),
        batch_size=batch_size,
        sources=tuple(map(str, sources)),
        prompt_example=example,
        token_layers=token_layers
        if token_layers is None or isinstance(token_layers, str)
        else tuple(sorted(set(token_layers))),
        coarse=coarse,
        max_windows=max_windows,
        only_correct=only_correct,
        with_ocr_tokens=bool(first and first.ocr_tokens) if with_ocr_tokens is None else with_ocr_tokens,
        video=(frame_rule(first.frames) if first else "") if video is None else video,
        tokens=tokens,
    )
    total = len(samples) if isinstance(samples, Sequence) else None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    with RunWriter(out, config, shard=shard) as writer, RunProgress(total, enabled=progress) as bar:
        chosen = _Chosen(shard, token_samples, gate_checks, spectra, retry_failed, generate)
        if progress:
            samples = _announced(model, samples, limit, writer, bar, chosen)
            if not writer.committed:
                bar.say(f"first prompt: {example!r}")
        _sweep(model, islice(samples, limit), writer, bar, chosen, overlap)
    return load_run(out)


def _check(
    model: ProbedModel,
    probes: Sequence[str],
    streams: Sequence[str],
    targets: Sequence[str],
    contexts: Sequence[str],
    layers: Sequence[int] | None,
    kind: str,
    alpha: float,
    batch_size: int | None,
    shard: tuple[int, int],
    limit: int | None,
    prompt: str | None,
    tokens: str,
) -> None:
    check_probes(probes, streams, contexts)
    if "information" in probes:
        check_grids(model.name, model.family, tokens)
    check_alpha(alpha)
    check_targets(targets)
    check_template(prompt)
    check_layers(model, layers)
    check_kind(kind)
    if batch_size is not None and batch_size < 1:
        raise HorizonError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= shard[0] < shard[1]:
        raise HorizonError(f"shard {shard[0]}/{shard[1]} is unusable: i/n takes 0 <= i < n")
    if limit is not None and limit < 1:
        raise HorizonError(f"limit is {limit}; it must be at least 1")


def _check_token_layers(
    model: ProbedModel, token_layers: Sequence[int] | str | None, layers: Sequence[int] | None
) -> None:
    if isinstance(layers, str):
        raise HorizonError(f"layers {layers!r} are chosen between two sweeps: call run_adaptive, which makes them")
    if isinstance(token_layers, str):
        if token_layers != "auto":
            raise HorizonError(f"token_layers is {token_layers!r}; give layers, or 'auto'")
        return
    without = set(check_layers(model, token_layers)) - set(check_layers(model, layers)) if token_layers else ()
    if token_layers is not None and (without or not token_layers):
        named = ", ".join(map(str, sorted(without))) or "none given"
        raise HorizonError(f"token_layers {named}: token grids need removals at the same layers, so choose of those")


@dataclass(frozen=True)
class _Chosen:
    """Which samples are measured, and how many of each task get more than the others."""

    shard: tuple[int, int]
    token_samples: int | None
    gate_checks: int
    spectra: int
    retry_failed: bool
    generate: int | None

    def plan(self, place: int, layers: tuple[int, ...]) -> Plan:
        """Of the sample at a place (from 0) among those of its task, with token grids at these layers."""
        return Plan(
            tokens=bool(layers) and (self.token_samples is None or place < self.token_samples),
            spectra=place < self.spectra,
            gate_check=place < self.gate_checks,
            layers=layers,
        )

    def wants_answer(self, row: int, writer: RunWriter) -> bool:
        """Whether a row's whole answer is asked for, and not on disk yet."""
        there = writer.generations.get(row)
        return self.generate is not None and wants_answer(there, self.generate, self.retry_failed)


@dataclass(frozen=True)
class _Job:
    """A sample that is to be measured, or has only its answer to be written out.

    Attributes:
        row: its number.
        sample: what is asked.
        plan: None where everything measured is on disk.
        answer: tokens of the whole answer at most; None where none is wanted.
    """

    row: int
    sample: Sample
    plan: Plan | None
    answer: int | None


def _sweep(
    model: ProbedModel,
    samples: Iterator[Sample],
    writer: RunWriter,
    bar: RunProgress,
    chosen: _Chosen,
    overlap: bool,
) -> None:
    """Measure what is not there yet, in this thread, which alone may trace; the threads beside it do the rest."""
    config = writer.config
    jobs = _jobs(samples, writer, bar, chosen)
    encoded = ((job, _encoded(model, job, config)) for job in jobs)
    records = _Records(writer, bar)
    with ExitStack() as threads:
        submit = threads.enter_context(Behind(depth=BEHIND)).submit if overlap else _now
        for job, one in threads.enter_context(Ahead(encoded, depth=AHEAD)) if overlap else encoded:
            # no name for what was measured: it would keep the states until the next sample is measured
            submit(partial(records.keep, *_done(model, job, one, config)))


def _encoded(model: ProbedModel, job: _Job, config: RunConfig) -> Encoded | None:
    return None if job.plan is None else encode_sample(model, job.row, job.sample, config, job.plan)


def _done(
    model: ProbedModel, job: _Job, encoded: Encoded | None, config: RunConfig
) -> tuple[Measured | None, dict[str, Any] | None]:
    """What the model gives for a job: what is measured, and the row of the answer that it writes out."""
    measured = None if encoded is None else measure(model, encoded, config)
    unmeasured = measured is not None and (measured.error or measured.record.excluded)
    if job.answer is None or unmeasured:
        return measured, None
    return measured, generation_row(model, job.row, job.sample, job.answer)


def _now(call: Callable[[], object]) -> None:
    call()


def _jobs(
    samples: Iterator[Sample], writer: RunWriter, bar: RunProgress | None, chosen: _Chosen, *, read: bool = True
) -> Iterator[_Job]:
    """The samples of a shard that are not on disk with everything that they should carry; a bar counts the others.

    Without `read` nothing is taken from disk that such a sample keeps: enough to count, and light.
    """
    seen: Counter[str] = Counter()
    index, count = chosen.shard
    for row, sample in enumerate(samples):
        sample = _prompted(sample, writer.config)
        place = seen[sample.task]
        seen[sample.task] += 1
        if row % count != index:
            if bar:
                bar.pass_over()
            continue
        there = _committed(writer, row, sample)
        plan = chosen.plan(place, writer.config.grid_layers(row, sample.task_type))
        answer = chosen.generate if chosen.wants_answer(row, writer) else None
        if there is None or not _suffices(there, writer.config, plan, chosen.retry_failed):
            yield _Job(row, sample, _with_what_is_there(plan, row, there, writer, read), answer)
        elif answer is not None and there["status"] == "ok":
            yield _Job(row, sample, None, answer)
        elif bar:
            bar.skip()


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
    limit: int | None,
    writer: RunWriter,
    bar: RunProgress,
    chosen: _Chosen,
) -> Iterable[Sample]:
    """Say what is left to do and what it takes; the samples, of which a stream loses none."""
    stream = iter(samples)
    head = list(stream if isinstance(samples, Sequence) else islice(stream, TRIED))
    sure = isinstance(samples, Sequence) or len(head) < TRIED or (limit is not None and limit <= TRIED)
    jobs = list(_jobs(iter(head[:limit]), writer, None, chosen, read=False))
    left = [(job.sample, job.plan) for job in jobs if job.plan is not None and not job.sample.error]
    amount = Amount(len(left), sum(plan.tokens for _, plan in left), sum(plan.spectra for _, plan in left))
    if jobs and not left and all(job.plan is None for job in jobs):
        bar.say(f"{len(jobs)} answers to write out; everything else is there")
        return chain(head, stream)
    bar.say(announcement(model, writer.config, [sample for sample, _ in left], amount if sure else None))
    return chain(head, stream)


def _first_readable(samples: Iterable[Sample]) -> tuple[Sample | None, Iterable[Sample]]:
    """The first sample that has a question and pictures; and all samples, of which a stream loses none."""
    stream = samples if isinstance(samples, Sequence) else iter(samples)
    passed: list[Sample] = []
    for sample in stream:
        passed.append(sample)
        if not sample.error and sample.n_pictures:
            return sample, samples if isinstance(samples, Sequence) else chain(passed, stream)
    return None, samples if isinstance(samples, Sequence) else passed


def _prompted(sample: Sample, config: RunConfig) -> Sample:
    """A sample with the run's prompt.

    Raises:
        HorizonError: its prompt carries reference OCR tokens, or its frames were chosen by a rule, that the run's
            configuration does not say.
    """
    if sample.ocr_tokens and not config.with_ocr_tokens:
        raise HorizonError(
            f"the prompt of sample {sample.id!r} carries reference OCR tokens: give run() with_ocr_tokens=True, so "
            "that the run says so, or read the samples without them"
        )
    rule = frame_rule(sample.frames)
    if rule and rule != config.video:
        raise HorizonError(
            f"the video of sample {sample.id!r} gives {rule}, and the run says {config.video or 'nothing'!r}: choose "
            "frames by one rule, and give run() video= where images come before videos"
        )
    return with_template(sample, config.prompt)


def _committed(writer: RunWriter, row: int, sample: Sample) -> dict[str, Any] | None:
    """What is on disk for a row.

    Raises:
        HorizonError: it is another sample's, or another question to it.
    """
    there = writer.committed.get(row)
    if there is None:
        return None
    for name in ("id", "task", "task_type", "question", "answers"):
        held, now = there[name], getattr(sample, name)
        if (list(held) != list(now)) if name == "answers" else held != now:
            raise HorizonError(
                f"{writer.path} was made from other samples: the {name} of row {row} is {held!r} there and {now!r} "
                "now; give the same samples in the same order, or choose another output directory"
            )
    return there


def _suffices(there: dict[str, Any], config: RunConfig, plan: Plan, retry_failed: bool) -> bool:
    """Whether a committed row carries everything that it should."""
    if there["status"] != "ok":
        return there["status"] == "excluded" or not retry_failed
    # a row that was through with its token grids and has none lacks the target
    lacks_layers = plan.tokens and there["token_layers"] and set(plan.layers) - set(there["token_layers"])
    return set(wanted_probes(config, plan)) <= set(there["probes"]) and not lacks_layers


def _with_what_is_there(plan: Plan, row: int, there: dict[str, Any] | None, writer: RunWriter, read: bool) -> Plan:
    """A row that is measured again keeps what it had: its newest commit is the one that holds.

    If it lacks nothing but token grids, those are added to what is on disk, which is read if the row is to be measured.
    """
    if there is None or there["status"] != "ok":
        return plan
    done = set(there["probes"])
    plan = replace(
        plan,
        tokens=plan.tokens or "information" in done,
        spectra=plan.spectra or "spectra" in done,
        gate_check=plan.gate_check or "gate_check" in done,
    )
    lacks = set(wanted_probes(writer.config, plan)) - done
    if read and lacks <= {"information"} and not checks_gates(writer.config, plan):
        return replace(plan, held=read_record(writer.path, there["part"], row, there["token_layers"]))
    return plan


def _processor_digest(model: ProbedModel) -> str:
    """16 hex digits over everything of the processor that changes what a model is given."""
    processor, tokenizer = model.processor, model.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    images = processor.image_processor.to_dict()
    described: list[Any] = [template, images, sorted(tokenizer.get_vocab().items())]
    if getattr(processor, "video_processor", None) is not None:
        described.append(processor.video_processor.to_dict())
    return sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _device_name(model: ProbedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
