"""Half depths and horizons of single samples: descriptions of one curve each, with no claim about others.

One sample has no resamples and so no interval: `find_horizon` gives None for it. What stands here is read off the
curve as it is, for scatter plots, rank correlations and the search for odd samples; never for a claim about a task.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses.arrays.depths import half_depths, skipped_before
from analyses.curves.effects import REMOVED, EffectCurves, noise_floor
from analyses.runs import Run, check_choice, check_target
from analyses.verdicts.criteria import CRITERIA, criteria_of
from analyses.verdicts.horizon import HorizonDetector

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
    detector = detector or HorizonDetector()
    criteria_of(run, criterion)
    rule = CRITERIA[criterion]
    check_choice(f"measure of the criterion {criterion!r}", measure, rule.measures)
    curves, removal = rule.effects(run, measure, check_target(run, target))
    floor = noise_floor(run, measure)
    parts = [(own, removal.of(own.rows).values[:, 0]) for own in curves.alike()]
    words = f"removing {REMOVED[run.config.tokens]} at layer 0"
    found = [_depths(own, effect, criterion, floor, measure, detector, words) for own, effect in parts]
    table = run.samples[LABELS].join(pd.concat(found))
    unmeasured = run.samples["error"].where(run.samples["status"] != "ok", "not measured for this target")
    table["reason"] = table["reason"].fillna(unmeasured)
    table["eligible"] = table["reason"] == ""
    table["horizon"] = table["horizon"].astype("Int64")
    table["censored"] = (table["horizon"] == run.config.n_layers).fillna(False).astype(bool)
    return table[[*LABELS, "effect", "eligible", "reason", "half_depth", "horizon", "censored"]]


def _depths(
    curves: EffectCurves,
    effect: np.ndarray,
    criterion: str,
    floor: float,
    measure: str,
    detector: HorizonDetector,
    words: str,
) -> pd.DataFrame:
    """Effect, half depth, horizon and reason of samples that were measured at the same layers, by row number."""
    reasons = _reasons(curves, effect, floor, measure, detector, words)
    eligible = reasons == ""
    found = pd.DataFrame(index=pd.Index(curves.rows), data={"effect": effect})
    found["half_depth"], found["horizon"] = np.nan, np.nan
    settled = detector.settled(criterion, curves.values[eligible], floor, curves.layers)
    bracketed = [not len(skipped_before(layer, curves.layers, curves.skipped)) for layer in settled]
    found.loc[eligible, "horizon"] = np.where(bracketed, settled, np.nan)
    if CRITERIA[criterion].half_depth:
        found.loc[eligible, "half_depth"] = half_depths(curves.values[eligible], curves.layers)
    found["reason"] = reasons
    return found


def _reasons(
    curves: EffectCurves, effect: np.ndarray, floor: float, measure: str, detector: HorizonDetector, words: str
) -> np.ndarray:
    """(sample,) why a curve has no depth, "" where it has."""
    needed = floor + (detector.eligible_p if measure == "p" else detector.eligible_log)
    small = f"{words} has no effect to speak of: at most {needed:.3g}"
    whole = np.isfinite(curves.values).all(axis=1) & np.isfinite(effect)
    reasons = np.select([~whole, effect <= needed], ["its curve has gaps", small], "").astype(object)
    if np.isnan(floor):
        reasons[:] = "no noise floor was measured"
    if curves.layers[0] != 0:
        reasons[:] = f"layer 0 was not measured (the first is {curves.layers[0]})"
    return reasons
