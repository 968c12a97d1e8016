"""Layers chosen one by one find the horizon that all layers together show, and what is not bracketed is not claimed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_curves import logistic_fade

from analyses.arrays.depths import settled_layer
from analyses.verdicts.brackets import (
    Guide,
    default_budget,
    first_layers,
    layers_left,
    named_layers,
    next_layer,
    pilot_size,
)
from analyses.verdicts.horizon import Horizon, HorizonDetector

DETECTOR = HorizonDetector(resamples=60)


def detect(values, *, layers=None, criterion="information", removal=None) -> Horizon:
    """The horizon of (sample, L + 1) curves, of which only `layers` (and L) were measured."""
    n_layers = values.shape[1] - 1
    cuts = np.arange(n_layers) if layers is None else np.array(sorted(layers))
    return DETECTOR(
        values[:, [*cuts, n_layers]],
        np.arange(len(values)),
        layers=np.array([*cuts, n_layers]),
        criterion=criterion,
        removal=removal,
        skipped=np.setdiff1d(np.arange(n_layers), cuts),
    )


def search(values, guide: Guide, first, most, removal) -> tuple[Horizon, list[int]]:
    """Measure layer by layer until nothing follows or `most` are measured."""
    chosen = list(first)
    while True:
        found = detect(values, layers=chosen, removal=removal)
        following = next_layer(found, guide)
        if following is None or len(chosen) == most:
            return found, chosen
        assert following in found.skipped
        if found.bracket:
            assert found.bracket[0] < following < found.bracket[1]
        chosen.append(following)


def guide_of(effect: np.ndarray) -> Guide:
    layers = np.arange(len(effect))
    return Guide(layers, effect, int(settled_layer(effect, 0.05 * np.abs(effect).max(), layers)))


shares = st.floats(0.01, 1).map(lambda x: round(x, 3))


@given(st.lists(shares, min_size=5, max_size=40), st.integers(0, 2**32 - 1))
def test_any_curve_that_only_falls_is_searched_to_the_end_whatever_guides(factors, seed):
    """Nothing is hidden between measured layers of such a curve, so the verdict is that of all layers."""
    curve = np.append(0.9 * np.cumprod(factors), 0.0)
    values = np.tile(curve, (5, 1))
    whole = detect(values, removal=values[:, 0])
    misleading = guide_of(np.append(np.random.default_rng(seed).normal(size=len(factors)), 0.0))
    found, chosen = search(values, misleading, [0], len(factors), values[:, 0])
    assert len(set(chosen)) == len(chosen)
    assert found.layer == whole.layer


@given(st.lists(st.floats(0, 1), min_size=4, max_size=30), st.data())
def test_a_horizon_is_named_only_next_to_a_measured_layer_that_is_above(curve, data):
    values = np.tile([1.0, *curve, 0.0], (5, 1))
    n_layers = values.shape[1] - 1
    layers = data.draw(st.sets(st.integers(1, n_layers - 1))) | {0}
    found = detect(values, layers=layers, removal=values[:, 0])
    measured = np.array([*sorted(layers), n_layers])
    plain = settled_layer(values[0, measured], 0.05, measured)
    if plain - 1 in layers:
        assert (found.layer, found.bracket) == (plain, None)
        assert found.interval[0] <= plain <= found.interval[1]
        assert ("taken to be" in found.warning) == (len(layers) < n_layers)
    else:
        before = measured[measured < plain].max()
        assert (found.layer, found.bracket) == (None, (before, plain))
        assert f"it lies after layer {before} and not after layer {plain}" in found.reason


def test_the_lower_end_of_an_interval_reaches_down_to_the_measured_layer_before():
    rng = np.random.default_rng(0)
    fade = logistic_fade(12, np.full(60, 5.0), 0.5) + rng.normal(0, 0.3, (60, 13)) * (np.arange(13) == 8)
    values = np.where(np.arange(13) == 12, 0.0, np.abs(fade))
    whole, some = detect(values), detect(values, layers=[0, 4, 7, 8, 9, 11])
    assert whole.layer == some.layer
    assert some.interval[0] <= whole.interval[0]
    assert some.interval[0] - 1 in (0, 4, 7, 8, 9, 11)


def test_a_horizon_near_its_threshold_is_checked_beside_the_largest_effect():
    """At layers 0 and 9 alone the largest effect is 0.5, and 0.03 lies just above 5 % of it; the largest is 0.9."""
    curve = np.array([0.5, 0.6, 0.8, 0.9, 0.9, 0.8, 0.5, 0.2, 0.1, 0.03, 0.001, 0.0])
    values = np.tile(curve, (5, 1))
    assert detect(values).layer == 9
    hasty = detect(values, layers=[0, 9, 10])
    assert hasty.layer == 10
    found, chosen = search(values, guide_of(curve), [0, 9, 10], 11, values[:, 0])
    assert found.layer == 9
    assert len(chosen) < 9


def test_a_guide_that_is_right_closes_the_bracket_with_two_layers():
    values = np.tile(logistic_fade(32, np.array([14.0]), 1.0), (5, 1))
    guide = guide_of(values[0] * 3)
    for first in ([0, guide.horizon], [0, guide.horizon - 1], [0]):
        found, chosen = search(values, guide, first, 32, values[:, 0])
        assert found.layer == guide.horizon == detect(values).layer
        assert {guide.horizon - 1, guide.horizon} <= set(chosen)
        assert len(chosen) <= 4


def test_layers_to_begin_with_come_from_the_pilot_or_else_from_the_removal_curve():
    values = np.tile(logistic_fade(32, np.array([14.3]), 1.0), (5, 1))
    removal = detect(values, criterion="removal")
    assert named_layers(removal) == [removal.layer, 14]
    assert first_layers(removal, None, 8) == [0, 14, removal.layer]
    assert first_layers(removal, Guide(np.arange(33), np.eye(33)[9], 20), 8) == [0, 9, 20]
    assert first_layers(removal, Guide(np.arange(33), np.eye(33)[31], 32), 8) == [0, 31]
    assert first_layers(removal, Guide(np.arange(33), np.eye(33)[9], 20), 1) == [0]
    assert first_layers(replace(removal, layer=None), None, 8) == [0]


@given(st.integers(1, 3000), st.integers(1, 96))
def test_pilot_and_layers_keep_within_the_budget(n_samples, n_layers):
    budget = default_budget(n_layers)
    pilot = pilot_size(n_samples, n_layers, budget)
    left = layers_left(n_samples, pilot, n_layers, budget)
    assert pilot * n_layers + (n_samples - pilot) * left <= n_samples * budget
    assert left >= 1
    if n_layers >= 32:
        assert budget * 4 <= n_layers


def test_pilots_of_few_samples_and_small_models():
    assert [pilot_size(n, 32, 8) for n in (15, 16, 32, 64, 256, 10_000)] == [0, 1, 1, 2, 8, 8]
    assert [pilot_size(100, n_layers, 8) for n_layers in (7, 8, 9)] == [0, 0, 8]
    assert [layers_left(10, 10, 32, 8), layers_left(11, 10, 32, 40)] == [-240, 120]


def bracketed(threshold, bracket, n_layers=4):
    """A horizon somewhere between two measured layers with an effect of 1 and of 0."""
    values = np.tile(np.where(np.arange(n_layers + 1) < bracket[1], 1.0, 0.0), (5, 1))
    found = detect(values, layers={k for k in (0, *bracket) if k < n_layers})
    assert found.bracket == bracket
    return replace(found, threshold=threshold)


def test_a_crossing_is_where_the_guide_would_be_gone():
    """The guide falls by a quarter a layer: an effect of 1 would be 0.75, 0.5, 0.25 at the layers in between."""
    guide = Guide(np.arange(5), np.array([1.0, 0.75, 0.5, 0.25, 0.0]), 3)
    for threshold, layer in ((0.8, 1), (0.75, 2), (0.6, 2), (0.5, 3), (0.3, 3), (0.25, 3), (0.1, 3)):
        assert next_layer(bracketed(threshold, (0, 4)), guide) == layer
    ends = {at: next_layer(bracketed(0.5, (0, 4)), replace(guide, horizon=at)) for at in (0, 1, 2, 3, 4)}
    assert ends == {0: 3, 1: 1, 2: 3, 3: 3, 4: 3}
    flat = Guide(np.arange(5), np.zeros(5), 2)
    assert next_layer(bracketed(0.5, (0, 4)), flat) == 2


def test_a_crossing_falls_from_the_effect_before_to_the_effect_behind():
    """From 1 to 0.2 as the guide falls: 0.8, 0.6 and 0.4 in between."""
    guide = Guide(np.arange(5), np.array([1.0, 0.75, 0.5, 0.25, 0.0]), 3)
    for threshold, layer in ((0.9, 1), (0.65, 2), (0.45, 3), (0.3, 3)):
        found = bracketed(threshold, (0, 4))
        assert next_layer(replace(found, effect=np.array([1.0, 0.2])), guide) == layer


def test_a_crossing_keeps_out_of_the_outer_quarters_of_a_wide_bracket():
    layers = np.arange(17)
    for drop, layer in ((1, 4), (2, 4), (6, 6), (10, 10), (14, 12), (15, 12)):
        guide = Guide(layers, np.where(layers < drop, 1.0, 0.0), 20)
        assert next_layer(bracketed(0.5, (0, 16), 16), guide) == layer
    rising = Guide(layers, np.where(layers == 9, 3.0, np.where(layers < 11, 0.1, 0.0)), 20)
    assert next_layer(bracketed(0.5, (0, 16), 16), rising) == 10  # what is still to come counts, up to layer 9


def test_the_wider_gap_beside_the_largest_effect_gets_its_middle():
    """Only if the last effect is less than 1.25 times the threshold, and a layer beside the peak was skipped."""
    curve = np.array([0.5, *[0.6] * 9, 0.9, 0.6, 0.6, 0.6, 0.03, 0.0, 0.0])
    values = np.tile(curve, (5, 1))
    nothing = Guide(np.arange(17), curve, 15)
    near = detect(values, layers=[0, 10, 13, 14, 15])
    last = float(abs(near.effect[near.layers == near.layer - 1][0]))
    assert next_layer(replace(near, threshold=last / 1.25), nothing) is None
    assert next_layer(replace(near, threshold=last / 1.2499), nothing) == 5
    other = detect(values, layers=[0, 9, 10, 13, 14, 15])
    assert next_layer(replace(other, threshold=last), nothing) == 12
    alone = detect(values, layers=[9, 10, 11, 0, 13, 14, 15])
    assert next_layer(replace(alone, threshold=last), nothing) is None
    first = detect(values * np.where(np.arange(17) == 0, 4, 1), layers=[0, 10, 13, 14, 15])
    assert next_layer(replace(first, threshold=last), nothing) == 5


def population(rng, n_layers, n_samples):
    """(sample, L + 1) removal effects and magnitudes of single windows, alike in depth but not in shape."""
    middle, width = rng.uniform(0.3, 0.8) * n_layers, rng.uniform(0.02, 0.06) * n_layers
    shift = rng.normal(0, 0.06 * n_layers, n_samples)
    size = rng.beta(4, 1.5, n_samples)[:, None]
    removal = size * logistic_fade(n_layers, np.clip(middle + shift, 0.5, n_layers - 0.5), width)
    later = middle + rng.normal(0, 0.05) * n_layers + shift
    fade = logistic_fade(n_layers, np.clip(later, 0.5, n_layers - 0.5), width * rng.uniform(0.6, 1.5))
    top, spread = rng.uniform(0.3, 1) * later, rng.uniform(0.1, 0.3) * n_layers
    bump = 1 + rng.uniform(0, 2) * np.exp(-(((np.arange(n_layers + 1) - top[:, None]) / spread) ** 2))
    magnitude = 0.2 * size * bump * fade * rng.lognormal(0, 0.15, fade.shape)
    return removal, magnitude


@pytest.mark.parametrize(("n_samples", "least"), [(24, 20), (200, 23)])
def test_simulated_models_of_32_layers_take_a_quarter_of_the_replays(n_samples, least):
    """Of 100 such models 93 (99 with 200 samples) get a layer, and 88 (96) the layer of the full sweep."""
    n_layers, right, named, replays = 32, 0, 0, []
    for seed in range(25):
        removal, magnitude = population(np.random.default_rng(seed), n_layers, n_samples)
        size = pilot_size(n_samples, n_layers, 8)
        most = layers_left(n_samples, size, n_layers, 8)
        by_removal = detect(removal, criterion="removal")
        guide = guide_of(magnitude[:size].mean(axis=0))
        first = first_layers(by_removal, guide, most)
        found, chosen = search(magnitude, guide, first, most, removal[:, 0])
        whole = detect(magnitude, removal=removal[:, 0])
        replays.append(size * n_layers + (n_samples - size) * len(chosen))
        named += found.layer is not None
        right += found.layer == whole.layer
    assert 4 * max(replays) <= n_samples * n_layers
    assert named >= least
    assert right >= 0.85 * named
