"""What a run measures: as users ask for it, and the configuration that follows for one model and its samples."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch

from analyses.runs import PROBES, HorizonError, RunConfig, check_choices, default_streams
from probes.data.readers import SampleStream
from probes.data.samples import Sample, check_template, with_template
from probes.data.video import frame_rule
from probes.gates.gate import check_method
from probes.measures.entropy import check_alpha
from probes.measures.generation import check_limit
from probes.models.families import check_grids
from probes.models.grids import check_windows
from probes.models.probed import ProbedModel, fingerprint
from probes.models.prompts import chat_text, check_tokens
from probes.models.targets import check_targets
from probes.replay.ablations import check_context, check_layers
from probes.replay.kinds import check_kind
from probes.replay.streams import check_streams


@dataclass(frozen=True)
class RunOptions:
    """What `run`, `run_adaptive` and `estimate_cost` are asked for alike; `run` explains each by its name."""

    probes: Sequence[str] = PROBES
    streams: Sequence[str] | None = None
    targets: Sequence[str] = ("gold",)
    contexts: Sequence[str] = ("keep-one",)
    window: int | None = None
    layers: Sequence[int] | None = None
    kind: str = "delete"
    method: str = "exact"
    alpha: float = 1.0
    center: bool = True
    normalize_rows: bool = True
    token_samples: int | None = None
    gate_checks: int = 2
    spectra: int = 0
    prompt: str | None = None
    limit: int | None = None
    shard: tuple[int, int] = (0, 1)
    batch_size: int | None = None
    seed: int = 0
    sources: Sequence[str] = ()
    token_layers: Sequence[int] | str | None = None
    coarse: int | None = None
    max_windows: int | None = None
    only_correct: bool = False
    generate: int | None = None
    with_ocr_tokens: bool | None = None
    video: str | None = None
    tokens: str = "visual"

    @classmethod
    def named(cls, given: dict[str, Any]) -> RunOptions:
        """Options by name; raises HorizonError where there is none of a name."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = get_close_matches(name, known, 1)
                meant = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
                raise HorizonError(f"there is no option {name!r} of what is measured: {meant}")
        return cls(**given)

    @property
    def wanted_streams(self) -> Sequence[str]:
        """Those of the tokens that are taken away, unless others are asked for."""
        return default_streams(self.tokens) if self.streams is None else self.streams

    def config(self, model: ProbedModel, samples: Iterable[Sample]) -> tuple[RunConfig, Iterable[Sample]]:
        """What a run of these records, and the samples, of which a stream loses none.

        Args:
            model: as loaded.
            samples: in whose first readable one the prompt's example is found, and what the prompts carry.

        Raises:
            HorizonError: an option is unusable, alone or with the others or with this model.
        """
        _check(model, self)
        grids = "information" in self.probes
        chosen = (self.max_windows, self.coarse) if grids else (None, None)
        window = check_windows(self.window, *chosen)
        sources, with_ocr_tokens = self.sources, self.with_ocr_tokens
        if isinstance(samples, SampleStream):
            sources = sources or samples.told["sources"]
            with_ocr_tokens = samples.told["with_ocr_tokens"] if with_ocr_tokens is None else with_ocr_tokens
        first, samples = _first_readable(samples)
        if with_ocr_tokens is None:
            with_ocr_tokens = bool(first and first.ocr_tokens)
        config = RunConfig(
            **model.recorded,
            weights=fingerprint(model.model),
            prompt=self.prompt,
            processor=_processor_digest(model),
            probes=tuple(self.probes),
            streams=tuple(self.wanted_streams) if "entropy" in self.probes else (),
            alpha=self.alpha,
            center=self.center,
            normalize_rows=self.normalize_rows,
            targets=tuple(self.targets),
            contexts=tuple(self.contexts) if grids else (),
            window=window,
            layers=_some_layers(self.layers, model.n_layers),
            kind=self.kind,
            method=self.method if grids else "exact",
            seed=self.seed,
            n_parameters=model.model.num_parameters(),  # type: ignore[operator]
            versions={name: version(name) for name in ("vlm-horizon", "torch", "transformers", "nnsight", "numpy")},
            device=_device_name(model),
            batch_size=self.batch_size,
            sources=tuple(map(str, sources)),
            prompt_example=_example(model, first, self.prompt),
            token_layers=self.token_layers
            if self.token_layers is None or isinstance(self.token_layers, str)
            else tuple(sorted(set(self.token_layers))),
            max_windows=chosen[0],
            coarse=chosen[1],
            only_correct=self.only_correct,
            with_ocr_tokens=with_ocr_tokens,
            video=(frame_rule(first.frames) if first else "") if self.video is None else self.video,
            tokens=self.tokens,
        )
        return config, samples


def check_probes(probes: Sequence[str], streams: Sequence[str], contexts: Sequence[str]) -> None:
    """Raise HorizonError unless all probes, streams and contexts are known, and none lacks what it needs."""
    check_choices("probe", probes, PROBES)
    if "entropy" in probes and not streams:
        raise HorizonError("the probe 'entropy' needs at least one stream")
    if "information" in probes and not contexts:
        raise HorizonError("the probe 'information' needs at least one context")
    check_streams(streams)
    for context in contexts:
        check_context(context)


def _check(model: ProbedModel, asked: RunOptions) -> None:
    _check_token_layers(model, asked.token_layers, asked.layers)
    check_tokens(asked.tokens)
    check_probes(asked.probes, asked.wanted_streams, asked.contexts)
    if "information" in asked.probes:
        check_grids(model.name, model.family, asked.tokens)
        check_method(asked.method, asked.kind, asked.contexts, model.dtype, asked.coarse, asked.tokens)
    else:
        _check_no_grids(asked)
    check_alpha(asked.alpha)
    check_targets(asked.targets)
    check_template(asked.prompt)
    check_layers(model, asked.layers)
    check_kind(asked.kind)
    for name, value, least in (
        ("batch_size", asked.batch_size, 1),
        ("limit", asked.limit, 1),
        ("token_samples", asked.token_samples, 0),
        ("gate_checks", asked.gate_checks, 0),
        ("spectra", asked.spectra, 0),
    ):
        if value is not None and value < least:
            raise HorizonError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= asked.shard[0] < asked.shard[1]:
        raise HorizonError(f"shard {asked.shard[0]}/{asked.shard[1]} is unusable: i/n takes 0 <= i < n")
    if asked.only_correct and set(asked.targets) == {"greedy"}:
        raise HorizonError("only_correct needs a target that says what is right: gold beside greedy, or greedy-correct")
    if asked.generate is not None:
        check_limit(asked.generate)


def _check_no_grids(asked: RunOptions) -> None:
    """Raise HorizonError where something is asked for that only token grids have."""
    for name in ("method", "coarse", "max_windows", "token_layers"):
        value = getattr(asked, name)
        if value != getattr(RunOptions, name):
            raise HorizonError(f"{name} {value!r} is of token grids: add the probe 'information', or leave it out")


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
