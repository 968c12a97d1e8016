"""The configuration that follows from what a run is asked for, for one model and its samples."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch

from analyses.runs import HorizonError, Measurement, RunConfig, RunOptions, check_options, check_windows
from analyses.runs.options import options_of
from probes.data.readers import SampleStream
from probes.data.samples import Sample, check_template, with_template
from probes.data.video import frame_rule
from probes.gates.gate import check_method
from probes.models.families import check_grids
from probes.models.probed import ProbedModel, fingerprint
from probes.models.prompts import chat_text
from probes.replay.ablations import check_layers


def run_config(
    options: RunOptions, model: ProbedModel, samples: Iterable[Sample]
) -> tuple[RunConfig, Iterable[Sample]]:
    """What a run with these options records, and the samples, of which a stream loses none.

    Args:
        options: as asked for.
        model: as loaded.
        samples: in whose first readable one the prompt's example is found, and what the prompts carry.

    Raises:
        HorizonError: an option is unusable, alone or with the others or with this model.
    """
    _check(options, model)
    told = samples.told if isinstance(samples, SampleStream) else {}
    first, samples = _first_readable(samples)
    config = RunConfig(
        **model.recorded,
        **{name: _recorded(getattr(options, name)) for name in options_of(Measurement)}
        | _settled(options, model, first, told),
        weights=fingerprint(model.model),
        processor=_processor_digest(model),
        n_parameters=model.model.num_parameters(),  # type: ignore[operator]
        versions={name: version(name) for name in ("vlm-horizon", "torch", "transformers", "nnsight", "numpy")},
        device=_device_name(model),
        prompt_example=_example(model, first, options.prompt),
    )
    return config, samples


def _recorded(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else tuple(value)


def _settled(options: RunOptions, model: ProbedModel, first: Sample | None, told: dict[str, Any]) -> dict[str, Any]:
    """What is recorded otherwise than asked for: options left open, and those of probes that are not run.

    Args:
        options: as asked for.
        model: as loaded.
        first: the first readable sample.
        told: options that follow from how the samples are read.
    """
    grids = "information" in options.probes
    with_ocr_tokens = told.get("with_ocr_tokens") if options.with_ocr_tokens is None else options.with_ocr_tokens
    if with_ocr_tokens is None:
        with_ocr_tokens = bool(first and first.ocr_tokens)
    return {
        "streams": tuple(options.wanted_streams) if "entropy" in options.probes else (),
        "contexts": tuple(options.contexts) if grids else (),
        "window": check_windows(options.window, options.max_windows, options.coarse),
        "layers": _some_layers(options.layers, model.n_layers),
        "token_layers": options.token_layers
        if options.token_layers is None or isinstance(options.token_layers, str)
        else tuple(sorted(set(options.token_layers))),
        "sources": tuple(map(str, options.sources or told.get("sources", ()))),
        "with_ocr_tokens": with_ocr_tokens,
        "video": (frame_rule(first.frames) if first else "") if options.video is None else options.video,
    }


def _check(options: RunOptions, model: ProbedModel) -> None:
    check_options(options)
    _check_token_layers(model, options.token_layers, options.layers)
    if "information" in options.probes:
        check_grids(model.name, model.family, options.tokens)
        check_method(options.method, options.kind, options.contexts, model.dtype, options.coarse, options.tokens)
    check_template(options.prompt)
    check_layers(model, options.layers)


def _check_token_layers(
    model: ProbedModel, token_layers: Sequence[int] | str | None, layers: Sequence[int] | None
) -> None:
    if isinstance(token_layers, str):
        return
    without = set(check_layers(model, token_layers)) - set(check_layers(model, layers)) if token_layers else ()
    if token_layers is not None and (without or not token_layers):
        named = ", ".join(map(str, sorted(without))) or "none given"
        raise HorizonError(f"token_layers {named}: token grids need removals at the same layers, so choose of those")


def _first_readable(samples: Iterable[Sample]) -> tuple[Sample | None, Iterable[Sample]]:
    """The first sample that has a question and pictures; and all samples, of which a stream loses none."""
    stream = samples if isinstance(samples, Sequence) else iter(samples)
    passed: list[Sample] = []
    for sample in stream:
        passed.append(sample)
        if not sample.error and sample.n_pictures:
            return sample, samples if isinstance(samples, Sequence) else chain(passed, stream)
    return None, samples if isinstance(samples, Sequence) else passed


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


def _some_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...] | None:
    """Ascending; None where they are all."""
    return None if layers is None or set(layers) >= set(range(n_layers)) else tuple(sorted(set(layers)))


def _example(model: ProbedModel, sample: Sample | None, prompt: str | None) -> str:
    """The exact text of a sample's prompt."""
    if sample is None:
        return ""
    question = with_template(sample, prompt).question
    return chat_text(model, question, n_images=sample.n_pictures, video=bool(sample.frames))
