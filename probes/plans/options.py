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
    """Return the configuration that a run with these options records, and all samples, also where they are a stream.

    Args:
        options: the options of the run.
        model: the model, as `load_model` returns it.
        samples: the samples. The first readable one gives the prompt's example, and says what the prompts carry.

    Raises:
        HorizonError: an option is unusable, by itself, beside another option, or with this model.
    """
    _check(options, model)
    reader_options = samples.run_options if isinstance(samples, SampleStream) else {}
    first, samples = _first_readable(samples)
    config = RunConfig(
        **model.recorded,
        **{name: _recorded(getattr(options, name)) for name in options_of(Measurement)}
        | _settled(options, model, first, reader_options),
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


def _settled(
    options: RunOptions, model: ProbedModel, first: Sample | None, reader_options: dict[str, Any]
) -> dict[str, Any]:
    """Return the fields of the configuration that differ from the options: defaults resolved, unused ones emptied.

    Args:
        options: the options of the run.
        model: the model, as `load_model` returns it.
        first: the first readable sample; None where there is none.
        reader_options: the options that follow from how the samples are read.
    """
    grids = "information" in options.probes
    with_ocr_tokens = (
        reader_options.get("with_ocr_tokens") if options.with_ocr_tokens is None else options.with_ocr_tokens
    )
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
        "sources": tuple(map(str, options.sources or reader_options.get("sources", ()))),
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
    unremoved = set(check_layers(model, token_layers)) - set(check_layers(model, layers)) if token_layers else ()
    if token_layers is not None and (unremoved or not token_layers):
        layer_list = ", ".join(map(str, sorted(unremoved))) or "none given"
        raise HorizonError(
            f"token_layers {layer_list}: token grids need removals at the same layers, so choose of those"
        )


def _first_readable(samples: Iterable[Sample]) -> tuple[Sample | None, Iterable[Sample]]:
    """Return the first sample without an error that has pictures, and all samples, also where they are a stream."""
    stream = samples if isinstance(samples, Sequence) else iter(samples)
    head: list[Sample] = []
    for sample in stream:
        head.append(sample)
        if not sample.error and sample.n_pictures:
            return sample, samples if isinstance(samples, Sequence) else chain(head, stream)
    return None, samples if isinstance(samples, Sequence) else head


def _processor_digest(model: ProbedModel) -> str:
    """Return 16 hex digits of a hash over everything in the processor that changes the model's inputs."""
    processor, tokenizer = model.processor, model.tokenizer
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    images = processor.image_processor.to_dict()
    parts: list[Any] = [template, images, sorted(tokenizer.get_vocab().items())]
    if getattr(processor, "video_processor", None) is not None:
        parts.append(processor.video_processor.to_dict())
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _device_name(model: ProbedModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _some_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...] | None:
    """Return the layers in ascending order; None where they are all layers."""
    return None if layers is None or set(layers) >= set(range(n_layers)) else tuple(sorted(set(layers)))


def _example(model: ProbedModel, sample: Sample | None, prompt: str | None) -> str:
    """Return the exact text of a sample's prompt, chat markup included; "" without a sample."""
    if sample is None:
        return ""
    question = with_template(sample, prompt).question
    return chat_text(model, question, n_images=sample.n_pictures, video=bool(sample.frames))
