"""Permutation tests: restated by hand and against scipy, invariances, level under the null, power; Holm by hand."""

from itertools import combinations, product

import numpy as np
import pytest
import simulated_curves as simulated
from scipy import stats

from analyses.arrays.depths import half_depths
from analyses.arrays.permutation import adjust_holm, half_depth_p_value, on_grid

L = 6
LAYERS = np.arange(L + 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def curves(rng, n, middle=3.0, size=1.0):
    """(sample, L + 1) fades with scattered middles, not monotone everywhere."""
    values = simulated.logistic_fade(L, rng.normal(middle, 0.8, n), 0.5) + rng.normal(0, 0.02, (n, L + 1))
    values[:, -1] = 0
    return size * rng.uniform(0.5, 1, (n, 1)) * values


def scaled(values):
    return values / values[:, 0].mean()


def slow_statistic(values_a, images_a, values_b, images_b):
    """|difference| over its error; each image's pull is the numerical derivative by the weight of its samples."""

    def depth(values, images, image, weight):
        weights = np.where(images == image, 1 + weight, 1.0)
        return half_depths(np.average(values, axis=0, weights=weights), LAYERS)

    pulls = []
    for image in np.union1d(images_a, images_b):
        up, down = (
            depth(values_a, images_a, image, step) - depth(values_b, images_b, image, step) for step in (1e-6, -1e-6)
        )
        pulls.append((up - down) / 2e-6)
    difference = depth(values_a, images_a, None, 0.0) - depth(values_b, images_b, None, 0.0)
    # rounded, as the order of samples must not make two equal statistics differ
    return round(abs(difference) / np.hypot(np.linalg.norm(pulls), 1e-4 * L), 6)


def test_unshared_images_are_dealt_anew_as_scipy_does(rng):
    a, b = curves(rng, 5, 4.0), curves(rng, 4, 2.6, size=0.3)
    pool = np.concatenate([scaled(a), scaled(b)])

    def statistic(first, second):
        first, second = first.astype(int), second.astype(int)
        return slow_statistic(pool[first], first, pool[second], second)

    expected = stats.permutation_test(
        (np.arange(5), np.arange(5, 9)), statistic, alternative="greater", vectorized=False, n_resamples=np.inf
    )
    found = half_depth_p_value(a, np.arange(5), b, np.arange(5, 9), LAYERS)
    assert 1 / 126 < found < 0.5
    assert found == pytest.approx(expected.pvalue)


def test_answers_on_a_shared_image_swap_as_scipy_does(rng):
    a, b = curves(rng, 7, 3.3), curves(rng, 7, 2.7)
    pool = np.stack([scaled(a), scaled(b)])

    def statistic(first, second):
        picked = [pool[side.astype(int), np.arange(7)] for side in (first, second)]
        return slow_statistic(picked[0], np.arange(7), picked[1], np.arange(7))

    expected = stats.permutation_test(
        (np.zeros(7), np.ones(7)),
        statistic,
        permutation_type="samples",
        alternative="greater",
        vectorized=False,
        n_resamples=np.inf,
    )
    found = half_depth_p_value(a, np.arange(7), b, np.arange(7), LAYERS)
    assert 1 / 128 < found < 0.5
    assert found == pytest.approx(expected.pvalue)


def test_shared_and_unshared_images_with_several_answers_restated(rng):
    """Images 0-2 are asked in both groups, 3-4 in the first, 5-6 in the second; some more than once."""
    images_a, images_b = np.array([0, 0, 1, 2, 3, 4, 4]), np.array([0, 1, 1, 2, 5, 6])
    a, b = curves(rng, 7, 3.5), curves(rng, 6, 2.8)
    sets = {
        image: [scaled(values)[images == image] for values, images in ((a, images_a), (b, images_b))]
        for image in range(7)
    }
    found = []
    for swaps in product((False, True), repeat=3):
        for chosen in combinations(range(3, 7), 2):
            sides = [[], []]
            for image, pair in sets.items():
                swapped = swaps[image] if image < 3 else (image in chosen) != (image in (3, 4))
                for side, part in zip(sides, reversed(pair) if swapped else pair, strict=True):
                    side += [(image, curve) for curve in part]
            names, rows = zip(*((np.array([i for i, _ in s]), np.array([c for _, c in s])) for s in sides), strict=True)
            found.append(slow_statistic(rows[0], names[0], rows[1], names[1]))
    observed = slow_statistic(scaled(a), images_a, scaled(b), images_b)
    expected = np.mean(np.array(found) >= observed)
    assert 1 / 48 < expected < 0.5
    assert half_depth_p_value(a, images_a, b, images_b, LAYERS) == pytest.approx(expected)


def test_drawn_relabelings_agree_with_all_of_them(rng):
    a, b = curves(rng, 7, 3.3), curves(rng, 7, 2.8)
    names = np.arange(7), np.arange(7, 14)
    every = half_depth_p_value(a, names[0], b, names[1], LAYERS, permutations=3432)
    drawn = half_depth_p_value(a, names[0], b, names[1], LAYERS, permutations=3431)
    assert every == round(every * 3432) / 3432
    assert drawn == round(drawn * 3432) / 3432  # (1 + more extreme) / (1 + 3431)
    assert drawn == pytest.approx(every, abs=4 * np.sqrt(every / 3431))
    assert drawn == half_depth_p_value(a, names[0], b, names[1], LAYERS, permutations=3431)
    assert drawn != half_depth_p_value(a, names[0], b, names[1], LAYERS, permutations=3431, seed=1)


def test_a_set_against_itself_has_p_1_in_any_order(rng):
    a, order = curves(rng, 40), rng.permutation(40)
    assert half_depth_p_value(a, np.arange(40), a[order], order, LAYERS) == 1
    assert half_depth_p_value(a, np.arange(40), a[order], order + 40, LAYERS) == 1


def test_scale_and_order_do_not_matter(rng):
    a, b = curves(rng, 20, 3.3), curves(rng, 30, 2.9)
    images = np.arange(20), np.arange(10, 40)
    p = half_depth_p_value(a, images[0], b, images[1], LAYERS)
    assert 0.001 < p < 0.9
    assert half_depth_p_value(0.01 * a, images[0], 3 * b, images[1], LAYERS) == p
    assert half_depth_p_value(a, images[0], b, images[1], LAYERS / L) == p
    order = rng.permutation(30)
    assert half_depth_p_value(a, images[0], b[order], images[1][order], LAYERS) == p


def test_copies_on_one_image_add_no_evidence(rng):
    a, b = curves(rng, 20, 3.2), curves(rng, 20, 2.9)
    twice = np.repeat(np.arange(20), 2)
    p = half_depth_p_value(a, np.arange(20), b, np.arange(20, 40), LAYERS)
    copied = a.repeat(2, axis=0), b.repeat(2, axis=0)
    assert half_depth_p_value(copied[0], twice, copied[1], twice + 20, LAYERS) == p
    taken_apart = half_depth_p_value(copied[0], np.arange(40), copied[1], np.arange(40, 80), LAYERS)
    assert taken_apart < p / 2


def test_a_clear_gap_gets_the_smallest_p(rng):
    a, b = curves(rng, 40, 4.5), curves(rng, 40, 2)
    assert half_depth_p_value(a, np.arange(40), b, np.arange(40), LAYERS) == 1 / 2001
    assert half_depth_p_value(b, np.arange(40), a, np.arange(40, 80), LAYERS, permutations=99) == 1 / 100
    # without any spread within the groups there is no error to divide by, and still an answer
    a, b = np.tile(a[:1], (3, 1)), np.tile(b[:1], (3, 1))
    assert half_depth_p_value(a, np.arange(3), b, np.arange(3), LAYERS) == 2 / 8


def test_without_an_effect_there_is_no_p(rng):
    a, b = curves(rng, 5), -curves(rng, 5)
    assert np.isnan(half_depth_p_value(a, np.arange(5), b, np.arange(5), LAYERS))
    assert np.isnan(half_depth_p_value(a, np.arange(5), b[:0], np.arange(0), LAYERS))


REPETITIONS = 500


def rejected(contrast, repetitions=REPETITIONS):
    """Share of p-values at or below 0.05 and 0.1."""
    layers = np.arange(contrast.n_layers + 1)
    found = []
    for seed in range(repetitions):
        draws = contrast.draw(np.random.default_rng(seed))
        found.append(half_depth_p_value(*draws, layers, permutations=199, seed=seed))
    return [np.mean(np.array(found) <= level) for level in (0.05, 0.1)]


@pytest.mark.parametrize(
    "contrast",
    [
        simulated.contrast(8),
        simulated.contrast(24, size=(0.3, 1.0), n_images=(20, 60)),
        simulated.contrast(24, shared=50, questions=(2, 2), interaction=1.0),
        simulated.contrast(32, n_images=(40, 40), shared=15, size=(1.0, 0.4)),
        # not exchangeable, but of one half depth: what the standard error in the statistic is for
        simulated.contrast(24, n_images=(30, 120), spread=(2.0, 0.5)),
        simulated.contrast(24, n_images=(40, 40), questions=(3, 1)),
    ],
    ids=lambda contrast: contrast.name,
)
def test_groups_of_one_half_depth_are_rarely_told_apart(contrast):
    shares = rejected(contrast)
    for share, level in zip(shares, (0.05, 0.1), strict=True):
        error = np.sqrt(level * (1 - level) / REPETITIONS)
        assert abs(share - level) <= 3 * error


def test_gaps_are_found_and_pairing_helps():
    unpaired, paired = (rejected(simulated.contrast(24, gap=1, shared=n), 60)[0] for n in (0, 50))
    assert 0.5 < unpaired < paired
    assert rejected(simulated.contrast(24, gap=2), 60)[0] > 0.97


def test_holm_by_hand():
    # ordered: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, each at least as large as the one before
    assert adjust_holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert adjust_holm([0.5, 0.6]) == [1.0, 1.0]
    assert adjust_holm([None, 0.2]) == [None, 0.2]
    assert adjust_holm([]) == []


def test_holm_keeps_the_family_error_where_single_tests_do_not(rng):
    families = rng.random((2000, 8))
    adjusted = np.array([adjust_holm(list(family)) for family in families])
    assert np.mean((families <= 0.05).any(axis=1)) > 0.3
    assert np.mean((adjusted <= 0.05).any(axis=1)) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)
    assert (adjusted >= families).all()


def test_a_finer_grid_leaves_half_depths_alone(rng):
    layers = np.array([0, 2, 3, 5, 8])
    values = rng.uniform(-0.2, 1, (50, 5))
    values[:, 0], values[:, -1] = rng.uniform(0.5, 1, 50), 0
    grid = np.union1d(layers, np.linspace(0, 11, 40))
    assert half_depths(on_grid(values, layers, grid), grid) == pytest.approx(half_depths(values, layers))
