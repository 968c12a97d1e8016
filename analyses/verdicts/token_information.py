"""The distribution of token information over windows and images, by layer and group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.curves.effects import information_quantiles
from analyses.runs import METHOD_TABLE, Run, split_groups
from analyses.verdicts.horizon import Horizon, find_horizon

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class TokenInformation:
    """What one panel of `token-information` shows.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples.
        context: "keep-one" or "leave-one-out".
        measure: "p" or "log_p".
        layers: (layer,) int, the cuts.
        quantiles: (layer, quantile) of the information over tokens, at `QUANTILES`.
        horizon: by the criterion "information" where the run can carry it; its effect is the mean |information|.
        method: "exact", or "gate" for first-order estimates.
        tokens: what the windows are of: "visual", "text" or "all".
    """

    model: str
    group: dict[str, str]
    context: str
    measure: str
    layers: np.ndarray
    quantiles: np.ndarray
    horizon: Horizon | None
    method: str = "exact"
    tokens: str = "visual"


def gather_information(
    run: Run, by: Sequence[str] = ("task_type",), context: str = "keep-one", measure: str = "p"
) -> list[TokenInformation]:
    """Quantiles and horizon of every group of a run that carries token grids; empty if none does.

    Args:
        run: with the probe "information".
        by: columns that define the groups.
        context: "keep-one" or "leave-one-out".
        measure: "p", or "log_p" in nats.
    """
    rows = run.token_rows(context)
    if not rows:
        return []
    horizons: list[Horizon] = []
    if context == "keep-one" and not METHOD_TABLE[run.config.method].first_order:  # what the criterion is defined on
        horizons = find_horizon(run, by=tuple(by), criterion="information", measure=measure)
    results = []
    for group, members in split_groups(run.samples.loc[rows], by):
        layers, quantiles = information_quantiles(
            run, members.tolist(), context=context, measure=measure, quantiles=QUANTILES
        )
        horizon = next((h for h in horizons if h.group == group), None)
        what = run.config.method, run.config.tokens
        results.append(TokenInformation(run.model, group, context, measure, layers, quantiles, horizon, *what))
    return results
