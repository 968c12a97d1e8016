"""Spearman's rank correlation of clustered observations: estimate, intervals and permutation test, on arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations as orders
from itertools import product
from math import factorial, prod

import numpy as np
from scipy.stats import norm, rankdata

from analyses.arrays.resampling import BLOCK

TIE = 1e-9  # correlations that differ by less are equal up to rounding


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho with its interval and the p-value of a permutation test, or the reason why there is none."""

    rho: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    reason: str = ""


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rho of two variables, ties at their mean rank; NaN if one of them is constant.

    Args:
        x: (observation,) float, finite.
        y: (observation,) float, finite.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 20.0]))
    0.5
    """
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else float("nan")


def resampled_rank_correlations(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's rho of every resample of clusters, ranks taken anew in each.

    Args:
        x: (observation,) float, finite.
        y: (observation,) float, finite.
        clusters: (observation,) int codes into the columns of `counts`.
        counts: (resample, cluster) from `draw_counts`.

    Returns:
        (resample,) correlations; NaN where a variable is constant in the resample.
    """
    correlations = np.full(len(counts), np.nan)
    for start in range(0, len(counts), BLOCK):
        weights = counts[start : start + BLOCK][:, clusters].astype(float)
        middle = (weights.sum(axis=1, keepdims=True) + 1) / 2
        a, b = (_weighted_ranks(values, weights) - middle for values in (x, y))
        scale = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
        varies = scale > TIE
        correlations[start : start + BLOCK][varies] = (weights * a * b).sum(axis=1)[varies] / scale[varies]
    return correlations


def fisher_interval(rho: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of Spearman's rho from few independent observations: Fisher's z with the error of Bonett and Wright.

    z = artanh(rho) +- q sqrt((1 + rho^2 / 2) / (n - 3)) (Psychometrika 65, 2000). A perfect correlation would get no
    width; it counts as halfway between 1 and the largest value below it that n ranks can give, 1 - 12 / (n^3 - n), and
    its interval reaches up to 1.

    Args:
        rho: the estimate.
        n: observations, at least 4.
        level: coverage of the interval, in 0..1.

    >>> tuple(round(end, 2) for end in fisher_interval(1.0, 5))
    (0.16, 1.0)
    """
    most = 1 - 6 / (n**3 - n)
    inner = float(np.clip(rho, -most, most))
    half_width = norm.ppf((1 + level) / 2) * np.sqrt((1 + inner**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(inner) + np.array([-half_width, half_width]))
    return (-1.0 if rho < -most else float(low)), (1.0 if rho > most else float(high))


def rank_p_value(
    x: np.ndarray, y: np.ndarray, clusters: np.ndarray, *, permutations: int = 2000, seed: int = 0
) -> float:
    """Two-sided permutation p-value of Spearman's rho; the null is that x has nothing to do with y.

    All x of a cluster move together, to another cluster with as many observations, so that whatever holds a cluster
    together in x or in y stays whole.

    Args:
        x: (observation,) float, finite, not constant.
        y: (observation,) float, finite, not constant.
        clusters: (observation,) int codes.
        permutations: number of relabelings to draw. If there are no more than that, each is looked at once instead.
        seed: random seed of the draws.

    Returns:
        (1 + permutations at least as extreme) / (1 + permutations drawn), or the share of all where all were looked
        at.
    """
    sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(clusters, kind="stable")
    size = sizes[2][sizes[1][order]]
    blocks = [order[size == count].reshape(-1, count) for count in np.unique(size)]
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    least = abs(a @ b) * (1 - TIE)
    every = prod(factorial(len(block)) for block in blocks)
    shuffles = _all_shuffles(blocks) if every <= permutations else _random_shuffles(blocks, permutations, seed)
    extreme = sum(int((np.abs(a[shuffle] @ b) >= least).sum()) for shuffle in shuffles)
    return extreme / every if every <= permutations else (1 + extreme) / (1 + permutations)


def _weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resample, observation) mean rank of every observation, were it there `weights` times."""
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(distinct)))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    return (totals.cumsum(axis=1) - (totals - 1) / 2)[:, codes]


def _all_shuffles(blocks: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Every way to exchange the rows of each block: (1, observation) int, which observation comes to each place."""
    for rows_of in product(*(orders(range(len(block))) for block in blocks)):
        yield _moved(blocks, [np.array([rows]) for rows in rows_of])


def _random_shuffles(blocks: list[np.ndarray], permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Random exchanges of the rows of each block: (permutation, observation) int."""
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, BLOCK):
        n = min(BLOCK, permutations - start)
        yield _moved(blocks, [rng.permuted(np.tile(np.arange(len(block)), (n, 1)), axis=1) for block in blocks])


def _moved(blocks: list[np.ndarray], rows: list[np.ndarray]) -> np.ndarray:
    shuffles = np.empty((len(rows[0]), sum(block.size for block in blocks)), dtype=int)
    for block, order in zip(blocks, rows, strict=True):
        shuffles[:, block.ravel()] = block[order].reshape(len(order), -1)
    return shuffles
