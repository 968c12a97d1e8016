"""What first-order token grids are worth: held against exact ones of the same sample, at a few layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from probes.measures.case import Case
from probes.measures.information import GridRequest, InformationGrid, RemovalCurve, information_grids
from probes.models.probed import ProbedModel

CHECKED_LAYERS = 4
TOP_SHARE = 0.1
CHECK_MEASURES = ("gate_rank_correlation", "gate_top_overlap", "gate_largest_effect")
Row = tuple[str, str, int, str, str, float]  # of the curves


def check_rows(
    case: Case,
    request: GridRequest,
    estimates: Mapping[str, InformationGrid],
    removals: Mapping[str, RemovalCurve],
) -> list[Row]:
    """Return rows of the curves: the agreement of estimates with exact effects at up to `CHECKED_LAYERS` cuts.

    Args:
        case: the captured sample.
        request: the request for the exact grids, from `exact_request`.
        estimates: the first-order grid of each target, in the same context.
        removals: the removal curve of each target.
    """
    exact = information_grids(case, request, removals)
    return [row for name in case.targets for row in _agreement_rows(estimates[name], exact[name])]


def exact_request(model: ProbedModel, estimates: GridRequest) -> GridRequest:
    """Return the request for the exact grids that check the estimates: the same windows, at a few of the layers."""
    layers = checked_layers(np.array(estimates.cuts(model)))
    return replace(estimates, method="exact", layers=tuple(layers))


def checked_layers(cuts: np.ndarray) -> list[int]:
    """Return at most `CHECKED_LAYERS` of the cuts, evenly spread, the first and the last among them.

    >>> checked_layers(np.arange(8)), checked_layers(np.array([3, 5]))
    ([0, 2, 5, 7], [3, 5])
    """
    places = np.linspace(0, len(cuts) - 1, min(CHECKED_LAYERS, len(cuts))).round().astype(int)
    return cuts[places].tolist()


def top_overlap(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Share of the windows with the largest exact effects that are also those with the largest estimates.

    Args:
        estimate: (window,) first-order effects.
        exact: (window,) exact effects. A tenth of the windows (`TOP_SHARE`, rounded up) count as the largest.

    >>> top_overlap(np.array([3.0, 1.0, 2.0]), np.array([9.0, 0.0, -1.0]))
    1.0
    """
    n = int(np.ceil(TOP_SHARE * len(exact)))
    largest = [set(np.argsort(-effects, kind="stable")[:n].tolist()) for effects in (estimate, exact)]
    return len(largest[0] & largest[1]) / n


def rank_agreement(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of (window,) effects; NaN where either of them is constant.

    >>> rank_agreement(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 20.0]))
    0.5
    """
    varies = np.ptp(estimate) > 0 and np.ptp(exact) > 0
    return float(spearmanr(estimate, exact).statistic) if varies else float("nan")


def _agreement_rows(estimate: InformationGrid, exact: InformationGrid) -> list[Row]:
    rows: list[Row] = []
    places = np.searchsorted(estimate.layers, exact.layers)
    pairs = zip(exact.layers.tolist(), estimate.effects("log_p")[places], exact.effects("log_p"), strict=True)
    for at, (layer, estimated_effects, exact_effects) in enumerate(pairs):
        values = (
            rank_agreement(estimated_effects, exact_effects),
            top_overlap(estimated_effects, exact_effects),
            float(np.abs(exact.values[at]).max()),
        )
        named_values = zip(CHECK_MEASURES, values, strict=True)
        rows += [(exact.target, exact.context, layer, "", measure, value) for measure, value in named_values]
    return rows
