"""Small simulations from known truth: intervals and verdicts that are obviously wrong fail here."""

import numpy as np
import pytest

from analyses.collapse import CollapseDetector
from analyses.depths import half_depths, settled_layer
from analyses.horizon import HorizonDetector

L = 12
LAYERS = np.arange(L + 1)


def draw_effects(rng, n_images, n_questions=2):
    """Bounded removal effects with several questions an image: fades whose middle varies by image and question."""
    images = np.repeat(np.arange(n_images), n_questions)
    middle = 7.3 + rng.normal(0, 0.7, n_images)[images] + rng.normal(0, 0.7, len(images))
    size = rng.beta(4, 1.2, len(images))
    fade = 1 / (1 + np.exp((LAYERS - middle[:, None]) / 0.5))
    return size[:, None] * (fade - fade[:, -1:]) / (fade[:, :1] - fade[:, -1:]), images


@pytest.fixture(scope="module")
def repetitions():
    rng = np.random.default_rng(0)
    return [HorizonDetector(resamples=400, seed=i)(*draw_effects(rng, 80)) for i in range(300)]


@pytest.fixture(scope="module")
def truth():
    return draw_effects(np.random.default_rng(1), 200_000, 1)[0].mean(axis=0)


# 300 repetitions of a 95 % interval: 0.95 +- 3 standard errors of 0.0126
LEAST, MOST = 0.912, 0.988


def test_half_depth_intervals_cover(repetitions, truth):
    half = half_depths(truth, LAYERS)
    covered = [r.half_depth_interval[0] <= half <= r.half_depth_interval[1] for r in repetitions]
    assert LEAST < np.mean(covered) < MOST
    assert np.mean([np.ptp(r.half_depth_interval) for r in repetitions]) < 0.6


def test_bands_cover_the_whole_curve(repetitions, truth):
    covered = [(r.low - 1e-9 <= truth).all() and (truth <= r.high + 1e-9).all() for r in repetitions]
    assert LEAST < np.mean(covered) < MOST


def test_horizon_intervals_cover_and_say_something(repetitions, truth):
    horizon = settled_layer(truth, max(0.05 * truth[0], 0.01), LAYERS)
    covered = [r.interval[0] <= horizon <= r.interval[1] for r in repetitions]
    assert np.mean(covered) > LEAST
    assert np.mean([np.ptp(r.interval) for r in repetitions]) < 2


@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_false_collapses_in_exchangeable_steps_are_rare(n_layers):
    """Curves that share one random walk: every resample agrees, so only sharpness stands against a false ECL."""
    rng = np.random.default_rng(n_layers)
    detector = CollapseDetector(resamples=50)
    n = 400
    walks = 50 + rng.normal(0, 1, (n, n_layers)).cumsum(axis=1)
    found = [detector(walk + rng.normal(0, 1e-3, (20, n_layers)), np.arange(20)).layer is not None for walk in walks]
    assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)


@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_clear_collapses_are_found_at_their_layer(n_layers):
    rng = np.random.default_rng(n_layers)
    detector = CollapseDetector(resamples=100)
    right = []
    for _ in range(60):
        layer = rng.integers(1, n_layers)
        curve = 3.5 + rng.normal(0, 0.05, n_layers).cumsum() - 1.0 * (np.arange(n_layers) >= layer)
        right.append(detector(curve + rng.normal(0, 0.2, (40, n_layers)), np.arange(40)).layer == layer)
    assert np.mean(right) > 0.97
