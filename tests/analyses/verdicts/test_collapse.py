"""Collapses that were planted, found at their layer; flat, drifting and noisy curves, refused."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import step_curve, write_run

from analyses.arrays.collapse_rules import RULES, sharpness, sharpness_null
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.runs import HorizonError
from analyses.verdicts.collapse import CollapseDetector, find_collapse_layer, task_mean

L = 12
QUICK = CollapseDetector(resamples=300)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def around(rng, curve, n=40, sd=0.2):
    """Curves of n samples: an offset of each sample, and noise at each layer."""
    return curve + rng.normal(0, sd, (n, 1)) + rng.normal(0, sd / 2, (n, len(curve)))


@pytest.mark.parametrize("at", [1, 2, 6, L - 1])
def test_a_planted_drop_is_found_at_its_layer(rng, at):
    found = QUICK(around(rng, step_curve(L, at)), np.arange(40))
    assert (found.layer, found.interval, found.reason) == (at, (at, at), "")
    assert found.drop == pytest.approx(2, abs=0.15)
    assert found.consistency == 1
    assert found.sharpness > found.sharpness_null
    np.testing.assert_array_equal(found.layers, np.arange(L))


def restated_pick(curve):
    """Layer of the largest drop of one curve, and its sharpness."""
    steps = [curve[k - 1] - curve[k] for k in range(1, L)]
    others = sorted(steps)[:-1]
    middle = np.median(others)
    sharp = (max(steps) - middle) / (1.4826 * np.median([abs(step - middle) for step in others]))
    return 1 + steps.index(max(steps)), sharp


def test_everything_restated_by_hand(tmp_path, rng):
    values = {
        "ocr/a": around(rng, step_curve(L, 4), 30, 0.8),
        "ocr/b": around(rng, step_curve(L, 4, 5, 4.2), 12, 0.8),
        "vqa/c": around(rng, np.linspace(3, 2, L), 20),
    }
    images = {"ocr/a": rng.integers(0, 20, 30), "ocr/b": rng.integers(10, 30, 12), "vqa/c": range(20)}
    run = write_run(tmp_path / "run", entropies={"key": values}, images=images)
    ocr, vqa = find_collapse_layer(run, detector=QUICK)
    names = sorted(set(run.samples["image_sha256"]))
    codes = np.array([names.index(h) for h in run.samples["image_sha256"]])
    counts = draw_counts(len(names), 300, 0)
    a, b = values["ocr/a"], values["ocr/b"]
    curve = (a.mean(axis=0) + b.mean(axis=0)) / 2
    np.testing.assert_allclose(ocr.curve, curve, atol=1e-12)
    draws = (resampled_means(a, codes[:30], counts) + resampled_means(b, codes[30:42], counts)) / 2
    n_images = len(np.unique(codes[:42]))
    np.testing.assert_allclose([ocr.low, ocr.high], percentile_interval(draws, n_clusters=n_images), atol=1e-12)
    assert ocr.drop == pytest.approx(max(curve[k - 1] - curve[k] for k in range(1, L)))
    assert ocr.sharpness == pytest.approx(restated_pick(curve)[1])
    verdicts = [restated_pick(draw) for draw in draws]
    assert ocr.consistency == pytest.approx(np.mean([k == 4 and sharp > ocr.sharpness_null for k, sharp in verdicts]))
    alone = [restated_pick(task.mean(axis=0)) for task in (a, b)]
    assert ocr.task_consistency == np.mean([k == 4 and sharp > ocr.sharpness_null for k, sharp in alone])
    assert 0 < ocr.consistency < 1
    assert (ocr.layer == 4) == (min(ocr.consistency, ocr.task_consistency) >= 0.8)
    assert (ocr.n_samples, ocr.n_images) == (42, len(set(codes[:42])))
    assert (ocr.group, ocr.stream, ocr.model) == ({"task_type": "ocr"}, "key", "synthetic")
    assert vqa.layer is None


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        (np.full(L, 3.0), "the entropy drops nowhere"),
        (np.linspace(1, 3, L), "the entropy drops nowhere"),
        (np.linspace(3, 1, L), "does not stand out"),
        (3 - 0.02 * np.arange(L) ** 1.5, "does not stand out"),
        (np.zeros(L), "the entropy drops nowhere"),
    ],
)
def test_flat_and_drifting_curves_give_none(curve, reason):
    found = QUICK(np.tile(curve, (20, 1)), np.arange(20))
    assert found.layer is None
    assert found.interval is None
    assert reason in found.reason


def test_the_curves_of_models_known_not_to_collapse_give_none():
    """Mean entropies by layer of small trained models: queries and keys after RoPE, hidden states."""
    query = [2.55, 2.51, 2.60, 2.59, 2.63, 2.48, 2.67, 2.67]
    key = [2.55, 2.56, 2.61, 2.61, 2.48, 2.30, 2.46, 2.56]
    hidden = [0.94, 1.18, 1.26, 1.37, 1.46, 1.55, 1.59, 1.63]
    for curve in (query, key, hidden):
        assert QUICK(np.tile(curve, (20, 1)), np.arange(20)).layer is None


def test_noise_gives_none(rng):
    found = [QUICK(rng.normal(3, 0.5, (30, L)), np.arange(30)).layer for _ in range(40)]
    assert found.count(None) >= 39


def test_resamples_that_disagree_give_none(rng):
    """Half of the images collapse at one layer, half at another: sharp together, but not the same layer."""
    values = np.concatenate([np.tile(step_curve(L, 3, 4, 1), (20, 1)), np.tile(step_curve(L, 8, 4, 1), (20, 1))])
    found = replace(QUICK, level=0.1)(values, np.arange(40))
    assert found.layer is None
    assert 0.4 < found.consistency < 0.6
    assert "of the resamples have a drop into layer 3 that stands out" in found.reason


def test_a_drop_on_the_edge_of_its_null_gives_none(rng):
    """The mean curve stands out by a little, which half of the resamples then do not: chance, not a collapse."""
    curve = 3 - np.cumsum(np.r_[0, np.random.default_rng(5).normal(0, 0.1, L - 1)])
    steps = -np.diff(curve)
    others = np.delete(steps, 3)
    spread = 1.4826 * np.median(np.abs(others - np.median(others)))
    null = QUICK(np.tile(curve, (5, 1)), np.arange(5)).sharpness_null
    steps[3] = np.median(others) + 1.02 * null * spread
    edge = 3 - np.r_[0, np.cumsum(steps)]
    noise = rng.normal(0, 0.1, (40, L))
    found = QUICK(edge + noise - noise.mean(axis=0), np.arange(40))
    assert found.sharpness == pytest.approx(1.02 * null)
    assert found.layer is None
    assert 0.2 < found.consistency < 0.8
    assert QUICK(np.tile(edge, (40, 1)), np.arange(40)).layer == 4


@pytest.mark.parametrize(
    ("values", "images", "reason"),
    [
        (np.tile(step_curve(L, 4), (1, 1)), [0], "one image"),
        (np.tile(step_curve(L, 4), (7, 1)), [0] * 7, "one image"),
        (np.full((7, L), np.nan), range(7), "none of the 7 measured curves is whole"),
        (np.tile(step_curve(4, 2), (7, 1)), range(7), "4 layers are too few"),
    ],
)
def test_what_cannot_carry_a_claim_gives_none_and_the_reason(values, images, reason):
    found = QUICK(values, np.asarray(images))
    assert found.layer is None
    assert reason in found.reason


def test_nan_rows_are_left_out_and_counted(rng):
    values = around(rng, step_curve(L, 5))
    broken = values.copy()
    broken[[2, 9], 4] = np.nan
    found = QUICK(broken, np.arange(40))
    assert (found.layer, found.n_samples, found.n_images) == (5, 38, 38)
    np.testing.assert_allclose(found.curve, np.delete(values, [2, 9], axis=0).mean(axis=0))


def test_sharpness_and_null_by_hand():
    rng = np.random.default_rng(1)
    draws = []
    for steps in rng.standard_normal((4000, 7)):
        others = np.delete(steps, steps.argmax())
        mad = np.median(np.abs(others - np.median(others)))
        draws.append((steps.max() - np.median(others)) / (1.4826 * mad))
    np.testing.assert_allclose(draws[-1], sharpness(steps), rtol=1e-12)
    assert sharpness_null(7, 0.5) == pytest.approx(np.quantile(draws, 0.5), rel=0.04)
    assert sharpness_null(7) == pytest.approx(np.quantile(draws, 0.95), rel=0.1)


def test_sharpness_where_other_steps_do_not_vary():
    assert sharpness(np.array([0.0, 0.0, 0.0, 0.0])) == 0
    assert sharpness(np.array([0.0, 0.0, 2.0, 0.0])) == np.inf
    assert sharpness(np.array([0.0, 0.0, 2.0, 0.0]), resolution=0.01) == pytest.approx(200)


@pytest.mark.parametrize("factor", [0.01, 100])
def test_scaling_entropies_scales_nothing_but_the_drop(rng, factor):
    values = around(rng, step_curve(L, 5, 4.0, 3.4))
    one, other = QUICK(values, np.arange(40)), QUICK(factor * values, np.arange(40))
    assert one.layer == other.layer == 5
    assert other.drop == pytest.approx(factor * one.drop)
    assert (other.sharpness, other.consistency) == (pytest.approx(one.sharpness), one.consistency)
    np.testing.assert_allclose(other.low, factor * one.low)


def test_order_of_samples_does_not_matter(tmp_path, rng):
    values = {"ocr": around(rng, step_curve(L, 5), 20), "vqa": around(rng, step_curve(L, 3), 20)}
    runs = [
        write_run(tmp_path / name, entropies={"query": values}, order=order, part_size=11)
        for name, order in (("a", None), ("b", rng.permutation(40)))
    ]
    for one, other in zip(*(find_collapse_layer(run, detector=QUICK) for run in runs), strict=True):
        np.testing.assert_allclose(other.high, one.high, atol=1e-12)
        assert (other.layer, other.sharpness) == (one.layer, pytest.approx(one.sharpness))


def test_a_large_task_does_not_outvote_a_small_one(tmp_path):
    values = {"ocr/big": np.tile(step_curve(L, 3, 4, 3), (90, 1)), "ocr/small": np.tile(step_curve(L, 8, 4, 2), (9, 1))}
    run = write_run(tmp_path / "run", entropies={"query": values})
    (together,) = find_collapse_layer(run, by=(), detector=QUICK)
    np.testing.assert_allclose(together.curve, (step_curve(L, 3, 4, 3) + step_curve(L, 8, 4, 2)) / 2)
    assert together.group == {}
    assert together.layer is None
    assert together.consistency == 1.0
    assert together.task_consistency == 0.5
    assert "only 50% of the single tasks have a drop into layer 8" in together.reason
    small, big = (r for r in find_collapse_layer(run, by=("task",), detector=QUICK)[::-1])
    assert (big.group["task"], big.layer, small.layer) == ("big", 3, 8)


def test_task_mean_weighs_tasks_equally():
    values = np.array([[1.0], [2.0], [3.0], [10.0]])
    assert task_mean(values, np.array(["a", "a", "a", "b"])) == pytest.approx(6)


def test_hidden_ends_before_the_final_norm(tmp_path):
    """A drop into layer L, the input of the final norm, is no layer to prune from."""
    curve = step_curve(L + 1, L)
    run = write_run(
        tmp_path / "run", entropies={"query": step_curve(L, 4), "hidden": {"ocr": np.tile(curve, (9, 1))}}, n_layers=L
    )
    query, hidden = find_collapse_layer(run, detector=QUICK)
    assert (query.stream, query.layer) == ("query", 4)
    assert (hidden.stream, hidden.layer, hidden.n_layers) == ("hidden", None, L)
    assert len(hidden.curve) == L


def test_streams_may_be_chosen_and_unknown_ones_are_named(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.ones((3, L))}, "key": np.ones(L)})
    assert [r.stream for r in find_collapse_layer(run, streams=("key",), detector=QUICK)] == ["key"]
    with pytest.raises(HorizonError, match="stream 'value' is unknown; choose from query, key"):
        find_collapse_layer(run, streams=("value",))
    removal = write_run(tmp_path / "removal", effects={"ocr": np.ones((3, L + 1))})
    with pytest.raises(HorizonError, match="holds no entropies"):
        find_collapse_layer(removal)


def test_a_group_that_failed_as_a_whole_is_reported(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.ones((3, L))}}, failed={"vqa": 2})
    _, vqa = find_collapse_layer(run, detector=QUICK)
    assert (vqa.group, vqa.layer, vqa.reason) == ({"task_type": "vqa"}, None, "no sample was measured")


def test_parameters_are_those_of_the_definition():
    found = CollapseDetector()
    assert (found.resamples, found.seed, found.level, found.consistency) == (2000, 0, 0.95, 0.8)
    assert (found.null_draws, found.rule) == (20_000, "drop")
    assert found.needed(L) == sharpness_null(L - 1, 0.95, 20_000, 0)
    assert replace(found, level=0.5, null_draws=500, seed=3).needed(L) == sharpness_null(L - 1, 0.5, 500, 3)


def test_a_fall_must_stand_out_further_than_chance_does(monkeypatch):
    """As far and no further is not enough, for the mean curve and for those of resamples and tasks."""
    curve = step_curve(L, 5) + np.arange(L) ** 2 / 128  # sums of these are exact
    strength = float(RULES["drop"].read(curve).strengths)
    values = np.tile(curve, (20, 1))
    for least, layer in ((strength, None), (np.nextafter(strength, 0), 5)):
        monkeypatch.setitem(RULES, "drop", replace(RULES["drop"], null=lambda *_, least=least: least))
        assert int(QUICK.picks(curve)) == (layer or 0)
        found = QUICK(values, np.arange(20))
        assert (found.layer, found.sharpness_null) == (layer, least)
        assert ("does not stand out" in found.reason) == (layer is None)


def test_a_step_that_does_not_fall_is_no_pick():
    """Entropy that rises everywhere but for one level step: it stands out, and is no drop."""
    rising = np.cumsum(np.r_[0, np.where(np.arange(L - 1) == 4, 0.0, 1.0)])
    reading = RULES["drop"].read(rising)
    assert (int(reading.layers), float(reading.falls)) == (5, 0.0)
    assert reading.strengths > QUICK.needed(L)
    assert int(QUICK.picks(rising)) == 0


def test_five_layers_are_enough_and_flat_is_judged_by_the_resolution():
    found = QUICK(np.tile([4.01, 4, 2.02, 2, 2.01], (20, 1)), np.arange(20))
    assert (found.layer, found.reason) == (2, "")
    rounding = 3 * (1 - 0.5e-5 * (np.arange(L) >= 4))
    assert QUICK(np.tile(rounding, (20, 1)), np.arange(20)).reason == "the entropy drops nowhere"
    assert QUICK(np.tile(3 * (1 - 5e-5 * (np.arange(L) >= 4)), (20, 1)), np.arange(20)).layer == 4


def test_enough_resamples_and_tasks_are_exactly_the_share_that_is_asked_for():
    """Four of five tasks fall at the layer, and 80 % are needed."""
    tasks = np.repeat(np.arange(5), 20)
    values = np.where(tasks[:, None] < 4, step_curve(L, 5), np.full(L, 3.0))
    found = QUICK(values, np.arange(100), tasks)
    assert (found.layer, found.task_consistency) == (5, 0.8)
    strict = replace(QUICK, consistency=0.81)(values, np.arange(100), tasks)
    assert "only 80% of the single tasks have a drop into layer 5 that stands out, needed 81%" in strict.reason


def test_a_run_in_which_everything_failed_is_reported(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.empty((0, L))}}, failed={"ocr": 2})
    assert [found.reason for found in find_collapse_layer(run)] == ["no sample was measured"]


def test_what_rounding_makes_of_a_rising_entropy_is_flat():
    """Relative to the largest entropy, not to the smallest: the only fall is 2e-5 of 3 nats."""
    rising = np.linspace(1e-3, 3, L)
    rising[6] = rising[5] - 2e-5
    found = QUICK(np.tile(rising, (20, 1)), np.arange(20))
    assert (found.layer, found.reason) == (None, "the entropy drops nowhere")
