"""What first-order token grids are worth: held against exact ones of the same sample, at a few layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from analyses.runs import RunConfig
from probes.measures.information import InformationGrid, RemovalCurve, information_grids
from probes.models.grids import choose_window
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.capture import Capture

CHECKED_LAYERS = 4
TOP_SHARE = 0.1
Row = tuple[str, str, int, str, str, float]  # of the curves


def check_rows(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    grids: Mapping[tuple[str, str], InformationGrid],
    config: RunConfig,
    removals: dict[str, RemovalCurve],
) -> list[Row]:
    """Rows of the curves: how well estimates agree with exact effects at up to `CHECKED_LAYERS` of the cuts.

    Args:
        model: the captured model.
        captured: one sample.
        targets: by name.
        grids: estimates by target and context.
        config: of the run.
        removals: by target, measured already.
    """
    rows: list[Row] = []
    for context in config.contexts:
        cuts = checked_layers(next(iter(grids.values())).layers)
        exact = information_grids(
            model,
            captured,
            targets,
            context=context,
            window=choose_window(config.window, config.max_windows, captured.prompt.grids),
            layers=cuts,
            batch_size=config.batch_size,
            removal=removals,
        )
        for name in targets:
            rows += _agreement_rows(grids[name, context], exact[name])
    return rows


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
        values = {
            "gate_rank_correlation": rank_agreement(first_order, true),
            "gate_top_overlap": top_overlap(first_order, true),
            "gate_largest_effect": float(np.abs(exact.values[at]).max()),
        }
        rows += [(exact.target, exact.context, layer, "", measure, value) for measure, value in values.items()]
    return rows
