"""Permutation tests of differences of half depth, and Holm's adjustment for many of them: functions of arrays.

The null hypothesis is that R_k / R_0 curves are exchangeable between the two groups. Labels move by image, as images
are the units that were sampled: where an image was asked in both groups, the two sets of its answers swap; the others
are dealt anew to the groups, each with all of its answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import numpy as np

from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import BLOCK

PRECISION = 1e-4  # share of the depth; differences of half depth are not known better than this
TIE = 1e-9  # statistics that differ by less are equal up to rounding


def half_depth_p_value(
    values_a: np.ndarray,
    images_a: np.ndarray,
    values_b: np.ndarray,
    images_b: np.ndarray,
    layers: np.ndarray,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """Two-sided permutation p-value of the difference between the half depths of two mean curves.

    Curves are divided by the mean R_0 of their group, so that a group with larger effects does not pass for a deeper
    one. It is the group's mean and not the sample's own R_0: half depth belongs to the mean curve, where a sample
    weighs by its effect, and the own R_0 of a sample can be 0 or negative.

    The statistic is |difference of half depths| over its standard error, by image, of the same relabeling. With the
    bare difference, groups of unequal size and spread, or with unequal numbers of questions an image, would reject
    too often: their labels move variance as well. Over its error it keeps the level there too (Chung and Romano,
    "Exact and asymptotically robust permutation tests", Annals of Statistics 41, 2013).

    Args:
        values_a: (sample, layer) removal effects of one group, finite, 0 at the last layer.
        images_a: (sample,) codes of their images; equal codes in both groups are one image.
        values_b: (sample, layer) of the other group, on the same layers.
        images_b: (sample,) codes of their images.
        layers: (layer,) ascending, in layers or in fractions of depth; 0 first.
        permutations: number of relabelings to draw. If there are no more than that, each is looked at once instead.
        seed: random seed of the draws.

    Returns:
        (1 + relabelings at least as extreme) / (1 + relabelings drawn), or the share of all where all were looked
        at; NaN if the mean effect at layer 0 is not positive in both groups.
    """
    sides = (values_a, images_a), (values_b, images_b)
    if not all(len(values) and values[:, 0].mean() > 0 for values, _ in sides):
        return float("nan")
    pool = _pool(*sides)
    observed = _statistics(pool, np.zeros((1, len(pool.first)), dtype=bool), layers)[0]
    every = _n_relabelings(pool) <= permutations
    relabelings = _all_flips(pool) if every else _random_flips(pool, permutations, seed)
    extreme = sum(_at_least(_statistics(pool, flips, layers), observed) for flips in relabelings)
    return extreme / _n_relabelings(pool) if every else (1 + extreme) / (1 + permutations)


def adjust_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment of one family of p-values.

    Args:
        p_values: one a comparison; None where there was none to make, which does not count as a member.

    Returns:
        Adjusted, in the order given: rejecting those <= a keeps the chance of any false rejection in the family
        <= a, whatever their dependence. Of m p-values from n permutations none can fall below m / (n + 1).

    >>> adjust_holm([0.25, None, 0.01, 0.04])
    [0.25, None, 0.03, 0.08]
    """
    members = [(p, at) for at, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, at) in enumerate(sorted(members)):
        largest = max(largest, min(1.0, p * (len(members) - rank)))
        adjusted[at] = largest
    return adjusted


def on_grid(values: np.ndarray, layers: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Curves on a finer grid, linearly between layers and constant after the last, which leaves half depths alone.

    Args:
        values: (sample, layer) float.
        layers: (layer,) ascending, where they were measured.
        grid: (point,) ascending.

    Returns:
        (sample, point) values.

    >>> on_grid(np.array([[1.0, 0.0]]), np.array([0, 2]), np.array([0, 1, 2, 3]))
    array([[1. , 0.5, 0. , 0. ]])
    """
    weights = np.array([np.interp(grid, layers, unit) for unit in np.eye(len(layers))])
    return values @ weights


@dataclass(frozen=True)
class _Pool:
    """Scaled curves summed by image, and how many samples: (image, layer + 1), the number last.

    An image that was asked in both groups stands in both arrays, any other in one; `shared` tells which. To relabel
    is to exchange the rows of some images.
    """

    first: np.ndarray
    second: np.ndarray
    shared: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(unshared image,) bool, in the first group."""
        return self.first[~self.shared, -1] > 0


def _pool(*sides: tuple[np.ndarray, np.ndarray]) -> _Pool:
    names = np.unique(np.concatenate([images for _, images in sides]))
    sums = []
    for values, images in sides:
        table = np.zeros((len(names), values.shape[1] + 1))
        scaled = np.column_stack([values / values[:, 0].mean(), np.ones(len(values))])
        np.add.at(table, np.searchsorted(names, images), scaled)
        sums.append(table)
    return _Pool(sums[0], sums[1], (sums[0][:, -1] > 0) & (sums[1][:, -1] > 0))


def _n_relabelings(pool: _Pool) -> int:
    return 2 ** int(pool.shared.sum()) * comb(len(pool.labels), int(pool.labels.sum()))


def _all_flips(pool: _Pool) -> Iterator[np.ndarray]:
    """Every relabeling once: (relabeling, image) bool, whether the image's rows are exchanged."""
    labels = pool.labels
    for first_group in combinations(range(len(labels)), int(labels.sum())):
        flips = np.zeros((2 ** int(pool.shared.sum()), len(pool.shared)), dtype=bool)
        flips[:, ~pool.shared] = np.isin(np.arange(len(labels)), first_group) != labels
        flips[:, pool.shared] = list(product((False, True), repeat=int(pool.shared.sum())))
        yield flips


def _random_flips(pool: _Pool, permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Random relabelings, in blocks: (relabeling, image) bool."""
    rng = np.random.default_rng(seed)
    labels = pool.labels
    for start in range(0, permutations, BLOCK):
        flips = rng.random((min(BLOCK, permutations - start), len(pool.shared))) < 0.5
        dealt = rng.permuted(np.tile(labels, (len(flips), 1)), axis=1)
        flips[:, ~pool.shared] = dealt != labels
        yield flips


def _statistics(pool: _Pool, flips: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """(relabeling,) |difference of half depths| over its standard error."""
    exchanged = flips @ (pool.second - pool.first)
    depth_a, pull_a = _depth_and_pulls(pool.first, pool.second, flips, pool.first.sum(axis=0) + exchanged, layers)
    depth_b, pull_b = _depth_and_pulls(pool.second, pool.first, flips, pool.second.sum(axis=0) - exchanged, layers)
    error = np.sqrt(((pull_a - pull_b) ** 2).sum(axis=1))
    return np.abs(depth_a - depth_b) / np.hypot(error, PRECISION * layers[-1])


def _depth_and_pulls(
    group_sums: np.ndarray, other_sums: np.ndarray, flips: np.ndarray, total: np.ndarray, layers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Half depth of one relabeled group, and how far each image pulls it from where it lies, to first order.

    Where the mean curve M falls through M_0 / 2 at the depth h, an image with curves x pulls by
    sum (x(h) - x_0 / 2) / (n * slope of M), n the number of samples. These pulls add up to 0.

    Returns:
        (relabeling,) half depths and (relabeling, image) pulls, in the unit of `layers`.
    """
    mean = total[:, :-1] / total[:, -1:]
    depth = half_depths(mean, layers)
    at = np.clip(np.searchsorted(layers, depth, side="right") - 1, 0, len(layers) - 2)
    row = np.arange(len(flips))
    width = layers[at + 1] - layers[at]
    share = (depth - layers[at]) / width
    slope = np.maximum(mean[row, at] - mean[row, at + 1], TIE) / width
    weights = np.zeros_like(mean)
    weights[row, at] = 1 - share
    weights[row, at + 1] = share
    weights[:, 0] -= 0.5
    pulls = np.where(flips, weights @ other_sums[:, :-1].T, weights @ group_sums[:, :-1].T)
    return depth, pulls / (total[:, -1] * slope)[:, None]


def _at_least(statistics: np.ndarray, observed: float) -> int:
    """How many are at least as extreme; one without a half depth counts as extreme."""
    return int((~(statistics < observed - TIE * (1 + observed))).sum())
