"""The noise floor: how far exact replays stray from the model by rounding alone.

What rounding does depends on the processor and on the shape of a batch, so most of it is measured: nothing removed
from four layers, against the model's own forward, and a few ablations of every set that is measured, the *witnesses*,
again alone. How many they are, and from which layers, follows from the layers and windows before anything is run.
Beneath what they show lies a bound by dtype and by the size of the logits, since a few witnesses may agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.data.samples import SampleError
from probes.measures.information import InformationGrid, RemovalCurve
from probes.models.probed import ProbedModel
from probes.models.prompts import removable_windows
from probes.models.targets import Target
from probes.replay.ablations import Ablations, as_numpy, kl_divergence, removal_ablations, window_ablations
from probes.replay.capture import Capture
from probes.replay.readout import read_logits
from probes.replay.replay import replay

# An unablated replay further off than this is no rounding: the model does something between layers that replays miss.
REPLAY_TOLERANCE = 0.05
ABLATIONS_A_WITNESS = 50  # of a token grid; null replays come on top, and both stay below 5 % of its operations
FEWEST_WITNESSES, MOST_WITNESSES = 4, 12  # of a token grid
REMOVAL_WITNESSES = 2  # of a removal curve
WITNESS_MARGIN = 2.0  # times the largest of 4 (6, 12) normal deviations holds 96 (98, 99.7) % of further ones
NULL_REPLAYS = 4


@dataclass(frozen=True)
class NoiseFloor:
    """How far exact replays of one sample stray from the model by rounding alone: in p, log p (nats) and KL (nats)."""

    p: float
    log_p: float
    kl: float

    def or_larger(self, other: NoiseFloor) -> NoiseFloor:
        """Return the larger of two floors in each measure."""
        return NoiseFloor(max(self.p, other.p), max(self.log_p, other.log_p), max(self.kl, other.kl))


@dataclass(frozen=True)
class Witness:
    """One ablation that is to be measured again, alone in its batch.

    Attributes:
        ablation: the ablation.
        log_p: log p of the target as measured in the batch that was used, in nats.
        kl: the divergence from the model as measured there, in nats; None where it was not measured.
    """

    ablation: Ablations
    log_p: float
    kl: float | None = None


def removal_witness_layers(cuts: Sequence[int]) -> list[int]:
    """Return as many cuts as a removal curve has witnesses, evenly spread: the actual ones depend on the data."""
    return _spread(cuts, min(len(cuts), REMOVAL_WITNESSES))


def grid_witness_layers(cuts: Sequence[int], n_windows: int) -> list[int]:
    """Return the cut of each witness of a token grid, ascending and evenly spread over the grid's cuts.

    >>> grid_witness_layers(range(8), 64)
    [0, 1, 2, 2, 3, 4, 5, 5, 6, 7]
    """
    ablations = len(cuts) * n_windows
    lower, upper = (min(bound, ablations) for bound in (FEWEST_WITNESSES, MOST_WITNESSES))
    return _spread(cuts, min(upper, max(lower, ablations // ABLATIONS_A_WITNESS)))


def _spread(cuts: Sequence[int], count: int) -> list[int]:
    """Return `count` of the cuts, evenly spread from the first to the last; cuts repeat where there are too few."""
    return [cuts[round(place)] for place in np.linspace(0, len(cuts) - 1, count)]


def removal_witnesses(captured: Capture, curve: RemovalCurve) -> list[Witness]:
    """Return a curve's witnesses: the removal whose p rounding moves most, and then that of the largest divergence."""
    log_p, kl = curve.log_p[:-1], curve.kl[:-1]
    order = list(dict.fromkeys([*_by_sensitivity(log_p)[:1], *np.argsort(-kl, kind="stable").tolist()]))
    return [
        Witness(
            removal_ablations(captured, [int(curve.layers[at])], curve.kind),
            float(log_p[at]),
            float(kl[at]),
        )
        for at in order[:REMOVAL_WITNESSES]
    ]


def grid_witnesses(captured: Capture, grid: InformationGrid, window: int, kind: str) -> list[Witness]:
    """Return a token grid's witnesses: at each of its `grid_witness_layers` the ablation that rounding moves most.

    A layer named twice gives its next one too. Where a layer has too few ablations (coarse windows), the most
    sensitive ones of the other layers take their place.
    """
    layers = grid_witness_layers(grid.layers.tolist(), grid.log_p.shape[1])
    order = [(int(at) // grid.log_p.shape[1], int(at) % grid.log_p.shape[1]) for at in _by_sensitivity(grid.log_p)]
    cells: list[tuple[int, int]] = []
    for layer in [*layers, *[None] * len(layers)]:
        if len(cells) < len(layers):
            candidates = (cell for cell in order if cell not in cells and layer in (None, grid.layers[cell[0]]))
            cells += [cell] if (cell := next(candidates, None)) is not None else []
    windows = removable_windows(captured.prompt, window)
    return [
        Witness(
            window_ablations(captured, windows[place : place + 1], grid.context, [int(grid.layers[layer])], kind),
            float(grid.log_p[layer, place]),
        )
        for layer, place in sorted(cells)
    ]


def _by_sensitivity(log_p: np.ndarray) -> list[int]:
    """Return flat indices of the finite values, p nearest to 1/2 first: near 0 or 1 errors in logits hardly move p."""
    order = np.argsort(np.abs(np.exp(log_p) - 0.5), axis=None, kind="stable")
    return order[: int((~np.isnan(log_p)).sum())].tolist()


def noise_floor(
    model: ProbedModel, captured: Capture, target: Target, witnesses: Sequence[Witness], *, rows: int
) -> NoiseFloor:
    """Return the largest of three: two kinds of deviations that exact arithmetic would make zero, and a bound.

    The first are the deviations of unablated replays from the model's own forward pass: from four layers spread over
    the depth, over as many rows as an ablation computes. The second are twice the deviations of witnesses computed
    alone from the same in their batches, twice because a few stand for many. The third is `rounding_bound`.

    Args:
        model: the model, as `load_model` returns it.
        captured: the captured sample.
        target: the target whose probability is measured.
        witnesses: ablations as measured in the batches in use.
        rows: the number of tokens that the longest of the measured ablations computes.

    Raises:
        SampleError: replays do not reproduce the model, by more than rounding can explain.
    """
    unablated = captured.log_probs
    ablations, recompute = null_ablations(model, captured, rows)
    null = torch.cat([log_probs for _, log_probs in replay(model, captured, ablations, recompute=recompute)])
    null_deviations = _deviations(target, null, float(target.log_p(unablated)), unablated, 0.0)
    if not null_deviations[0] <= REPLAY_TOLERANCE:
        raise SampleError(
            f"replays of {model.name!r} miss its own output by {null_deviations[0]:.2g} in p with nothing removed: "
            "something happens between or inside its layers that replays do not see, so nothing is measured"
        )
    bound = rounding_bound(model, captured, max((witness.kl or 0.0 for witness in witnesses), default=0.0))
    deviations = [np.array((bound.p, bound.log_p, bound.kl)), np.array(null_deviations)]
    for witness in witnesses:
        _, log_probs = next(replay(model, captured, witness.ablation, batch_size=1))
        deviations.append(
            WITNESS_MARGIN * np.array(_deviations(target, log_probs, witness.log_p, unablated, witness.kl))
        )
    return NoiseFloor(*(float(value) for value in np.max(deviations, axis=0)))


@torch.no_grad()
def rounding_bound(model: ProbedModel, captured: Capture, kl: float) -> NoiseFloor:
    """What two orders of summation may make of one replay, by dtype and by the size of its logits.

    A row passes 2 L + 1 sums on its way: attention and feed-forward of each of L layers, and the output embedding.
    Each is rounded to half a unit in the last place, so that two computations differ by up to one, and what differs
    at random adds in quadrature: the logits z shift by d = eps |z| sqrt(2 L + 1), eps being that of float32, in which
    half precision is summed too. (What is then rounded to half precision agrees to the bit or differs by a step that
    is far larger, which is for the witnesses to show.) A shift of d moves log p by d (1 - p) <= d, p by d p (1 - p)
    <= d / 4, and KL, a sum of p (log p - log q), by d (1 + E|log p - log q|) <= d (1 + KL + sqrt(2 KL)), by Pinsker.

    Args:
        model: the model, as `load_model` returns it.
        captured: the captured sample.
        kl: the divergence whose rounding is to be bounded, in nats.
    """
    logits = read_logits(model, captured.final[captured.prompt.readout])
    shift = summation_eps(model.dtype) * float(logits.abs().max()) * math.sqrt(2 * model.n_layers + 1)
    return NoiseFloor(shift / 4, shift, shift * (1 + kl + math.sqrt(2 * kl)))


def summation_eps(dtype: torch.dtype) -> float:
    """Return the distance from 1 to the next number in the precision in which products of a dtype are summed."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def null_ablations(model: ProbedModel, captured: Capture, rows: int) -> tuple[Ablations, torch.Tensor]:
    """Return ablations that remove nothing, from four layers spread over the depth, and (token,) bool rows to compute.

    The rows are the last `rows` of the prompt: as many as an ablation in use computes. More would cost more than a
    sweep of removals itself, in which nothing before or inside the image is ever computed again.
    """
    spread = sorted({round(k) for k in np.linspace(0, model.n_layers - 1, NULL_REPLAYS)})
    n = captured.prompt.n_tokens
    recompute = torch.arange(n, device=model.device) >= n - rows
    return Ablations.at_every(spread, torch.zeros_like(recompute)[None]), recompute


def _deviations(
    target: Target, log_probs: torch.Tensor, log_p: float, unablated: torch.Tensor, kl: float | None
) -> tuple[float, float, float]:
    """Return the largest deviations of a second measurement from the first: in p, in log p and in KL (both in nats).

    Args:
        target: the target whose probability is measured.
        log_probs: (replay, place, vocabulary) log-softmax of the second measurement.
        log_p: log p of the target in the first, in nats.
        unablated: (place, vocabulary) log-softmax of the model itself, from which KL is taken.
        kl: the divergence in the first, in nats; None where it was not measured, which counts as no deviation.
    """
    log_p_now = as_numpy(target.log_p(log_probs))
    kl_deviation = (
        0.0
        if kl is None
        else float(np.abs(as_numpy(kl_divergence(log_probs[:, target.place], unablated[target.place])) - kl).max())
    )
    return float(np.abs(np.exp(log_p_now) - np.exp(log_p)).max()), float(np.abs(log_p_now - log_p).max()), kl_deviation
