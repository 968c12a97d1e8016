"""Forward passes from a cut on under gates, kept so that derivatives can be taken layer by layer.

The gate g_v in 0..1 of visual token v multiplies the numerator that its key gets in the softmax, for every row but its
own: log g_v is added to column v of the attention scores, except on the diagonal. At g_v = 0 no other row sees v: it is
deleted. With all gates at 1 the model is unchanged.
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
    """The states that the layers from a cut on compute under some gates. Positions count tokens of the prompt.

    Attributes:
        cut: the first of these layers.
        rows: (row,) long, positions through which derivatives flow, ascending.
        fixed: (column,) long, positions whose keys and values no gate changes to first order.
        inputs: for each layer, its (row, hidden) input.
        keys, values: for each layer, a (key head, token, head_dim) tensor each.
        final: (place, hidden), the input of the final norm at the readout positions.
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
        rows: the slice of these rows.
        seen: the rows whose keys and values exist before these run; None where only keys and values are computed.
        own: whether these rows' own keys and values are computed with them; if not, they exist already.
    """

    rows: slice
    seen: slice | None
    own: bool


@dataclass(frozen=True)
class Step:
    """Rows that run together in every layer, by their positions.

    Attributes:
        rows: (row,) long, positions of the rows.
        context: (column,) long, positions that they may see; None where only keys and values are computed.
        own: whether their own keys and values are computed with them, and visible besides the context.
    """

    rows: torch.Tensor
    context: torch.Tensor | None
    own: bool


class _KeepingContext(FrozenContext):
    """A frozen context that also stores the keys and values that a layer computes of the rows that run."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' keys and values, (1, head, row, dim), with the context's columns in front."""
        self.row_pair = keys[0], values[0]
        return super().update(keys, values)


def open_trajectory(captured: Capture, cut: int) -> Trajectory:
    """Return the trajectory with all gates at 1, which is the capture itself."""
    rows = open_rows(captured, cut)
    inputs = [states[rows] for states in captured.inputs[cut:]]
    final = captured.final[captured.prompt.readout]
    return Trajectory(cut, rows, _complement(captured, rows), inputs, captured.keys[cut:], captured.values[cut:], final)


def closed_trajectory(model: ProbedModel, captured: Capture, cut: int) -> Trajectory:
    """Return the trajectory with all gates at 0, where text sees no visual token and no visual token another.

    What one visual token sees of another is of second order in the gates, so derivatives flow through text alone.
    """
    gates = _equal_gates(visual_mask(captured), -math.inf)
    return _propagate(model, captured, cut, closed_steps(captured, cut), gates, closed_rows(captured, cut))


def path_trajectory(model: ProbedModel, captured: Capture, cut: int, log_gate: float) -> Trajectory:
    """Return the trajectory with all gates at one value between 0 and 1; `log_gate` is its logarithm."""
    rows = open_rows(captured, cut)
    gates = _equal_gates(visual_mask(captured), log_gate)
    return _propagate(model, captured, cut, _steps(captured, rows, _complement(captured, rows)), gates, rows)


def open_rows(captured: Capture, cut: int) -> torch.Tensor:
    """Return the positions through which derivatives flow where all gates are 1, (row,) long."""
    return _places(_reached(captured, cut))


def closed_rows(captured: Capture, cut: int) -> torch.Tensor:
    """Return the positions through which derivatives flow where all gates are 0, (row,) long."""
    return _places(_reached(captured, cut) & ~visual_mask(captured))


def closed_steps(captured: Capture, cut: int) -> list[Step]:
    """Return the steps of `closed_trajectory` in every layer: text first, since a visual token may see it."""
    visual = visual_mask(captured)
    steps = _steps(captured, closed_rows(captured, cut), _places(~_reached(captured, cut)))
    tokens, text = _places(visual), _places(~visual)
    return steps + [Step(part, text, True) for part in tokens.split(_rows_at_once(captured))]


def parts_of(captured: Capture, n: int) -> list[Part]:
    """Return parts of n rows that bound the size of the attention scores.

    Parts follow one another; where rows see later ones, the keys and values of all parts come first.

    Args:
        captured: one prompt.
        n: number of rows that run.
    """
    size = _rows_at_once(captured)
    spans = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    if captured.in_order or len(spans) == 1:
        return [Part(span, slice(0, span.start), True) for span in spans]
    return [Part(span, None, True) for span in spans] + [Part(span, slice(0, n), False) for span in spans]


def _rows_at_once(captured: Capture) -> int:
    """Return how many rows one call of a layer runs, at least 1."""
    return max(1, CHUNK_PAIRS // captured.prompt.n_tokens)


def run_gated_layer(
    model: ProbedModel,
    captured: Capture,
    k: int,
    states: torch.Tensor,
    step: Step,
    context: Sequence[torch.Tensor],
    gates: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Return the output of layer k for the rows of a step.

    Args:
        model: the captured model.
        captured: one prompt.
        k: the layer.
        states: (row, hidden), the layer's input.
        step: the rows, and the positions that they may see.
        context: keys and values of the step's context, (key head, column, head_dim) each.
        gates: (token,) log gates.

    Returns:
        The output, (row, hidden), unless the step computes only keys and values; then the rows' own keys and values,
        (key head, row, head_dim) each, if the step computes them.
    """
    if step.context is None:
        return tuple(part[0] for part in keys_and_values(model, captured, k, states[None], step.rows[None]))
    columns = torch.cat([step.context, step.rows]) if step.own else step.context
    cache = (_KeepingContext if step.own else KnownContext)(*(part[None] for part in context))
    mask = _bias(captured.arguments[k]["attention_mask"], step.rows, columns, gates, states.dtype)
    output = call_layer(model, captured, k, states[None], step.rows[None], mask, cache)[0]
    addition = captured.additions.get(k)
    output = output if addition is None else output + addition[step.rows]
    return (output, *cache.row_pair) if isinstance(cache, _KeepingContext) else (output,)


@torch.no_grad()
def _propagate(
    model: ProbedModel,
    captured: Capture,
    cut: int,
    steps: Sequence[Step],
    gates: torch.Tensor,
    rows: torch.Tensor,
) -> Trajectory:
    """Return the trajectory of the layers from `cut` on under (token,) log gates, run in steps.

    The trajectory stores the inputs of `rows`, through which derivatives will flow.
    """
    states = captured.inputs[cut]
    inputs, all_keys, all_values = [], [], []
    for k in range(cut, model.n_layers):
        inputs.append(states[rows])
        next_states, keys, values = states.clone(), captured.keys[k].clone(), captured.values[k].clone()
        for step in steps:
            context = [] if step.context is None else [part[:, step.context] for part in (keys, values)]
            outputs = run_gated_layer(model, captured, k, states[step.rows], step, context, gates)
            if step.own:
                keys[:, step.rows], values[:, step.rows] = outputs[-2:]
            if step.context is not None:
                next_states[step.rows] = outputs[0]
        states = next_states
        all_keys.append(keys)
        all_values.append(values)
    final = states[captured.prompt.readout]
    return Trajectory(cut, rows, _complement(captured, rows), inputs, all_keys, all_values, final)


def _complement(captured: Capture, rows: torch.Tensor) -> torch.Tensor:
    """Return all positions of the prompt except these rows, (column,) long."""
    mask = torch.ones(captured.prompt.n_tokens, dtype=torch.bool, device=rows.device)
    mask[rows] = False
    return _places(mask)


def _steps(captured: Capture, rows: torch.Tensor, fixed: torch.Tensor) -> list[Step]:
    """Return a step for each part of the rows, with the fixed columns and the rows that the part sees."""
    return [step_of(part, rows, fixed) for part in parts_of(captured, len(rows))]


def step_of(part: Part, rows: torch.Tensor, fixed: torch.Tensor) -> Step:
    """Return the step of a part of the (row,) positions, which also sees the (column,) fixed positions."""
    context = None if part.seen is None else torch.cat([fixed, rows[part.seen]])
    return Step(rows[part.rows], context, part.own)


def _reached(captured: Capture, cut: int) -> torch.Tensor:
    """Return which tokens the gates reach, (token,) bool: visual ones, all that see one, and the readout positions."""
    affected = affected_rows(captured.arguments[cut:], visual_mask(captured))
    affected[captured.prompt.readout] = True
    return affected


def _bias(
    mask: torch.Tensor | None, rows: torch.Tensor, columns: torch.Tensor, gates: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the bias of the scores, (1, 1, row, column): log gates where the captured mask allows, 0 for oneself."""
    allowed = columns <= rows[:, None] if mask is None else visible_at(mask, rows[:, None], columns)
    lowest = torch.finfo(dtype).min
    bias = gates[columns].to(dtype).clamp(min=lowest).masked_fill(columns == rows[:, None], 0.0)
    return bias.masked_fill(~allowed, lowest)[None, None]


def _equal_gates(visual: torch.Tensor, log_gate: float) -> torch.Tensor:
    """Return log gates of all tokens, (token,) float64: one value for visual tokens, 0 for text."""
    return torch.zeros(len(visual), dtype=torch.float64, device=visual.device).masked_fill(visual, log_gate)


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions at which a (token,) bool mask is true, ascending."""
    return mask.nonzero()[:, 0]
