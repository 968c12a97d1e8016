"""Coarse-to-fine windows: large windows first, small ones only inside those that show an effect.

A coarse window that is refined goes straight to the fine ones. Halving on the way would spare replays only where
fewer than three in four half windows of a refined window show an effect themselves, which a noise floor of rounding
errors rarely leaves; and each step on the way could hide fine windows whose effects cancel in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probes.data.samples import SampleError
from probes.measures.information import InformationGrid, RemovalCurve, information_grids, removal_curves, target_log_p
from probes.measures.noise import NoiseFloor, noise_floor, removal_witness
from probes.models.grids import Window
from probes.models.probed import ProbedModel
from probes.models.prompts import removable_windows
from probes.models.targets import Target
from probes.replay.ablations import (
    check_context,
    check_layers,
    removal_ablations,
    window_ablations,
    window_table,
)
from probes.replay.batching import BatchPolicy
from probes.replay.capture import Capture
from probes.replay.kinds import check_kind
from probes.replay.replay import largest_batch


def refined_grids(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    *,
    context: str = "keep-one",
    window: int = 2,
    coarse: int = 8,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    batch_size: BatchPolicy | int | None = None,
    removal: dict[str, RemovalCurve] | None = None,
    floor: float | None = None,
) -> dict[str, InformationGrid]:
    """`information_grids`, but fine windows are measured only inside coarse ones with an effect above the floor.

    Args:
        model: as loaded.
        captured: one sample.
        targets: by name; a coarse window is refined for all of them if its effect on any exceeds the floor.
        context: keep-one or leave-one-out.
        window: side of the fine windows in tokens.
        coarse: side of the coarse windows, a multiple of `window`: every fine window lies in one coarse window.
        layers: cuts in 0..L-1; all by default.
        kind: delete, zero or mean.
        batch_size: ablations at once.
        removal: curves measured before, at these layers at least.
        floor: |effect| in p that a coarse window must exceed at a layer to be refined there; the sample's noise
            floor by default, measured with the removals.

    Returns:
        Grids over the fine windows: exact, or NaN where nothing was measured. `coarse` has the coarse values.
    """
    cuts = check_layers(model, layers)
    check_context(context)
    check_kind(kind)
    how: dict[str, Any] = {"layers": cuts, "kind": kind, "batch_size": batch_size}
    removal = removal or removal_curves(model, captured, targets, **how)
    large, small = (removable_windows(captured.prompt, size) for size in (coarse, window))
    if floor is None:
        floor = floor_before_grids(model, captured, targets, removal, window=window, context=context, **how).p
    first = information_grids(model, captured, targets, context=context, window=coarse, removal=removal, **how)
    _check_finite(model, captured, [grid.log_p for grid in first.values()])
    above = np.any([np.abs(grid.information("p")) > floor for grid in first.values()], axis=0)
    wanted = torch.from_numpy(above[:, parents(small, large)].ravel().nonzero()[0]).to(model.device)
    ablations = window_ablations(captured, small, context, cuts, kind)[wanted]
    found = target_log_p(model, captured, ablations, targets, batch_size)
    _check_finite(model, captured, found.values())
    table, at = window_table(small), wanted.cpu().numpy()
    refined = {}
    for name, grid in first.items():
        log_p = np.full(len(cuts) * len(small), np.nan)
        log_p[at] = found[name]
        refined[name] = replace(grid, log_p=log_p.reshape(len(cuts), -1), windows=table, coarse=grid.log_p)
    return refined


def _check_finite(model: ProbedModel, captured: Capture, log_p: Iterable[np.ndarray]) -> None:
    """NaN says "not measured" in a refined grid, so it must not come out of the model."""
    if any(np.isnan(values).any() for values in log_p):
        lost = f"without some {'' if captured.prompt.tokens == 'all' else f'{captured.prompt.tokens} '}tokens"
        raise SampleError(f"the output of {model.name!r} {lost} is not a number in {model.dtype}")


def floor_before_grids(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    removal: dict[str, RemovalCurve],
    *,
    window: int,
    context: str,
    layers: Sequence[int],
    kind: str = "delete",
    batch_size: BatchPolicy | int | None = None,
) -> NoiseFloor:
    """Noise floor of the first target before any token grid is measured, in batches as large as the grids' will be."""
    name, target = next(iter(targets.items()))
    windows = removable_windows(captured.prompt, window)
    batches = [removal_ablations(captured, layers, kind), window_ablations(captured, windows, context, layers, kind)]
    rows = max(largest_batch(model, captured, batch, batch_size) for batch in batches)
    return noise_floor(model, captured, target, [removal_witness(captured, removal[name])], batch_rows=rows)


def parents(small: Sequence[Window], large: Sequence[Window]) -> np.ndarray:
    """(small window,) int, the large window that holds each; large windows tile the same grids by a multiple.

    >>> from probes.models.grids import TokenGrid, tile_windows
    >>> grid = TokenGrid(np.arange(12).reshape(3, 4))
    >>> parents(tile_windows([grid], 1), tile_windows([grid], 2)).reshape(3, 4).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    """
    holder = {position: i for i, window in enumerate(large) for position in window.positions}
    return np.array([holder[window.positions[0]] for window in small], dtype=int)
