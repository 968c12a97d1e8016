"""Runs that take away different tokens: told apart, compared between tokens, and never taken for one another."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.comparisons.compare import compare_horizons
from analyses.comparisons.covariates import correlate_half_depth
from analyses.comparisons.levels import comparable
from analyses.comparisons.planning import plan_samples
from analyses.comparisons.scaling import correlate_models
from analyses.curves.effects import removal_effects
from analyses.reports.published import Published, PublishedNumbers
from analyses.reports.sections import Options, make_sections
from analyses.reports.summary import summarize
from analyses.reports.tables import (
    agreement_table,
    association_table,
    criteria_table,
    horizon_table,
    plan_table,
    split_table,
)
from analyses.runs import HorizonError
from analyses.verdicts.agreement import compare_collapse_to_horizon, joint_collapse_layer
from analyses.verdicts.disagreement import compare_criteria
from analyses.verdicts.held_out import split_estimates
from analyses.verdicts.horizon import HorizonDetector, find_horizon
from analyses.verdicts.single_curves import sample_depths
from figures.comparison import figure_horizon_comparison
from figures.horizon import figure_removal_curves
from figures.information import figure_token_information

L = 8
HALVES = {"visual": 5.0, "text": 2.0, "all": 5.5}
QUICK = HorizonDetector(resamples=200)


def write(path, tokens, *, model="one", half=None, **config):
    """24 images a task; half depths near those of `HALVES`, vqa one layer earlier."""
    random = np.random.default_rng(0)
    halves = (HALVES[tokens] if half is None else half) + random.normal(0, 0.3, 24)
    effects = {"ocr": np.stack([fade_curve(L, h, 0.4) for h in halves])}
    effects["vqa"] = np.stack([fade_curve(L, h - 1, 0.4) for h in halves])
    prefix = "" if tokens == "visual" else f"{tokens}:"
    entropies = {f"{prefix}{name}": step_curve(L, 3) + 0.01 * random.normal(size=L) for name in ("query", "key")}
    images = {key: range(24) for key in effects}
    config = {"tokens": tokens, "model": f"made-up/{model}", "streams": tuple(entropies)} | config
    return write_run(path, effects=effects, entropies=entropies, images=images, **config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    return {tokens: write(out / tokens, tokens) for tokens in HALVES}


def test_tokens_are_compared_on_the_same_questions(runs):
    found = compare_horizons(
        list(runs.values()), between="tokens", within=("task_type",), detector=QUICK, permutations=200
    )
    assert [(h.tokens, h.group["tokens"]) for h in found.groups[::2]] == [(t, f"{t} tokens") for t in HALVES]
    pairs = {
        (d.a, d.b): d for d in found.differences if (d.quantity, d.unit, d.paired) == ("half_depth", "layers", True)
    }
    assert len(pairs) == 6  # three pairs of tokens, two tasks
    one = pairs["one: visual tokens / ocr", "one: text tokens / ocr"]
    assert one.value == pytest.approx(3, abs=0.2)
    assert (one.n_a, one.n_b) == (24, 24)
    assert one.p_value == pytest.approx(1 / 201)


def test_only_runs_that_differ_in_nothing_else_are_compared_between_tokens(runs, tmp_path):
    other = write(tmp_path / "other", "text", model="two")
    assert comparable([runs["visual"], runs["text"]], "tokens")
    with pytest.raises(
        HorizonError, match="two runs of one model, revision and prompt that take away different tokens"
    ):
        compare_horizons([runs["visual"], other], between="tokens")
    with pytest.raises(HorizonError, match="needs two runs that take away the same tokens, got visual, other"):
        compare_horizons([runs["visual"], other], between="model")
    revised = write(tmp_path / "revised", "text", revision="b")
    with pytest.raises(HorizonError, match="different revisions"):
        compare_horizons([runs["visual"], revised], between="revision")


@pytest.mark.parametrize(
    ("between", "change", "words"),
    [
        ("tokens", {"kind": "mean"}, "kind is delete and mean"),
        ("tokens", {"only_correct": True}, "only_correct is False and True"),
        ("tokens", {"dtype": "bfloat16"}, "dtype is .* and bfloat16"),
        ("model", {"kind": "zero"}, "kind is delete and zero"),
    ],
)
def test_runs_that_were_measured_otherwise_are_not_compared(runs, tmp_path, between, change, words):
    other = write(tmp_path / "other", "text" if between == "tokens" else "visual", **change)
    assert not comparable([runs["visual"], other], between)
    with pytest.raises(HorizonError, match=words):
        compare_horizons([runs["visual"], other], between=between)


def test_models_are_compared_where_the_same_tokens_went(runs, tmp_path):
    other = write(tmp_path / "other", "text", model="two", half=4.0)
    found = compare_horizons(
        [*runs.values(), other], between="model", within=("task_type",), detector=QUICK, permutations=0
    )
    pairs = {(d.a, d.b) for d in found.differences}
    assert pairs == {(f"one: text tokens: {task}", f"two: text tokens: {task}") for task in ("ocr", "vqa")}


def test_levels_of_a_run_on_text_say_so(runs):
    alone = compare_horizons(runs["text"], detector=QUICK, permutations=0)
    assert {(d.a, d.b) for d in alone.differences} == {("text tokens: ocr", "text tokens: vqa")}
    plain = compare_horizons(runs["visual"], detector=QUICK, permutations=0)
    assert {(d.a, d.b) for d in plain.differences} == {("ocr", "vqa")}
    both = compare_horizons([runs["visual"], runs["text"]], detector=QUICK, permutations=0)
    assert {(d.a, d.b) for d in both.differences} == {
        ("one: ocr", "one: vqa"),
        ("one: text tokens: ocr", "one: text tokens: vqa"),
    }


def test_models_are_not_correlated_over_different_tokens(runs):
    for one in correlate_models([*runs.values()], detector=QUICK, permutations=0):
        assert one.rho is None
        assert one.reason.startswith("the runs take away different tokens (all, text, visual)")


def test_summaries_name_the_tokens_and_compare_them(runs):
    sentences = summarize([runs["visual"], runs["text"]], horizon_detector=QUICK)
    assert any(s.startswith("one, ocr (removal criterion") for s in sentences)
    assert any(s.startswith("one, text tokens, ocr (removal criterion") for s in sentences)
    assert any(s.startswith("one: text tokens, ocr against vqa") for s in sentences)
    assert any(s.startswith("one, visual tokens / vqa against text tokens / vqa, by half depth") for s in sentences)
    assert not any("against one (text)" in s for s in sentences)  # no comparison of models


@pytest.mark.parametrize("tokens", HALVES)
def test_a_missing_effect_is_told_of_the_tokens_that_went(tmp_path, tokens):
    words = {"visual": "all visual tokens", "text": "all text tokens", "all": "all tokens"}[tokens]
    flat = write_run(tmp_path / "flat", effects={"ocr": np.full((9, L + 1), 0.5)}, tokens=tokens)
    (found,) = find_horizon(flat, criterion="removal", detector=QUICK)
    assert found.reason.startswith(f"removing {words} at layer 0 has no effect to speak of")
    assert sample_depths(flat)["reason"].str.startswith(f"removing {words} at layer 0 has no effect").all()


def test_tables_name_the_tokens_of_every_result_on_removals(runs):
    run = runs["text"]
    found = find_horizon(run, criterion="removal", detector=QUICK)
    agreements = compare_collapse_to_horizon(run, horizon_detector=QUICK)
    made = (
        horizon_table(found),
        criteria_table(compare_criteria(run, detector=QUICK)),
        agreement_table(agreements),
        split_table(split_estimates(run, repeats=2, detector=QUICK)),
        association_table(correlate_half_depth(run, ("p",), detector=QUICK, permutations=0)),
        plan_table(plan_samples(run, detector=QUICK)),
    )
    for table in made:
        assert {row[0] for row in table.rows} == {"one, text tokens"}, table.title
    assert {row[0] for row in horizon_table(find_horizon(runs["visual"], detector=QUICK)).rows} == {"one"}
    assert {agreement.horizon.tokens for agreement in agreements} == {"text"}


def test_a_joint_collapse_is_that_of_the_tokens_removed(runs):
    assert {one.stream for one in joint_collapse_layer(runs["text"]).streams} == {"text:query", "text:key"}
    assert {one.stream for one in joint_collapse_layer(runs["visual"]).streams} == {"query", "key"}


def test_published_numbers_of_visual_tokens_stand_beside_visual_tokens_only(runs):
    numbers = PublishedNumbers((Published("horizon", "one", None, None, 4, L, "by eye", "a paper"),), {}, {})
    options = Options(published=numbers)
    assert "published" in make_sections(runs["visual"], ("published",), options)
    assert "published" not in make_sections(runs["text"], ("published",), options)


def test_an_effect_curve_is_the_difference_of_the_stored_numbers_whatever_went(runs):
    for run in runs.values():
        stored = np.exp(run.matrix("log_p", context="removal", target="gold")[2])
        np.testing.assert_allclose(removal_effects(run).values, stored[:, -1:] - stored)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_curves_of_different_tokens_share_a_panel_under_names_of_their_own(runs):
    fig = figure_removal_curves(list(runs.values()))
    (panel,) = fig.axes
    labels = [line.get_label() for line in panel.lines if not line.get_label().startswith("_")]
    assert sorted(labels) == sorted(
        f"{task}{said}" for task in ("ocr", "vqa") for said in ("", ", text tokens", ", all tokens")
    )
    assert len({line.get_color() for line in panel.lines if line.get_label() in labels}) == 6
    with pytest.raises(HorizonError, match="two of the runs hold one, ocr, text tokens"):
        figure_removal_curves([runs["text"], runs["text"]])


def test_the_comparison_figure_sets_tokens_against_each_other(runs):
    fig = figure_horizon_comparison([runs["visual"], runs["text"]])
    rows = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert rows == ["ocr", "vqa", "ocr, text tokens", "vqa, text tokens"]
    notes = fig.get_supxlabel().replace("\N{NO-BREAK SPACE}", " ")
    assert "one: visual tokens / ocr \N{MINUS SIGN} one: text tokens / ocr = +3.0" in " ".join(notes.split())


def test_panels_of_token_information_name_the_tokens(tmp_path):
    random = np.random.default_rng(0)
    made = {
        "effects": {"ocr": np.tile(fade_curve(4, 2), (6, 1))},
        "grids": {"ocr": random.uniform(0.1, 0.9, (6, 4, 4))},
    }
    both = [write_run(tmp_path / tokens, **made, tokens=tokens) for tokens in ("visual", "text")]
    fig = figure_token_information(both)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["(a) ocr", "(b) ocr, text tokens"]
