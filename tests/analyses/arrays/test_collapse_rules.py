"""Every rule reads a planted collapse at its layer, and none in drifts, kinks and noise."""

from itertools import pairwise

import numpy as np
import pytest
from synthetic_runs import step_curve, write_run

from analyses.arrays.collapse_rules import (
    RESOLUTION,
    RULES,
    read_drop,
    read_relative_drop,
    read_two_segments,
    sharpness,
    two_segment_null,
)
from analyses.runs import HorizonError
from analyses.verdicts.collapse import CollapseDetector, find_collapse_layer

L = 12
EVERY_RULE = pytest.mark.parametrize("rule", list(RULES))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def detect(rule, values, images=None, **parameters):
    detector = CollapseDetector(resamples=300, rule=rule, **parameters)
    return detector(values, np.arange(len(values)) if images is None else np.asarray(images))


def around(rng, curve, n=40, sd=0.2):
    return curve + rng.normal(0, sd, (n, 1)) + rng.normal(0, sd / 2, (n, len(curve)))


def restated_two_segments(curve):
    """All break points by ordinary least squares, one at a time."""
    n = len(curve)
    layers = np.arange(n)
    line = np.stack([np.ones(n), layers], axis=1)
    fits = {}
    for k in range(1, n):
        shifted = np.column_stack([line, layers >= k])
        coefficients, *_ = np.linalg.lstsq(shifted, curve, rcond=None)
        fits[k] = ((curve - shifted @ coefficients) ** 2).sum(), -coefficients[2]
    k = min(fits, key=lambda k: fits[k][0])
    one = ((curve - line @ np.linalg.lstsq(line, curve, rcond=None)[0]) ** 2).sum()
    # intercept, slope and variance; with a shift two more, its size and its place
    bic = [n * np.log(one / n) + 3 * np.log(n), n * np.log(fits[k][0] / n) + 5 * np.log(n)]
    return k, fits[k][1], bic[0] - bic[1]


def test_two_segments_restated_by_least_squares(rng):
    curves = rng.normal(3, 1, (30, L)).cumsum(axis=1)
    reading = read_two_segments(curves)
    for i, curve in enumerate(curves):
        k, fall, gain = restated_two_segments(curve)
        assert reading.layers[i] == k
        assert reading.falls[i] == pytest.approx(fall)
        assert reading.strengths[i] == pytest.approx(gain)


def test_drops_restated_step_by_step(rng):
    curves = rng.uniform(0.5, 4, (30, L))
    absolute, relative = read_drop(curves), read_relative_drop(curves)
    for i, curve in enumerate(curves):
        steps = [before - after for before, after in pairwise(curve)]
        assert absolute.layers[i] == 1 + steps.index(max(steps))
        assert absolute.falls[i] == pytest.approx(max(steps))
        assert absolute.strengths[i] == pytest.approx(sharpness(np.array(steps)))
        shares = [step / before for step, before in zip(steps, curve[:-1], strict=True)]
        k = shares.index(max(shares))
        assert relative.layers[i] == 1 + k
        assert relative.falls[i] == pytest.approx(steps[k])
        assert relative.strengths[i] == pytest.approx(sharpness(np.array(shares)))


def test_a_rise_from_zero_entropy_is_no_relative_step():
    assert read_relative_drop(np.array([0.0, 3.0, 3.0, 1.0, 1.0, 1.0])).layers == 3


def test_two_segments_null_by_simulation():
    rng = np.random.default_rng(7)
    gains = []
    for walk in rng.standard_normal((1500, 8)).cumsum(axis=1):
        _, fall, gain = restated_two_segments(walk)
        gains.append(gain if fall > 0 else -np.inf)
    assert np.mean(np.array(gains) > two_segment_null(8)) == pytest.approx(0.05, abs=0.017)


@EVERY_RULE
@pytest.mark.parametrize("at", [1, 2, 6, L - 1])
def test_a_planted_drop_is_found_at_its_layer(rng, rule, at):
    found = detect(rule, around(rng, step_curve(L, at)))
    assert (found.layer, found.interval, found.reason) == (at, (at, at), "")
    assert found.drop == pytest.approx(2, abs=0.15)
    assert found.sharpness > found.sharpness_null
    assert found.detector.rule == rule


def test_two_segments_find_a_shift_on_a_drift(rng):
    """The line alone would explain most of it; the level still falls by a nat at layer 7."""
    curve = np.linspace(4, 2, L) - 1.0 * (np.arange(L) >= 7)
    found = detect("two-segment", around(rng, curve))
    assert (found.layer, found.interval) == (7, (7, 7))
    assert found.drop == pytest.approx(1, abs=0.1)


def test_rules_may_choose_different_drops():
    """4 -> 3 is the larger drop, 1.5 -> 0.8 the larger share."""
    curve = np.array([4, 3.99, 2.99, 2.98, 2.97, 2.96, 2.95, 2.94, 2.93, 2.0, 1.99, 1.98])
    assert detect("drop", np.tile(curve, (9, 1))).layer == 2
    assert detect("relative-drop", np.tile(curve, (9, 1))).layer == 9


@EVERY_RULE
@pytest.mark.parametrize(
    "curve",
    [
        np.full(L, 3.0),
        np.zeros(L),
        np.linspace(1, 3, L),
        step_curve(L, 5, before=2, after=4),
        np.linspace(3, 1, L),
        3 - 0.02 * np.arange(L) ** 1.5,
        np.minimum(3, 4 - 0.2 * np.arange(L)),
        3 + 0.3 * (-1) ** np.arange(L),
    ],
    ids=["constant", "zero", "rise", "step up", "drift", "bend", "kink", "zigzag"],
)
def test_what_is_no_collapse_gives_none_and_the_reason(rule, curve):
    found = detect(rule, np.tile(curve, (20, 1)))
    assert found.layer is None
    assert found.interval is None
    assert found.reason


@EVERY_RULE
@pytest.mark.parametrize(
    ("values", "images", "reason"),
    [
        (np.tile(step_curve(L, 4), (1, 1)), [0], "one image"),
        (np.tile(step_curve(L, 4), (7, 1)), [0] * 7, "one image"),
        (np.full((7, L), np.nan), range(7), "none of the 7 measured curves is whole"),
        (np.tile(step_curve(4, 2), (7, 1)), range(7), "4 layers are too few"),
    ],
)
def test_what_cannot_carry_a_claim_gives_none_and_the_reason(rule, values, images, reason):
    found = detect(rule, values, images)
    assert found.layer is None
    assert reason in found.reason


@EVERY_RULE
def test_nan_rows_are_left_out(rng, rule):
    values = around(rng, step_curve(L, 5))
    values[[2, 9], 4] = np.nan
    found = detect(rule, values)
    assert (found.layer, found.n_samples) == (5, 38)


@EVERY_RULE
@pytest.mark.parametrize("factor", [0.01, 100])
def test_scaling_entropies_scales_nothing_but_the_fall(rng, rule, factor):
    curves = around(rng, step_curve(L, 5, 4.0, 3.4))
    one, other = (RULES[rule].read(c) for c in (curves, factor * curves))
    np.testing.assert_array_equal(other.layers, one.layers)
    np.testing.assert_allclose(other.falls, factor * one.falls)
    np.testing.assert_allclose(other.strengths, one.strengths, rtol=1e-6)
    assert detect(rule, factor * curves).layer == 5


def test_rounding_of_a_constant_curve_is_no_shift(rng):
    rounding = 3 * (1 + 0.1 * RESOLUTION * rng.uniform(-1, 1, (50, L)))
    assert (read_two_segments(rounding).strengths < 0).all()


@EVERY_RULE
@pytest.mark.parametrize("n_layers", [8, 24, 32])
def test_false_collapses_in_exchangeable_steps_are_rare(rule, n_layers):
    rng = np.random.default_rng(n_layers)
    detector = CollapseDetector(resamples=1, rule=rule)
    # two standard errors of 20,000 verdicts, and those of the null's own 20,000 draws
    most = 0.05 + 2 * np.sqrt(2 * 0.05 * 0.95 / 20_000)
    walks = 50 + rng.normal(0, 1, (20_000, n_layers)).cumsum(axis=1)
    assert np.mean(detector.picks(walks) > 0) <= most
    independent = 50 + rng.normal(0, 1, (20_000, n_layers))
    assert np.mean(detector.picks(independent) > 0) <= most


def test_the_interval_says_where_resamples_drop_not_whether(rng):
    """Two neighboring layers share the fall; resamples in which it stands out nowhere do not count as layer 0."""
    early, late = around(rng, step_curve(L, 5), 38, 0.1), around(rng, step_curve(L, 6), 8, 0.1)
    found = detect("drop", np.concatenate([early, late]), consistency=0.1)
    assert found.layer == 5
    assert found.interval[0] == 5


@EVERY_RULE
def test_a_run_is_read_by_the_rule_asked_for(tmp_path, rule):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.tile(step_curve(L, 4), (9, 1))}})
    (found,) = find_collapse_layer(run, rule=rule, detector=CollapseDetector(resamples=50))
    assert (found.layer, found.detector.rule) == (4, rule)


def test_unknown_rules_name_the_choices(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.ones((3, L))}})
    with pytest.raises(HorizonError, match="rule 'elbow' is unknown; choose from drop, relative-drop, two-segment"):
        find_collapse_layer(run, rule="elbow")
