"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from analyses.runs import PROBES, HorizonError, Run, RunConfig, load_run
from probes.admission import check_grids
from probes.capture import check_streams
from probes.entropy import check_alpha
from probes.grids import tile_windows
from probes.information import check_context, check_layers
from probes.measure import Plan, measure_sample, wanted_probes
from probes.models import ProbedModel, fingerprint
from probes.progress import RunProgress
from probes.prompts import chat_text
from probes.readers import SampleStream
from probes.replay import check_kind
from probes.samples import Sample, check_template, with_template
from probes.targets import check_targets
from probes.video import frame_rule
from probes.writer import RunWriter

FLUSH_SAMPLES, FLUSH_SECONDS = 64, 30.0


def run(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
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
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    progress: bool = True,
    sources: Sequence[str] = (),
    with_ocr_tokens: bool | None = None,
    video: str | None = None,
) -> Run:
    """Measure every sample and write `out`; samples already there are skipped, so the same call resumes.

    Args:
        model: as loaded.
        samples: their order fixes the row numbers; give the same to resume.
        out: the run directory, new or of the same configuration.
        probes: subset of entropy, removal, information.
        streams: of the entropies.
        targets: the first is the one that the samples table shows.
        contexts: of the token grids: keep-one, leave-one-out.
        window: side of their windows in tokens.
        layers: cuts of removals and token grids, 0..L-1; all by default.
        kind: delete, zero or mean.
        alpha: Renyi order of the entropies.
        center: center tokens before the Gram matrix.
        normalize_rows: scale tokens to length 1 before it.
        token_samples: token grids for the first so many samples of each task only; all by default.
        spectra: keep eigenvalues of the first so many samples of each task.
        prompt: question template with `{question}`.
        limit: measure at most the first so many samples.
        shard: (i, n): only rows r with r % n == i, in parts of their own.
        batch_size: ablations at once; by default as many as fit a fixed number of rows.
        seed: recorded; nothing here is drawn at random.
        retry_failed: measure samples again that failed before.
        progress: show a progress bar on standard error.
        sources: where the samples came from, recorded.
        with_ocr_tokens: prompts carry reference OCR tokens; by default as the samples say.
        video: how frames of videos were chosen, for example "8 frames"; by default as the first sample says.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    _check(model, probes, streams, targets, contexts, window, layers, kind, alpha, batch_size, shard, limit, prompt)
    if isinstance(samples, SampleStream):
        sources = sources or (samples.source.name,)
        with_ocr_tokens = samples.reading.with_ocr_tokens if with_ocr_tokens is None else with_ocr_tokens
    first, samples = _first_readable(samples)
    example = ""
    if first is not None:
        question = with_template(first, prompt).question
        example = chat_text(model, question, n_images=first.n_pictures, video=bool(first.frames))
    config = RunConfig(
        model=model.name,
        revision=model.revision,
        weights=fingerprint(model.model),
        family=model.family.name,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        n_key_value_heads=model.n_key_value_heads,
        head_dim=model.head_dim,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        dtype=str(model.dtype).removeprefix("torch."),
        attn=model.attn,
        quantization=model.quantization,
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
        layers=None if layers is None else tuple(sorted(set(layers))),
        kind=kind,
        seed=seed,
        n_parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        versions={name: version(name) for name in ("vlm-horizon", "torch", "transformers", "nnsight", "numpy")},
        device=_device_name(model),
        batch_size=batch_size,
        sources=tuple(map(str, sources)),
        prompt_example=example,
        with_ocr_tokens=bool(first and first.ocr_tokens) if with_ocr_tokens is None else with_ocr_tokens,
        video=(frame_rule(first.frames) if first else "") if video is None else video,
    )
    total = len(samples) if isinstance(samples, Sequence) else None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    if progress:
        print(f"first prompt: {example!r}", file=sys.stderr)
    with RunWriter(out, config, shard=shard) as writer, RunProgress(total, enabled=progress) as bar:
        _sweep(model, islice(samples, limit), writer, bar, shard, token_samples, spectra, retry_failed)
    return load_run(out)


def _check(
    model: ProbedModel,
    probes: Sequence[str],
    streams: Sequence[str],
    targets: Sequence[str],
    contexts: Sequence[str],
    window: int,
    layers: Sequence[int] | None,
    kind: str,
    alpha: float,
    batch_size: int | None,
    shard: tuple[int, int],
    limit: int | None,
    prompt: str | None,
) -> None:
    unknown = [probe for probe in probes if probe not in PROBES]
    if unknown or not probes:
        named = ", ".join(map(repr, unknown)) or "()"
        raise HorizonError(f"probe {named} is unknown; choose from {', '.join(PROBES)}")
    if "entropy" in probes and not streams:
        raise HorizonError("the probe 'entropy' needs at least one stream")
    if "information" in probes and not contexts:
        raise HorizonError("the probe 'information' needs at least one context")
    if "information" in probes:
        check_grids(model.name, model.family)
    check_streams(streams)
    check_alpha(alpha)
    check_targets(targets)
    for context in contexts:
        check_context(context)
    tile_windows((), window)
    check_template(prompt)
    check_layers(model, layers)
    check_kind(kind)
    if batch_size is not None and batch_size < 1:
        raise HorizonError(f"batch_size is {batch_size}; it must be at least 1")
    if not 0 <= shard[0] < shard[1]:
        raise HorizonError(f"shard {shard[0]}/{shard[1]} is unusable: i/n takes 0 <= i < n")
    if limit is not None and limit < 1:
        raise HorizonError(f"limit is {limit}; it must be at least 1")


def _sweep(
    model: ProbedModel,
    samples: Iterator[Sample],
    writer: RunWriter,
    bar: RunProgress,
    shard: tuple[int, int],
    token_samples: int | None,
    spectra: int,
    retry_failed: bool,
) -> None:
    seen: Counter[str] = Counter()
    flushed = time.monotonic()
    for row, sample in enumerate(samples):
        sample = _prompted(sample, writer.config)
        place = seen[sample.task]
        seen[sample.task] += 1
        if row % shard[1] != shard[0]:
            bar.pass_over()
            continue
        there = _committed(writer, row, sample)
        plan = Plan(tokens=token_samples is None or place < token_samples, spectra=place < spectra)
        if there is not None and _suffices(there, wanted_probes(writer.config, plan), retry_failed):
            bar.skip()
            continue
        record = measure_sample(model, row, sample, writer.config, _with_what_is_there(plan, there))
        failed = record.sample["status"] == "failed"
        if failed and there is not None and there["status"] == "ok":
            bar.say(f"{sample.id}: {record.sample['error']} (its earlier measurement is kept)")
        else:
            writer.add(record)
        bar.advance(failed=failed)
        if len(writer) >= FLUSH_SAMPLES or time.monotonic() - flushed > FLUSH_SECONDS:
            writer.flush()
            flushed = time.monotonic()


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
    for name in ("id", "task", "question", "answers"):
        held, now = there[name], getattr(sample, name)
        if (list(held) != list(now)) if name == "answers" else held != now:
            raise HorizonError(
                f"{writer.path} was made from other samples: the {name} of row {row} is {held!r} there and {now!r} "
                "now; give the same samples in the same order, or choose another output directory"
            )
    return there


def _suffices(there: dict[str, Any], wanted: list[str], retry_failed: bool) -> bool:
    """Whether a committed row carries everything that it should."""
    if there["status"] == "failed":
        return not retry_failed
    return set(wanted) <= set(there["probes"])


def _with_what_is_there(plan: Plan, there: dict[str, Any] | None) -> Plan:
    """A row that is measured again keeps what it had: its newest commit is the one that holds."""
    held = set(there["probes"]) if there is not None and there["status"] == "ok" else set()
    return Plan(tokens=plan.tokens or "information" in held, spectra=plan.spectra or "spectra" in held)


def _processor_digest(model: ProbedModel) -> str:
    """16 hex digits over everything of the processor that changes what a model is given."""
    processor, tokenizer = model.processor, model.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    images = processor.image_processor.to_dict()
    described = json.dumps([template, images, sorted(tokenizer.get_vocab().items())], sort_keys=True, default=str)
    return sha256(described.encode()).hexdigest()[:16]


def _device_name(model: ProbedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
