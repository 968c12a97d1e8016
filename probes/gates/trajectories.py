"""Forward passes from a cut on under gates, kept so that derivatives can be taken layer by layer.

The gate g_v in 0..1 of visual token v multiplies the numerator that its key gets in the softmax, for every row but its
own: log g_v is added to column v of the attention scores, the diagonal left as it is. At g_v = 0 no other row sees v:
it is deleted. With all gates at 1 the model is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probes.models.probed import ProbedModel
from probes.replay.ablations import visual_mask
from probes.replay.caches import FrozenContext, KnownContext
from probes.replay.capture import Capture
from probes.replay.replay import call_layer, keys_and_values
from probes.replay.visibility import affected_rows, visible_at

# (query, key) pairs of one call: bounds the attention scores that the backward pass of a long prompt keeps.
CHUNK_PAIRS = 2**22


@dataclass(frozen=True)
class Trajectory:
    """What the layers from a cut on compute under some gates. Positions count tokens of the prompt.

    Attributes:
        cut: the first of these layers.
        rows: (row,) long, positions through which derivatives flow, ascending.
        fixed: (column,) long, positions whose keys and values no gate changes to first order.
        inputs: a (row, hidden) tensor a layer.
        keys, values: a (key head, token, head_dim) tensor a layer.
        final: (place, hidden), what the final norm receives at the readout positions.
    """

    cut: int
    rows: torch.Tensor
    fixed: torch.Tensor
    inputs: Sequence[torch.Tensor]
    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    final: torch.Tensor


@dataclass(frozen=True)
class Part:
    """Consecutive rows that run together.

    Attributes:
        rows: which.
        seen: the rows whose keys and values are known before these run; None where only keys and values are computed.
        own: whether keys and values of these rows are computed with them, or are among those known.
    """

    rows: slice
    seen: slice | None
    own: bool


@dataclass(frozen=True)
class Step:
    """Rows that run together in every layer, by their positions.

    Attributes:
        rows: (row,) long.
        context: (column,) long, positions that they may see; None where only keys and values are computed.
        own: whether their own keys and values are computed with them, and seen besides the context.
    """

    rows: torch.Tensor
    context: torch.Tensor | None
    own: bool


class _KeepingContext(FrozenContext):
    """Also keeps the keys and values that a layer computes of the rows at hand."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, head, row, dim) of the rows at hand -> the same with the context's rows in front."""
        self.kept = keys[0], values[0]
        return super().update(keys, values)


def open_trajectory(captured: Capture, cut: int) -> Trajectory:
    """All gates at 1: the capture itself."""
    rows = open_rows(captured, cut)
    inputs = [states[rows] for states in captured.inputs[cut:]]
    final = captured.final[captured.prompt.readout]
    return Trajectory(cut, rows, _others(captured, rows), inputs, captured.keys[cut:], captured.values[cut:], final)


def closed_trajectory(model: ProbedModel, captured: Capture, cut: int) -> Trajectory:
    """All gates at 0: text without any visual token, and every visual token by itself beside it.

    What a visual token sees of another is of second order in the gates, so derivatives flow through text alone.
    """
    gates = _equal_gates(visual_mask(captured), -math.inf)
    return _propagate(model, captured, cut, closed_steps(captured, cut), gates, closed_rows(captured, cut))


def path_trajectory(model: ProbedModel, captured: Capture, cut: int, log_gate: float) -> Trajectory:
    """All gates at one value between 0 and 1, given as its logarithm."""
    rows = open_rows(captured, cut)
    gates = _equal_gates(visual_mask(captured), log_gate)
    return _propagate(model, captured, cut, _steps(captured, rows, _others(captured, rows)), gates, rows)


def open_rows(captured: Capture, cut: int) -> torch.Tensor:
    """(row,) long, positions through which derivatives flow where all gates are 1."""
    return _places(_reached(captured, cut))


def closed_rows(captured: Capture, cut: int) -> torch.Tensor:
    """(row,) long, positions through which derivatives flow where all gates are 0."""
    return _places(_reached(captured, cut) & ~visual_mask(captured))


def closed_steps(captured: Capture, cut: int) -> list[Step]:
    """What `closed_trajectory` runs in every layer: text first, since a visual token may see it, never the reverse."""
    visual = visual_mask(captured)
    steps = _steps(captured, closed_rows(captured, cut), _places(~_reached(captured, cut)))
    tokens, text = _places(visual), _places(~visual)
    return steps + [Step(part, text, True) for part in tokens.split(_rows_at_once(captured))]


def parts_of(captured: Capture, n: int) -> list[Part]:
    """Rows in parts that bound the scores: one after the other, or, where rows see later ones, keys and values first.

    Args:
        captured: one prompt.
        n: how many rows run.
    """
    size = _rows_at_once(captured)
    places = [slice(at, min(at + size, n)) for at in range(0, n, size)]
    if captured.in_order or len(places) == 1:
        return [Part(at, slice(0, at.start), True) for at in places]
    return [Part(at, None, True) for at in places] + [Part(at, slice(0, n), False) for at in places]


def _rows_at_once(captured: Capture) -> int:
    return max(1, CHUNK_PAIRS // captured.prompt.n_tokens)


def run_gated_layer(
    model: ProbedModel,
    captured: Capture,
    k: int,
    states: torch.Tensor,
    step: Step,
    seen: Sequence[torch.Tensor],
    gates: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Layer k on the rows at some positions.

    Args:
        model: the captured model.
        captured: one prompt.
        k: the layer.
        states: (row, hidden) its input.
        step: the rows, and what they may see.
        seen: keys and values of its context, (key head, column, head_dim).
        gates: (token,) log gates.

    Returns:
        (row, hidden) output unless only keys and values are asked for; and the rows' own keys and values,
        (key head, row, head_dim), unless they were known.
    """
    if step.context is None:
        return tuple(part[0] for part in keys_and_values(model, captured, k, states[None], step.rows[None]))
    columns = torch.cat([step.context, step.rows]) if step.own else step.context
    cache = (_KeepingContext if step.own else KnownContext)(*(part[None] for part in seen))
    mask = _bias(captured.arguments[k]["attention_mask"], step.rows, columns, gates, states.dtype)
    output = call_layer(model, captured, k, states[None], step.rows[None], mask, cache)[0]
    added = captured.additions.get(k)
    output = output if added is None else output + added[step.rows]
    return (output, *cache.kept) if isinstance(cache, _KeepingContext) else (output,)


@torch.no_grad()
def _propagate(
    model: ProbedModel,
    captured: Capture,
    cut: int,
    steps: Sequence[Step],
    gates: torch.Tensor,
    rows: torch.Tensor,
) -> Trajectory:
    """Run the layers from `cut` on under (token,) log gates, in steps; derivatives will flow through `rows`."""
    states = captured.inputs[cut]
    inputs, all_keys, all_values = [], [], []
    for k in range(cut, model.n_layers):
        inputs.append(states[rows])
        following, keys, values = states.clone(), captured.keys[k].clone(), captured.values[k].clone()
        for step in steps:
            seen = [] if step.context is None else [part[:, step.context] for part in (keys, values)]
            found = run_gated_layer(model, captured, k, states[step.rows], step, seen, gates)
            if step.own:
                keys[:, step.rows], values[:, step.rows] = found[-2:]
            if step.context is not None:
                following[step.rows] = found[0]
        states = following
        all_keys.append(keys)
        all_values.append(values)
    final = states[captured.prompt.readout]
    return Trajectory(cut, rows, _others(captured, rows), inputs, all_keys, all_values, final)


def _others(captured: Capture, rows: torch.Tensor) -> torch.Tensor:
    """(column,) long, all positions but these."""
    rest = torch.ones(captured.prompt.n_tokens, dtype=torch.bool, device=rows.device)
    rest[rows] = False
    return _places(rest)


def _steps(captured: Capture, rows: torch.Tensor, fixed: torch.Tensor) -> list[Step]:
    """Rows in parts, each with the fixed columns and the rows that it sees."""
    return [step_of(part, rows, fixed) for part in parts_of(captured, len(rows))]


def step_of(part: Part, rows: torch.Tensor, fixed: torch.Tensor) -> Step:
    """A part of (row,) positions that also see the (column,) fixed ones."""
    context = None if part.seen is None else torch.cat([fixed, rows[part.seen]])
    return Step(rows[part.rows], context, part.own)


def _reached(captured: Capture, cut: int) -> torch.Tensor:
    """(token,) bool: visual tokens, whatever sees one from the cut on, and where the answer is read."""
    affected = affected_rows(captured.arguments[cut:], visual_mask(captured))
    affected[captured.prompt.readout] = True
    return affected


def _bias(
    mask: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, gates: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(1, 1, row, column) added to the scores: log gates where the captured mask lets see, but for oneself."""
    allowed = columns <= rows[:, None] if mask is None else visible_at(mask, rows[:, None], columns)
    lowest = torch.finfo(dtype).min
    bias = gates[columns].to(dtype).clamp(min=lowest).masked_fill(columns == rows[:, None], 0.0)
    return bias.masked_fill(~allowed, lowest)[None, None]


def _equal_gates(visual: torch.Tensor, log_gate: float) -> torch.Tensor:
    """(token,) log gates: one value for all visual tokens, 0 for text."""
    return torch.zeros(len(visual), dtype=torch.float64, device=visual.device).masked_fill(visual, log_gate)


def _places(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero()[:, 0]
