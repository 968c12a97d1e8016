"""Rank correlations against scipy, on resamples and permutations restated by hand, and their error rates."""

from itertools import permutations

import numpy as np
import pytest
import simulated_curves as simulated
from scipy import stats

from analyses.arrays.correlation import fisher_interval, rank_correlation, rank_p_value, resampled_rank_correlations
from analyses.arrays.resampling import draw_counts, percentile_interval


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_estimate_is_scipys(rng):
    for _ in range(20):
        x, y = rng.integers(0, 6, 15).astype(float), rng.normal(0, 1, 15)
        assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(y, np.exp(3 * y)) == pytest.approx(1)
    assert np.isnan(rank_correlation(y, np.ones(15)))


def test_resamples_repeat_all_observations_of_an_image(rng):
    x, y, images = simulated.covariate_and_depths(rng, 9, strength=0.5)
    counts = draw_counts(9, 300)
    found = resampled_rank_correlations(x, y, images, counts)
    for row, rho in zip(counts, found, strict=True):
        taken = np.repeat(np.arange(len(x)), row[images])
        assert rho == pytest.approx(stats.spearmanr(x[taken], y[taken]).statistic)


def test_a_resample_without_variation_has_no_correlation():
    counts = np.array([[3, 0, 0], [1, 1, 1]])
    found = resampled_rank_correlations(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), np.arange(3), counts)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(1)


def test_one_observation_an_image_is_permuted_as_scipy_does(rng):
    x, y = rng.normal(0, 1, (2, 6))
    expected = stats.permutation_test(
        (x,),
        lambda moved: abs(stats.spearmanr(moved, y).statistic),
        permutation_type="pairings",
        alternative="greater",
        vectorized=False,
        n_resamples=np.inf,
    )
    found = rank_p_value(x, y, np.arange(6))
    assert 1 / 720 < found < 1
    assert found == pytest.approx(expected.pvalue)


def test_images_move_whole_and_only_to_images_of_their_size(rng):
    images = np.array([2, 0, 1, 0, 1, 3, 4, 3])  # 0, 1 and 3 have two observations, 2 and 4 have one
    x, y = rng.normal(0, 1, (2, 8))
    members = {image: np.flatnonzero(images == image) for image in range(5)}
    found = []
    for pairs in permutations((0, 1, 3)):
        for singles in permutations((2, 4)):
            moved = np.empty(8)
            for place, origin in zip((0, 1, 3, 2, 4), (*pairs, *singles), strict=True):
                moved[members[place]] = x[members[origin]]
            found.append(abs(stats.spearmanr(moved, y).statistic))
    expected = np.mean(np.array(found) >= abs(stats.spearmanr(x, y).statistic) - 1e-9)
    assert rank_p_value(x, y, images) == pytest.approx(expected)
    drawn = rank_p_value(x, y, images, permutations=11)
    assert drawn == round(drawn * 12) / 12


def test_unrelated_variables_are_rarely_found_related():
    """Image effects in both would fool a test that moves single observations."""
    n = 500
    found, naive = [], []
    for seed in range(n):
        x, y, images = simulated.covariate_and_depths(np.random.default_rng(seed), 40)
        found.append(rank_p_value(x, y, images, permutations=199, seed=seed))
        naive.append(stats.spearmanr(x, y).pvalue)
    for level in (0.05, 0.1):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / n))
    assert np.mean(np.array(naive) <= 0.05) > 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)


def test_related_variables_are_found():
    draws = [simulated.covariate_and_depths(np.random.default_rng(seed), 60, strength=0.5) for seed in range(50)]
    assert np.mean([rank_p_value(*draw, permutations=199) <= 0.05 for draw in draws]) > 0.95


def test_bootstrap_intervals_cover():
    truth = rank_correlation(*simulated.covariate_and_depths(np.random.default_rng(0), 200_000, strength=0.3)[:2])
    covered = []
    for seed in range(300):
        x, y, images = simulated.covariate_and_depths(np.random.default_rng(seed + 1), 60, strength=0.3)
        draws = resampled_rank_correlations(x, y, images, draw_counts(60, 400, seed))
        low, high = percentile_interval(draws, n_clusters=60)
        covered.append(low <= truth <= high)
    assert 0.912 < np.mean(covered) < 0.988


@pytest.mark.parametrize(("n", "least"), [(5, 0.93), (20, 0.92)])
def test_intervals_from_few_models_cover(n, least):
    rng = np.random.default_rng(n)
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's rho of a bivariate normal with correlation 0.7
    draws = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], (1000, n))
    ends = [fisher_interval(rank_correlation(*draw.T), n) for draw in draws]
    assert np.mean([low <= truth <= high for low, high in ends]) >= least


def test_a_perfect_correlation_of_few_models_still_has_a_width():
    low, high = fisher_interval(1.0, 4)
    assert low < 0 < high == 1
    assert fisher_interval(-1.0, 4) == (-1, -low)
    assert fisher_interval(1.0, 12)[0] > 0.9
    assert fisher_interval(0.0, 28) == pytest.approx((-np.tanh(1.95996 / 5), np.tanh(1.95996 / 5)), abs=1e-5)
