"""Horizons that were planted, found; and everything that cannot carry a claim, refused with its reason."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.depths import half_depths, settled_layer
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means, simultaneous_band
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector, find_horizon

L = 8
QUICK = HorizonDetector(resamples=400)
find_by_removal = partial(find_horizon, criterion="removal", detector=QUICK)


def noisy(rng, n, half=4.5, n_layers=L, sd=0.05, **shape):
    """(n, n_layers + 1) p after removal; at L the model's own forward."""
    p = fade_curve(n_layers, half, **shape) + rng.normal(0, sd, (n, n_layers + 1))
    return np.clip(p, 0.001, 0.999)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("h", [1, 3, 7, 8])
def test_a_planted_step_is_found_at_its_layer(tmp_path, rng, h):
    p = np.where(np.arange(L + 1) < h, 0.1, 0.9) + rng.normal(0, 0.02, (120, 1))
    (found,) = find_by_removal(write_run(tmp_path / "run", effects={"ocr": p}))
    assert (found.layer, found.interval, found.censored) == (h, (h, h), h == L)
    assert found.half_depth == pytest.approx(h - 0.5)
    assert (found.reason, found.half_depth_reason) == ("", "")
    assert found.threshold == pytest.approx(0.04)
    assert (found.n_samples, found.n_images, found.n_layers) == (120, 120, L)


@pytest.mark.parametrize("floor", [0.035, 0.001])
def test_everything_restated_by_hand(tmp_path, rng, floor):
    p = {"ocr": noisy(rng, 40, 5.5), "vqa": noisy(rng, 30, 3.0)}
    images = {"ocr": rng.integers(0, 25, 40), "vqa": rng.integers(10, 40, 30)}
    run = write_run(tmp_path / "run", effects=p, images=images, noise_floor=floor)
    found = find_by_removal(run)
    names = sorted({str(h) for h in run.samples["image_sha256"]})
    counts = draw_counts(len(names), 400, 0)
    for result, key in zip(found, ("ocr", "vqa"), strict=True):
        r = p[key][:, -1:] - p[key]
        codes = np.array([names.index(h) for h in run.samples.loc[run.samples["task_type"] == key, "image_sha256"]])
        mean, layers = r.mean(axis=0), np.arange(L + 1)
        np.testing.assert_allclose(result.effect, mean, atol=1e-12)
        # a floor of 0.035 lifts the threshold above 5 % of an effect of 0.8; without it the threshold has a band, too
        assert result.threshold == pytest.approx(max(0.05 * mean[0], floor + 0.01))
        assert result.layer == settled_layer(mean, result.threshold, layers)
        low, high = simultaneous_band(r, codes, counts)
        np.testing.assert_allclose([result.low, result.high], [low, high], atol=1e-9)
        inside = np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high)))
        first = settled_layer(inside, max(0.05 * high[0], floor + 0.01), layers)
        last = settled_layer(np.maximum(np.abs(low), np.abs(high)), max(0.05 * low[0], floor + 0.01), layers)
        assert result.interval == (first, last)
        assert result.interval[0] <= result.layer <= result.interval[1]
        assert result.half_depth == pytest.approx(half_depths(mean, layers))
        draws = half_depths(resampled_means(r, codes, counts), layers)
        ends = percentile_interval(draws, n_clusters=len(np.unique(codes)))
        np.testing.assert_allclose(result.half_depth_interval, ends, atol=1e-9)


def test_information_takes_the_absolute_value_of_every_window(tmp_path, rng):
    """Two windows of opposite effect cancel in their mean, not in the mean of their magnitudes."""
    p = np.tile(np.where(np.arange(L + 1) < 6, 0.3, 0.9), (30, 1))
    size = np.where(np.arange(L) < 5, 0.2, 0.001)[None, :, None]
    grids = p[:, :-1, None] + size * np.array([1, -1])
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids}, grid_shape=(2, 4))
    removal, information = find_by_removal(run) + find_horizon(run, criterion="information", detector=QUICK)
    assert (removal.criterion, removal.layer, removal.context) == ("removal", 6, "removal")
    assert (information.criterion, information.layer, information.context) == ("information", 5, "keep-one")
    np.testing.assert_allclose(information.effect, np.append(size.ravel(), 0), atol=1e-6)
    assert information.threshold == pytest.approx(0.05 * 0.2, rel=1e-4)
    assert information.half_depth is None
    assert "removal effect" in information.half_depth_reason


def test_information_is_held_against_its_maximum_over_layers(tmp_path):
    profile = np.array([0.01, 0.02, 0.1, 0.4, 0.1, 0.03, 0.019, 0.001])
    p = np.tile(np.where(np.arange(L + 1) < 6, 0.3, 0.9), (30, 1))
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": p[:, :-1, None] + profile[None, :, None]})
    (found,) = find_horizon(run, criterion="information", detector=QUICK)
    assert found.layer == 6
    assert found.threshold == pytest.approx(0.02, rel=1e-4)


def test_information_has_its_own_samples(tmp_path, rng):
    p = noisy(rng, 20)
    grids = np.full((20, L, 4), np.nan)
    grids[:6] = 0.5
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids})
    removal, information = find_by_removal(run) + find_horizon(run, criterion="information", detector=QUICK)
    assert (removal.n_samples, information.n_samples) == (20, 6)


def test_not_reached_is_censored(tmp_path, rng):
    p = noisy(rng, 60, half=7.2, width=0.4)
    (found,) = find_by_removal(write_run(tmp_path / "run", effects={"ocr": p}))
    assert found.layer == L
    assert found.censored
    assert found.interval == (L, L)
    assert 6.5 < found.half_depth < 7.5


@pytest.mark.parametrize(
    ("p", "images", "reason"),
    [
        (np.full((40, L + 1), 0.6), range(40), "no effect to speak of: 0, lower bound 0"),
        (fade_curve(L, 4)[None], range(1), "one image"),
        (np.tile(fade_curve(L, 4), (9, 1)), [0] * 9, "one image"),
        (np.full((9, L + 1), np.nan), range(9), "none of the 9 measured curves is whole"),
        (np.tile(0.9 - 0.8 * fade_curve(L, 4), (9, 1)), range(9), "no effect to speak of: -0.64"),
    ],
)
def test_what_cannot_carry_a_claim_gives_none_and_the_reason(tmp_path, p, images, reason):
    (found,) = find_by_removal(write_run(tmp_path / "run", effects={"ocr": p}, images={"ocr": images}))
    assert found.layer is None
    assert found.interval is None
    assert found.half_depth is None
    assert found.half_depth_interval is None
    assert reason in found.reason
    assert found.half_depth_reason == found.reason
    assert not found.censored


@pytest.mark.parametrize(("measure", "size"), [("p", 0.012), ("log_p", 0.052)])
def test_an_effect_must_stand_above_the_noise_floor(measure, size):
    values = np.zeros((50, 5))
    values[:, :2] = size
    assert QUICK(values, np.arange(50), measure=measure, noise_floor=0.001).layer is not None
    assert QUICK(values, np.arange(50), measure=measure, noise_floor=0.003).layer is None


def test_an_effect_of_a_few_samples_is_not_enough():
    values = np.zeros((50, 5))
    values[:2, :2] = 0.9  # mean 0.036, but resamples without both samples are not rare
    found = QUICK(values, np.arange(50))
    assert found.layer is None
    assert "lower bound 0" in found.reason


def test_nan_rows_are_left_out_and_counted(tmp_path, rng):
    p = noisy(rng, 40)
    broken = p.copy()
    broken[[3, 17], 2] = np.nan
    kept = np.delete(p, [3, 17], axis=0)
    images = np.delete(np.arange(40), [3, 17])
    (found,) = find_by_removal(write_run(tmp_path / "a", effects={"ocr": broken}))
    alone = QUICK(kept[:, -1:] - kept, images, noise_floor=1e-6)
    assert found.n_samples == 38
    np.testing.assert_allclose(found.effect, alone.effect, atol=1e-12)
    assert (found.layer, found.half_depth) == (alone.layer, pytest.approx(alone.half_depth))


def test_without_layer_zero_or_noise_floor_nothing_is_claimed(tmp_path, rng):
    p = noisy(rng, 20)
    skipped = write_run(tmp_path / "a", effects={"ocr": p[:, [2, 4, 8]]}, n_layers=L, layers=(2, 4))
    assert "layer 0 was not measured" in find_by_removal(skipped)[0].reason
    unknown = write_run(tmp_path / "b", effects={"ocr": p}, noise_floor=math.nan)
    assert find_by_removal(unknown)[0].reason == "no noise floor was measured"


def test_some_layers_are_named_by_their_number(tmp_path):
    p = np.tile([0.1, 0.1, 0.9, 0.9, 0.9], (30, 1))
    run = write_run(tmp_path / "run", effects={"ocr": p}, n_layers=12, layers=(0, 3, 6, 9))
    (found,) = find_by_removal(run)
    assert (found.layer, found.half_depth, found.n_layers) == (6, pytest.approx(4.5), 12)


def test_a_group_that_failed_as_a_whole_is_reported(tmp_path, rng):
    run = write_run(tmp_path / "run", effects={"ocr": noisy(rng, 20)}, failed={"vqa": 3})
    ocr, vqa = find_by_removal(run)
    assert ocr.layer is not None
    assert (vqa.group, vqa.layer, vqa.reason) == ({"task_type": "vqa"}, None, "no sample was measured")
    nothing = write_run(tmp_path / "none", effects={"ocr": np.empty((0, L + 1))}, failed={"ocr": 2})
    assert [h.reason for h in find_by_removal(nothing)] == ["no sample was measured"]


def test_order_of_samples_does_not_matter(tmp_path, rng):
    p = {"ocr": noisy(rng, 20, 5.5), "vqa": noisy(rng, 20, 3.0)}
    images = {"ocr": rng.integers(0, 12, 20), "vqa": rng.integers(6, 18, 20)}
    runs = [
        write_run(tmp_path / name, effects=p, images=images, order=order, part_size=7)
        for name, order in (("a", None), ("b", rng.permutation(40)))
    ]
    for one, other in zip(*(find_by_removal(run) for run in runs), strict=True):
        np.testing.assert_allclose(other.low, one.low, atol=1e-9)
        assert (other.layer, other.interval) == (one.layer, one.interval)
        assert other.half_depth_interval == pytest.approx(one.half_depth_interval)


def test_another_task_leaves_point_estimates_alone(tmp_path, rng):
    ocr = noisy(rng, 20, 5.5)
    alone = write_run(tmp_path / "a", effects={"ocr": ocr})
    both = write_run(tmp_path / "b", effects={"chart": noisy(rng, 20, 2.0), "ocr": ocr})
    (one,), (_, other) = find_by_removal(alone), find_by_removal(both)
    np.testing.assert_allclose(other.effect, one.effect, atol=1e-12)
    assert (other.layer, other.half_depth, other.threshold) == (one.layer, one.half_depth, one.threshold)


def test_log_p_has_its_own_margin_and_unit(tmp_path):
    p = np.tile(np.exp([-3.0, -3.0, -0.3, -0.105, -0.1]), (20, 1))
    (found,) = find_by_removal(write_run(tmp_path / "run", effects={"ocr": p}), measure="log_p")
    assert found.threshold == pytest.approx(0.05 * 2.9)
    np.testing.assert_allclose(found.effect, [2.9, 2.9, 0.2, 0.005, 0], atol=1e-9)
    assert found.layer == 3


def test_a_run_offers_the_criteria_it_can_carry(tmp_path, rng):
    run = write_run(tmp_path / "run", effects={"ocr": noisy(rng, 9)})
    assert [h.criterion for h in find_horizon(run, detector=QUICK)] == ["removal", "accuracy", "kl", "vtw"]
    with pytest.raises(HorizonError, match=r"'information' needs the probe 'information' in the context 'keep-one'"):
        find_horizon(run, criterion="information")
    entropy = write_run(tmp_path / "entropy", entropies={"query": {"ocr": np.ones((3, L))}})
    assert find_horizon(entropy) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"criterion": "elbow"}, "criterion 'elbow' is unknown; choose from removal, information"),
        ({"measure": "kl"}, "measure of the criterion 'removal' 'kl' is unknown; choose from p, log_p"),
        ({"target": "silver"}, "target 'silver' is unknown; choose from gold"),
        ({"by": ("color",)}, "column to group by 'color' is unknown; choose from task_type, task, category"),
    ],
)
def test_unknown_words_name_the_choices(tmp_path, rng, words, message):
    run = write_run(tmp_path / "run", effects={"ocr": noisy(rng, 9)})
    with pytest.raises(HorizonError, match=message):
        find_horizon(run, **words)


def test_results_carry_their_parameters(tmp_path, rng):
    run = write_run(tmp_path / "run", effects={"ocr": noisy(rng, 30, half=3, width=0.7, sd=0.002)})
    strict = replace(QUICK, share=0.01, margin=0.001)
    (loose,), (tight,) = find_by_removal(run), find_by_removal(run, detector=strict)
    assert (loose.detector, tight.detector) == (QUICK, strict)
    assert tight.layer > loose.layer
    assert (loose.model, loose.target, loose.measure) == ("synthetic", "gold", "p")
