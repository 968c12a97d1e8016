"""One forward pass, captured: what every layer receives, and the visual tokens' states. Only this module knows nnsight.

*Layer k* is the residual stream at the input of 0-based decoder layer k; k = L is the input of the final norm.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nnsight
import torch
from transformers import DynamicCache

from analyses.runs import STREAMS, TOKENS, HorizonError, split_stream
from probes.data.samples import Sample
from probes.models.grids import TokenGrid
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, encode
from probes.replay.readout import log_softmax, note_logits
from probes.replay.visibility import in_order


@dataclass(frozen=True)
class VisualStates:
    """The visual tokens of one sample at every layer.

    Attributes:
        states: stream -> (layer, token, dim). `query`, `key` after rotary embedding, `query_raw`, `key_raw` before
            it, `value`: all heads x head_dim concatenated, key heads not repeated, layers 0..L-1. `hidden`: layers
            0..L, the last being the input of the final norm. Of the visual tokens; `text:query` is that of the prompt's
            text, `all:query` that of the whole prompt.
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
        additions: k -> (token, hidden): what the model itself adds between layer k and the next, where it does
            (visual features that enter again, as in Qwen3-VL).
        keys, values: L tensors (key head, token, head_dim): keys after rotary embedding, and values.
        log_probs: (place, vocabulary) log-softmax of the model's own forward at the prompt's readout positions.
        visual: the visual tokens' states of the streams asked for.
    """

    prompt: Prompt
    inputs: list[torch.Tensor]
    final: torch.Tensor
    arguments: Sequence[Mapping[str, Any]]
    additions: Mapping[int, torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    log_probs: torch.Tensor
    visual: VisualStates

    @cached_property
    def in_order(self) -> bool:
        """Whether no token sees a later one, in any layer."""
        return in_order(self.arguments)


def capture(model: ProbedModel, sample: Sample, streams: Sequence[str] = ("query", "key", "hidden")) -> VisualStates:
    """The visual tokens' states of one sample at every layer.

    Args:
        model: as loaded.
        sample: one image, one question.
        streams: subset of `query`, `key`, `query_raw`, `key_raw`, `value`, `hidden`; of the prompt's text or of all its
            tokens as `text:query`, `all:query`.

    Raises:
        HorizonError: a stream is unknown. SampleError: the sample cannot be encoded.
    """
    return capture_prompt(model, encode(model, sample), streams).visual


def check_streams(streams: Sequence[str]) -> None:
    """Raise HorizonError unless every stream is known."""
    pairs = {name: split_stream(name) for name in streams}
    unknown = [name for name, (tokens, stream) in pairs.items() if stream not in STREAMS or tokens not in TOKENS]
    if unknown:
        raise HorizonError(
            f"stream {', '.join(map(repr, unknown))} is unknown; choose from {', '.join(STREAMS)}, of other tokens as "
            "text:query or all:query"
        )


def capture_prompt(model: ProbedModel, prompt: Prompt, streams: Sequence[str]) -> Capture:
    """Run one prompt once and keep what replays and the streams need."""
    check_streams(streams)
    cache = DynamicCache()  # without a config every layer keeps all its keys, sliding ones too
    with torch.no_grad():
        calls, additions, queries, raw_keys, final, logits = _trace(model, prompt, streams, cache)
    inputs = [_hidden(call)[0] for call in calls]
    arguments = [_other_arguments(model, call) for call in calls]
    keys, values = _keys_and_values(model, cache)
    kept = _kept_positions(prompt, streams)
    makers = {  # from (token,) positions; indexed copies, so that no full sequence stays alive for the streams
        "hidden": lambda at: [*(rows[at] for rows in inputs), final[0, at]],
        "key": lambda at: [_concatenate_heads(rows[:, at]) for rows in keys],
        "value": lambda at: [_concatenate_heads(rows[:, at]) for rows in values],
        "key_raw": lambda at: [rows[torch.searchsorted(kept, at)] for rows in raw_keys],
        "query_raw": lambda at: [rows[torch.searchsorted(kept, at)] for rows in queries],
        "query": lambda at: [
            _rotated_query(model, k, query[torch.searchsorted(kept, at)], at, known, keys[k], arguments[k])
            for k, query in enumerate(queries)
            for known in [(raw_keys[k][-1:], kept[-1:])]
        ],
    }
    pairs = {name: split_stream(name) for name in streams}
    states = {
        name: torch.stack(makers[stream](token_positions(prompt, tokens))) for name, (tokens, stream) in pairs.items()
    }
    visual = VisualStates(states, prompt.visual, prompt.grids)
    with torch.no_grad():
        note_logits(model, final[0, prompt.readout], logits[0])
    return Capture(prompt, inputs, final[0], arguments, additions, keys, values, log_softmax(logits[0]), visual)


def _keys_and_values(model: ProbedModel, cache: DynamicCache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(key head, token, head_dim) of every layer."""
    held: list[Any] = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    if len(held) != model.n_layers or any(not isinstance(part, torch.Tensor) for pair in held for part in pair):
        raise HorizonError(
            f"{model.name!r} has layers that keep no keys and values of their own (recurrent ones, or keys shared "
            "between layers): replays have no rule for them"
        )
    return [keys[0] for keys, _ in held], [values[0] for _, values in held]


def _hidden(call: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """(1, token, hidden) of the arguments that a layer was called with."""
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def _other_arguments(model: ProbedModel, call: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    args, kwargs = call
    if len(args) > 1:
        raise HorizonError(
            f"the layers of {model.name!r} take {len(args)} positional arguments, and replays have a rule for one only"
        )
    return {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _trace(model: ProbedModel, prompt: Prompt, streams: Sequence[str], cache: DynamicCache) -> tuple[Any, ...]:
    """The one nnsight trace. Short, since coverage and debuggers lose the lines of a function that holds a trace."""
    envoy, decoder = _envoys(model)
    arguments = {**prompt.inputs, "past_key_values": cache, "use_cache": True, **_logits_to_keep(model, prompt)}
    kept, n_places = _kept_positions(prompt, streams), len(prompt.readout)
    plain = {stream for _, stream in map(split_stream, streams)}
    wants_query = bool({"query", "query_raw"} & plain)
    # of rotated queries, one key a layer tells whether the layer rotates at all
    wants_key = slice(None) if "key_raw" in plain else slice(-1, None) if "query" in plain else None
    with envoy.trace(**arguments):
        calls, queries, raw_keys, additions = nnsight.save([]), nnsight.save([]), nnsight.save([]), nnsight.save({})
        output = None
        for k, layer in enumerate(decoder.layers):
            calls.append(layer.inputs)
            _note_addition(additions, k - 1, _hidden(calls[-1]), output)
            if wants_query:
                queries.append(_rows_at(_projection(layer.self_attn, "q").output[0], kept, model.n_heads))
            if wants_key is not None:
                projected = _projection(layer.self_attn, "k").output[0]
                raw_keys.append(_rows_at(projected, kept[wants_key], model.n_key_value_heads))
            output = layer.output
        final = nnsight.save(decoder.norm.input)
        _note_addition(additions, model.n_layers - 1, final, output)
        logits = nnsight.save(envoy.output.logits[:, -n_places:])
    return calls, additions, queries, raw_keys, final, logits


def token_positions(prompt: Prompt, tokens: str) -> torch.Tensor:
    """(token,) long, ascending positions of the visual tokens, of the prompt's text, or of all its tokens."""
    if tokens == "visual":
        return prompt.visual
    whole = torch.arange(int(prompt.readout[0]) + 1, device=prompt.visual.device)  # without a forced answer
    return whole if tokens == "all" else whole[~torch.isin(whole, prompt.visual)]


def _kept_positions(prompt: Prompt, streams: Sequence[str]) -> torch.Tensor:
    """Where projections are kept: at the visual tokens, or in the whole prompt where another stream is asked for."""
    others = any(split_stream(name)[0] != "visual" for name in streams)
    return token_positions(prompt, "all" if others else "visual")


def _note_addition(additions: dict[int, torch.Tensor], k: int, following: torch.Tensor, output: Any) -> None:
    """Keep what lies between the output of layer k and what follows it, if anything does."""
    if output is None:
        return
    between = following - (output[0] if isinstance(output, tuple) else output)
    if bool(between.any()):
        additions[k] = between[0]


def _projection(attention: Any, letter: str) -> Any:
    """Where queries ("q") or keys ("k") are read before the rotation: their projection, or the norm behind it."""
    return getattr(attention, f"{letter}_norm" if hasattr(attention, f"{letter}_norm") else f"{letter}_proj")


def _rows_at(projected: torch.Tensor, positions: torch.Tensor, heads: int) -> torch.Tensor:
    """(token, dim), (token, head, head_dim) or (head, token, head_dim) -> (position, dim)."""
    if projected.ndim == 3 and projected.shape[0] == heads and projected.shape[1] != heads:
        projected = projected.transpose(0, 1)
    return projected[positions].flatten(1)


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


def _rotated_query(
    model: ProbedModel,
    k: int,
    query: torch.Tensor,
    at: torch.Tensor,
    known: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    arguments: Mapping[str, Any],
) -> torch.Tensor:
    """(token, dim) queries as attention receives them, judged by what becomes of a key: some layers rotate neither.

    Args:
        model: as loaded.
        k: the layer.
        query: (token, dim) before the rotation.
        at: (token,) their positions.
        known: (1, dim) one key before the rotation, and (1,) its position.
        keys: (key head, position, head_dim) as attention received them.
        arguments: of the layer's call.
    """
    (raw_key, place), embeddings = known, arguments["position_embeddings"]
    received = _concatenate_heads(keys[:, place])
    turned = _rotate(model.layers[k], raw_key, embeddings, place, model.head_dim)
    apart, still = (float((one - received).abs().max()) for one in (turned, raw_key))
    if min(apart, still) > 0.05 * float(received.abs().max()):
        raise HorizonError(
            f"layer {k} of {model.name!r} makes more of its keys and queries than its rotary embedding does: "
            "leave the stream 'query' out"
        )
    return query if still < apart else _rotate(model.layers[k], query, embeddings, at, model.head_dim)


def _rotate(
    layer: Any, query: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor], at: torch.Tensor, head_dim: int
) -> torch.Tensor:
    """Rotary embedding by the function of the layer's own architecture, on the visual rows only."""
    architecture = type(layer.self_attn)
    rotary = getattr(sys.modules[architecture.__module__], "apply_rotary_pos_emb", None)
    if rotary is None:
        raise HorizonError(
            f"{architecture.__name__} rotates its queries by a rule of its own: leave the stream 'query' out"
        )
    heads = query.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None]
    cos, sin = (part[:, at] for part in embeddings)
    return _concatenate_heads(rotary(heads, heads, cos, sin)[0][0])
