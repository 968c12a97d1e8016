"""First-order effects of every visual token, from one backward pass instead of one replay for each token.

With g_v the gate of visual token v (`probes.gates.trajectories`), the same in every layer from the
cut k on, and m = log p,

    leave-one-out: D_k(v) = m(all) - m(all but v from k)        ~ dm/dg_v where all gates are 1,
    keep-one:      I_k(v) = m(only v from k) - m(none from k)   ~ dm/dg_v where all gates are 0.

A gate has a derivative of its own in each layer; one pass at gates 1 gives them all, and their sum over the layers >= k
is that of cut k. At gates 0 visual tokens do not see each other from k on, so every cut takes a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from analyses.runs import METHOD_TABLE, HorizonError, check_grid_method
from probes.gates.trajectories import (
    Part,
    Trajectory,
    closed_trajectory,
    open_trajectory,
    parts_of,
    run_gated_layer,
    step_of,
)
from probes.models.grids import Window
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.capture import Capture
from probes.replay.readout import read_out

# Log 0 is no number, so derivatives at gate 0 are taken at these log gates: the derivative by log g, divided by g, is
# that at 0 unless a row prefers a visual token to all its text by more than 1 / g. The first gate allows e^80, which
# trained models reach, but float32 and bfloat16 end at e^-87: the effects of tokens that underflow there are taken at
# the second gate, with all other gates shut.
LOG_GATES = (-80.0, -40.0)
# Derivatives are scaled up by this in float16, which has no small numbers.
HALF_SCALE = 1024.0


def check_method(
    method: str,
    kind: str,
    contexts: Sequence[str],
    dtype: torch.dtype,
    coarse: int | None = None,
    tokens: str = "visual",
) -> None:
    """Raise HorizonError unless token grids can be measured by this method, in these contexts and in this dtype."""
    check_grid_method(method, kind, tokens, coarse)
    if METHOD_TABLE[method].first_order:
        for context in contexts:
            _check_gated(context, dtype)


def _check_gated(context: str, dtype: torch.dtype) -> None:
    """Raise HorizonError unless gates have derivatives in this context and dtype."""
    if context not in GATED_CONTEXTS:
        raise HorizonError(f"method 'gate' has no derivatives for the context {context!r}: take the method 'exact'")
    if GATED_CONTEXTS[context].needs_range and dtype == torch.float16:
        raise HorizonError(
            f"{context} by method 'gate' needs smaller numbers than float16 has: load the model in bfloat16 or "
            "float32, or measure leave-one-out"
        )


def gate_effects(
    model: ProbedModel, captured: Capture, targets: Mapping[str, Target], context: str, cuts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return the first-order effect of every visual token at every cut.

    Args:
        model: the captured model.
        captured: its forward pass on one prompt.
        targets: the targets by name.
        context: keep-one or leave-one-out.
        cuts: the cuts in ascending order.

    Returns:
        By name of the target, (cut, visual token) estimates of I_k (keep-one) or D_k (leave-one-out), in nats of log p.

    Raises:
        HorizonError: a derivative is not finite in the model's precision.
    """
    by_cut = GATED_CONTEXTS[context].effects(model, captured, list(targets.values()), cuts)
    return {name: effects.cpu().numpy() for name, effects in zip(targets, by_cut, strict=True)}


def path_derivatives(
    model: ProbedModel, captured: Capture, target: Target, path: Trajectory, log_gate: float
) -> np.ndarray:
    """Return the derivative of log p in nats by each token's log gate, (visual token,), where all gates are equal.

    A token has the same gate in all layers from the cut on, so its derivatives by the gate of each layer are summed.
    """
    by_layer = derivatives(model, captured, [target], path, _equal_gates(captured, log_gate))
    return by_layer[0].sum(0).cpu().numpy()


@torch.no_grad()
def log_p_at(model: ProbedModel, target: Target, path: Trajectory) -> float:
    """Return log p of the target in nats, under the gates of a trajectory."""
    return float(target.log_p(_log_probs(model, path.final)))


def sum_windows(effects: np.ndarray, visual: torch.Tensor, windows: Sequence[Window]) -> np.ndarray:
    """Return first-order effects of windows, (..., window), as sums of the (..., visual token) effects."""
    columns = {position: column for column, position in enumerate(visual.tolist())}
    return np.stack([effects[..., [columns[p] for p in window.positions]].sum(-1) for window in windows], axis=-1)


def derivatives(
    model: ProbedModel, captured: Capture, targets: Sequence[Target], path: Trajectory, gates: torch.Tensor
) -> torch.Tensor:
    """Return the derivatives of log p, in nats, by the log gate of every visual token in every layer.

    They are taken layer by layer from the last down, each run again from its stored input, so that memory is that of
    one layer.

    Args:
        model: the captured model.
        captured: one prompt.
        targets: the targets whose log p is differentiated.
        path: the states that the layers compute under the gates.
        gates: (visual token,) float64 log gates, the same in every layer; a gate of -inf is shut.

    Returns:
        The derivatives, (target, layer, visual token) float64, from layer `path.cut` on.

    Raises:
        HorizonError: a derivative is not finite in the model's precision.
    """
    scale = HALF_SCALE if model.dtype == torch.float16 else 1.0
    with _frozen(model.model), torch.enable_grad():
        gradient = _at_the_end(model, captured, targets, path) * scale
        by_gates = []
        for k in reversed(range(path.cut, model.n_layers)):
            gradient, by_gate = _through_layer(model, captured, path, k, gradient, gates)
            by_gates.append(by_gate)
    by_layer = torch.stack(by_gates[::-1], 1) / scale
    if not torch.isfinite(by_layer).all():
        raise HorizonError(f"first-order effects of {model.name!r} are not finite in {model.dtype}: load it in float32")
    return by_layer


def _equal_gates(captured: Capture, log_gate: float) -> torch.Tensor:
    """Return one log gate for every visual token, (visual token,) float64."""
    visual = captured.prompt.visual
    return torch.full((len(visual),), log_gate, dtype=torch.float64, device=visual.device)


def _at_zero(model: ProbedModel, captured: Capture, targets: Sequence[Target], cut: int) -> torch.Tensor:
    """Return the derivative of log p by the gates where all are 0, (target, visual token), in nats."""
    closed = closed_trajectory(model, captured, cut)
    first, second = LOG_GATES
    effects = derivatives(model, captured, targets, closed, _equal_gates(captured, first)).sum(1) * math.exp(-first)
    underflow = effects.abs() < 1.0
    retry_gates = torch.where(underflow.any(0), second, -math.inf).to(effects)
    retry_effects = derivatives(model, captured, targets, closed, retry_gates).sum(1) * math.exp(-second)
    return torch.where(underflow, retry_effects, effects)


def _all_open(model: ProbedModel, captured: Capture, targets: Sequence[Target], cuts: Sequence[int]) -> torch.Tensor:
    """Return the derivative of log p by the gates where all are 1, (target, cut, visual token), in nats.

    That of a cut is the sum over the layers from it on.
    """
    by_layer = derivatives(model, captured, targets, open_trajectory(captured, cuts[0]), _equal_gates(captured, 0.0))
    return by_layer.flip(1).cumsum(1).flip(1)[:, [k - cuts[0] for k in cuts]]


def _all_shut(model: ProbedModel, captured: Capture, targets: Sequence[Target], cuts: Sequence[int]) -> torch.Tensor:
    """(target, cut, visual token) derivative where all gates are 0: a pass of its own for every cut."""
    return torch.stack([_at_zero(model, captured, targets, k) for k in cuts], 1)


Effects = Callable[[ProbedModel, Capture, Sequence[Target], Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class GatedContext:
    """How the effects of one context are estimated by gates.

    Attributes:
        effects: the function that returns (target, cut, visual token) effects in nats, from the model, a capture,
            targets and ascending cuts.
        needs_range: whether the estimate needs smaller numbers than float16 has.
        one_pass: whether one pass, from the first cut on, gives the effects at all cuts; else every cut takes its own.
    """

    effects: Effects
    needs_range: bool
    one_pass: bool


GATED_CONTEXTS = {
    "keep-one": GatedContext(_all_shut, needs_range=True, one_pass=False),
    "leave-one-out": GatedContext(_all_open, needs_range=False, one_pass=True),
}


def _at_the_end(model: ProbedModel, captured: Capture, targets: Sequence[Target], path: Trajectory) -> torch.Tensor:
    """Return the derivative of log p by the output of the last layer, (target, row, hidden)."""
    final = path.final.detach().requires_grad_()
    log_probs = _log_probs(model, final)
    places = torch.searchsorted(path.rows, captured.prompt.readout)
    gradient = final.new_zeros(len(targets), len(path.rows), final.shape[-1])
    for i, target in enumerate(targets):
        (gradient[i, places],) = torch.autograd.grad(target.log_p(log_probs), final, retain_graph=True)
    return gradient


def _log_probs(model: ProbedModel, final: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax, (place, vocabulary), of (place, hidden) inputs of the final norm."""
    return read_out(model, final[None])[0]


def _through_layer(
    model: ProbedModel,
    captured: Capture,
    path: Trajectory,
    k: int,
    gradient: torch.Tensor,
    gates: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return derivatives by the input of layer k, (target, row, hidden), and by its log gates, (target, visual token).

    They follow from `gradient`, the derivatives by the layer's output. Later parts come first, so that a row's turn
    comes when the derivatives by its keys and values through all other rows are summed.
    """
    cache = path.keys[k - path.cut], path.values[k - path.cut]
    visual = captured.prompt.visual
    by_input = torch.zeros_like(gradient)
    by_cache = [torch.zeros_like(part[:, path.rows]).repeat(len(gradient), 1, 1, 1) for part in cache]
    by_gate = gates.new_zeros(len(gradient), len(visual))
    for part in reversed(parts_of(captured, len(path.rows))):
        leaves, outputs = _differentiable(model, captured, path, k, part, gates)
        for i in range(len(gradient)):
            weights = [gradient[i, part.rows]] if part.seen is not None else []
            weights += [total[i][:, part.rows] for total in by_cache] if part.own else []
            gradients = torch.autograd.grad(outputs, leaves, weights, retain_graph=i < len(gradient) - 1)
            by_input[i, part.rows] += gradients[0]
            if part.seen is not None:
                for total, share in zip(by_cache, gradients[1:3], strict=True):
                    total[i][:, part.seen] += share
                by_gate[i] += gradients[3]
    return by_input, by_gate


def _differentiable(
    model: ProbedModel, captured: Capture, path: Trajectory, k: int, part: Part, gates: torch.Tensor
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Return the leaves to differentiate by, and the outputs of layer k for the rows of a part.

    The leaves are the rows' input, the keys and values of the rows that they see, and the log gates; where only keys
    and values are computed, the input alone.
    """
    cache, visual = (path.keys[k - path.cut], path.values[k - path.cut]), captured.prompt.visual
    step, states = step_of(part, path.rows, path.fixed), path.inputs[k - path.cut][part.rows]
    if part.seen is None:
        leaves = [states.detach().requires_grad_()]
        return leaves, run_gated_layer(model, captured, k, leaves[0], step, [], gates)
    leaves = [states, *(projections[:, path.rows[part.seen]] for projections in cache), gates]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    context = [
        torch.cat([projections[:, path.fixed], leaf], 1) for projections, leaf in zip(cache, leaves[1:3], strict=True)
    ]
    by_token = gates.new_zeros(captured.prompt.n_tokens).index_put((visual,), leaves[3])
    return leaves, run_gated_layer(model, captured, k, leaves[0], step, context, by_token)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Turn derivatives by the weights off for a while, since they would double the cost."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()
