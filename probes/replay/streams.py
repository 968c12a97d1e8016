"""Streams: which states of a forward pass are read, and how. A new stream is one entry of `STREAM_TABLE`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from analyses.runs import TOKENS, HorizonError, check_choice, split_stream
from probes.models.probed import ProbedModel


class Projected(IntEnum):
    """The positions, among those in use, at which a trace stores the output of a projection before the rotation."""

    NOWHERE = 0
    LAST = 1
    EVERYWHERE = 2

    @property
    def positions(self) -> slice:
        """The slice that selects these out of the positions in use."""
        return (slice(0), slice(-1, None), slice(None))[self]


@dataclass(frozen=True)
class TracedStates:
    """The states of one forward pass that the streams read.

    Attributes:
        inputs: L tensors (token, hidden), the input of each layer.
        final: (token, hidden), the input of the final norm.
        arguments: L mappings, the other arguments of each layer's call.
        keys, values: L tensors (key head, token, head_dim) each, the keys after rotary embedding.
        queries, raw_keys: L tensors (position, dim) each, the output of the projections before the rotation, as far as
            the streams in use need it; raw keys of the last position alone where no stream needs more.
        positions: (position,) long, ascending positions in the prompt of the rows of `queries` and `raw_keys`.
    """

    inputs: Sequence[torch.Tensor]
    final: torch.Tensor
    arguments: Sequence[Mapping[str, Any]]
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    queries: Sequence[torch.Tensor]
    raw_keys: Sequence[torch.Tensor]
    positions: torch.Tensor

    def rows_of(self, places: torch.Tensor) -> torch.Tensor:
        """Return the indices among `positions` of these places of the prompt, (token,) long."""
        return torch.searchsorted(self.positions, places)


Read = Callable[[ProbedModel, TracedStates, torch.Tensor], list[torch.Tensor]]


@dataclass(frozen=True)
class Stream:
    """One kind of state that is read of every layer.

    Attributes:
        name: one of `STREAMS`.
        read: the function that returns one (token, dim) tensor for each layer, from the model, its traced states and
            (token,) places of the prompt. It copies, so that no state of the whole sequence stays alive.
        queries, keys: the positions at which the trace stores the projections that `read` needs.
    """

    name: str
    read: Read
    queries: Projected = Projected.NOWHERE
    keys: Projected = Projected.NOWHERE


def _hidden(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    return [*(states[places] for states in traced.inputs), traced.final[places]]


def _keys(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    return [_concatenate_heads(keys[:, places]) for keys in traced.keys]


def _values(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    return [_concatenate_heads(values[:, places]) for values in traced.values]


def _raw_keys(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    return [keys[traced.rows_of(places)] for keys in traced.raw_keys]


def _raw_queries(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    return [queries[traced.rows_of(places)] for queries in traced.queries]


def _queries(model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
    raw = _raw_queries(model, traced, places)
    return [_rotated_query(model, traced, k, query, places) for k, query in enumerate(raw)]


STREAM_TABLE = {
    stream.name: stream
    for stream in (
        # whether a layer rotates its queries shows in what becomes of a single key
        Stream("query", _queries, queries=Projected.EVERYWHERE, keys=Projected.LAST),
        Stream("key", _keys),
        Stream("query_raw", _raw_queries, queries=Projected.EVERYWHERE),
        Stream("key_raw", _raw_keys, keys=Projected.EVERYWHERE),
        Stream("value", _values),
        Stream("hidden", _hidden),
    )
}


def check_streams(names: Iterable[str]) -> None:
    """Raise HorizonError unless every stream is known, plain or with a prefix for other tokens, as in "text:query"."""
    for name in names:
        tokens, plain = split_stream(name)
        if tokens not in TOKENS or plain not in STREAM_TABLE:
            full_names = (f"{prefix}:{stream}" for prefix in TOKENS[1:] for stream in STREAM_TABLE)
            check_choice("stream", name, (*STREAM_TABLE, *full_names))


def streams_in_use(names: Iterable[str]) -> list[Stream]:
    """Return the streams of these names, whatever tokens they read."""
    return [STREAM_TABLE[split_stream(name)[1]] for name in names]


def _concatenate_heads(per_head: torch.Tensor) -> torch.Tensor:
    """Return (head, token, head_dim) states as (token, head x head_dim)."""
    return per_head.transpose(0, 1).flatten(1)


def _rotated_query(
    model: ProbedModel, traced: TracedStates, k: int, query: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """Return queries as attention receives them, (token, dim).

    Some layers rotate neither queries nor keys, so whether this one does is read from what becomes of a key.

    Args:
        model: the traced model.
        traced: the states of its forward pass.
        k: the layer.
        query: (token, dim), the queries before the rotation.
        places: (token,) long, their positions in the prompt.
    """
    raw_key, place = traced.raw_keys[k][-1:], traced.positions[-1:]
    embeddings = traced.arguments[k]["position_embeddings"]
    attended_key = _concatenate_heads(traced.keys[k][:, place])
    rotated = _rotate(model.layers[k], raw_key, embeddings, place, model.head_dim)
    if_rotated, if_not = (float((key - attended_key).abs().max()) for key in (rotated, raw_key))
    if min(if_rotated, if_not) > 0.05 * float(attended_key.abs().max()):
        raise HorizonError(
            f"layer {k} of {model.name!r} makes more of its keys and queries than its rotary embedding does: "
            "leave the stream 'query' out"
        )
    return query if if_not < if_rotated else _rotate(model.layers[k], query, embeddings, places, model.head_dim)


def _rotate(
    layer: Any, query: torch.Tensor, embeddings: tuple[torch.Tensor, torch.Tensor], places: torch.Tensor, head_dim: int
) -> torch.Tensor:
    """Return (token, dim) rows after rotary embedding, by the function of the layer's own architecture."""
    architecture = type(layer.self_attn)
    rotary = getattr(sys.modules[architecture.__module__], "apply_rotary_pos_emb", None)
    if rotary is None:
        raise HorizonError(
            f"{architecture.__name__} rotates its queries by a rule of its own: leave the stream 'query' out"
        )
    heads = query.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None]
    cos, sin = (part[:, places] for part in embeddings)
    return _concatenate_heads(rotary(heads, heads, cos, sin)[0][0])
