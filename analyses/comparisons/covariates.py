"""What the half depth of single samples goes along with: how long their answers are, how many visual tokens, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.arrays.correlation import (
    RankCorrelation,
    rank_correlation,
    rank_p_value,
    resampled_rank_correlations,
)
from analyses.arrays.resampling import percentile_interval
from analyses.comparisons.adjustment import Tested, adjusted
from analyses.curves.effects import image_codes, resample_images
from analyses.curves.findings import RemovalFinding
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
class SampleAssociation(RemovalFinding, Tested):
    """Rank correlation of the half depth of single samples with a covariate.

    Attributes:
        covariate: its name.
        rho: Spearman's rank correlation, or None.
        interval: percentile interval over resamples of images, or None.
        p_value: of the permutation test by image, or None. p_adjusted: over all results of one call.
        n_ineligible: measured samples without a half depth (most have no effect at layer 0 to take half of; see
            `analyses.verdicts.single_curves.sample_depths` for the reason of each), left out.
        n_missing: samples with a half depth but without the covariate, left out.
        values: (sample,) the covariate. half_depths: (sample,) in layers.
    """

    covariate: str
    rho: float | None
    interval: tuple[float, float] | None
    n_ineligible: int
    n_missing: int
    values: np.ndarray
    half_depths: np.ndarray


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
        permutations: number of relabelings that the test draws.

    Returns:
        One result a group and covariate.

    Raises:
        HorizonError: an unknown covariate, measure, target or column, or a run without removal curves.
    """
    detector = detector or HorizonDetector()
    table = sample_depths(run, measure=measure, target=target, detector=detector)
    depths = table.loc[run.ok.index, "half_depth"]
    images = image_codes(run)
    counts = resample_images(run, detector.resamples, detector.seed)
    columns = [sample_covariate(run, item) if isinstance(item, str) else item for item in covariates]
    results = []
    for group, rows in split_groups(run.samples, by):
        members = depths[depths.index.isin(rows)]
        for column in columns:
            values = column.reindex(members.index).to_numpy(float)
            table = pd.DataFrame({"image": images, "half_depth": members}, index=members.index)
            table["covariate"] = np.where(np.isfinite(values), values, np.nan)
            known = table.dropna()
            correlation = _correlate(known, detector, counts, permutations)
            association = SampleAssociation(
                model=run.model,
                group=group,
                covariate=str(column.name),
                rho=correlation.rho,
                interval=correlation.interval,
                p_value=correlation.p_value,
                n_samples=len(known),
                n_images=known["image"].nunique(),
                n_ineligible=int(table["half_depth"].isna().sum()),
                n_missing=int((table["half_depth"].notna() & table["covariate"].isna()).sum()),
                values=known["covariate"].to_numpy(float),
                half_depths=known["half_depth"].to_numpy(float),
                reason=correlation.reason,
                tokens=run.config.tokens,
            )
            results.append(association)
    return adjusted(results)


def _correlate(
    known: pd.DataFrame, detector: HorizonDetector, counts: np.ndarray | None, permutations: int
) -> RankCorrelation:
    """Rank correlation of the columns covariate and half_depth of samples that have both, resampled by image."""
    images = known["image"].to_numpy(int)
    values, depths = known["covariate"].to_numpy(float), known["half_depth"].to_numpy(float)
    n_images = len(np.unique(images))
    if n_images < LEAST_IMAGES or counts is None:
        return RankCorrelation(reason=f"{n_images} images have both, needed at least {LEAST_IMAGES}")
    for what, numbers in (("covariate", values), ("half depth", depths)):
        if np.ptp(numbers) == 0:
            return RankCorrelation(reason=f"the {what} is the same for all {len(known)} samples")
    draws = resampled_rank_correlations(values, depths, images, counts)
    low, high = percentile_interval(draws, detector.level, n_clusters=n_images)
    return RankCorrelation(
        rho=rank_correlation(values, depths),
        interval=(float(low), float(high)),
        p_value=rank_p_value(values, depths, images, permutations=permutations, seed=detector.seed),
    )


def _answer_counts(answers: Sequence[str]) -> Counter[str]:
    return Counter(answer.strip().casefold() for answer in answers if answer.strip())
