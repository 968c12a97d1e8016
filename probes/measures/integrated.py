"""Removal effects shared out over tokens: derivatives by the gates, integrated from shut to open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from analyses.runs import HorizonError, check_choice
from probes.data.samples import Sample
from probes.gates.gate import check_method, log_p_at, path_derivatives, sum_windows
from probes.gates.trajectories import path_trajectory
from probes.measures.information import removal_curves
from probes.measures.preparing import prepare_target
from probes.models.grids import tile_windows
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.ablations import window_table
from probes.replay.capture import Capture

# Log gates from which a path may start: where log p is as without visual tokens, up to a share of R_k or to rounding.
STARTS = (-10.0, -20.0, -30.0, -40.0, -60.0, -80.0, -120.0, -160.0)
SHUT_SHARE = 1e-3
ROUNDING, ROUNDING_HALF = 1e-5, 1e-2  # nats


@dataclass(frozen=True)
class IntegratedInformation:
    """What each window adds to the removal effect, along the way from no visual token to all of them.

    Attributes:
        values: (layer, window) shares of R_k in p or nats; with those of placeless tokens they sum to R_k, up to
            the error of the integration.
        placeless: (layer,) share of the visual tokens that belong to no window, in the same unit.
        removal: (layer,) R_k by exact replays, in the same unit.
        starts: (layer,) log gate at which the path begins.
        layers: (layer,) int cuts.
        windows: DataFrame with one row per window: crop, row, column, height, width.
        target: the name of the target.
        measure: "p" or "log_p" (nats).
        steps: the number of points at which derivatives were taken.
    """

    values: np.ndarray
    placeless: np.ndarray
    removal: np.ndarray
    starts: np.ndarray
    layers: np.ndarray
    windows: pd.DataFrame
    target: str
    measure: str
    steps: int

    @property
    def error(self) -> np.ndarray:
        """(layer,) sum of the shares minus R_k, in the unit of `values`: the error of integrating in finite steps."""
        return self.values.sum(1) + self.placeless - self.removal


def integrated_information(
    model: ProbedModel,
    sample: Sample,
    *,
    window: int = 2,
    layers: Sequence[int] | None = None,
    target: str = "gold",
    measure: str = "p",
    steps: int = 32,
) -> IntegratedInformation:
    """Share out the removal effect R_k over windows: the integral of dm/dg_v along the gates g = t, t from 0 to 1.

    All gates open together, so the shares sum to m(all) - m(no visual token from k) = R_k. The path is walked evenly in
    log t (Gauss-Legendre): attention turns from text to image within a few nats of log t, wherever these lie.
    Each step costs a forward pass through the layers from k on, and one with its derivatives.

    Args:
        model: the model, as `load_model` returns it.
        sample: one image with one question.
        window: the side of a window in tokens.
        layers: the cuts in 0..L-1; by default all.
        target: the name of the target, one of those of `removal_curve`.
        measure: "p", or "log_p" in nats.
        steps: the number of points on the path.

    Raises:
        HorizonError: a layer, target or measure is unknown, `steps` is no positive number, or a derivative is not
            finite. SampleError: the sample cannot be measured.

    Source: integrated gradients, Sundararajan et al. 2017, arXiv 1703.01365, on the gates of the visual tokens.
    """
    check_choice("measure", measure, ("p", "log_p"))
    if steps < 1:
        raise HorizonError(f"steps is {steps}; it must be at least 1")
    check_method("gate", "delete", (), model.dtype)
    case = prepare_target(model, sample, target)
    captured, resolved = case.captured, case.targets[target]
    curve = removal_curves(case, layers=layers)[target]
    cuts = curve.layers[:-1]
    removals = zip(cuts.tolist(), curve.log_p, curve.effects("log_p"), strict=False)  # without the last, L
    starts = [_start(model, captured, resolved, k, removed, effect) for k, removed, effect in removals]
    pairs = zip(cuts.tolist(), starts, strict=True)
    shares = np.stack([_shares(model, captured, resolved, k, start, measure, steps) for k, start in pairs])
    windows = tile_windows(captured.prompt.grids, window)
    values = sum_windows(shares, captured.prompt.visual, windows)
    return IntegratedInformation(
        values=values,
        placeless=shares.sum(1) - values.sum(1),
        removal=curve.effects(measure)[:-1],
        starts=np.array(starts),
        layers=cuts,
        windows=window_table(windows),
        target=target,
        measure=measure,
        steps=steps,
    )


def _start(model: ProbedModel, captured: Capture, target: Target, cut: int, removed: float, effect: float) -> float:
    """Return the largest log gate of `STARTS` at and below which log p equals that without visual tokens.

    Where log p differs at every one of them, the smallest is returned.
    """
    rounding = ROUNDING_HALF if model.dtype in (torch.float16, torch.bfloat16) else ROUNDING
    close = max(rounding, SHUT_SHARE * abs(effect))
    largest = STARTS[-1]
    for start in reversed(STARTS):
        path = path_trajectory(model, captured, cut, start)
        if abs(log_p_at(model, target, path) - removed) > close:
            break
        largest = start
    return largest


def _shares(
    model: ProbedModel, captured: Capture, target: Target, cut: int, start: float, measure: str, steps: int
) -> np.ndarray:
    """Return the (visual token,) integral of the measure's derivative by the log gates, from `start` to 0."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = np.zeros(len(captured.prompt.visual))
    for node, weight in zip(start * (1 - nodes) / 2, -start * weights / 2, strict=True):
        path = path_trajectory(model, captured, cut, float(node))
        slope = path_derivatives(model, captured, target, path, float(node))
        scale = math.exp(log_p_at(model, target, path)) if measure == "p" else 1.0
        total += weight * scale * slope
    return total
