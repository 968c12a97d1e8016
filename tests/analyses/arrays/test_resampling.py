"""The cluster bootstrap against loops, scipy and its own laws."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from analyses.arrays.resampling import (
    FEW_IMAGES_COVERED,
    cluster_codes,
    draw_counts,
    effective_clusters,
    interval_warning,
    percentile_interval,
    resampled_means,
    simultaneous_band,
)


def questions(rng, n_images=12, n_layers=5):
    """Curves with one to four questions an image and an effect of the image."""
    images = np.repeat(np.arange(n_images), rng.integers(1, 5, n_images))
    values = rng.normal(0, 1, (n_images, n_layers))[images] + rng.normal(0, 0.5, (len(images), n_layers))
    return values, images


def members(images, counts):
    """Sample indices of one resample, written out."""
    return np.concatenate([np.repeat(np.flatnonzero(images == c), n) for c, n in enumerate(counts)])


def test_counts_are_multinomial():
    counts = draw_counts(40, 3000, seed=3)
    assert (counts.sum(axis=1) == 40).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(40), abs=0.1)
    assert counts.var(axis=0).mean() == pytest.approx(1 - 1 / 40, rel=0.03)
    np.testing.assert_array_equal(counts, draw_counts(40, 3000, seed=3))
    assert not np.array_equal(counts, draw_counts(40, 3000, seed=4))


def test_means_equal_those_of_written_out_resamples():
    values, images = questions(np.random.default_rng(0))
    counts = draw_counts(12, 50)
    expected = [values[members(images, row)].mean(axis=0) for row in counts]
    np.testing.assert_allclose(resampled_means(values, images, counts), expected, rtol=1e-12)


def test_a_group_drawn_nowhere_is_nan_and_left_out():
    values = np.array([[1.0], [3.0]])
    counts = np.array([[0, 2, 0], [1, 0, 1], [0, 1, 1]])
    means = resampled_means(values, np.array([0, 2]), counts)
    np.testing.assert_array_equal(means, [[np.nan], [2.0], [3.0]])
    np.testing.assert_allclose(percentile_interval(means, 0.9)[:, 0], [2.05, 2.95])
    assert np.isnan(percentile_interval(means[:1], 0.9)).all()


def test_interval_agrees_with_scipy_where_every_sample_has_its_own_image():
    values = np.random.default_rng(1).exponential(1, (60, 2))
    counts = draw_counts(60, 9999)
    ours = percentile_interval(resampled_means(values, np.arange(60), counts))
    theirs = stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=9999, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = ours[1] - ours[0]
    np.testing.assert_array_less(np.abs(ours[0] - theirs.low), 0.04 * width)
    np.testing.assert_array_less(np.abs(ours[1] - theirs.high), 0.04 * width)


def test_questions_about_one_image_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (50, 1))
    once = percentile_interval(resampled_means(values, np.arange(50), draw_counts(50)))
    nine = np.repeat(values, 9, axis=0)
    same = percentile_interval(resampled_means(nine, np.repeat(np.arange(50), 9), draw_counts(50)))
    naive = percentile_interval(resampled_means(nine, np.arange(450), draw_counts(450)))
    np.testing.assert_allclose(same, once, rtol=1e-12)
    assert np.ptp(naive) < 0.4 * np.ptp(same)


def test_plain_percentiles_become_those_of_a_small_sample():
    """For a mean, the expanded interval is that of Student's t; the plain one is too narrow on two counts."""
    values = np.random.default_rng(8).normal(0, 1, (12, 1))
    draws = resampled_means(values, np.arange(12), draw_counts(12, 40_000))
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values[:, 0]))
    expanded = percentile_interval(draws, n_clusters=12)[:, 0]
    np.testing.assert_allclose(expanded, expected, atol=0.04 * np.ptp(expected))
    assert np.ptp(percentile_interval(draws)) < 0.88 * np.ptp(expanded)
    many = percentile_interval(draws, n_clusters=100_000)
    np.testing.assert_allclose(many, percentile_interval(draws), atol=1e-3)
    assert np.isnan(percentile_interval(draws, n_clusters=1)).all()


def test_band_equals_the_studentized_bootstrap_written_out():
    values, images = questions(np.random.default_rng(3))
    values[:, -1] = 0.0
    counts = draw_counts(12, 60)
    mean = values.mean(axis=0)
    sums = np.array([values[images == c].sum(axis=0) for c in range(12)])
    most = (sums**2).sum(axis=0).argmax()
    unseen = (sums[:, most] ** 2).sum() / np.abs(sums[:, most]).sum() / len(values)

    def variance(index, labels):
        center = values[index].mean(axis=0)
        sums = [(values[index] - center)[labels == c].sum(axis=0) for c in np.unique(labels)]
        return sum(s**2 for s in sums) / len(index) ** 2 * 12 / 11 + unseen**2

    largest = []
    for row in counts:
        # a cluster drawn twice counts as two clusters
        copies = np.concatenate([np.repeat(np.arange(n), (images == c).sum()) + 100 * c for c, n in enumerate(row)])
        order = np.concatenate([np.tile(np.flatnonzero(images == c), n) for c, n in enumerate(row)])
        assert sorted(order) == sorted(members(images, row))
        t = np.abs(values[order].mean(axis=0) - mean) / np.sqrt(variance(order, copies))
        largest.append(t[:-1].max())
    quantile = max(np.quantile(largest, 0.95), stats.t.ppf(0.975, 11))
    half = np.maximum(quantile * np.sqrt(variance(np.arange(len(images)), images)), 2.9957323 * unseen)
    half[-1] = 0
    np.testing.assert_allclose(simultaneous_band(values, images, counts), [mean - half, mean + half], rtol=1e-7)


def test_what_no_image_shows_may_still_be_there():
    """Rule of three: an effect of 0.8 in 3 of n images may have been missed; layer L is known."""
    rng = np.random.default_rng(4)
    for n in (30, 300):
        values = np.zeros((n, 4))
        values[:, 0] = rng.uniform(0.79, 0.81, n)
        low, high = simultaneous_band(values, np.arange(n), draw_counts(n, 200))
        assert high[1] == pytest.approx(3 * 0.8 / n, rel=0.01)
        np.testing.assert_allclose(low[1:3], -high[1:3])
        assert (low[3], high[3]) == (0, 0)


def test_band_survives_layers_where_nothing_varies():
    values, images = questions(np.random.default_rng(4))
    values[:, 0], values[:, -1] = 0.7, 0.0
    low, high = simultaneous_band(values, images, draw_counts(12, 200))
    assert (low[-1], high[-1], (low + high)[0] / 2) == (0, 0, pytest.approx(0.7))
    assert (high - low)[:-1].min() > 0.1
    assert not simultaneous_band(np.zeros((20, 3)), images[:20], draw_counts(12, 50)).any()
    assert np.isnan(simultaneous_band(values[:2], np.zeros(2, int), draw_counts(12, 50))).all()


def test_band_is_wider_than_pointwise_intervals():
    values = np.random.default_rng(5).normal(0, 1, (200, 30))
    counts = draw_counts(200, 1000)
    pointwise = np.ptp(percentile_interval(resampled_means(values, np.arange(200), counts)), axis=0)
    band = np.ptp(simultaneous_band(values, np.arange(200), counts), axis=0)
    # 30 independent layers: Sidak's normal quantile 3.14 against 1.96
    assert (band / pointwise).mean() == pytest.approx(3.14 / 1.96, rel=0.06)


def test_resamples_of_another_size():
    counts = draw_counts(10, 3000, seed=1, size=40)
    assert (counts.sum(axis=1) == 40).all()
    assert counts.mean(axis=0) == pytest.approx(np.full(10, 4.0), abs=0.15)
    np.testing.assert_array_equal(draw_counts(10, 50, size=10), draw_counts(10, 50))


def test_effective_clusters_of_known_weights():
    even = np.tile([[1.0, 0.0], [-1.0, 0.0]], (15, 1))
    assert effective_clusters(even, np.arange(30)) == pytest.approx(30)
    assert effective_clusters(even, np.arange(30) // 2 * 2 + np.arange(30) % 2) == pytest.approx(30)
    one = np.zeros((30, 2))
    one[0] = 30.0
    # deviations 29 and 29 times -1: (29^2 + 29)^2 / (29^4 + 29)
    assert effective_clusters(one, np.arange(30)) == pytest.approx(870**2 / (29**4 + 29))
    assert np.isnan(effective_clusters(np.ones((5, 2)), np.arange(5)))


def test_warnings_say_what_was_measured():
    rng = np.random.default_rng(9)
    plain = rng.normal(0, 1, (60, 3))
    assert interval_warning(plain, np.arange(60)) == ""
    assert interval_warning(plain, np.arange(60) // 2).startswith("only 30 images: 95 % intervals covered 0.")
    assert FEW_IMAGES_COVERED[20] in interval_warning(plain[:29], np.arange(29))
    assert FEW_IMAGES_COVERED[10] in interval_warning(plain[:4], np.arange(4))
    heavy = plain * np.exp(3 * rng.normal(0, 1, (60, 1)))
    assert interval_warning(heavy, np.arange(60)).startswith("a few images make most of the spread (as ")
    assert interval_warning(heavy, np.arange(60) // 2).count("95 % intervals") == 2


def test_codes_follow_names_not_order():
    names = ["c", "a", "b", "a"]
    codes = cluster_codes(names)
    np.testing.assert_array_equal(codes, [2, 0, 1, 0])
    np.testing.assert_array_equal(cluster_codes(names[::-1]), codes[::-1])
    assert len(cluster_codes([])) == 0


def test_two_thousand_resamples_of_a_thousand_samples_copy_no_sample():
    """Counts and their products alone: 2,000 copies of 1,000 x 33 values would be 528 MB, and take seconds.

    What it takes in time is in the benchmark, since that is for the machine to say.
    """
    values = np.random.default_rng(6).normal(0, 1, (1000, 33))
    tracemalloc.start()
    try:
        counts = draw_counts(1000)
        percentile_interval(resampled_means(values, np.arange(1000), counts))
        simultaneous_band(values, np.arange(1000), counts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts.nbytes < peak < 4 * 8 * 2000 * 1000
