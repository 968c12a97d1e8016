"""Half depth across models: planted orders, exact p-values, and None where models are too few or not distinct."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.correlation import fisher_interval
from analyses.comparisons.scaling import correlate_models
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector, find_horizon

QUICK = HorizonDetector(resamples=200)


def write(path, name, half, *, right=5, n_layers=10, group="ocr", **config):
    """One model: its half depth, and how many of its ten answers are right."""
    effects = {group: np.stack([fade_curve(n_layers, half + 0.1 * i) for i in range(10)])}
    correct = {group: np.tile(np.arange(10)[:, None] < right, n_layers + 1)}
    return write_run(path / name, model=f"x/{name}", effects=effects, correct=correct, **config)


def pick(results, covariate, unit="layers"):
    (found,) = [one for one in results if (one.covariate, one.unit) == (covariate, unit)]
    return found


@pytest.fixture
def runs(tmp_path):
    """Half depth falls with accuracy, and in layers it rises with L while its fraction does not."""
    sizes = [(8, 4.0), (10, 4.6), (12, 5.2), (14, 5.8), (16, 6.4)]
    return [
        write(tmp_path, f"m{n}", half, n_layers=n, right=9 - i, hidden_size=64 * 2 ** (i % 2))
        for i, (n, half) in enumerate(sizes)
    ]


def test_planted_orders(runs):
    found = correlate_models(runs, detector=QUICK)
    layers, fraction = pick(found, "n_layers"), pick(found, "n_layers", "fraction")
    assert (layers.rho, fraction.rho) == (pytest.approx(1), pytest.approx(-1))
    assert layers.p_value == 2 / 120  # two of all orders of five are perfect
    assert layers.interval == fisher_interval(1.0, 5)
    assert pick(found, "accuracy").rho == pytest.approx(-1)
    assert pick(found, "accuracy").values == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert abs(pick(found, "hidden_size").rho) < 0.5
    assert [one.p_adjusted for one in found if one.unit == "layers"] == pytest.approx([6 / 120, 6 / 120, 1])


def test_points_are_the_models_half_depths(runs):
    found = pick(correlate_models(runs, ("accuracy",), detector=QUICK), "accuracy", "fraction")
    own = [find_horizon(run, criterion="removal", detector=QUICK)[0] for run in runs]
    assert found.half_depths == pytest.approx([one.half_depth / one.n_layers for one in own])
    assert [one.model for one in found.horizons] == ["m8", "m10", "m12", "m14", "m16"]
    assert [one.half_depth_interval for one in found.horizons] == [one.half_depth_interval for one in own]
    assert found.left_out == []


def test_fewer_than_four_models_give_none_and_the_reason(runs, tmp_path):
    blind = write_run(tmp_path / "blind", model="x/blind", effects={"ocr": np.full((9, 11), 0.5)})
    for one in correlate_models([*runs[:3], blind], detector=QUICK):
        assert (one.rho, one.interval, one.p_value, one.p_adjusted) == (None, None, None, None)
        assert one.reason == "3 models have both, needed at least 4"
        assert one.left_out[0].startswith("blind: removing all visual tokens at layer 0 has no effect")
    assert pick(correlate_models(runs[:4], detector=QUICK), "n_layers").rho == pytest.approx(1)


def test_one_model_twice_is_not_two_models(runs, tmp_path):
    prompted = write(tmp_path / "prompted", "m8", 4.0, n_layers=8, prompt="Look: {question}")
    (reason,) = {one.reason for one in correlate_models([*runs, prompted], detector=QUICK)}
    assert reason == "several runs are of m8; give one run for each model"
    revisions = [write(tmp_path / name, "training", 5.0 + i, revision=name) for i, name in enumerate(("one", "two"))]
    assert {one.reason for one in correlate_models([*runs, *revisions], detector=QUICK)} == {""}


def test_what_does_not_vary_or_is_not_recorded(runs, tmp_path):
    found = correlate_models(runs, ("vocab_size",), detector=QUICK)
    assert {one.reason for one in found} == {"vocab_size is the same for all 5 models"}
    even = [write(tmp_path, f"even{i}", 4.0, right=i) for i in range(4)]
    assert pick(correlate_models(even, detector=QUICK), "accuracy").reason == (
        "half depth is the same for all 4 models"
    )
    batched = [write(tmp_path, f"batched{i}", 4 + i, batch_size=2**i) for i in range(4)]
    found = correlate_models([*batched, runs[0]], ("batch_size",), detector=QUICK)[0]
    assert found.rho == pytest.approx(1)
    assert found.left_out == ["m8: batch_size is not recorded"]


def test_each_group_has_its_own_models(runs, tmp_path):
    other = write(tmp_path, "vqa-only", 3.0, group="vqa")
    found = correlate_models([*runs, other], ("n_layers",), detector=QUICK)
    assert [(one.group["task_type"], one.unit, len(one.horizons)) for one in found] == [
        *(("ocr", "layers", 5), ("ocr", "fraction", 5), ("vqa", "layers", 1), ("vqa", "fraction", 1))
    ]


def test_unknown_words_name_the_choices(runs):
    with pytest.raises(HorizonError, match=r"covariate of models 'color' is unknown; choose from accuracy, n_layers"):
        correlate_models(runs, ("color",))
