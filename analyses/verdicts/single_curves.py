"""Half depths and horizons of single samples: descriptions of one curve each, with no claim about others.

One sample has no resamples and so no interval: `find_horizon` gives None for it. What stands here is read off the
curve as it is, for scatter plots, rank correlations and the search for odd samples; never for a claim about a task.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.arrays.depths import half_depths, skipped_before
from analyses.curves.effects import REMOVED
from analyses.runs import Run
from analyses.verdicts.group_effects import GroupEffects
from analyses.verdicts.horizon import HorizonDetector, HorizonQuery

LABELS = ["id", "task_type", "task", "category", "image_sha256"]


def sample_depths(
    run: Run,
    *,
    criterion: str = "removal",
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
) -> pd.DataFrame:
    """Half depth and horizon of every sample's own curve, or why it has none.

    A sample is eligible if its own removal effect at layer 0 exceeds the eligibility margin above the run's noise
    floor. The rule of the criterion is applied to the single curve as to a mean curve.

    Args:
        run: a run that can carry the criterion.
        criterion: a key of `CRITERIA`.
        measure: "p" or "log_p".
        target: one of the run's targets; the first by default.
        detector: parameters; resamples play no part.

    Returns:
        One row a sample of the run, failed and excluded ones included, indexed by row number: id, task_type, task,
        category, image_sha256, effect (R_0), eligible (bool), reason ("" if eligible), half_depth (layers; NaN if not
        defined), horizon (layer; missing too where the layers before it were skipped), censored (the horizon is L).

    Raises:
        HorizonError: unknown words, or the run lacks what the criterion needs.
    """
    query = HorizonQuery(criterion, measure, target, detector or HorizonDetector())
    effects = query.effects(run)
    parts = [_depths(effects.of(curves.rows), curves.rows, query.detector) for curves in effects.curves.alike()]
    table = run.samples[LABELS].join(pd.concat(parts))
    unmeasured = run.samples["error"].where(run.samples["status"] != "ok", "not measured for this target")
    table["reason"] = table["reason"].fillna(unmeasured)
    table["eligible"] = table["reason"] == ""
    table["horizon"] = table["horizon"].astype("Int64")
    table["censored"] = (table["horizon"] == run.config.n_layers).fillna(False).astype(bool)
    return table[[*LABELS, "effect", "eligible", "reason", "half_depth", "horizon", "censored"]]


def _depths(effects: GroupEffects, rows: np.ndarray, detector: HorizonDetector) -> pd.DataFrame:
    """Effect, half depth, horizon and reason of samples that were measured at the same layers, by row number."""
    reasons = _reasons(effects, detector)
    eligible = reasons == ""
    values, layers = effects.values[eligible], effects.layers
    table = pd.DataFrame(index=pd.Index(rows), data={"effect": effects.removal})
    table["half_depth"], table["horizon"] = np.nan, np.nan
    settled = detector.settled(effects.criterion, values, effects.noise_floor, layers)
    bracketed = [not len(skipped_before(layer, layers, effects.skipped)) for layer in settled]
    table.loc[eligible, "horizon"] = np.where(bracketed, settled, np.nan)
    if effects.rule.half_depth:
        table.loc[eligible, "half_depth"] = half_depths(values, layers)
    table["reason"] = reasons
    return table


def _reasons(effects: GroupEffects, detector: HorizonDetector) -> np.ndarray:
    """(sample,) why a curve has no depth, "" where it has."""
    least_effect = detector.least_effect(effects.measure, effects.noise_floor)
    small = f"removing {REMOVED[effects.tokens]} at layer 0 has no effect to speak of: at most {least_effect:.3g}"
    reasons = np.select([~effects.whole, effects.removal <= least_effect], ["its curve has gaps", small], "").astype(
        object
    )
    if np.isnan(effects.noise_floor):
        reasons[:] = "no noise floor was measured"
    if effects.layers[0] != 0:
        reasons[:] = f"layer 0 was not measured (the first is {effects.layers[0]})"
    return reasons
