"""Cluster bootstrap on arrays: images are drawn with replacement, and every sample of a drawn image comes along.

A resample is a row of counts, how often each image was drawn. Sums per image are formed once, so the mean curves of
all resamples are one matrix product, and groups that share images are resampled together by using the same counts.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import ndtr, stdtrit

BLOCK = 256  # resamples handled at once; bounds memory at a few MB for thousands of images
LEAST_IMAGES = 50  # from there on, intervals of bounded effects hold what they promise
LEAST_EFFECTIVE = 12.0  # same, in clusters of equal weight behind the spread; bounded effects of 50 images have more
# what 95 % intervals of half depths covered in tests/benchmarks/bench_calibration.py, over all designs of a kind
FEW_IMAGES_COVERED = {10: "0.89 to 0.96", 20: "0.89 to 0.96", 30: "0.93 to 0.96"}
HEAVY_TAILS_COVERED = "0.91 to 0.94 in simulation, bands 0.73 to 0.95"


def cluster_codes(names: Iterable[str]) -> np.ndarray:
    """Number clusters by their name, so that the codes do not depend on the order of samples.

    Returns:
        (sample,) int codes, 0..n_clusters-1.

    >>> cluster_codes(["b", "a", "b"])
    array([1, 0, 1])
    """
    return np.unique(np.asarray(list(names), dtype=str), return_inverse=True)[1]


def draw_counts(n_clusters: int, resamples: int = 2000, seed: int = 0, *, size: int | None = None) -> np.ndarray:
    """Draw clusters with replacement, `resamples` times.

    Args:
        n_clusters: number of clusters to draw from.
        resamples: number of resamples.
        seed: random seed of the draws.
        size: clusters in a resample; `n_clusters` by default.

    Returns:
        (resample, cluster) uint16 counts; each row sums to `size`.
    """
    rng = np.random.default_rng(seed)
    size = n_clusters if size is None else size
    counts = np.empty((resamples, n_clusters), dtype=np.uint16)
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        draws = rng.integers(0, n_clusters, (rows, size)) + n_clusters * np.arange(rows)[:, None]
        block = np.bincount(draws.ravel(), minlength=rows * n_clusters)
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
    present, sums, sizes = cluster_sums(values, clusters)
    means = np.full((len(counts), values.shape[1]), np.nan)
    for start in range(0, len(counts), BLOCK):
        weights = counts[start : start + BLOCK][:, present].astype(float)
        size = weights @ sizes
        some = size > 0
        means[start : start + BLOCK][some] = (weights @ sums)[some] / size[some, None]
    return means


def percentile_interval(
    draws: np.ndarray, level: float = 0.95, *, n_clusters: int | None = None, method: str = "linear"
) -> np.ndarray:
    """Central interval of bootstrap draws along their first axis; NaN draws are left out.

    With the number of clusters behind the draws, the percentiles are moved outward to those that a normal sample of
    that size would need ("expanded percentile", Hesterberg, The American Statistician 69, 2015): Student's quantile
    in place of the normal one, and the variance with n - 1 in place of n. Plain percentiles are too narrow by just
    that: at 20 images 95 % intervals of half depths covered 0.92 and now cover 0.95 (tests/benchmarks/RESULTS.md).

    Args:
        draws: (resample, ...) statistics of the resamples.
        level: coverage that is asked for.
        n_clusters: clusters behind each draw, the smaller number for a difference; plain percentiles if None.
        method: numpy's ("inverted_cdf" keeps whole layers whole).

    Returns:
        (2, ...) lower and upper ends; NaN without a single finite draw or with one cluster.
    """
    finite = draws[~np.isnan(draws.reshape(len(draws), -1)).any(axis=1)]
    if len(finite) == 0 or n_clusters == 1:
        return np.full((2, *draws.shape[1:]), np.nan)
    tail = (1 - level) / 2
    if n_clusters is not None:
        tail = float(ndtr(stdtrit(n_clusters - 1, tail) * np.sqrt(n_clusters / (n_clusters - 1))))
    return np.quantile(finite, [tail, 1 - tail], axis=0, method=method)  # type: ignore[call-overload]


def simultaneous_band(values: np.ndarray, clusters: np.ndarray, counts: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Band that holds a whole mean curve at once: mean +- q se, q the `level` quantile of max over layers of |t|.

    t = (resample's mean - mean) / (resample's own standard error), errors by cluster. Where few images have an
    effect, the sample may have missed them all, and an error estimated from the sample is too small or 0. So every
    variance holds that of one image more with an effect of the usual size among images that have one (the mean of
    effects weighted by themselves, at the layer where they are largest), and no layer is known better than the rule
    of three says: what none of n images shows may still be there in 3 of n. Only the last layer is exact, if
    nothing varies there: at layer L nothing is removed.

    Args:
        values: (sample, layer) float, finite.
        clusters: (sample,) int codes into the columns of `counts`.
        counts: (resample, cluster) from `draw_counts`.
        level: probability that the whole curve lies inside.

    Returns:
        (2, layer) lower and upper ends; NaN with fewer than two clusters.
    """
    mean = values.mean(axis=0)
    present, sums, sizes = cluster_sums(values, clusters)
    if len(present) < 2:
        return np.full((2, len(mean)), np.nan)
    unseen = (_one_more(sums) / sizes.sum()) ** 2
    if unseen == 0:
        return np.stack([mean, mean])
    largest = [
        _largest_t(counts[start : start + BLOCK][:, present].astype(float), sums, sizes, unseen)
        for start in range(0, len(counts), BLOCK)
    ]
    quantile = max(np.quantile(np.concatenate(largest), level), stdtrit(len(present) - 1, (1 + level) / 2))
    _, variance = _mean_and_variance(np.ones((1, len(present))), sums, sizes)
    half_width = np.maximum(quantile * np.sqrt(variance[0] + unseen), -np.log(1 - level) * np.sqrt(unseen))
    if np.ptp(values[:, -1]) <= 1e-12 * np.abs(values).max():
        half_width[-1] = 0.0
    return np.stack([mean - half_width, mean + half_width])


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums per cluster, from which the means of all resamples follow.

    Args:
        values: (sample, layer) float.
        clusters: (sample,) int codes.

    Returns:
        codes: (cluster,) that occur, ascending. sums: (cluster, layer). sizes: (cluster,) float, samples in each.
    """
    present, codes, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), values.shape[1]))
    np.add.at(sums, codes, values)
    return present, sums, sizes.astype(float)


def _mean_and_variance(weights: np.ndarray, sums: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(resample, layer) means and their cluster-robust variances, sum_c n_c (S_c - N_c mean)^2 / N^2, from counts."""
    n_clusters = len(sizes)
    size = (weights @ sizes)[:, None]
    mean = (weights @ sums) / size
    products = weights @ (sums * sizes[:, None])
    squares = weights @ sums**2 - 2 * mean * products + mean**2 * (weights @ sizes**2)[:, None]
    return mean, np.maximum(squares, 0.0) / size**2 * (n_clusters / (n_clusters - 1))


def _one_more(sums: np.ndarray) -> float:
    """Usual size of a cluster's sum where there is an effect, sum S^2 / sum |S| at the layer of largest effects."""
    sizes = np.abs(sums)
    largest = sizes[:, (sizes**2).sum(axis=0).argmax()]
    return float((largest**2).sum() / largest.sum()) if largest.any() else 0.0


def _largest_t(weights: np.ndarray, sums: np.ndarray, sizes: np.ndarray, unseen: float) -> np.ndarray:
    """(resample,) largest |t| over layers; resamples that drew none of the clusters are left out."""
    weights = weights[weights.any(axis=1)]
    mean, variance = _mean_and_variance(weights, sums, sizes)
    estimate = sums.sum(axis=0) / sizes.sum()
    return (np.abs(mean - estimate) / np.sqrt(variance + unseen)).max(axis=1)


def effective_clusters(values: np.ndarray, clusters: np.ndarray) -> float:
    """As how many clusters of equal weight those behind the spread of a mean curve count.

    With w_c the squared deviation of a cluster, added up over layers: (sum w_c)^2 / sum w_c^2. A third to a half of
    the clusters where effects are bounded or normal, a handful, however many there are, where tails are heavy.

    Args:
        values: (sample, layer) float, finite.
        clusters: (sample,) int codes.

    Returns:
        Between 1 and the number of clusters; NaN where nothing varies.
    """
    _, sums, sizes = cluster_sums(values, clusters)
    weights = ((sums - sizes[:, None] * sums.sum(axis=0) / sizes.sum()) ** 2).sum(axis=1)
    total = (weights**2).sum()
    return float(weights.sum() ** 2 / total) if total > 0 else float("nan")


def interval_warning(values: np.ndarray, clusters: np.ndarray) -> str:
    """Why 95 % intervals of these samples may not hold, with the coverage that was measured, or "".

    Args:
        values: (sample, layer) float, finite.
        clusters: (sample,) int codes of the images.
    """
    n_images = len(np.unique(clusters))
    effective = effective_clusters(values, clusters)
    reasons = []
    if n_images < LEAST_IMAGES:
        fewest = min(FEW_IMAGES_COVERED)
        measured = max((n for n in FEW_IMAGES_COVERED if n <= n_images), default=fewest)
        coverage = f"95 % intervals covered {FEW_IMAGES_COVERED[measured]} in simulation"
        below = f" with {fewest} images, and so few were not simulated" if n_images < fewest else ""
        reasons.append(f"only {n_images} images: {coverage}{below}")
    if effective < min(LEAST_EFFECTIVE, n_images / 4):
        reasons.append(
            f"a few images make most of the spread (as {effective:.0f} of equal weight would): 95 % intervals of "
            f"half depths covered {HEAVY_TAILS_COVERED}"
        )
    return "; ".join(reasons)
