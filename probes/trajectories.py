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

from probes.capture import Capture
from probes.models import ProbedModel
from probes.replay import FrozenContext, visual_mask
from probes.visibility import affected_rows, in_order, visible

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


class _Recorder(FrozenContext):
    """Also keeps the keys and values that a layer computes of the rows at hand."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, head, row, dim) of the rows at hand -> the same with the context's rows in front."""
        self.own = keys[0], values[0]
        return super().update(keys, values)


def open_trajectory(captured: Capture, cut: int) -> Trajectory:
    """All gates at 1: the capture itself."""
    affected = _reached(captured, cut)
    rows, fixed = _places(affected), _places(~affected)
    inputs = [states[rows] for states in captured.inputs[cut:]]
    final = captured.final[captured.prompt.readout]
    return Trajectory(cut, rows, fixed, inputs, captured.keys[cut:], captured.values[cut:], final)


def closed_trajectory(model: ProbedModel, captured: Capture, cut: int) -> Trajectory:
    """All gates at 0: text without any visual token, and every visual token by itself beside it.

    What a visual token sees of another is of second order in the gates, so derivatives flow through text alone.
    """
    visual, affected = visual_mask(captured), _reached(captured, cut)
    text, tokens = _places(affected & ~visual), _places(visual)
    steps = _steps(captured, cut, text, _places(~affected))  # text first: a visual token may see it, never the reverse
    steps += [(tokens[part], _places(~visual)) for part, _ in consecutive_parts(captured, cut, tokens)]
    return _propagate(model, captured, cut, steps, _equal_gates(visual, -math.inf), text)


def path_trajectory(model: ProbedModel, captured: Capture, cut: int, log_gate: float) -> Trajectory:
    """All gates at one value between 0 and 1, given as its logarithm."""
    affected = _reached(captured, cut)
    steps = _steps(captured, cut, _places(affected), _places(~affected))
    gates = _equal_gates(visual_mask(captured), log_gate)
    return _propagate(model, captured, cut, steps, gates, _places(affected))


def consecutive_parts(captured: Capture, cut: int, rows: torch.Tensor) -> list[tuple[slice, slice]]:
    """Rows to run together, and all those before; all rows at once where earlier ones see later ones."""
    size = max(1, CHUNK_PAIRS // captured.prompt.n_tokens) if in_order(captured.arguments[cut:]) else len(rows)
    return [(slice(at, at + size), slice(0, at)) for at in range(0, len(rows), max(1, size))]


def run_layer(
    model: ProbedModel,
    captured: Capture,
    k: int,
    states: torch.Tensor,
    rows: torch.Tensor,
    context: torch.Tensor,
    seen: Sequence[torch.Tensor],
    gates: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer k on the rows at some positions.

    Args:
        model: the captured model.
        captured: one prompt.
        k: the layer.
        states: (row, hidden) its input.
        rows: (row,) their positions.
        context: (column,) positions that they may see besides themselves.
        seen: keys and values there, (key head, column, head_dim).
        gates: (token,) log gates.

    Returns:
        (row, hidden) output, and the rows' own keys and values, (key head, row, head_dim).
    """
    arguments = dict(captured.arguments[k])
    cos, sin = (part[:, rows] for part in arguments["position_embeddings"])
    recorder = _Recorder(*(part[None] for part in seen))
    # As in replays: the rotary embedding carries the positions.
    arguments.update(
        position_embeddings=(cos, sin),
        attention_mask=_bias(arguments["attention_mask"], rows, context, gates, states.dtype),
        past_key_values=recorder,
        position_ids=None,
    )
    output = model.layers[k](states[None], **arguments)
    output = (output[0] if isinstance(output, tuple) else output)[0]
    added = captured.additions.get(k)
    return output if added is None else output + added[rows], *recorder.own


@torch.no_grad()
def _propagate(
    model: ProbedModel,
    captured: Capture,
    cut: int,
    steps: Sequence[tuple[torch.Tensor, torch.Tensor]],
    gates: torch.Tensor,
    rows: torch.Tensor,
) -> Trajectory:
    """Run the layers from `cut` on under (token,) log gates, in steps of (positions run, positions they may see)."""
    states = captured.inputs[cut]
    inputs, all_keys, all_values = [], [], []
    for k in range(cut, model.n_layers):
        inputs.append(states[rows])
        following, keys, values = states.clone(), captured.keys[k].clone(), captured.values[k].clone()
        for part, context in steps:
            seen = keys[:, context], values[:, context]
            output, own_keys, own_values = run_layer(model, captured, k, states[part], part, context, seen, gates)
            following[part], keys[:, part], values[:, part] = output, own_keys, own_values
        states = following
        all_keys.append(keys)
        all_values.append(values)
    rest = torch.ones(captured.prompt.n_tokens, dtype=torch.bool, device=rows.device)
    rest[rows] = False
    return Trajectory(cut, rows, _places(rest), inputs, all_keys, all_values, states[captured.prompt.readout])


def _steps(
    captured: Capture, cut: int, rows: torch.Tensor, context: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows in parts, each with the context and the rows before it."""
    parts = consecutive_parts(captured, cut, rows)
    return [(rows[part], torch.cat([context, rows[before]])) for part, before in parts]


def _reached(captured: Capture, cut: int) -> torch.Tensor:
    """(token,) bool: visual tokens, whatever sees one from the cut on, and where the answer is read."""
    affected = affected_rows(captured.arguments[cut:], visual_mask(captured))
    affected[captured.prompt.readout] = True
    return affected


def _bias(
    mask: torch.Tensor | None, rows: torch.Tensor, context: torch.Tensor, gates: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(1, 1, row, context + row) added to the scores: log gates where the captured mask lets see, but for oneself."""
    columns, matrix = torch.cat([context, rows]), visible(mask)
    allowed = columns <= rows[:, None] if matrix is None else matrix[rows][:, columns]
    lowest = torch.finfo(dtype).min
    bias = gates[columns].to(dtype).clamp(min=lowest).masked_fill(columns == rows[:, None], 0.0)
    return bias.masked_fill(~allowed, lowest)[None, None]


def _equal_gates(visual: torch.Tensor, log_gate: float) -> torch.Tensor:
    """(token,) log gates: one value for all visual tokens, 0 for text."""
    return torch.zeros(len(visual), dtype=torch.float64, device=visual.device).masked_fill(visual, log_gate)


def _places(mask: torch.Tensor) -> torch.Tensor:
    return mask.nonzero()[:, 0]
