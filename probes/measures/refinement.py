"""Coarse-to-fine windows: large windows first, small ones only inside those that show an effect.

A coarse window that is refined goes straight to the fine ones. Halving on the way would spare replays only where
fewer than three in four half windows of a refined window show an effect themselves, which a noise floor of rounding
errors rarely leaves; and each step on the way could hide fine windows whose effects cancel in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from probes.data.samples import SampleError
from probes.measures.calls import ReplayCall
from probes.measures.case import Case
from probes.measures.information import (
    GridRequest,
    InformationGrid,
    RemovalCurve,
    information_grids,
    removal_call,
    removal_curves,
    target_log_p,
    window_call,
)
from probes.measures.noise import NoiseFloor, noise_floor, removal_witnesses
from probes.models.grids import Window
from probes.replay.ablations import window_table
from probes.replay.replay import most_rows


def refined_grids(
    case: Case,
    request: GridRequest,
    coarse: int = 8,
    *,
    removals: Mapping[str, RemovalCurve] | None = None,
    floor: float | None = None,
) -> dict[str, InformationGrid]:
    """Return the (layer, window) grid of each target, measured only inside coarse windows with an effect.

    A coarse window is refined for all targets if its effect on any of them exceeds the floor.

    Args:
        case: the captured sample.
        request: the fine grids, which are exact.
        coarse: the side of the coarse windows, a multiple of that of the fine ones, so that every fine window lies in
            one coarse window.
        removals: the removal curve of each target, at these layers at least; by default they are measured here.
        floor: the |effect| in p that a coarse window must exceed at a layer to be refined there; by default the
            sample's noise floor, measured with the removals.

    Returns:
        Grids over the fine windows, exact where measured and NaN elsewhere. Their `coarse` holds the coarse values.
    """
    if removals is None:
        removals = removal_curves(case, layers=request.layers, kind=request.kind, batch_size=request.batch_size)
    if floor is None:
        floor = floor_before_grids(case, request, removals).p
    large = coarse_request(request, coarse)
    return refine(case, request, coarse_grids(case, large, removals), large, floor)


def coarse_request(request: GridRequest, coarse: int) -> GridRequest:
    """Return a request for the same grids over windows of side `coarse`, in tokens."""
    return replace(request, window=coarse, max_windows=None)


def coarse_grids(case: Case, request: GridRequest, removals: Mapping[str, RemovalCurve]) -> dict[str, InformationGrid]:
    """Return the grid of each target over coarse windows; raise SampleError where a value is not a number."""
    grids = information_grids(case, request, removals)
    _check_finite(case, [grid.log_p for grid in grids.values()])
    return grids


def refine(
    case: Case, request: GridRequest, coarse: Mapping[str, InformationGrid], large: GridRequest, floor: float
) -> dict[str, InformationGrid]:
    """Grids over the windows of `request`, measured only inside coarse windows whose effect exceeds the floor.

    Args:
        case: the captured sample.
        request: the request for the fine grids.
        coarse: the coarse grid of each target, at the same layers.
        large: the request for the coarse grids.
        floor: the |effect| in p that a coarse window must exceed.
    """
    small, blocks = (grid_request.windows(case.captured.prompt) for grid_request in (request, large))
    above = np.any([np.abs(grid.information("p")) > floor for grid in coarse.values()], axis=0)
    measured_indices = above[:, parents(small, blocks)].ravel().nonzero()[0]
    all_windows = window_call(case, request)
    subset = replace(
        all_windows, ablations=all_windows.ablations[torch.from_numpy(measured_indices).to(case.model.device)]
    )
    log_p = target_log_p(case, subset)
    _check_finite(case, log_p.values())
    table = window_table(small)
    refined = {}
    for name, grid in coarse.items():
        values = np.full(len(all_windows.ablations), np.nan)
        values[measured_indices] = log_p[name]
        refined[name] = replace(grid, log_p=values.reshape(len(grid.layers), -1), windows=table, coarse=grid.log_p)
    return refined


def _check_finite(case: Case, log_p: Iterable[np.ndarray]) -> None:
    """Raise SampleError where a log p is NaN: in a refined grid NaN says "not measured"."""
    if any(np.isnan(values).any() for values in log_p):
        tokens = case.captured.prompt.tokens
        lost = f"without some {'' if tokens == 'all' else f'{tokens} '}tokens"
        raise SampleError(f"the output of {case.model.name!r} {lost} is not a number in {case.model.dtype}")


def floor_before_grids(case: Case, request: GridRequest, removals: Mapping[str, RemovalCurve]) -> NoiseFloor:
    """Return the first target's noise floor before any grid is measured, from replays as long as the grids' will be."""
    name, target = case.first_target
    rows = longest_rows(case, calls_before_grids(case, request))
    return noise_floor(case.model, case.captured, target, removal_witnesses(case.captured, removals[name]), rows=rows)


def calls_before_grids(case: Case, request: GridRequest) -> list[ReplayCall]:
    """Return the replays whose rounding the floor before the grids covers: removals and all windows."""
    return [removal_call(case, request.layers, request.kind, request.batch_size), window_call(case, request)]


def longest_rows(case: Case, calls: Sequence[ReplayCall]) -> int:
    """Return the number of tokens that the longest ablation of these calls computes."""
    return max(most_rows(case.captured, call.ablations) for call in calls)


def parents(small: Sequence[Window], large: Sequence[Window]) -> np.ndarray:
    """Return the (small window,) int index of the large window that holds each small one.

    The large windows tile the same grids, with a side that is a multiple of the small ones'.

    >>> from probes.models.grids import TokenGrid, tile_windows
    >>> grid = TokenGrid(np.arange(12).reshape(3, 4))
    >>> parents(tile_windows([grid], 1), tile_windows([grid], 2)).reshape(3, 4).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    """
    holder = {position: i for i, window in enumerate(large) for position in window.positions}
    return np.array([holder[window.positions[0]] for window in small], dtype=int)
