"""One forward pass, captured: what every layer receives, and the visual tokens' states. Only this module knows nnsight.

*Layer k* is the residual stream at the input of 0-based decoder layer k; k = L is the input of the final norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nnsight
import torch
from torch import nn
from transformers import DynamicCache

from analyses.runs import HorizonError, split_stream
from probes.data.samples import Sample
from probes.models.grids import TokenGrid
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, encode
from probes.replay.readout import log_softmax
from probes.replay.streams import STREAM_TABLE, Projected, TracedStates, check_streams, streams_in_use
from probes.replay.visibility import in_order


@dataclass(frozen=True)
class VisualStates:
    """The visual tokens of one sample at every layer.

    Attributes:
        states: stream -> (layer, token, dim). `query`, `key` after rotary embedding, `query_raw`, `key_raw` before
            it, `value`: all heads x head_dim concatenated, key heads not repeated, layers 0..L-1. `hidden`: layers
            0..L, the last being the input of the final norm. Of the visual tokens; `text:query` is that of the prompt's
            text, `all:query` that of the whole prompt.
        positions: (token,) long, positions of the visual tokens in the prompt.
        grids: the patch grids over these positions.
    """

    states: dict[str, torch.Tensor]
    positions: torch.Tensor
    grids: tuple[TokenGrid, ...]


@dataclass(frozen=True)
class Capture:
    """One forward pass of one prompt, with all that a replay of any part of it needs.

    Attributes:
        prompt: the prompt that was run.
        inputs: L tensors (token, hidden), the input of each layer.
        final: (token, hidden), the input of the final norm.
        arguments: L mappings, the other arguments of each layer's call.
        additions: by layer k, (token, hidden): what the model itself adds between layer k and the next, where it does
            (visual features that enter again, as in Qwen3-VL).
        keys, values: L tensors (key head, token, head_dim) each, the keys after rotary embedding.
        log_probs: (place, vocabulary) log-softmax of the model's own forward at the prompt's readout positions.
        visual: the visual tokens' states in the streams that the caller named.
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
        """Whether no token sees a later one in any layer."""
        return in_order(self.arguments)


@dataclass(frozen=True)
class Tracer:
    """Traceable views of a model and of its decoder, wrapped at the first trace and kept for all later ones.

    Attributes:
        model: the transformers model.
        decoder: the text decoder, a module of the model.
    """

    model: nn.Module
    decoder: nn.Module

    @cached_property
    def envoy(self) -> Any:
        """The traceable view of the model."""
        return nnsight.NNsight(self.model)

    @cached_property
    def decoder_envoy(self) -> Any:
        """The traceable view of the decoder."""
        return self.envoy.get(next(name for name, module in self.model.named_modules() if module is self.decoder))


def capture(model: ProbedModel, sample: Sample, streams: Sequence[str] = ("query", "key", "hidden")) -> VisualStates:
    """Return the visual tokens' states of one sample at every layer.

    Args:
        model: the model to run.
        sample: one image and one question.
        streams: the streams to read, out of `query`, `key`, `query_raw`, `key_raw`, `value` and `hidden`; `text:query`
            is that of the prompt's text, `all:query` that of all its tokens.

    Raises:
        HorizonError: a stream is unknown. SampleError: the sample cannot be encoded.
    """
    return capture_prompt(model, encode(model, sample), streams).visual


def capture_prompt(model: ProbedModel, prompt: Prompt, streams: Sequence[str]) -> Capture:
    """Run one prompt once and return what replays and the named streams need."""
    check_streams(streams)
    cache = DynamicCache()  # without a config every layer keeps all its keys, sliding ones too
    with torch.no_grad():
        calls, additions, queries, raw_keys, final, logits = _trace(model, prompt, streams, cache)
    keys, values = _keys_and_values(model, cache)
    traced = TracedStates(
        inputs=[_hidden(call)[0] for call in calls],
        final=final[0],
        arguments=[_other_arguments(model, call) for call in calls],
        keys=keys,
        values=values,
        queries=queries,
        raw_keys=raw_keys,
        positions=_kept_positions(prompt, streams),
    )
    states = {name: _states(model, prompt, traced, name) for name in streams}
    return Capture(
        prompt=prompt,
        inputs=list(traced.inputs),
        final=traced.final,
        arguments=traced.arguments,
        additions=additions,
        keys=keys,
        values=values,
        log_probs=log_softmax(logits[0]),
        visual=VisualStates(states, prompt.visual, prompt.grids),
    )


def _states(model: ProbedModel, prompt: Prompt, traced: TracedStates, name: str) -> torch.Tensor:
    """Return the states of one stream, (layer, token, dim)."""
    tokens, plain = split_stream(name)
    return torch.stack(STREAM_TABLE[plain].read(model, traced, token_positions(prompt, tokens)))


def _keys_and_values(model: ProbedModel, cache: DynamicCache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the keys and the values of every layer, each (key head, token, head_dim)."""
    pairs: list[Any] = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    if len(pairs) != model.n_layers or any(not isinstance(part, torch.Tensor) for pair in pairs for part in pair):
        raise HorizonError(
            f"{model.name!r} has layers that keep no keys and values of their own (recurrent ones, or keys shared "
            "between layers): replays have no rule for them"
        )
    return [keys[0] for keys, _ in pairs], [values[0] for _, values in pairs]


def _hidden(call: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """Return the hidden states among the arguments of a layer's call, (1, token, hidden)."""
    args, kwargs = call
    return args[0] if args else kwargs["hidden_states"]


def _other_arguments(model: ProbedModel, call: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of a layer's call by name, except its hidden states."""
    args, kwargs = call
    if len(args) > 1:
        raise HorizonError(
            f"the layers of {model.name!r} take {len(args)} positional arguments, and replays have a rule for one only"
        )
    return {key: value for key, value in kwargs.items() if key != "hidden_states"}


def _trace(model: ProbedModel, prompt: Prompt, streams: Sequence[str], cache: DynamicCache) -> tuple[Any, ...]:
    """Run the one nnsight trace and return calls, additions, queries, raw keys, final input and logits.

    It is short, since coverage and debuggers lose the lines of a function that holds a trace.
    """
    envoy, decoder = model.tracer.envoy, model.tracer.decoder_envoy
    arguments = {**prompt.inputs, "past_key_values": cache, "use_cache": True, **_logits_to_keep(model, prompt)}
    positions, n_places = _kept_positions(prompt, streams), len(prompt.readout)
    streams_read = streams_in_use(streams)
    query_extent, key_extent = (
        max((getattr(stream, part) for stream in streams_read), default=Projected.NOWHERE)
        for part in ("queries", "keys")
    )
    key_positions = positions[key_extent.positions]
    with envoy.trace(**arguments):
        calls, queries, raw_keys, additions = nnsight.save([]), nnsight.save([]), nnsight.save([]), nnsight.save({})
        output = None
        for k, layer in enumerate(decoder.layers):
            calls.append(layer.inputs)
            _note_addition(additions, k - 1, _hidden(calls[-1]), output)
            if query_extent:
                queries.append(_rows_at(_projection(layer.self_attn, "q").output[0], positions, model.n_heads))
            if key_extent:
                projected = _projection(layer.self_attn, "k").output[0]
                raw_keys.append(_rows_at(projected, key_positions, model.n_key_value_heads))
            output = layer.output
        final = nnsight.save(decoder.norm.input)
        _note_addition(additions, model.n_layers - 1, final, output)
        logits = nnsight.save(envoy.output.logits[:, -n_places:])
    return calls, additions, queries, raw_keys, final, logits


def token_positions(prompt: Prompt, tokens: str) -> torch.Tensor:
    """Return the positions of the visual tokens, of the prompt's text or of all tokens, (token,) long, ascending."""
    if tokens == "visual":
        return prompt.visual
    positions = torch.arange(int(prompt.readout[0]) + 1, device=prompt.visual.device)  # without a forced answer
    return positions if tokens == "all" else positions[~torch.isin(positions, prompt.visual)]


def _kept_positions(prompt: Prompt, streams: Sequence[str]) -> torch.Tensor:
    """Return the positions whose projections are stored: the visual ones, or all where a stream reads other tokens."""
    reads_text = any(split_stream(name)[0] != "visual" for name in streams)
    return token_positions(prompt, "all" if reads_text else "visual")


def _note_addition(additions: dict[int, torch.Tensor], k: int, following: torch.Tensor, output: Any) -> None:
    """Store the difference between what follows layer k and the output of layer k, unless it is zero."""
    if output is None:
        return
    between = following - (output[0] if isinstance(output, tuple) else output)
    if bool(between.any()):
        additions[k] = between[0]


def _projection(attention: Any, letter: str) -> Any:
    """Return the module that gives queries ("q") or keys ("k") before the rotation: a norm, or else the projection."""
    return getattr(attention, f"{letter}_norm" if hasattr(attention, f"{letter}_norm") else f"{letter}_proj")


def _rows_at(projected: torch.Tensor, positions: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows at these positions, (position, dim).

    Projections come as (token, dim), (token, head, head_dim) or (head, token, head_dim), by architecture.
    """
    if projected.ndim == 3 and projected.shape[0] == heads and projected.shape[1] != heads:
        projected = projected.transpose(0, 1)
    return projected[positions].flatten(1)


def _logits_to_keep(model: ProbedModel, prompt: Prompt) -> dict[str, int]:
    """Return the argument that limits logits to the readout positions, which end the sequence, if the model has it."""
    accepts_limit = "logits_to_keep" in inspect.signature(type(model.model).forward).parameters
    return {"logits_to_keep": len(prompt.readout)} if accepts_limit else {}
