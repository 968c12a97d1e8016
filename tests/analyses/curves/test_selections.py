"""Selections keep what they should, count what they leave out, and say where that is circular."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

import vlm_horizon as vh
from analyses.curves.effects import noise_floor, removal_effects
from analyses.curves.selections import CIRCULAR, selection_text

L = 8


def curves(n, p_all=0.9, p_none=0.1, half=4):
    return np.tile(fade_curve(L, half, p_all=p_all, p_none=p_none), (n, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """ocr: 60 right, 40 wrong with an effect, 20 wrong without; vqa: 50 right."""
    effects = {
        "ocr/textvqa/read": curves(60),
        "ocr/textvqa/count": np.concatenate([curves(40, p_all=0.4), curves(20, p_all=0.2, p_none=0.2)]),
        "vqa/gqa": curves(50, half=2),
    }
    entropies = {"query": {key: np.tile(step_curve(L, 2), (len(a), 1)) for key, a in effects.items()}}
    return write_run(
        tmp_path_factory.mktemp("runs") / "run",
        effects=effects,
        entropies=entropies,
        noise_floor=0.002,
        failed={"ocr": 3},
    )


def test_only_right_answers(run):
    chosen = vh.select_samples(run, only_correct=True)
    assert len(chosen.ok) == 110
    assert chosen.ok["correct"].all()
    assert vh.exclusions(chosen) == {"answered wrong": 60}
    assert (len(chosen.failed), len(chosen.excluded)) == (3, 60)
    assert selection_text(chosen) == "110 of 170 samples: 60 answered wrong"
    assert chosen.caution == ""


def test_only_samples_with_an_effect(run):
    chosen = vh.select_samples(run, only_effective=True)
    effects = removal_effects(run).values[:, 0]
    assert chosen.ok.index.tolist() == removal_effects(run).rows[effects > 0.002].tolist()
    assert vh.exclusions(chosen) == {"without a removal effect at layer 0 above the noise floor": 20}
    assert chosen.caution == CIRCULAR


def test_an_effect_must_exceed_the_floor_and_be_a_loss(tmp_path):
    """R_0 = 0.02, 0.0201 and -0.3 against a floor of 0.02."""
    flat = np.full((3, L + 1), 0.5)
    flat[:, :-1] -= np.array([0.02, 0.0201, -0.3])[:, None]
    run = write_run(tmp_path / "run", effects={"vqa": flat}, noise_floor=0.02 + 1e-9)
    assert vh.select_samples(run, only_effective=True).ok["id"].tolist() == ["vqa-1"]


def test_reasons_are_counted_once_and_in_order(run):
    """What is wrong and without an effect is counted as wrong."""
    chosen = vh.select_samples(run, only_correct=True, only_effective=True)
    assert vh.exclusions(chosen) == {"answered wrong": 60}
    again = vh.select_samples(vh.select_samples(run, only_effective=True), only_correct=True)
    assert vh.exclusions(again) == {
        "answered wrong": 40,
        "without a removal effect at layer 0 above the noise floor": 20,
    }
    assert again.ok.index.equals(chosen.ok.index)
    assert again.caution == CIRCULAR


@pytest.mark.parametrize(("column", "sizes"), [("task_type", [50, 50]), ("task", [50, 50]), ("category", [50, 50, 50])])
def test_balance_gives_equal_numbers(run, column, sizes):
    chosen = vh.select_samples(run, balance=column)
    columns = ["task", "category"] if column == "category" else [column]
    assert chosen.ok.groupby(columns).size().tolist() == sizes
    assert vh.exclusions(chosen) == {f"drawn out to balance {column}": 170 - sum(sizes)}
    assert chosen.ok.index.equals(vh.select_samples(run, balance=column).ok.index)
    assert not chosen.ok.index.equals(vh.select_samples(run, balance=column, seed=1).ok.index)


def test_balance_comes_after_the_other_choices(run):
    chosen = vh.select_samples(run, only_correct=True, balance="task_type")
    assert chosen.ok.groupby("task_type").size().to_dict() == {"ocr": 50, "vqa": 50}
    assert chosen.ok["correct"].all()
    assert vh.exclusions(chosen) == {"answered wrong": 60, "drawn out to balance task_type": 10}


def test_balance_draws_every_sample_alike(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": curves(8), "vqa": curves(4)})
    kept = np.zeros(8)
    for seed in range(40):
        chosen = vh.select_samples(run, balance="task", seed=seed)
        kept[chosen.ok.index[chosen.ok["task"] == "ocr"]] += 1
    assert kept.sum() == 4 * 40
    assert abs(kept / 40 - 0.5).max() < 4 * np.sqrt(0.25 / 40)


def test_results_are_those_of_a_run_with_these_samples_alone(run, tmp_path):
    """The same samples, written as a run of their own, give the same layers, curves and intervals."""
    chosen = vh.select_samples(run, only_correct=True)
    effects = {"ocr/textvqa/read": curves(60), "vqa/gqa": curves(50, half=2)}
    entropies = {"query": {key: np.tile(step_curve(L, 2), (len(a), 1)) for key, a in effects.items()}}
    alone = write_run(tmp_path / "alone", effects=effects, entropies=entropies, noise_floor=0.002)
    for found, expected in zip(vh.find_horizon(chosen), vh.find_horizon(alone), strict=True):
        assert (found.layer, found.half_depth, found.n_samples) == (
            expected.layer,
            expected.half_depth,
            expected.n_samples,
        )
        np.testing.assert_allclose(found.effect, expected.effect)
        assert found.warning == expected.warning
    for found, expected in zip(vh.find_collapse_layer(chosen), vh.find_collapse_layer(alone), strict=True):
        assert (found.layer, found.n_samples) == (expected.layer, expected.n_samples)
    half = [d for d in vh.compare_horizons(chosen, permutations=0).differences if d.quantity == "half_depth"]
    assert half[0].value == pytest.approx(2, abs=0.05)
    assert half[0].n_a == 60


def test_results_on_the_effect_say_that_the_choice_is_circular(run):
    chosen = vh.select_samples(run, only_effective=True)
    assert all(CIRCULAR in found.warning for found in vh.find_horizon(chosen))
    comparison = vh.compare_horizons(chosen, permutations=0)
    assert all(CIRCULAR in found.warning for found in comparison.groups)
    assert all(CIRCULAR in found.warning for found in comparison.differences)
    assert all(CIRCULAR in found.warning for found in vh.split_estimates(chosen, repeats=2))
    assert all(CIRCULAR in found.warning for found in vh.plan_samples(chosen))
    assert not any(CIRCULAR in found.warning for found in vh.find_collapse_layer(chosen))
    assert not any(CIRCULAR in found.warning for found in vh.find_horizon(run))


def test_choosing_by_the_effect_makes_one_out_of_noise(tmp_path):
    """Why it is said: effects that are noise around 0 pass the test for an effect once the positive ones are chosen."""
    noise = 0.5 + np.random.default_rng(0).normal(0, 0.1, (120, L + 1))
    noise[:, -1] = 0.5
    run = write_run(tmp_path / "run", effects={"vqa": noise})
    assert "no effect to speak of" in vh.find_horizon(run, criterion="removal")[0].reason
    (chosen,) = vh.find_horizon(vh.select_samples(run, only_effective=True), criterion="removal")
    assert chosen.effect[0] > 0.05
    assert "no effect to speak of" not in chosen.reason
    assert CIRCULAR in chosen.warning


def test_the_noise_floor_stays_that_of_all_samples(tmp_path):
    floors = {"ocr": np.full(10, 0.05), "vqa": np.full(10, 0.001)}
    run = write_run(tmp_path / "run", effects={"ocr": curves(10, p_all=0.4), "vqa": curves(10)}, noise_floor=floors)
    chosen = vh.select_samples(run, only_correct=True)
    assert chosen.ok["task"].unique().tolist() == ["vqa"]
    assert noise_floor(chosen, "p") == noise_floor(run, "p") == pytest.approx(0.05)


def test_samples_left_out_are_still_listed_with_their_reason(run):
    table = vh.sample_depths(vh.select_samples(run, only_correct=True))
    assert len(table) == 173
    assert (table["reason"] == "answered wrong").sum() == 60


def test_nothing_chosen_is_the_run_itself(run):
    assert vh.select_samples(run) is run
    assert (vh.exclusions(run), selection_text(run)) == ({}, "")


def test_greedy_correct_tells_who_was_right(tmp_path):
    """The target is absent where the answer was wrong: those samples have no curve."""
    run = write_run(tmp_path / "run", effects={"vqa": curves(4)}, targets=("greedy-correct",))
    (part,) = (run.path / "curves").glob("*.parquet")
    pq.write_table(pq.read_table(part, filters=[("row", "in", [0, 2])]), part)
    chosen = vh.select_samples(run, only_correct=True)
    assert chosen.ok.index.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("words", "config", "message"),
    [
        ({"balance": "image"}, {}, "column to balance 'image' is unknown"),
        ({"balance": "category"}, {}, "no sample has a category to balance over"),
        ({"only_effective": True, "measure": "kl"}, {}, "measure 'kl' is unknown"),
        ({"only_correct": True, "target": "answer"}, {}, "target 'answer' is unknown"),
        ({"only_correct": True}, {"targets": ("greedy",)}, "right by definition"),
        ({"only_effective": True}, {"layers": (2, 3)}, r"no effect at layer 0 \(its first cut is 2\)"),
        ({"only_effective": True}, {"noise_floor": float("nan")}, "measured no noise floor"),
    ],
)
def test_what_cannot_be_chosen_is_said(tmp_path, words, config, message):
    effects = curves(4)[:, 6:] if "layers" in config else curves(4)
    run = write_run(tmp_path / "run", effects={"vqa": effects}, **({"n_layers": L} | config))
    with pytest.raises(vh.HorizonError, match=message):
        vh.select_samples(run, **words)


def test_a_run_of_entropies_alone_does_not_know_who_was_right(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"vqa": np.ones((3, L))}})
    with pytest.raises(vh.HorizonError, match="says of no sample whether it was answered right"):
        vh.select_samples(run, only_correct=True)
