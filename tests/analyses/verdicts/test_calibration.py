"""Small simulations from known truth; in full: tests/benchmarks/bench_calibration.py, with its table in RESULTS.md.

Intervals and verdicts that do not hold what they promise fail here; so do ones that hold it by saying nothing.
"""

from functools import cache

import numpy as np
import pytest
import simulated_curves as simulated
from numpy.polynomial.hermite_e import hermegauss
from synthetic_runs import write_run

from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import draw_counts, interval_warning, percentile_interval, resampled_means
from analyses.verdicts.collapse import CollapseDetector
from analyses.verdicts.horizon import HorizonDetector, find_horizon

REPETITIONS = 250
LEAST, MOST = 0.91, 0.99  # of 250 repetitions at 0.95, +- 3 standard errors of 0.0138
DESIGNS = [
    simulated.fade(8),
    simulated.fade(32, questions=3),
    simulated.scattered_steps(24),
    simulated.uneven_questions(24),
    simulated.returning(24),
]
by_design = pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)


@cache
def horizons(design, n_images=120, repetitions=REPETITIONS):
    """Horizons found in many draws of one design."""
    rng = np.random.default_rng(design.n_layers)
    draws = (design.draw(rng, n_images) for _ in range(repetitions))
    return [HorizonDetector(resamples=300, seed=i)(*drawn) for i, drawn in enumerate(draws)]


@by_design
def test_half_depth_intervals_cover(design):
    intervals = np.array([found.half_depth_interval for found in horizons(design)])
    covered = (intervals[:, 0] <= design.half_depth) & (design.half_depth <= intervals[:, 1])
    assert LEAST < covered.mean() < MOST
    assert np.ptp(intervals, axis=1).mean() < 0.06 * design.n_layers


@by_design
def test_bands_cover_the_whole_curve(design):
    covered = [(f.low - 1e-9 <= design.mean).all() and (design.mean <= f.high + 1e-9).all() for f in horizons(design)]
    assert LEAST < np.mean(covered) < MOST


@by_design
def test_horizon_intervals_cover_and_say_something(design):
    intervals = np.array([found.interval for found in horizons(design)])
    covered = (intervals[:, 0] <= design.horizon) & (design.horizon <= intervals[:, 1])
    assert covered.mean() > 0.93
    assert np.ptp(intervals, axis=1).mean() < 0.3 * design.n_layers


@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_clear_horizons_are_right(n_layers):
    step = simulated.step(n_layers)
    found = horizons(step, repetitions=100)
    assert {f.layer for f in found} == {step.horizon} == {round(0.4 * n_layers)}
    assert [f.interval for f in found] == [(step.horizon, step.horizon)] * 100


def test_clear_horizons_of_token_grids_are_right(tmp_path):
    rng = np.random.default_rng(0)
    for at in (1, 5, 8):
        grids = simulated.token_grids(rng, 100, 8, at)
        p = np.tile(np.where(np.arange(9) < at, 0.4, 0.9), (100, 1))
        run = write_run(
            tmp_path / str(at), effects={"ocr": p}, grids={"ocr": 0.4 + 0.3 * grids + (p[:, :8, None] - 0.4)}
        )
        (found,) = find_horizon(run, criterion="information", detector=HorizonDetector(resamples=200))
        assert (found.layer, found.interval) == (at, (at, at))


def test_nothing_is_claimed_of_nothing():
    found = horizons(simulated.no_effect(24), repetitions=100)
    assert [(f.layer, f.half_depth) for f in found] == [(None, None)] * 100
    assert all("no effect to speak of" in f.reason for f in found)


def test_differences_cover_and_notice():
    """Formed as `compare_horizons` forms them: draws of one set of resamples, subtracted."""
    shallow, deep = simulated.fade(24), simulated.fade(24, at=0.45 + 2 / 24)
    rng = np.random.default_rng(1)
    counts = draw_counts(160, 300)
    truth = deep.half_depth - shallow.half_depth
    intervals = []
    for _ in range(REPETITIONS):
        (a, images), (b, _) = deep.draw(rng, 80), shallow.draw(rng, 80)
        means = resampled_means(a, images, counts), resampled_means(b, images + 80, counts)
        draws = half_depths(means[0], deep.layers) - half_depths(means[1], deep.layers)
        intervals.append(percentile_interval(draws, n_clusters=80))
    low, high = np.array(intervals).T
    assert LEAST < np.mean((low <= truth) & (truth <= high)) < MOST
    assert np.mean(low > 0) > 0.95  # two layers apart is seen with 80 images


def test_small_samples_and_heavy_tails_are_warned_of():
    rng = np.random.default_rng(2)

    def warnings(design, n_images):
        return [interval_warning(*design.draw(rng, n_images)) for _ in range(40)]

    assert all(warning.startswith("only 49 images: ") for warning in warnings(simulated.fade(24), 49))
    assert np.mean([warning != "" for warning in warnings(simulated.fade(24), 50)]) < 0.05
    assert np.mean(["make most of the spread" in warning for warning in warnings(simulated.heavy_tails(24), 60)]) > 0.9
    assert not any(warnings(simulated.uneven_questions(24), 120))


@pytest.mark.parametrize("kind", ["shared steps", "own steps", "flat", "drift"])
@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_false_collapses_are_rare(kind, n_layers):
    rng = np.random.default_rng(n_layers)
    detector = CollapseDetector(resamples=50)
    n = 300 if kind == "shared steps" else 100
    draws = [simulated.exchangeable_entropies(rng, 20, n_layers, kind=kind) for _ in range(n)]
    named = [detector(values, np.arange(20)).layer is not None for values in draws]
    assert np.mean(named) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n)


@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_clear_collapses_are_found_at_their_layer(n_layers):
    rng = np.random.default_rng(n_layers)
    detector = CollapseDetector(resamples=100)
    for _ in range(60):
        layer = int(rng.integers(1, n_layers))
        found = detector(simulated.collapse_entropies(rng, 50, n_layers, layer), np.arange(50))
        assert (found.layer, found.interval) == (layer, (layer, layer))


def test_the_truth_of_a_design_is_its_integral():
    """The population mean against quadrature over the middles, which are normal, and the mean size of the effect."""
    design = simulated.fade(24)
    nodes, weights = hermegauss(80)
    middles = np.clip(0.45 * 24 + 0.06 * 24 * np.sqrt(2) * nodes, 0.5, 23.5)
    fades = simulated.logistic_fade(24, middles, 0.03 * 24)
    mean = 4 / 5.2 * 0.8 * (weights @ fades) / weights.sum()
    np.testing.assert_allclose(design.mean, mean, atol=0.002)
    assert design.half_depth == pytest.approx(float(half_depths(mean, design.layers)), abs=0.02)
