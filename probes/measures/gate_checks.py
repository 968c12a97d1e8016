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
    """Rows of the curves: how well estimates agree with exact effects at up to `CHECKED_LAYERS` of the cuts.

    Args:
        case: one sample.
        request: the exact grids, as `exact_request` gives them.
        estimates: by target, in the same context.
        removals: by target, measured already.
    """
    exact = information_grids(case, request, removals)
    return [row for name in case.targets for row in _agreement_rows(estimates[name], exact[name])]


def exact_request(model: ProbedModel, estimates: GridRequest) -> GridRequest:
    """The exact grids that estimates are held against: the same windows, at a few of the layers."""
    layers = checked_layers(np.array(estimates.cuts(model)))
    return replace(estimates, method="exact", layers=tuple(layers))


def checked_layers(cuts: np.ndarray) -> list[int]:
    """At most `CHECKED_LAYERS` of the cuts, spread over them, with the first and the last.

    >>> checked_layers(np.arange(8)), checked_layers(np.array([3, 5]))
    ([0, 2, 5, 7], [3, 5])
    """
    places = np.linspace(0, len(cuts) - 1, min(CHECKED_LAYERS, len(cuts))).round().astype(int)
    return cuts[places].tolist()


def top_overlap(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Share of the windows with the largest exact effects that are also those with the largest estimates.

    Args:
        estimate: (window,) effects.
        exact: (window,) effects; a tenth of the windows (`TOP_SHARE`, rounded up) count as the largest.

    >>> top_overlap(np.array([3.0, 1.0, 2.0]), np.array([9.0, 0.0, -1.0]))
    1.0
    """
    n = int(np.ceil(TOP_SHARE * len(exact)))
    largest = [set(np.argsort(-effects, kind="stable")[:n].tolist()) for effects in (estimate, exact)]
    return len(largest[0] & largest[1]) / n


def rank_agreement(estimate: np.ndarray, exact: np.ndarray) -> float:
    """Spearman's rank correlation of (window,) effects; NaN where one of them is the same everywhere.

    >>> rank_agreement(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 20.0]))
    0.5
    """
    varies = np.ptp(estimate) > 0 and np.ptp(exact) > 0
    return float(spearmanr(estimate, exact).statistic) if varies else float("nan")


def _agreement_rows(estimate: InformationGrid, exact: InformationGrid) -> list[Row]:
    rows: list[Row] = []
    places = np.searchsorted(estimate.layers, exact.layers)
    pairs = zip(exact.layers.tolist(), estimate.effects("log_p")[places], exact.effects("log_p"), strict=True)
    for at, (layer, first_order, true) in enumerate(pairs):
        values = (
            rank_agreement(first_order, true),
            top_overlap(first_order, true),
            float(np.abs(exact.values[at]).max()),
        )
        measured = zip(CHECK_MEASURES, values, strict=True)
        rows += [(exact.target, exact.context, layer, "", measure, value) for measure, value in measured]
    return rows
