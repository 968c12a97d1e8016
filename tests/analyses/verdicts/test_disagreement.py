"""Why criteria disagree, said with the numbers that make them."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.runs import HorizonError
from analyses.verdicts.criteria import CRITERIA
from analyses.verdicts.disagreement import compare_criteria, explain_criteria
from analyses.verdicts.horizon import HorizonDetector, find_horizon

L = 8
QUICK = HorizonDetector(resamples=200)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Removal is gone from 4 on, windows from 6, their spread from 3, KL from 7 but also once at 2, accuracy from 2."""
    layers = np.arange(L + 1)
    p = np.tile(np.where(layers < 4, 0.1, 0.9), (400, 1))
    size = np.where(layers[:-1] < 6, 0.1, 0.0)
    uneven = np.where(layers[:-1] < 3, 0.05, 0.0)
    grids = p[:, :-1, None] + size[None, :, None] + uneven[None, :, None] * np.array([-1, 1, -1, 1])
    grids[150:] = np.nan
    kl = np.tile(np.where(layers < 7, 0.5, 0.0), (400, 1))
    kl[:, 2] = 0.001
    correct = np.tile(layers >= 2, (400, 1))
    correct[:60, -1] = False  # without visual tokens, more answers are right than with them
    run = write_run(
        tmp_path_factory.mktemp("criteria") / "run",
        effects={"ocr": p},
        grids={"ocr": grids},
        kl={"ocr": kl},
        correct={"ocr": correct},
    )
    found = compare_criteria(run, detector=HorizonDetector(resamples=200, precision=1.0))
    return {verdict.criterion: verdict for verdict in found}


def test_layers_and_shifts_are_those_planted(verdicts):
    assert list(verdicts) == list(CRITERIA)
    assert {name: v.layer for name, v in verdicts.items()} == {
        "removal": 4,
        "information": 6,
        "spread": 3,
        "accuracy": 2,
        "kl": 7,
        "vtw": 2,
    }
    assert {name: v.shift for name, v in verdicts.items()} == {
        "removal": 0,
        "information": 2,
        "spread": -1,
        "accuracy": -2,
        "kl": 3,
        "vtw": -2,
    }
    assert verdicts["removal"].why == "the default"
    assert verdicts["vtw"].apart is None
    assert verdicts["information"].apart is True
    assert (verdicts["information"].n_samples, verdicts["information"].n_images) == (150, 150)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (
            "information",
            "deeper: at layer 5 the mean magnitude of single windows' information is still 0.1 (gone below 0.005), "
            "while the mean removal effect is gone (0, below 0.04)",
        ),
        ("information", "it rests on 150 samples, the default on 400"),
        (
            "spread",
            "shallower: at layer 3 the mean removal effect is still 0.8 (gone below 0.04), "
            "while the spread of information over a sample's windows is gone",
        ),
        ("accuracy", "while the fall in accuracy is gone"),
        ("accuracy", "only a fall in accuracy counts, not that it rises by up to 0.15 there"),
        (
            "kl",
            "deeper: at layer 6 the mean KL divergence over the vocabulary is still 0.5 (gone up to 0.003), "
            "while the mean removal effect is gone",
        ),
        ("vtw", "while the mean KL divergence over the vocabulary is still 0.5 (gone up to 0.003)"),
        ("vtw", "the first crossing, a point estimate; above again at 3, 4, 5, 6"),
    ],
)
def test_the_reason_carries_the_numbers(verdicts, criterion, words):
    assert words in verdicts[criterion].why


def test_agreement_chance_and_censoring_are_said(tmp_path):
    """Noise that makes a layer of difference, and effects that reach the end."""
    p = np.tile(fade_curve(L, 7.5, width=0.3), (40, 1))
    grids = p[:, :-1, None] + np.array([0.05, 0.15])
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids})
    found = {v.criterion: v for v in compare_criteria(run, detector=QUICK)}
    assert (found["information"].layer, found["information"].censored) == (L, True)
    assert found["information"].why == "neither is reached before the end"
    near = np.where(np.arange(L + 1) < 4, 0.1, 0.9) - 0.0395 * (np.arange(L + 1) == 4)
    kl = np.where(np.arange(L + 1) < 5, 0.2, 0.0)
    run = write_run(tmp_path / "b", effects={"ocr": np.tile(near, (40, 1))}, kl={"ocr": np.tile(kl, (40, 1))})
    found = {v.criterion: v for v in compare_criteria(run, detector=QUICK)}
    assert (found["kl"].shift, found["kl"].apart) == (1, False)
    assert "the intervals overlap, so the difference may be chance" in found["kl"].why


def test_missing_layers_give_their_reasons(tmp_path):
    p = {"ocr": np.tile(fade_curve(L, 4), (30, 1)), "vqa": np.full((30, L + 1), 0.5)}
    found = compare_criteria(write_run(tmp_path / "run", effects=p), detector=QUICK)
    ocr, vqa = ({v.criterion: v for v in found if v.group["task_type"] == name} for name in ("ocr", "vqa"))
    assert ocr["accuracy"].layer is None
    assert ocr["accuracy"].why.startswith("no layer to compare (accuracy: undecided")
    assert vqa["kl"].why == "none by the default either, for the same reason"
    assert (vqa["kl"].shift, vqa["kl"].apart) == (None, None)
    assert "no effect to speak of" in vqa["kl"].reason


def test_groups_and_runs_are_kept_apart(tmp_path):
    p = {"ocr": np.tile(fade_curve(L, 5), (30, 1)), "vqa": np.tile(fade_curve(L, 3), (30, 1))}
    runs = [write_run(tmp_path / name, effects=p, model=name) for name in ("a", "b")]
    found = compare_criteria(runs, detector=QUICK)
    defaults = [(v.model, v.group["task_type"]) for v in found if v.why == "the default"]
    assert defaults == [("a", "ocr"), ("a", "vqa"), ("b", "ocr"), ("b", "vqa")]
    assert len(found) == 4 * 4


def test_another_default_may_be_chosen_but_must_be_there(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": np.tile(fade_curve(L, 4), (30, 1))})
    found = compare_criteria(run, default="kl", detector=QUICK)
    assert [v.criterion for v in found] == ["kl", "removal", "accuracy", "vtw"]
    with pytest.raises(HorizonError, match="no horizon by the criterion 'spread' to hold the others against"):
        explain_criteria(find_horizon(run, detector=QUICK), default="spread")


def horizon_of(curve, criterion="removal", **words):
    """A horizon of 400 equal samples."""
    values = np.tile(np.asarray(curve, float), (400, 1))
    found = QUICK(values, np.arange(400), criterion=criterion, removal=np.full(400, 0.8))
    assert found.layer is not None
    return replace(found, **words)


@pytest.mark.parametrize(
    ("interval", "reference", "apart"),
    [
        ((5, 6), (3, 4), True),
        ((1, 2), (3, 4), True),
        ((4, 6), (3, 4), False),
        ((1, 3), (3, 4), False),
        ((1, 9), (3, 4), False),
        ((3, 3), (2, 4), False),
        (None, (3, 4), None),
        ((3, 4), None, None),
    ],
)
def test_intervals_are_apart_if_they_share_no_layer(interval, reference, apart):
    steps = [horizon_of([0.8, 0.8, 0.8, 0, 0], name) for name in ("removal", "kl")]
    pair = [replace(steps[0], interval=reference), replace(steps[1], interval=interval)]
    default, other = explain_criteria(pair)
    assert (default.criterion, other.criterion, other.apart) == ("removal", "kl", apart)


def test_one_layer_deeper_or_shallower_is_told_from_the_layer_before():
    default = horizon_of([0.8, 0.8, 0.8, 0, 0, 0])
    deeper, shallower = horizon_of([0.8, 0.8, 0.8, 0.8, 0, 0], "kl"), horizon_of([0.8, 0.8, 0, 0, 0, 0], "kl")
    (_, after), (_, before) = explain_criteria([default, deeper]), explain_criteria([default, shallower])
    assert (after.shift, before.shift) == (1, -1)
    assert after.why.startswith("deeper: at layer 3 the mean KL divergence over the vocabulary is still 0.8")
    assert before.why.startswith("shallower: at layer 2 the mean removal effect is still 0.8 (gone below 0.04), while")
    assert "overlap" in replace_interval(default, deeper, (2, 4)).why
    assert "overlap" not in replace_interval(default, deeper, (4, 4)).why


def replace_interval(default, other, interval):
    return explain_criteria([replace(default, interval=(3, 3)), replace(other, interval=interval)])[1]


def test_a_rise_in_accuracy_is_told_where_it_is_one():
    """At the horizon itself it counts, as large as the threshold it does not, and of none nothing is said."""
    default = horizon_of([0.8, 0.8, 0, 0, 0, 0])
    rise, none = horizon_of([0.5, 0.5, -0.25, 0, 0, 0], "accuracy"), horizon_of([0.5, 0.5, 0, 0, 0, 0], "accuracy")
    assert (rise.layer, none.layer) == (2, 2)
    assert explain_criteria([default, rise])[1].why == (
        "the same layer; only a fall in accuracy counts, not that it rises by up to 0.25 there"
    )
    assert explain_criteria([default, none])[1].why == "the same layer"
    level = replace(none, effect=np.array([0.5, 0.5, -none.threshold, 0, 0, 0]))
    assert explain_criteria([default, level])[1].why == "the same layer"


def test_a_layer_that_was_not_measured_is_told_by_the_one_before():
    """The default was measured at layers 0, 2 and 4 only, so that of layer 3 the effect at 2 is told."""
    values = np.tile([0.8, 0.8, 0.0, 0.0], (400, 1))
    default = QUICK(values, np.arange(400), layers=np.array([0, 2, 4, 5]))
    other = horizon_of([0.8, 0.8, 0.8, 0.8, 0.8, 0], "kl")
    assert (default.layer, other.layer) == (4, 5)
    why = explain_criteria([replace(default, layer=3), replace(other, layer=4, censored=False)])[1].why
    assert "while the mean removal effect is still 0.8 (gone below 0.04) at layer 2, where it was last measured" in why
    assert "not before the end" not in why
    assert explain_criteria([default, other])[1].why.endswith("; not before the end")
