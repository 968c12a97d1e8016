"""Covariates of single samples: planted relations are found, ineligible samples are counted, poor input is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_runs import fade_curve, write_run

from analyses.arrays.correlation import rank_p_value
from analyses.arrays.depths import half_depths
from analyses.arrays.permutation import adjust_holm
from analyses.comparisons.covariates import correlate_half_depth, sample_covariate
from analyses.curves.effects import removal_effects
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector
from analyses.verdicts.single_curves import sample_depths

L = 10
QUICK = {"detector": HorizonDetector(resamples=400), "permutations": 499}


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture
def run(tmp_path, rng):
    """Longer answers need the image longer, in "ocr" only; three samples of "vqa" have no effect."""
    lengths = rng.integers(1, 9, 80)
    ocr = np.stack([fade_curve(L, 2 + 0.6 * n + e, 0.4) for n, e in zip(lengths, rng.normal(0, 0.7, 80), strict=True)])
    vqa = np.stack([fade_curve(L, half, 0.4) for half in rng.normal(4, 0.7, 80)])
    vqa[:3] = 0.4
    words = [["x" * n, "X" * n, "other than that"] for n in lengths]
    return write_run(
        tmp_path / "run",
        effects={"ocr": ocr, "vqa": vqa},
        answers={"ocr": words, "vqa": [words[i] for i in rng.permutation(80)]},
        images={"ocr": np.arange(80) // 2, "vqa": np.arange(80) // 2},
    )


def test_a_planted_relation_is_found_in_its_group_only(run):
    ocr, vqa = correlate_half_depth(run, ("answer_characters",), **QUICK)
    assert (ocr.group, ocr.covariate, ocr.model) == ({"task_type": "ocr"}, "answer_characters", "synthetic")
    assert 0.6 < ocr.interval[0] < ocr.rho < ocr.interval[1] < 1
    assert ocr.p_value == 1 / 500
    assert vqa.interval[0] < 0 < vqa.interval[1]
    assert vqa.p_value > 0.1
    assert (ocr.n_samples, ocr.n_images, ocr.n_ineligible) == (80, 40, 0)
    assert (vqa.n_samples, vqa.n_images, vqa.n_ineligible) == (77, 39, 3)


def test_everything_restated_by_hand(run):
    curves = removal_effects(run)
    halves = np.array([half_depths(curve, curves.layers) for curve in curves.values])
    lengths = [min(map(len, answers)) for answers in run.samples["answers"]]
    results = correlate_half_depth(run, ("answer_characters",), **QUICK)
    for found, rows in zip(results, np.split(np.arange(160), 2), strict=True):
        used = rows[curves.values[rows, 0] > 0.01 + 1e-6]
        x, y = np.array(lengths)[used], halves[used]
        assert (found.values == x).all()
        assert found.half_depths == pytest.approx(y)
        assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.p_value == rank_p_value(x, y, curves.images[used], permutations=499)


def test_any_column_and_any_series_can_be_a_covariate(run, rng):
    halves = sample_depths(run)["half_depth"]
    own = pd.Series(np.exp(halves), name="font size")
    own[halves.index[:5]] = np.nan
    p, ready = correlate_half_depth(run, ("p", own), by=(), **QUICK)
    assert (p.rho, p.reason) == (None, "the covariate is the same for all 157 samples")
    assert (ready.covariate, ready.rho, ready.n_missing, ready.n_ineligible) == ("font size", pytest.approx(1), 5, 3)
    assert sample_covariate(run, "n_prompt").to_list() == run.samples["n_prompt"].to_list()
    with pytest.raises(HorizonError, match="covariate 'question' is unknown; choose from answer_characters, answer_e"):
        correlate_half_depth(run, ("question",))


def test_answers_as_covariates(tmp_path):
    answers = [["No", "yes", " YES "], ["a", "b"], ["same"] * 4, ["  "]]
    run = write_run(tmp_path / "run", effects={"ocr": np.ones((4, L + 1))}, answers={"ocr": answers})
    length, spread = (sample_covariate(run, name).to_numpy() for name in ("answer_characters", "answer_entropy"))
    assert length == pytest.approx([3, 1, 4, np.nan], nan_ok=True)
    thirds = -(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)
    assert spread == pytest.approx([thirds, np.log(2), 0, np.nan], nan_ok=True)


def test_samples_that_failed_or_lack_the_number_are_left_out(tmp_path):
    effects = {"ocr": np.stack([fade_curve(L, 2 + i) for i in range(6)])}
    run = write_run(tmp_path / "run", effects=effects, failed={"ocr": 2})
    column = pd.Series([5.0, 1, 4, 2, 3], index=[0, 1, 2, 3, 4], name="known to five")
    (found,) = correlate_half_depth(run, (column,), **QUICK)
    assert (found.n_samples, found.n_ineligible, found.n_missing) == (5, 0, 1)
    assert found.rho == pytest.approx(stats.spearmanr([5, 1, 4, 2, 3], range(5)).statistic)


def test_one_family_of_all_results(run, rng):
    columns = [pd.Series(rng.normal(size=160), index=run.samples.index, name=f"noise {i}") for i in range(2)]
    found = correlate_half_depth(run, ("answer_characters", "n_visual", *columns), **QUICK)
    assert [one.p_value is None for one in found] == [False, True, False, False] * 2
    assert [one.p_adjusted for one in found] == adjust_holm([one.p_value for one in found])
    assert max(one.p_adjusted for one in found if one.p_value is not None) > 0.5


@pytest.mark.parametrize(
    ("half", "images", "reason"),
    [
        ([3, 4, 5], range(3), "3 images have both, needed at least 4"),
        ([3, 4, 5, 6, 7, 8], [0, 0, 1, 1, 2, 2], "3 images have both, needed at least 4"),
        ([5] * 6, range(6), "the half depth is the same for all 6 samples"),
    ],
)
def test_too_little_to_correlate_gives_none_and_the_reason(tmp_path, half, images, reason):
    effects = {"ocr": np.stack([fade_curve(L, h) for h in half])}
    run = write_run(tmp_path / "run", effects=effects, images={"ocr": images})
    column = pd.Series(np.arange(len(half), dtype=float), name="order")
    (found,) = correlate_half_depth(run, (column,), **QUICK)
    assert (found.rho, found.interval, found.p_value, found.p_adjusted) == (None, None, None, None)
    assert found.reason == reason
