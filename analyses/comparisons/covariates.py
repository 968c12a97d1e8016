"""What the half depth of single samples goes along with: how long their answers are, how many visual tokens, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analyses.arrays.correlation import rank_correlation, rank_p_value, resampled_rank_correlations
from analyses.arrays.permutation import adjust_holm
from analyses.arrays.resampling import draw_counts, percentile_interval
from analyses.curves.effects import image_codes
from analyses.runs import Run, check_choice, split_groups
from analyses.verdicts.horizon import HorizonDetector
from analyses.verdicts.single_curves import sample_depths

LEAST_IMAGES = 4  # that a rank correlation is given for


def answer_characters(answers: Sequence[str]) -> float:
    """Length of the most frequent answer, case and outer spaces aside; ties by first appearance. NaN without one.

    >>> answer_characters(["No", "yes", " Yes"])
    3.0
    """
    counts = _answer_counts(answers)
    return float(len(counts.most_common(1)[0][0])) if counts else float("nan")


def answer_entropy(answers: Sequence[str]) -> float:
    """How far the reference answers disagree: entropy of their frequencies in nats. NaN without one.

    >>> round(answer_entropy(["No", "yes", " Yes", "no"]), 3)
    0.693
    """
    counts = np.array(list(_answer_counts(answers).values()), dtype=float)
    if not len(counts):
        return float("nan")
    share = counts / counts.sum()
    return abs(float(share @ np.log(share)))


ANSWER_COVARIATES: dict[str, Callable[[Sequence[str]], float]] = {
    "answer_characters": answer_characters,
    "answer_entropy": answer_entropy,
}


@dataclass(frozen=True)
class SampleAssociation:
    """Rank correlation of the half depth of single samples with a covariate.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        covariate: its name.
        rho: Spearman's rank correlation, or None.
        interval: percentile interval over resamples of images, or None.
        p_value: of the permutation test by image, or None. p_adjusted: after Holm, over all results of one call.
        n_samples: samples used. n_images: distinct images among them.
        n_ineligible: measured samples without a half depth (most have no effect at layer 0 to take half of; see
            `analyses.verdicts.single_curves.sample_depths` for the reason of each), left out.
        n_missing: samples with a half depth but without the covariate, left out.
        values: (sample,) the covariate. half_depths: (sample,) in layers.
        reason: why `rho` is None; "" when it is given.
        tokens: whose removal the half depths are of: "visual", "text" or "all".
    """

    model: str
    group: dict[str, str]
    covariate: str
    rho: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    p_adjusted: float | None
    n_samples: int
    n_images: int
    n_ineligible: int
    n_missing: int
    values: np.ndarray
    half_depths: np.ndarray
    reason: str
    tokens: str = "visual"


def sample_covariate(run: Run, name: str) -> pd.Series:
    """A covariate of every sample, by row number: made from its answers, or any numeric column of the run's samples.

    Raises:
        HorizonError: there is no such covariate.
    """
    if name in ANSWER_COVARIATES:
        return run.samples["answers"].map(lambda answers: ANSWER_COVARIATES[name](list(answers))).rename(name)
    numeric = [column for column in run.samples.select_dtypes("number").columns if column != "row"]
    check_choice("covariate", name, (*ANSWER_COVARIATES, *numeric))
    return run.samples[name].astype(float)


def correlate_half_depth(
    run: Run,
    covariates: Sequence[str | pd.Series] = ("answer_characters", "n_visual", "p"),
    *,
    by: Sequence[str] = ("task_type",),
    measure: str = "p",
    target: str | None = None,
    detector: HorizonDetector | None = None,
    permutations: int = 2000,
) -> list[SampleAssociation]:
    """Rank correlation of covariates with the half depth of single samples, within each group.

    Args:
        run: a run with the probe "removal".
        covariates: names (see `sample_covariate`), or Series of numbers by row number, with a name.
        by: columns that define the groups; () for all samples together.
        measure: "p" or "log_p".
        target: one of the run's targets; the first by default.
        detector: gives what an effect at layer 0 must exceed, and resamples, seed and level.
        permutations: of the test.

    Returns:
        One result a group and covariate.

    Raises:
        HorizonError: an unknown covariate, measure, target or column, or a run without removal curves.
    """
    detector = detector or HorizonDetector()
    table = sample_depths(run, measure=measure, target=target, detector=detector)
    depths = table.loc[run.ok.index, "half_depth"]
    images = image_codes(run)
    counts = draw_counts(images.max() + 1, detector.resamples, detector.seed) if len(images) else None
    columns = [sample_covariate(run, one) if isinstance(one, str) else one for one in covariates]
    found = []
    for group, rows in split_groups(run.samples, by):
        own = depths[depths.index.isin(rows)]
        for column in columns:
            values = column.reindex(own.index).to_numpy(float)
            one = _association(own.to_numpy(), values, images.loc[own.index].to_numpy(), detector, counts, permutations)
            one = replace(one, model=run.model, group=group, covariate=str(column.name), tokens=run.config.tokens)
            found.append(one)
    adjusted = adjust_holm([one.p_value for one in found])
    return [replace(one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _association(
    depths: np.ndarray,
    values: np.ndarray,
    images: np.ndarray,
    detector: HorizonDetector,
    counts: np.ndarray | None,
    permutations: int,
) -> SampleAssociation:
    """The result for one group, model, group and covariate not named yet."""
    eligible, known = np.isfinite(depths), np.isfinite(values)
    used = eligible & known
    depths, values, images = depths[used], values[used], images[used]
    blank = SampleAssociation(
        model="",
        group={},
        covariate="",
        rho=None,
        interval=None,
        p_value=None,
        p_adjusted=None,
        n_samples=len(values),
        n_images=len(np.unique(images)),
        n_ineligible=int((~eligible).sum()),
        n_missing=int((eligible & ~known).sum()),
        values=values,
        half_depths=depths,
        reason="",
    )
    if blank.n_images < LEAST_IMAGES or counts is None:
        return replace(blank, reason=f"{blank.n_images} images have both, needed at least {LEAST_IMAGES}")
    for what, constant in (("covariate", np.ptp(values) == 0), ("half depth", np.ptp(depths) == 0)):
        if constant:
            return replace(blank, reason=f"the {what} is the same for all {blank.n_samples} samples")
    draws = resampled_rank_correlations(values, depths, images, counts)
    low, high = percentile_interval(draws, detector.level, n_clusters=blank.n_images)
    p_value = rank_p_value(values, depths, images, permutations=permutations, seed=detector.seed)
    rho = rank_correlation(values, depths)
    return replace(blank, rho=rho, interval=(float(low), float(high)), p_value=p_value)


def _answer_counts(answers: Sequence[str]) -> Counter[str]:
    return Counter(answer.strip().casefold() for answer in answers if answer.strip())
