"""One forward pass, captured: what every layer receives, and the visual tokens' states. Only this module knows nnsight.

*Layer k* is the residual stream at the input of 0-based decoder layer k; k = L is the input of the final norm.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from transformers import DynamicCache

from analyses.runs import STREAMS, HorizonError
from probes.grids import TokenGrid
from probes.models import ProbedModel
from probes.prompts import Prompt, encode
from probes.samples import Sample


@dataclass(frozen=True)
class VisualStates:
    """The visual tokens of one sample at every layer.

    Attributes:
        states: stream -> (layer, token, dim). `query`, `key` after rotary embedding, `query_raw`, `key_raw` before
            it, `value`: all heads x head_dim concatenated, key heads not repeated, layers 0..L-1. `hidden`: layers
            0..L, the last being the input of the final norm.
        positions: (token,) long, places in the prompt.
        grids: patch grids over those positions.
    """

    states: dict[str, torch.Tensor]
    positions: torch.Tensor
    grids: tuple[TokenGrid, ...]


@dataclass(frozen=True)
class Capture:
    """One forward pass of one prompt, enough to replay any part of it.

    Attributes:
        prompt: what was run.
        inputs: L tensors (token, hidden): the input of each layer.
        final: (token, hidden): the input of the final norm.
        arguments: L mappings: the other arguments of each layer's call.
        keys, values: L tensors (key head, token, head_dim): keys after rotary embedding, and values.
        log_probs: (place, vocabulary) log-softmax of the model's own forward at the prompt's readout positions.
        visual: the visual tokens' states of the streams asked for.
    """

    prompt: Prompt
    inputs: list[torch.Tensor]
    final: torch.Tensor
    arguments: Sequence[Mapping[str, Any]]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    log_probs: torch.Tensor
    visual: VisualStates


def capture(model: ProbedModel, sample: Sample, streams: Sequence[str] = ("query", "key", "hidden")) -> VisualStates:
    """The visual tokens' states of one sample at every layer.

    Args:
        model: as loaded.
        sample: one image, one question.
        streams: subset of `query`, `key`, `query_raw`, `key_raw`, `value`, `hidden`.

    Raises:
        HorizonError: a stream is unknown. SampleError: the sample cannot be encoded.
    """
    return capture_prompt(model, encode(model, sample), streams).visual


def check_streams(streams: Sequence[str]) -> None:
    """Raise HorizonError unless every stream is known."""
    unknown = [stream for stream in streams if stream not in STREAMS]
    if unknown:
        raise HorizonError(f"stream {', '.join(map(repr, unknown))} is unknown; choose from {', '.join(STREAMS)}")


def capture_prompt(model: ProbedModel, prompt: Prompt, streams: Sequence[str]) -> Capture:
    """Run one prompt once and keep what replays and the streams need."""
    check_streams(streams)
    _check_projections(model, streams)
    cache = DynamicCache()  # without a config every layer keeps all its keys, sliding ones too
    with torch.no_grad():
        calls, queries, raw_keys, final, logits = _trace(model, prompt, streams, cache)
    inputs = [(args[0] if args else kwargs["hidden_states"])[0] for args, kwargs in calls]
    arguments = [{key: value for key, value in kwargs.items() if key != "hidden_states"} for _, kwargs in calls]
    keys, values = [layer.keys[0] for layer in cache.layers], [layer.values[0] for layer in cache.layers]
    at = prompt.visual  # indexed copies, so that no full sequence stays alive for the streams
    makers = {
        "hidden": lambda: [*(rows[at] for rows in inputs), final[0, at]],
        "key": lambda: [_concatenate_heads(rows[:, at]) for rows in keys],
        "value": lambda: [_concatenate_heads(rows[:, at]) for rows in values],
        "key_raw": lambda: raw_keys,
        "query_raw": lambda: queries,
        "query": lambda: [
            _rotate(layer, query, kwargs["position_embeddings"], at, model.head_dim)
            for layer, query, kwargs in zip(model.layers, queries, arguments, strict=True)
        ],
    }
    states = {stream: torch.stack(makers[stream]()) for stream in streams}
    visual = VisualStates(states, at, prompt.grids)
    return Capture(prompt, inputs, final[0], arguments, keys, values, log_softmax(logits[0]), visual)


def _check_projections(model: ProbedModel, streams: Sequence[str]) -> None:
    """Queries and keys are read at their projections, which is wrong where a norm follows these."""
    read = sorted({"query", "query_raw", "key_raw"} & set(streams))
    if read and hasattr(model.layers[0].self_attn, "q_norm"):
        raise HorizonError(
            f"{model.name!r} normalizes its queries and keys after projecting them, for which the streams "
            f"{', '.join(read)} have no rule yet; key, value and hidden are exact"
        )


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the vocabulary, in float32 at least."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _trace(model: ProbedModel, prompt: Prompt, streams: Sequence[str], cache: DynamicCache) -> tuple[Any, ...]:
    """The one nnsight trace. Short, since coverage and debuggers lose the lines of a function that holds a trace."""
    envoy, decoder = _envoys(model)
    arguments = {**prompt.inputs, "past_key_values": cache, "use_cache": True, **_logits_to_keep(model, prompt)}
    visual, n_places = prompt.visual, len(prompt.readout)
    wants_query, wants_raw_key = bool({"query", "query_raw"} & set(streams)), "key_raw" in streams
    with envoy.trace(**arguments):
        calls, queries, raw_keys = nnsight.save([]), nnsight.save([]), nnsight.save([])
        for layer in decoder.layers:
            calls.append(layer.inputs)
            if wants_query:
                queries.append(layer.self_attn.q_proj.output[0, visual])
            if wants_raw_key:
                raw_keys.append(layer.self_attn.k_proj.output[0, visual])
        final = nnsight.save(decoder.norm.input)
        logits = nnsight.save(envoy.output.logits[:, -n_places:])
    return calls, queries, raw_keys, final, logits


def _envoys(model: ProbedModel) -> tuple[Any, Any]:
    """Traceable views of the model and of its decoder, wrapped once a model."""
    if "envoys" not in model.memo:
        envoy = nnsight.NNsight(model.model)
        path = next(name for name, module in model.model.named_modules() if module is model.decoder)
        model.memo["envoys"] = envoy, envoy.get(path)
    return model.memo["envoys"]


def _logits_to_keep(model: ProbedModel, prompt: Prompt) -> dict[str, int]:
    """Logits at the readout positions only, which end the sequence, where the model can be told so."""
    known = "logits_to_keep" in inspect.signature(type(model.model).forward).parameters
    return {"logits_to_keep": len(prompt.readout)} if known else {}


def _concatenate_heads(per_head: torch.Tensor) -> torch.Tensor:
    """(head, token, head_dim) -> (token, head x head_dim)."""
    return per_head.transpose(0, 1).flatten(1)


def _rotate(
    layer: Any, query: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor], at: torch.Tensor, head_dim: int
) -> torch.Tensor:
    """Rotary embedding by the function of the layer's own architecture, on the visual rows only."""
    rotary = sys.modules[type(layer.self_attn).__module__].apply_rotary_pos_emb
    heads = query.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None]
    cos, sin = (part[:, at] for part in embeddings)
    return _concatenate_heads(rotary(heads, heads, cos, sin)[0][0])
