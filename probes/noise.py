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

from probes.capture import Capture
from probes.information import (
    InformationGrid,
    RemovalCurve,
    as_numpy,
    kl_divergence,
    removal_ablations,
    window_ablations,
)
from probes.models import ProbedModel
from probes.prompts import removable_windows
from probes.readout import read_logits
from probes.replay import Ablations, replay
from probes.samples import SampleError
from probes.targets import Target

# An unablated replay further off than this is no rounding: the model does something between layers that replays miss.
REPLAY_TOLERANCE = 0.05
ABLATIONS_A_WITNESS = 50  # of a token grid; null replays come on top, and both stay below 5 % of its operations
FEWEST_WITNESSES, MOST_WITNESSES = 4, 12  # of a token grid
REMOVAL_WITNESSES = 2  # of a removal curve
WITNESS_MARGIN = 2.0  # times the largest of 4 (6, 12) normal deviations holds 96 (98, 99.7) % of further ones
NULL_REPLAYS = 4


@dataclass(frozen=True)
class NoiseFloor:
    """How far exact replays of one sample stray from the model by rounding alone, per measure (p, nats, nats)."""

    p: float
    log_p: float
    kl: float

    def or_larger(self, other: NoiseFloor) -> NoiseFloor:
        """The larger of the two in each measure."""
        return NoiseFloor(max(self.p, other.p), max(self.log_p, other.log_p), max(self.kl, other.kl))


@dataclass(frozen=True)
class Witness:
    """One ablation as measured in its batch, to be measured again alone."""

    ablation: Ablations
    log_p: float
    kl: float | None = None


def removal_witness_layers(cuts: Sequence[int]) -> list[int]:
    """As many cuts as a removal curve has witnesses, spread over all: which they will be lies in the data."""
    return _spread(cuts, min(len(cuts), REMOVAL_WITNESSES))


def grid_witness_layers(cuts: Sequence[int], n_windows: int) -> list[int]:
    """The cut of each witness of a token grid, ascending, spread over all of its cuts.

    >>> grid_witness_layers(range(8), 64)
    [0, 1, 2, 2, 3, 4, 5, 5, 6, 7]
    """
    ablations = len(cuts) * n_windows
    fewest, most = (min(bound, ablations) for bound in (FEWEST_WITNESSES, MOST_WITNESSES))
    return _spread(cuts, min(most, max(fewest, ablations // ABLATIONS_A_WITNESS)))


def _spread(cuts: Sequence[int], count: int) -> list[int]:
    """So many of the cuts, the first and the last among them; some of them twice where there are not enough."""
    return [cuts[round(place)] for place in np.linspace(0, len(cuts) - 1, count)]


def removal_witnesses(captured: Capture, curve: RemovalCurve) -> list[Witness]:
    """Of a curve, the removal whose p rounding moves most, and then the one with the largest divergence."""
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
    """The ablations of a token grid that rounding moves most: at each of its `grid_witness_layers` the next one.

    Where a layer reports too few (coarse windows), the most sensitive ones of the other layers take their place.
    """
    wanted = grid_witness_layers(grid.layers.tolist(), grid.log_p.shape[1])
    order = [(int(at) // grid.log_p.shape[1], int(at) % grid.log_p.shape[1]) for at in _by_sensitivity(grid.log_p)]
    chosen: list[tuple[int, int]] = []
    for layer in [*wanted, *[None] * len(wanted)]:
        if len(chosen) < len(wanted):
            left = (cell for cell in order if cell not in chosen and layer in (None, grid.layers[cell[0]]))
            chosen += [cell] if (cell := next(left, None)) is not None else []
    windows = removable_windows(captured.prompt, window)
    return [
        Witness(
            window_ablations(captured, windows[place : place + 1], grid.context, [int(grid.layers[layer])], kind),
            float(grid.log_p[layer, place]),
        )
        for layer, place in sorted(chosen)
    ]


def _by_sensitivity(log_p: np.ndarray) -> list[int]:
    """Flat indices of what was measured, p nearest to one half first: near 0 or 1 an error in logits hardly moves p."""
    order = np.argsort(np.abs(np.exp(log_p) - 0.5), axis=None, kind="stable")
    return order[: int((~np.isnan(log_p)).sum())].tolist()


def noise_floor(
    model: ProbedModel, captured: Capture, target: Target, witnesses: Sequence[Witness], *, rows: int
) -> NoiseFloor:
    """The largest of three: deviations of two kinds that exact arithmetic would make zero, and a bound beneath them.

    Unablated replays from four layers spread over the depth, of as many rows as an ablation runs, against the model's
    own forward; twice single ablations computed alone against the same in their batches, since a few stand for many;
    and `rounding_bound`.

    Args:
        model: as loaded.
        captured: one sample.
        target: whose probability is measured.
        witnesses: ablations as measured in the batches in use.
        rows: tokens that the longest of the measured ablations runs.

    Raises:
        SampleError: replays do not reproduce the model, by more than rounding can explain.
    """
    own = captured.log_probs
    null = _null_replays(model, captured, rows)
    far = _deviations(target, null, float(target.log_p(own)), own, 0.0)
    if not far[0] <= REPLAY_TOLERANCE:
        raise SampleError(
            f"replays of {model.name!r} miss its own output by {far[0]:.2g} in p with nothing removed: "
            "something happens between or inside its layers that replays do not see, so nothing is measured"
        )
    bound = rounding_bound(model, captured, max((witness.kl or 0.0 for witness in witnesses), default=0.0))
    spreads: list[tuple[float, ...]] = [(bound.p, bound.log_p, bound.kl), far]
    for witness in witnesses:
        _, alone = next(replay(model, captured, witness.ablation, batch_size=1))
        apart = _deviations(target, alone, witness.log_p, own, witness.kl)
        spreads.append(tuple(WITNESS_MARGIN * value for value in apart))
    return NoiseFloor(*(float(value) for value in np.max(spreads, axis=0)))


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
        model: as loaded.
        captured: one sample.
        kl: the divergence that is to be bounded, in nats.
    """
    logits = read_logits(model, captured.final[captured.prompt.readout])
    shift = summation_eps(model.dtype) * float(logits.abs().max()) * math.sqrt(2 * model.n_layers + 1)
    return NoiseFloor(shift / 4, shift, shift * (1 + kl + math.sqrt(2 * kl)))


def summation_eps(dtype: torch.dtype) -> float:
    """Distance of 1 to the next number, in the precision in which products of a dtype are summed."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


def null_ablations(model: ProbedModel, captured: Capture, rows: int) -> tuple[Ablations, torch.Tensor]:
    """Nothing removed from four layers spread over the depth, and the (token,) bool rows to run again regardless.

    These are the last `rows` of the prompt: as many as an ablation in use runs. More would cost more than a sweep of
    removals itself, in which nothing before or inside the image is ever run again.
    """
    spread = sorted({round(k) for k in np.linspace(0, model.n_layers - 1, NULL_REPLAYS)})
    n = captured.prompt.n_tokens
    recompute = torch.arange(n, device=model.device) >= n - rows
    return Ablations.at_every(spread, torch.zeros_like(recompute)[None]), recompute


def _null_replays(model: ProbedModel, captured: Capture, rows: int) -> torch.Tensor:
    """(replay, place, vocabulary) log-softmax of unablated replays."""
    null, recompute = null_ablations(model, captured, rows)
    return torch.cat([log_probs for _, log_probs in replay(model, captured, null, recompute=recompute)])


def _deviations(
    target: Target, found: torch.Tensor, log_p: float, own: torch.Tensor, kl: float | None
) -> tuple[float, float, float]:
    """Largest deviation in p, in log p and in KL(found || own) from what was measured before."""
    again = as_numpy(target.log_p(found))
    apart = (
        0.0
        if kl is None
        else float(np.abs(as_numpy(kl_divergence(found[:, target.place], own[target.place])) - kl).max())
    )
    return float(np.abs(np.exp(again) - np.exp(log_p)).max()), float(np.abs(again - log_p).max()), apart
