"""The noise floor: how far exact replays stray from the model by rounding alone."""

from __future__ import annotations

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
from probes.replay.replay import replay

# An unablated replay further off than this is no rounding: the model does something between layers that replays miss.
REPLAY_TOLERANCE = 0.05


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


def removal_witness(captured: Capture, curve: RemovalCurve) -> Witness:
    """The removal of a curve that rounding moves most."""
    cut = _most_sensitive(curve.log_p[:-1])
    ablation = removal_ablations(captured, [int(curve.layers[cut])], curve.kind)
    return Witness(ablation, float(curve.log_p[cut]), float(curve.kl[cut]))


def grid_witness(captured: Capture, grid: InformationGrid, window: int, kind: str) -> Witness | None:
    """The ablation of a token grid that rounding moves most, of those that it reports; None if it reports none."""
    if np.isnan(grid.log_p).all():
        return None
    layer, place = np.unravel_index(_most_sensitive(grid.log_p), grid.log_p.shape)
    chosen = removable_windows(captured.prompt, window)[place : place + 1]
    ablation = window_ablations(captured, chosen, grid.context, [int(grid.layers[layer])], kind)
    return Witness(ablation, float(grid.log_p[layer, place]))


def _most_sensitive(log_p: np.ndarray) -> int:
    """Flat index of the p nearest to one half: where p is near 0 or 1, an error in the logits hardly moves it."""
    return int(np.nanargmin(np.abs(np.exp(log_p) - 0.5)))


def noise_floor(
    model: ProbedModel, captured: Capture, target: Target, witnesses: Sequence[Witness], *, batch_rows: int
) -> NoiseFloor:
    """The larger of two deviations that exact arithmetic would make zero.

    Unablated replays from four layers spread over the depth, batched to as many rows as the measurement's batches,
    against the model's own forward; and single ablations computed alone against the same in their batches.

    Args:
        model: as loaded.
        captured: one sample.
        target: whose probability is measured.
        witnesses: ablations as measured in the batches in use.
        batch_rows: rows (ablations x tokens) in the largest of those.

    Raises:
        SampleError: replays do not reproduce the model, by more than rounding can explain.
    """
    own = captured.log_probs
    null = _null_replays(model, captured, batch_rows)
    far = _deviations(target, null, float(target.log_p(own)), own, 0.0)
    if not far[0] <= REPLAY_TOLERANCE:
        raise SampleError(
            f"replays of {model.name!r} miss its own output by {far[0]:.2g} in p with nothing removed: "
            "something happens between or inside its layers that replays do not see, so nothing is measured"
        )
    spreads = [far]
    for witness in witnesses:
        _, alone = next(replay(model, captured, witness.ablation, batch_size=1))
        spreads.append(_deviations(target, alone, witness.log_p, own, witness.kl))
    return NoiseFloor(*(float(value) for value in np.max(spreads, axis=0)))


def null_ablations(model: ProbedModel, captured: Capture, batch_rows: int) -> tuple[Ablations, torch.Tensor]:
    """Nothing removed from four layers spread over the depth, and the (token,) bool rows to run again regardless."""
    spread = sorted({round(k) for k in np.linspace(0, model.n_layers - 1, 4)})
    recompute = torch.arange(captured.prompt.n_tokens, device=model.device) >= captured.prompt.removable[0]
    copies = max(1, batch_rows // (len(spread) * int(recompute.sum())))
    nothing = torch.zeros(copies, captured.prompt.n_tokens, dtype=torch.bool, device=model.device)
    return Ablations.at_every(spread, nothing), recompute


def nulls_at_once(null: Ablations, recompute: torch.Tensor, batch_rows: int) -> int:
    """How many null ablations run together: all, unless they hold more rows than the measurement's batches."""
    return max(1, min(len(null), batch_rows // int(recompute.sum())))


def _null_replays(model: ProbedModel, captured: Capture, batch_rows: int) -> torch.Tensor:
    """(replay, place, vocabulary) log-softmax of unablated replays."""
    null, recompute = null_ablations(model, captured, batch_rows)
    at_once = nulls_at_once(null, recompute, batch_rows)
    return torch.cat([found for _, found in replay(model, captured, null, batch_size=at_once, recompute=recompute)])


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
