"""Cluster bootstrap on arrays: images are drawn with replacement, and every sample of a drawn image comes along.

A resample is a row of counts, how often each image was drawn. Sums per image are formed once, so the mean curves of
all resamples are one matrix product, and groups that share images are resampled together by using the same counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BLOCK = 256  # resamples handled at once; bounds memory at a few MB for thousands of images


def cluster_codes(names: Iterable[str]) -> np.ndarray:
    """Number clusters by their name, so that the codes do not depend on the order of samples.

    Returns:
        (sample,) int codes, 0..n_clusters-1.

    >>> cluster_codes(["b", "a", "b"])
    array([1, 0, 1])
    """
    return np.unique(np.asarray(list(names), dtype=str), return_inverse=True)[1]


def draw_counts(n_clusters: int, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Draw `n_clusters` clusters with replacement, `resamples` times.

    Returns:
        (resample, cluster) uint16 counts; each row sums to `n_clusters`.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, n_clusters), dtype=np.uint16)
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        drawn = rng.integers(0, n_clusters, (rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        block = np.bincount(drawn.ravel(), minlength=rows * n_clusters)
        counts[start : start + rows] = block.reshape(rows, n_clusters)
    return counts


def resampled_means(values: np.ndarray, clusters: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over samples of every resample.

    Args:
        values: (sample, layer) float, finite.
        clusters: (sample,) int codes into the columns of `counts`.
        counts: (resample, cluster) from `draw_counts`.

    Returns:
        (resample, layer) means; NaN rows where a resample drew none of these clusters.
    """
    present, sums, sizes = _cluster_sums(values, clusters)
    means = np.full((len(counts), values.shape[1]), np.nan)
    for start in range(0, len(counts), BLOCK):
        drawn = counts[start : start + BLOCK][:, present].astype(float)
        size = drawn @ sizes
        some = size > 0
        means[start : start + BLOCK][some] = (drawn @ sums)[some] / size[some, None]
    return means


def percentile_interval(draws: np.ndarray, level: float = 0.95, *, method: str = "linear") -> np.ndarray:
    """Central interval of bootstrap draws along their first axis; NaN draws are left out.

    Returns:
        (2, ...) lower and upper ends; `method` is numpy's ("inverted_cdf" keeps whole layers whole). NaN without
        a single finite draw.
    """
    kept = draws[~np.isnan(draws.reshape(len(draws), -1)).any(axis=1)]
    if len(kept) == 0:
        return np.full((2, *draws.shape[1:]), np.nan)
    return np.quantile(kept, [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)  # type: ignore[call-overload]


def simultaneous_band(
    values: np.ndarray, clusters: np.ndarray, counts: np.ndarray, level: float = 0.95, *, least: float = 0.05
) -> np.ndarray:
    """Band that holds a whole mean curve at once: mean +- q se, q the `level` quantile of max over layers of |t|.

    t = (resample's mean - mean) / (resample's own standard error), errors by cluster. A layer where only a few
    samples have an effect has an error that is too small whenever they were missed, so a sample's standard
    deviation counts as at least the share `least` of the largest mean effect. A layer where nothing varies (the
    removal effect at layer L is 0 for every sample) takes no part in the maximum and gets no width.

    Args:
        values: (sample, layer) float, finite.
        clusters: (sample,) int codes into the columns of `counts`.
        counts: (resample, cluster) from `draw_counts`.
        level: probability that the whole curve lies inside.
        least: see above.

    Returns:
        (2, layer) lower and upper ends; NaN with fewer than two clusters.
    """
    mean = values.mean(axis=0)
    varies = np.ptp(values, axis=0) > 1e-12 * np.abs(values).max()
    present, sums, sizes = _cluster_sums(values, clusters)
    if len(present) < 2:
        return np.full((2, len(mean)), np.nan)
    if not varies.any():
        return np.stack([mean, mean])
    floor = (least * np.abs(mean).max()) ** 2 / len(values)
    largest = [
        _largest_t(counts[start : start + BLOCK][:, present].astype(float), sums[:, varies], sizes, floor)
        for start in range(0, len(counts), BLOCK)
    ]
    _, variance = _mean_and_variance(np.ones((1, len(present))), sums, sizes)
    error = np.where(varies, np.sqrt(variance[0] + floor), 0.0)
    half_width = np.quantile(np.concatenate(largest), level) * error
    return np.stack([mean - half_width, mean + half_width])


def _cluster_sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters that occur, (cluster, layer) sums of their samples' values, and (cluster,) numbers of samples."""
    present, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), values.shape[1]))
    np.add.at(sums, codes, values)
    return present, sums, sizes.astype(float)


def _mean_and_variance(drawn: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(resample, layer) means and their cluster-robust variances, sum_c n_c (S_c - N_c mean)^2 / N^2, from counts."""
    n_clusters = len(sizes)
    size = (drawn @ sizes)[:, None]
    mean = (drawn @ sums) / size
    squares = drawn @ sums**2 - 2 * mean * (drawn @ (sums * sizes[:, None])) + mean**2 * (drawn @ sizes**2)[:, None]
    return mean, np.maximum(squares, 0.0) / size**2 * (n_clusters / (n_clusters - 1))


def _largest_t(drawn: np.ndarray, sums: np.ndarray, sizes: np.ndarray, floor: float) -> np.ndarray:
    """(resample,) largest |t| over layers; resamples that drew none of the clusters are left out."""
    drawn = drawn[drawn.any(axis=1)]
    mean, variance = _mean_and_variance(drawn, sums, sizes)
    estimate = sums.sum(axis=0) / sizes.sum()
    return (np.abs(mean - estimate) / np.sqrt(variance + floor)).max(axis=1)
