"""Held-out estimates: against loops, and against a population where the choice of the layer is all noise."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.runs import HorizonError
from analyses.verdicts.held_out import SAME_SAMPLES, split_estimates, split_images

L = 8
LAYERS = np.arange(L + 1)


def fading_effects(rng, n, late=0.05):
    """R_k = 0.5 up to layer 3, then noise around `late` of it up to L: which layer settles is chance."""
    effects = np.where(LAYERS < 4, 0.5, 0.5 * late) + rng.normal(0, 0.04, (n, L + 1))
    effects[:, -1] = 0
    return effects


def make_run(path, effects, **arguments):
    return write_run(path, effects={"ocr": 0.75 - effects}, **arguments)


def test_one_split_written_out(tmp_path):
    rng = np.random.default_rng(0)
    effects, names = fading_effects(rng, 60), np.repeat(np.arange(30), 2)
    correct = rng.random((60, L + 1)) < 0.5
    run = make_run(tmp_path / "run", effects, images={"ocr": names}, correct={"ocr": correct})
    loss, accuracy = split_estimates(run, split=0.4, repeats=3, seed=5)
    codes = np.unique(run.ok["image_sha256"], return_inverse=True)[1]
    parts = split_images(codes, 0.4, 3, 5)
    assert parts.sum(axis=1).tolist() == [24, 24, 24]
    inside, outside = [], []
    for part, found in zip(parts, loss.layers, strict=True):
        mean = effects[part].mean(axis=0)
        above = np.flatnonzero(np.abs(mean) >= max(0.05 * mean[0], 0.01 + 1e-6))
        assert found == above[-1] + 1
        inside.append([effects[part, found].mean(), (correct[part, -1] * 1.0 - correct[part, found]).mean()])
        outside.append([effects[~part, found].mean(), (correct[~part, -1] * 1.0 - correct[~part, found]).mean()])
    np.testing.assert_array_equal(loss.layers, accuracy.layers)
    for estimate, i in ((loss, 0), (accuracy, 1)):
        assert estimate.in_sample == pytest.approx(np.mean(inside, axis=0)[i], abs=1e-9)
        assert estimate.held_out == pytest.approx(np.mean(outside, axis=0)[i], abs=1e-9)
        assert estimate.shift == pytest.approx(estimate.held_out - estimate.in_sample)
        for value, interval in (
            (estimate.in_sample, estimate.in_sample_interval),
            (estimate.held_out, estimate.held_out_interval),
            (estimate.shift, estimate.shift_interval),
        ):
            assert interval[0] <= value <= interval[1]
    assert (loss.measure, accuracy.measure, loss.n_images, loss.n_samples) == ("p", "correct", 30, 60)


def test_images_are_never_split():
    images = np.repeat(np.arange(15), [1, 2, 3] * 5)
    for part in split_images(images, 0.5, 20, 1):
        assert not set(images[part]) & set(images[~part])
        assert len(set(images[part])) == 8
    assert split_images(images, 0.001, 1, 0).sum() >= 2
    assert len(set(images[~split_images(images, 0.999, 1, 0)[0]])) == 2


def test_the_choice_flatters_and_the_held_out_half_does_not(tmp_path):
    """The true effect is the same 0.025 at all late layers: chosen halves see less of it, the others just that."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(12):
        run = make_run(tmp_path / f"run-{i}", fading_effects(rng, 40))
        found.append(split_estimates(run, repeats=20)[0])
    early = [np.mean([0.025 if layer < L else 0 for layer in one.layers]) for one in found]
    held_out = np.mean([one.held_out for one in found])
    assert held_out == pytest.approx(np.mean(early), abs=0.003)
    assert np.mean([one.in_sample for one in found]) < held_out - 0.002
    assert np.mean([one.shift for one in found]) > 0.002


def test_the_same_samples_for_both_are_flagged(tmp_path):
    effects = fading_effects(np.random.default_rng(2), 60)
    loss, accuracy = split_estimates(make_run(tmp_path / "run", effects), split=None)
    assert loss.warning == accuracy.warning == SAME_SAMPLES
    assert (loss.held_out, loss.held_out_interval, loss.shift, loss.shift_interval) == (None, None, None, None)
    assert loss.in_sample == pytest.approx(effects[:, loss.layers[0]].mean())
    few = split_estimates(make_run(tmp_path / "few", effects[:12]), split=None)[0]
    assert few.warning.startswith(SAME_SAMPLES)
    assert "only 12 images" in few.warning


def test_a_collapse_is_chosen_on_the_entropies(tmp_path):
    rng = np.random.default_rng(3)
    entropies = step_curve(L, 5) + rng.normal(0, 0.01, (50, L))
    effects = fading_effects(rng, 50)
    run = make_run(tmp_path / "run", effects, entropies={"query": {"ocr": entropies}})
    loss, accuracy = split_estimates(run, criterion="query", repeats=4)
    assert loss.layers.tolist() == [5] * 4
    assert loss.chosen_by == accuracy.chosen_by == "collapse (query)"
    assert loss.held_out == pytest.approx(0.025, abs=0.015)


def test_the_order_of_samples_does_not_matter(tmp_path):
    effects = fading_effects(np.random.default_rng(4), 40)
    one = split_estimates(make_run(tmp_path / "a", effects))[0]
    other = split_estimates(make_run(tmp_path / "b", effects, order=np.random.default_rng(5).permutation(40)))[0]
    np.testing.assert_array_equal(one.layers, other.layers)
    assert one.held_out_interval == pytest.approx(other.held_out_interval)


def test_what_cannot_be_split_says_so(tmp_path):
    run = make_run(tmp_path / "run", fading_effects(np.random.default_rng(6), 3))
    for estimate in split_estimates(run):
        assert estimate.reason == "3 images are too few to split (at least 4)"
        assert (estimate.in_sample, estimate.held_out, len(estimate.layers)) == (None, None, 0)
    for share in (0.0, 1.0, -0.5, 2.0):
        with pytest.raises(HorizonError, match="between 0 and 1"):
            split_estimates(run, split=share)
    with pytest.raises(HorizonError, match="criterion or stream 'query' is unknown"):
        split_estimates(run, criterion="query")
    with pytest.raises(HorizonError, match="measure 'kl' is unknown"):
        split_estimates(run, measure="kl")


@pytest.mark.parametrize(
    ("effect", "entropy", "floor", "criterion", "reason"),
    [
        (np.full(L + 1, 0.5), None, 1e-6, "removal", "no effect to speak of"),
        (fade_curve(L, 5), None, np.nan, "removal", "no noise floor was measured"),
        (fade_curve(L, 5), np.full(L, 3.0), 1e-6, "query", "the entropy drops nowhere"),
        (fade_curve(L, 5), np.linspace(3, 2, L), 1e-6, "query", "does not stand out"),
    ],
)
def test_a_layer_that_cannot_be_claimed_is_not_scored(tmp_path, effect, entropy, floor, criterion, reason):
    entropies = {} if entropy is None else {"query": {"ocr": np.tile(entropy, (40, 1))}}
    run = write_run(tmp_path / "run", effects={"ocr": np.tile(effect, (40, 1))}, entropies=entropies, noise_floor=floor)
    for found in split_estimates(run, criterion=criterion, repeats=3):
        assert reason in found.reason
        assert found.in_sample is None
        assert found.held_out is None
