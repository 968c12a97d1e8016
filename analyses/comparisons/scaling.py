"""Half depth across models: how it goes along with their accuracy and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.arrays.correlation import RankCorrelation, fisher_interval, rank_correlation, rank_p_value
from analyses.comparisons.adjustment import Tested, adjusted
from analyses.runs import Run, check_choice
from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon

LEAST_MODELS = 4  # that a rank correlation is given for
UNITS = ("layers", "fraction")


@dataclass(frozen=True)
class ModelAssociation(Tested):
    """Rank correlation across models of half depth with accuracy or size.

    Attributes:
        group: column -> value of the samples; empty for all samples together.
        covariate: "accuracy", or a number of the run's configuration.
        unit: of the half depths, "layers" or "fraction" (of each model's own depth).
        rho: Spearman's rank correlation, or None.
        interval: by Fisher's z, with models as independent observations, or None.
        p_value: of the permutation test, or None. p_adjusted: over all results of one call in this unit.
        horizons: one a model that was used, with its half depth in layers and the interval of it.
        values: (model,) the covariate of each. half_depths: (model,) in `unit`.
        left_out: models that were not used, each with the reason.
        reason: why `rho` is None; "" when it is given.
    """

    group: dict[str, str]
    covariate: str
    unit: str
    rho: float | None
    interval: tuple[float, float] | None
    horizons: list[Horizon]
    values: np.ndarray
    half_depths: np.ndarray
    left_out: list[str]
    reason: str


def correlate_models(
    runs: Sequence[Run],
    against: Sequence[str] = ("accuracy", "n_layers", "hidden_size"),
    *,
    by: Sequence[str] = ("task_type",),
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
    permutations: int = 2000,
) -> list[ModelAssociation]:
    """Rank correlation of half depth with accuracy or size, over any number of models, for each group of samples.

    The interval and the p-value are about models as such: each run is one observation, however well its own half
    depth is known. With fewer than four models there is no correlation to speak of, and none is given.

    Args:
        runs: one for each model (or revision).
        against: "accuracy" (share of the group's samples whose first token is right, by the run's first target), or
            any number in the run's configuration.
        by: columns that define the groups; () for all samples together.
        measure: "p" or "log_p".
        target: name of one of the runs' targets; their first by default.
        detector: parameters of half depths, intervals and seed.
        permutations: number of relabelings that the test draws; few models are tested exactly.

    Returns:
        One result a group, covariate and unit.

    Raises:
        HorizonError: unknown words, or a run without removal curves.
    """
    detector = detector or HorizonDetector()
    for name in against:
        numbers = [key for run in runs for key, value in vars(run.config).items() if type(value) in (int, float)]
        check_choice("covariate of models", name, ("accuracy", *dict.fromkeys(numbers)))
    horizons = [
        (run, horizon)
        for run in runs
        for horizon in find_horizon(run, by=by, criterion="removal", measure=measure, target=target, detector=detector)
    ]
    groups = {tuple(horizon.group.items()): horizon.group for _, horizon in horizons}
    members = [[pair for pair in horizons if pair[1].group == group] for group in groups.values()]
    results = [
        _association(pairs, name, unit, detector, permutations)
        for pairs in members
        for name in against
        for unit in UNITS
    ]
    return adjusted(results, lambda result: result.unit)


def _association(
    members: Sequence[tuple[Run, Horizon]], name: str, unit: str, detector: HorizonDetector, permutations: int
) -> ModelAssociation:
    """The result for one group, one covariate and one unit."""
    values = [_model_value(run, horizon.group, name) for run, horizon in members]
    complete = [
        (horizon, value)
        for (_, horizon), value in zip(members, values, strict=True)
        if horizon.half_depth is not None and value is not None
    ]
    left_out = [
        f"{run.model}: {horizon.half_depth_reason or f'{name} is not recorded'}"
        for (run, horizon), value in zip(members, values, strict=True)
        if horizon.half_depth is None or value is None
    ]
    x = np.array([value for _, value in complete], dtype=float)
    y = np.array([horizon.half_depth for horizon, _ in complete], dtype=float)
    if unit == "fraction":
        y = y / np.array([horizon.n_layers for horizon, _ in complete])
    reason = _unclaimable([run for run, _ in members], x, y, name)
    correlation = RankCorrelation(reason=reason) if reason else _correlate(x, y, detector, permutations)
    return ModelAssociation(
        group=members[0][1].group,
        covariate=name,
        unit=unit,
        rho=correlation.rho,
        interval=correlation.interval,
        p_value=correlation.p_value,
        horizons=[horizon for horizon, _ in complete],
        values=x,
        half_depths=y,
        left_out=left_out,
        reason=correlation.reason,
    )


def _correlate(x: np.ndarray, y: np.ndarray, detector: HorizonDetector, permutations: int) -> RankCorrelation:
    """Rank correlation of a covariate and a half depth, one value a model each."""
    rho = rank_correlation(x, y)
    return RankCorrelation(
        rho=rho,
        interval=fisher_interval(rho, len(x), detector.level),
        p_value=rank_p_value(x, y, np.arange(len(x)), permutations=permutations, seed=detector.seed),
    )


def _model_value(run: Run, group: dict[str, str], name: str) -> float | None:
    """Accuracy of a run on a group, or a number of its configuration; None if it is not recorded."""
    if name != "accuracy":
        value = getattr(run.config, name)
        return None if value is None else float(value)
    inside = np.ones(len(run.ok), dtype=bool)
    for column, text in group.items():
        inside &= (run.ok[column].fillna("") == text).to_numpy()
    return float(run.ok["correct"][inside].astype(float).mean()) if inside.any() else None


def _unclaimable(runs: Sequence[Run], x: np.ndarray, y: np.ndarray, name: str) -> str:
    """Why these models cannot carry a correlation, or ""."""
    tokens = sorted({run.config.tokens for run in runs})
    if len(tokens) > 1:
        return f"the runs take away different tokens ({', '.join(tokens)}); give runs that take away the same"
    models = [(run.config.model, run.config.revision) for run in runs]
    twice = sorted({run.model for run, model in zip(runs, models, strict=True) if models.count(model) > 1})
    if twice:
        return f"several runs are of {', '.join(twice)}; give one run for each model"
    if len(x) < LEAST_MODELS:
        return f"{len(x)} models have both, needed at least {LEAST_MODELS}"
    if np.ptp(x) == 0:
        return f"{name} is the same for all {len(x)} models"
    if np.ptp(y) == 0:
        return f"half depth is the same for all {len(x)} models"
    return ""
