"""Layers and half depths read off curves, against loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analyses.arrays.depths import half_depths, settled_layer

effects = arrays(float, 7, elements=st.floats(-1, 1)).map(lambda a: np.append(a, 0.0))


def settled_by_hand(curve, threshold, layers):
    for i, layer in enumerate(layers):
        if all(abs(value) < threshold for value in curve[i:]):
            return layer
    return layers[-1]


def half_by_hand(curve, layers):
    last = max(i for i, value in enumerate(curve) if value >= curve[0] / 2)
    return np.interp(-curve[0] / 2, [-curve[last], -curve[last + 1]], [float(layers[last]), float(layers[last + 1])])


@given(effects, st.floats(1e-6, 1.2))
def test_settled_layer_is_the_first_below_at_every_later_layer(curve, threshold):
    for layers in (np.arange(8), np.array([0, 1, 2, 4, 8, 16, 24, 32])):
        assert settled_layer(curve, threshold, layers) == settled_by_hand(curve, threshold, layers)


@given(effects.filter(lambda a: a[0] > 1e-3))
def test_half_depth_follows_the_last_layer_above_half(curve):
    for layers in (np.arange(8), np.array([0, 1, 2, 4, 8, 16, 24, 32])):
        assert float(half_depths(curve, layers)) == pytest.approx(half_by_hand(curve, layers), abs=1e-9)


@given(st.lists(effects.filter(lambda a: a[0] > 1e-3), min_size=1, max_size=5))
def test_many_curves_at_once_are_the_same_one_by_one(curves):
    layers = np.arange(8)
    stacked = np.stack(curves)
    np.testing.assert_array_equal(half_depths(stacked, layers), [half_depths(c, layers) for c in curves])
    thresholds = np.linspace(0.1, 0.5, len(curves))
    one_by_one = [settled_layer(c, t, layers) for c, t in zip(curves, thresholds, strict=True)]
    np.testing.assert_array_equal(settled_layer(stacked, thresholds, layers), one_by_one)


def test_a_step_is_halved_inside_its_step():
    curve = np.array([0.8, 0.8, 0.8, 0.0, 0.0])
    assert half_depths(curve, np.arange(5)) == pytest.approx(2.5)
    assert settled_layer(curve, 0.04, np.arange(5)) == 3


def test_a_return_of_the_effect_counts():
    curve = np.array([0.8, 0.1, 0.6, 0.01, 0.0])
    assert half_depths(curve, np.arange(5)) == pytest.approx(2 + 0.2 / 0.59)
    assert half_depths(np.array([0.8, 0.1, 0.4, 0.0]), np.arange(4)) == 2
    curve = np.array([0.8, 0.01, 0.0, -0.2, 0.0])
    assert settled_layer(curve, 0.04, np.arange(5)) == 4


def test_without_an_effect_there_is_no_half():
    assert np.isnan(half_depths(np.array([[0.0, 0.1, 0.0], [-0.1, 0.2, 0.0], [np.nan] * 3]), np.arange(3))).all()
