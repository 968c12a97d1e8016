"""Scores of the answers that a run generated: the benchmarks' own aggregates, with intervals over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.curves.effects import image_codes
from analyses.curves.findings import Finding
from analyses.runs import HorizonError, Run, check_choice, split_groups
from analyses.scores.scorers import SCORERS, mme_label, pope_label, score_answer, scorer_of

RESAMPLES = 2000
LEAST_IMAGES = (
    20  # from there on 95 % intervals of shares covered 0.93 or more, see tests/analyses/scores/test_scores.py
)


@dataclass(frozen=True)
class Score(Finding):
    """One number that a benchmark gives a group of answers, or why there is none.

    Attributes:
        scorer: a key of `SCORERS`, or "" where none is known.
        metric: "accuracy" or "ANLS"; of POPE also "precision", "recall", "F1" and "yes ratio"; of MME "accuracy",
            "accuracy+" (images with both questions right) and "score" (100 times their sum, 0..200).
        value: the number; None where it does not exist.
        interval: 95 %, by resampled images; None without a value, and where no answer differs from the others.
        n_missing: measured samples without a generated answer or without a reference.
        n_cut: answers that the limit of tokens cut.
        warning: why the number or its interval may not hold what it promises; "" where nothing is the matter.
    """

    scorer: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    n_missing: int
    n_cut: int
    warning: str = ""


@dataclass(frozen=True)
class _Answers:
    """The answers of one group that one scorer can score.

    Attributes:
        scorer: a key of `SCORERS`, or "" where none is known.
        samples: columns of those that have a generated answer and a reference.
        images: (sample,) int cluster codes of their images.
        n_missing: measured samples without one of the two.
        n_cut: answers that the limit of tokens cut.
    """

    scorer: str
    samples: pd.DataFrame
    images: np.ndarray
    n_missing: int
    n_cut: int

    @property
    def n_images(self) -> int:
        """Distinct images behind the answers."""
        return len(np.unique(self.images))


@dataclass(frozen=True)
class _Metrics:
    """How numbers are made from sums: of columns with one value a sample, whose means the bootstrap resamples."""

    columns: np.ndarray  # (sample, column)
    formulas: dict[str, Callable[[np.ndarray], np.ndarray]]  # metric -> (..., column) means -> (...)
    warning: str = ""


@dataclass(frozen=True)
class _Number:
    """One metric's value with its interval, or the reason why there is none."""

    metric: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""
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
        resamples: number of resamples of the images behind the intervals.
        seed: random seed of the resamples.

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
    results = []
    for group, rows in split_groups(samples, by):
        for name, members in samples.loc[rows].groupby(names.loc[rows]):
            scorable = members[members["generation"].notna() & members["answers"].map(len).gt(0)]
            n_cut = int(finished[scorable.index].eq(False).sum())
            n_missing = len(members) - len(scorable)
            answers = _Answers(str(name), scorable, images[scorable.index].to_numpy(), n_missing, n_cut)
            reason = _unscorable(answers, members["task"])
            metric = "ANLS" if answers.scorer == "anls" else "accuracy"
            numbers = [_Number(metric, reason=reason)] if reason else _numbers(answers, counts)
            results += [_result(run, group, answers, number) for number in numbers]
    return results


def _unscorable(answers: _Answers, tasks: pd.Series) -> str:
    """Why no answer of these tasks can be scored, or ""."""
    if not answers.scorer:
        return f"no scorer is known for the task {', '.join(sorted(tasks.unique()))}: name one of {', '.join(SCORERS)}"
    return "" if len(answers.samples) else "no answer was generated"


def _result(run: Run, group: dict[str, str], answers: _Answers, number: _Number) -> Score:
    return Score(
        model=run.model,
        group=group,
        scorer=answers.scorer,
        metric=number.metric,
        value=number.value,
        interval=number.interval,
        n_samples=len(answers.samples),
        n_images=answers.n_images,
        n_missing=answers.n_missing,
        n_cut=answers.n_cut,
        reason=number.reason,
        warning=number.warning,
    )


def _numbers(answers: _Answers, counts: np.ndarray) -> list[_Number]:
    """Every metric of the answers, with its interval over resampled images."""
    metrics = _METRICS.get(answers.scorer, _mean)(answers)
    means = resampled_means(metrics.columns, answers.images, counts)
    n_images = answers.n_images
    few = f"only {n_images} images: so few were not simulated" if n_images < LEAST_IMAGES else ""
    cut = f"{answers.n_cut} answers were cut at the limit of tokens" if answers.n_cut else ""
    numbers = []
    for name, formula in metrics.formulas.items():
        value = float(formula(metrics.columns.mean(axis=0)))
        low, high = percentile_interval(formula(means), n_clusters=n_images)
        exists, spread = np.isfinite(value), np.isfinite([low, high]).all() and low < high
        alike = "resamples do not differ, so there is no interval" if exists and not spread else ""
        number = _Number(
            metric=name,
            value=value if exists else None,
            interval=(float(low), float(high)) if exists and spread else None,
            reason="" if exists else _UNDEFINED[name],
            warning="; ".join(filter(None, (metrics.warning, cut, alike, few))),
        )
        numbers.append(number)
    return numbers


def _mean(answers: _Answers) -> _Metrics:
    """The mean of single scores."""
    scores = [_score(answers.scorer, sample) for _, sample in answers.samples.iterrows()]
    metric = "ANLS" if answers.scorer == "anls" else "accuracy"
    return _Metrics(np.array(scores)[:, None], {metric: lambda means: means[..., 0]})


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


def _pope(answers: _Answers) -> _Metrics:
    """Accuracy and the rest of the confusion table, with yes as the positive answer."""
    samples = answers.samples
    yes = np.array([pope_label(text) == "yes" for text in samples["generation"]])
    right = np.array([_score("pope", sample) for _, sample in samples.iterrows()]) == 1
    table = np.stack([yes & right, yes & ~right, ~yes & ~right, ~yes & right], axis=1).astype(float)

    def precision(means: np.ndarray) -> np.ndarray:
        return _ratio(means[..., 0], means[..., 0] + means[..., 1])

    def recall(means: np.ndarray) -> np.ndarray:
        return _ratio(means[..., 0], means[..., 0] + means[..., 2])

    formulas = {
        "accuracy": lambda means: means[..., 0] + means[..., 3],
        "precision": precision,
        "recall": recall,
        "F1": lambda means: _ratio(2 * means[..., 0], 2 * means[..., 0] + means[..., 1] + means[..., 2]),
        "yes ratio": lambda means: means[..., 0] + means[..., 1],
    }
    return _Metrics(table, formulas)


def _mme(answers: _Answers) -> _Metrics:
    """Accuracy over questions, and over images with both of their questions; one image serves each subtask anew."""
    samples = answers.samples
    right = np.array([_score("mme", sample) for _, sample in samples.iterrows()])
    keys = pd.Series(list(zip(samples["task"], samples["category"].fillna(""), answers.images, strict=True)))
    pairs = [where for where in keys.groupby(keys).indices.values() if len(where) == 2]
    both, paired = np.zeros(len(right)), np.zeros(len(right))
    for where in pairs:
        both[where[0]], paired[where[0]] = right[where].min(), 1.0
    single = len(right) - 2 * len(pairs)
    other = sum(mme_label(text) == "other" for text in samples["generation"])
    formulas = {
        "accuracy": lambda means: means[..., 0],
        "accuracy+": lambda means: _ratio(means[..., 1], means[..., 2]),
        "score": lambda means: 100 * (means[..., 0] + _ratio(means[..., 1], means[..., 2])),
    }
    notes = (
        f"{single} questions do not come in pairs on an image and count in accuracy only" if single else "",
        f"{other} answers say neither yes nor no" if other else "",
    )
    return _Metrics(np.stack([right, both, paired], axis=1), formulas, "; ".join(filter(None, notes)))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.asarray(part) / whole, np.nan)


_METRICS: dict[str, Callable[[_Answers], _Metrics]] = {"pope": _pope, "mme": _mme}

_UNDEFINED = {
    "precision": "the model never says yes",
    "recall": "no reference says yes",
    "F1": "neither the model nor a reference says yes",
    "accuracy+": "no image has two questions",
    "score": "no image has two questions",
}
