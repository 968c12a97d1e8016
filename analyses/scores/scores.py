"""Scores of the answers that a run generated: the benchmarks' own aggregates, with intervals over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.curves.effects import image_codes
from analyses.runs import HorizonError, Run, check_choice, split_groups
from analyses.scores.scorers import SCORERS, mme_label, pope_label, score_answer, scorer_of

RESAMPLES = 2000
LEAST_IMAGES = 20  # from there on 95 % intervals of shares covered 0.93 or more, see tests/analyses/test_scores.py


@dataclass(frozen=True)
class Score:
    """One number that a benchmark gives a group of answers, or why there is none.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples.
        scorer: a key of `SCORERS`, or "" where none is known.
        metric: "accuracy" or "ANLS"; of POPE also "precision", "recall", "F1" and "yes ratio"; of MME "accuracy",
            "accuracy+" (images with both questions right) and "score" (100 times their sum, 0..200).
        value: the number; None where it does not exist.
        interval: 95 %, by resampled images; None without a value, and where no answer differs from the others.
        n_samples: answers scored. n_images: distinct images among them.
        n_missing: measured samples without a generated answer or without a reference.
        n_cut: answers that the limit of tokens cut.
        reason: why `value` is None; "" when it is given.
        warning: why the number or its interval may not hold what it promises; "" where nothing is the matter.
    """

    model: str
    group: dict[str, str]
    scorer: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    n_samples: int
    n_images: int
    n_missing: int
    n_cut: int
    reason: str = ""
    warning: str = ""


@dataclass(frozen=True)
class _Metrics:
    """How numbers are made from sums: of columns with one value a sample, whose means the bootstrap resamples."""

    columns: np.ndarray  # (sample, column)
    made: dict[str, Callable[[np.ndarray], np.ndarray]]  # metric -> (..., column) means -> (...)
    warning: str = ""


def score_run(
    run: Run,
    *,
    by: Sequence[str] = ("task",),
    scorer: str | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Score]:
    """Score the whole answers of a run by the rule of each benchmark.

    Args:
        run: measured with `generate`.
        by: columns that define the groups; samples of one group with different scorers are kept apart.
        scorer: a key of `SCORERS` for all samples; by default that of each task, see `scorer_of`.
        resamples: of the images, for the intervals.
        seed: of the resamples.

    Returns:
        One result a group, scorer and metric; empty where the run generated no answer.

    Raises:
        HorizonError: an unknown scorer or column, or a reference that the scorer does not expect.
    """
    if scorer is not None:
        check_choice("scorer", scorer, SCORERS)
    samples = run.ok
    if not samples["generation"].notna().any():
        return []
    names = samples["task"].map(lambda task: scorer or scorer_of(task) or "")
    images = image_codes(run)
    counts = draw_counts(images.max() + 1, resamples, seed)
    finished = run.generations["finished"].reindex(samples.index)
    found = []
    for group, rows in split_groups(samples, by):
        for name, own in samples.loc[rows].groupby(names.loc[rows]):
            blank = _blank(run, group, str(name), own, images, finished)
            scored = own[_scorable(own)]
            found += _scored(blank, scored, images[scored.index].to_numpy(), counts)
    return found


def _scorable(samples: pd.DataFrame) -> pd.Series:
    return samples["generation"].notna() & samples["answers"].map(len).gt(0)


def _blank(
    run: Run, group: dict[str, str], scorer: str, samples: pd.DataFrame, images: pd.Series, finished: pd.Series
) -> Score:
    """What is known before any answer is looked at."""
    used = samples.index[_scorable(samples)]
    tasks = ", ".join(sorted(samples["task"].unique()))
    reason = "" if scorer else f"no scorer is known for the task {tasks}: name one of {', '.join(SCORERS)}"
    return Score(
        model=run.model,
        group=group,
        scorer=scorer,
        metric="ANLS" if scorer == "anls" else "accuracy",
        value=None,
        interval=None,
        n_samples=len(used),
        n_images=int(images[used].nunique()),
        n_missing=len(samples) - len(used),
        n_cut=int(finished[used].eq(False).sum()),
        reason=reason or ("" if len(used) else "no answer was generated"),
    )


def _scored(blank: Score, samples: pd.DataFrame, images: np.ndarray, counts: np.ndarray) -> list[Score]:
    if blank.reason:
        return [blank]
    metrics = _METRICS.get(blank.scorer, _mean)(blank, samples, images)
    means = resampled_means(metrics.columns, images, counts)
    few = f"only {blank.n_images} images: so few were not simulated" if blank.n_images < LEAST_IMAGES else ""
    found = []
    for name, make in metrics.made.items():
        value = float(make(metrics.columns.mean(axis=0)))
        low, high = percentile_interval(make(means), n_clusters=blank.n_images)
        spread = np.isfinite([low, high]).all() and low < high
        one = replace(
            blank,
            metric=name,
            value=value if np.isfinite(value) else None,
            interval=(float(low), float(high)) if spread and np.isfinite(value) else None,
            reason="" if np.isfinite(value) else _UNDEFINED[name],
        )
        alike = "" if spread or one.value is None else "resamples do not differ, so there is no interval"
        cut = f"{blank.n_cut} answers were cut at the limit of tokens" if blank.n_cut else ""
        found.append(replace(one, warning="; ".join(filter(None, (metrics.warning, cut, alike, few)))))
    return found


def _mean(blank: Score, samples: pd.DataFrame, images: np.ndarray) -> _Metrics:
    """The mean of single scores."""
    scores = [_score(blank.scorer, one) for _, one in samples.iterrows()]
    return _Metrics(np.array(scores)[:, None], {blank.metric: lambda means: means[..., 0]})


def _score(scorer: str, sample: pd.Series) -> float:
    options = () if sample["options"] is None else list(sample["options"])
    try:
        return score_answer(
            scorer,
            sample["generation"],
            list(sample["answers"]),
            options=options,
            category=sample["category"] or "",
        )
    except HorizonError as error:
        raise HorizonError(f"sample {sample['id']!r}: {error}") from error


def _pope(blank: Score, samples: pd.DataFrame, images: np.ndarray) -> _Metrics:
    """Accuracy and the rest of the confusion table, with yes as the positive answer."""
    said = np.array([pope_label(text) == "yes" for text in samples["generation"]])
    right = np.array([_score("pope", one) for _, one in samples.iterrows()]) == 1
    table = np.stack([said & right, said & ~right, ~said & ~right, ~said & right], axis=1).astype(float)

    def precision(means: np.ndarray) -> np.ndarray:
        return _ratio(means[..., 0], means[..., 0] + means[..., 1])

    def recall(means: np.ndarray) -> np.ndarray:
        return _ratio(means[..., 0], means[..., 0] + means[..., 2])

    made = {
        "accuracy": lambda means: means[..., 0] + means[..., 3],
        "precision": precision,
        "recall": recall,
        "F1": lambda means: _ratio(2 * means[..., 0], 2 * means[..., 0] + means[..., 1] + means[..., 2]),
        "yes ratio": lambda means: means[..., 0] + means[..., 1],
    }
    return _Metrics(table, made)


def _mme(blank: Score, samples: pd.DataFrame, images: np.ndarray) -> _Metrics:
    """Accuracy over questions, and over images with both of their questions; one image serves each subtask anew."""
    right = np.array([_score("mme", one) for _, one in samples.iterrows()])
    keys = pd.Series(list(zip(samples["task"], samples["category"].fillna(""), images, strict=True)))
    pairs = [where for where in keys.groupby(keys).indices.values() if len(where) == 2]
    both, paired = np.zeros(len(right)), np.zeros(len(right))
    for where in pairs:
        both[where[0]], paired[where[0]] = right[where].min(), 1.0
    single = len(right) - 2 * len(pairs)
    other = sum(mme_label(text) == "other" for text in samples["generation"])
    made = {
        "accuracy": lambda means: means[..., 0],
        "accuracy+": lambda means: _ratio(means[..., 1], means[..., 2]),
        "score": lambda means: 100 * (means[..., 0] + _ratio(means[..., 1], means[..., 2])),
    }
    notes = (
        f"{single} questions do not come in pairs on an image and count in accuracy only" if single else "",
        f"{other} answers say neither yes nor no" if other else "",
    )
    return _Metrics(np.stack([right, both, paired], axis=1), made, "; ".join(filter(None, notes)))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.asarray(part) / whole, np.nan)


_METRICS: dict[str, Callable[[Score, pd.DataFrame, np.ndarray], _Metrics]] = {"pope": _pope, "mme": _mme}

_UNDEFINED = {
    "precision": "the model never says yes",
    "recall": "no reference says yes",
    "F1": "neither the model nor a reference says yes",
    "accuracy+": "no image has two questions",
    "score": "no image has two questions",
}
