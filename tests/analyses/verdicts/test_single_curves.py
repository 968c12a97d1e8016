"""Depths of single samples: read off each curve as it is, with a reason wherever there is none."""

import math

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.depths import half_depths
from analyses.verdicts.criteria import CRITERIA
from analyses.verdicts.horizon import HorizonDetector, find_horizon
from analyses.verdicts.single_curves import sample_depths

L = 8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_planted_steps_are_read_sample_by_sample(tmp_path):
    at = np.array([1, 3, 7, 8])
    p = np.where(np.arange(L + 1) < at[:, None], 0.1, 0.9)
    found = sample_depths(write_run(tmp_path / "run", effects={"ocr/texts/sign": p}))
    assert found["horizon"].tolist() == at.tolist()
    assert found["half_depth"].tolist() == pytest.approx(at - 0.5)
    assert found["censored"].tolist() == [False, False, False, True]
    assert found["eligible"].all()
    assert set(found["reason"]) == {""}
    assert found.loc[0, ["task_type", "task", "category"]].tolist() == ["ocr", "texts", "sign"]
    assert found.loc[0, "effect"] == pytest.approx(0.8)


def test_every_sample_is_there_and_says_why_it_has_no_depth(tmp_path):
    p = np.tile(fade_curve(L, 4), (4, 1))
    p[1] = 0.5
    p[2] = p[2, ::-1]
    p[3, 5] = np.nan
    found = sample_depths(write_run(tmp_path / "run", effects={"ocr": p}, failed={"vqa": 1}))
    assert found["eligible"].tolist() == [True, False, False, False, False]
    assert "no effect to speak of" in found.loc[1, "reason"]
    assert "no effect to speak of" in found.loc[2, "reason"]
    assert found.loc[3, "reason"] == "its curve has gaps"
    assert found.loc[4, "reason"] == "the image cannot be read"
    assert found["horizon"].isna().tolist() == [False, True, True, True, True]
    assert found["half_depth"].isna().tolist() == [False, True, True, True, True]
    assert not found["censored"].any()


def test_without_layer_zero_or_noise_floor_there_is_no_depth(tmp_path):
    p = np.tile(fade_curve(L, 4), (3, 1))
    skipped = write_run(tmp_path / "a", effects={"ocr": p[:, [2, 4, 8]]}, n_layers=L, layers=(2, 4))
    assert set(sample_depths(skipped)["reason"]) == {"layer 0 was not measured (the first is 2)"}
    unknown = write_run(tmp_path / "b", effects={"ocr": p}, noise_floor=math.nan)
    assert set(sample_depths(unknown)["reason"]) == {"no noise floor was measured"}


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_one_curve_many_times_has_the_depth_of_its_mean(tmp_path, criterion):
    """The rule for a single curve is the rule for a mean curve."""
    p = np.tile(fade_curve(L, 4.3), (400, 1))
    grids = p[:30, :-1, None] + np.linspace(0.5, 1.5, 4) * fade_curve(L, 4, p_all=0, p_none=0.3)[None, :-1, None]
    grids = np.concatenate([grids, np.full((370, L, 4), np.nan)])
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids})
    (mean,) = find_horizon(run, criterion=criterion, detector=HorizonDetector(resamples=100))
    found = sample_depths(run, criterion=criterion)
    measured = found[found["eligible"]]
    assert len(measured) == mean.n_samples
    assert set(measured["horizon"]) == {mean.layer}
    if criterion == "removal":
        assert measured["half_depth"].tolist() == pytest.approx([mean.half_depth] * 400)
    else:
        assert measured["half_depth"].isna().all()
    if mean.n_samples < 400:
        assert set(found.loc[~found["eligible"], "reason"]) == {"not measured for this target"}


def test_half_depths_restated(tmp_path, rng):
    p = np.clip(fade_curve(L, 4) + rng.normal(0, 0.1, (20, L + 1)), 0.01, 0.99)
    found = sample_depths(write_run(tmp_path / "run", effects={"ocr": p}, order=rng.permutation(20)))
    for name, half in zip(found["id"], found["half_depth"], strict=True):
        curve = p[int(name.split("-")[1])]
        assert half == pytest.approx(float(half_depths(curve[-1] - curve, np.arange(L + 1))))


@pytest.mark.parametrize(("measure", "least"), [("p", 0.01), ("log_p", 0.05)])
def test_a_sample_is_eligible_above_the_margin_of_its_measure(tmp_path, measure, least):
    """The margin lies above the noise floor of 0.001, and the reason names both together."""
    sizes = least + 0.001 + np.array([-1e-4, 1e-4, 0.5])
    m = np.where(np.arange(L + 1) < 4, -sizes[:, None], 0.0)
    effects = m - 0.1 if measure == "log_p" else np.log(0.9 + m)
    run = write_run(tmp_path / "run", effects={"ocr": effects}, log=True, noise_floor=0.001)
    found = sample_depths(run, measure=measure)
    np.testing.assert_allclose(found["effect"], sizes)
    assert found["eligible"].tolist() == [False, True, True]
    assert found["reason"].tolist() == [
        f"removing all visual tokens at layer 0 has no effect to speak of: at most {least + 0.001:.3g}",
        "",
        "",
    ]
    assert found["horizon"].fillna(-1).tolist() == [-1, 4, 4]
