"""Runs by the method gate: what is stored is what single calls give, and it says that it is first order."""

from __future__ import annotations

import numpy as np
import pytest
from demo_data import demo_model, demo_samples
from scipy.stats import spearmanr

import vlm_horizon as vh
from analyses.curves.effects import information_curves
from analyses.reports.sections import make_sections
from analyses.reports.summary import describe_agreement

CONTEXTS = ("keep-one", "leave-one-out")
HOW = {"contexts": CONTEXTS, "window": 2, "layers": (0, 3, 5, 6, 7), "streams": ("hidden",), "progress": False}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> vh.Run:
    """Two samples of each task, one of each checked."""
    out = tmp_path_factory.mktemp("gate") / "run"
    vh.run(demo_model(), demo_samples(2), out, method="gate", gate_checks=1, targets=("gold", "greedy"), **HOW)
    return vh.load_run(out)


def test_token_grids_are_those_of_single_calls(measured):
    assert measured.config.method == "gate"
    for row in (0, 3):
        sample = demo_samples(2)[row]
        for context in CONTEXTS:
            single = vh.token_information(demo_model(), sample, context=context, layers=HOW["layers"], method="gate")
            stored = measured.tokens(sample.id, context=context)
            assert stored.method == "gate"
            scale = 1e-4 * np.abs(single.effects("log_p")).max(1, keepdims=True) + 1e-6
            assert (np.abs(stored.information("log_p") - single.effects("log_p")) < scale).all()
            base = np.exp(stored.removed.astype(float))[:, None] if context == "keep-one" else np.exp(stored.all)
            np.testing.assert_allclose(stored.information("p"), base * stored.information("log_p"), rtol=1e-12)


def test_checks_are_the_agreement_with_exact_values(measured):
    """Of the first sample of each task, at four layers, stored by context and target, and recomputed here."""
    sample, checked = demo_samples(2)[0], [0, 3, 6, 7]
    for context in CONTEXTS:
        rows, layers, stored = measured.matrix("gate_rank_correlation", context=context, target="gold")
        assert (rows.tolist(), layers.tolist()) == ([0, 2], checked)
        overlaps = measured.matrix("gate_top_overlap", context=context, target="gold")[2][0]
        largest = measured.matrix("gate_largest_effect", context=context, target="gold")[2][0]
        exact = vh.token_information(demo_model(), sample, context=context, layers=checked)
        estimate = vh.token_information(demo_model(), sample, context=context, layers=checked, method="gate")
        pairs = zip(estimate.effects("log_p"), exact.effects("log_p"), strict=True)
        for at, (one, other) in enumerate(pairs):
            assert stored[0, at] == pytest.approx(spearmanr(one, other).statistic, abs=0.02)
            top = [set(np.argsort(values)[-2:]) for values in (one, other)]  # a tenth of 16 windows, rounded up
            assert overlaps[at] == len(top[0] & top[1]) / 2
        np.testing.assert_allclose(largest, np.abs(exact.values).max(1), rtol=1e-3, atol=1e-7)


def test_agreement_is_averaged_and_told(measured):
    found = vh.gate_agreement(measured)
    assert [(one.context, one.layer) for one in found] == [(c, k) for c in CONTEXTS for k in (0, 3, 6, 7)]
    _, _, ranks = measured.matrix("gate_rank_correlation", context="leave-one-out", target="gold")
    assert [one.rank_correlation for one in found[4:]] == pytest.approx(ranks.mean(0).tolist())
    assert {one.n_samples for one in found} == {2}
    line = describe_agreement(found)
    assert line.startswith("gate against exact values on 2 samples")
    assert f"leave-one-out: rank correlation {ranks.mean():.2f}" in line
    assert "nothing says what the first-order values are worth" in describe_agreement([])
    assert [one.target for one in vh.gate_agreement(measured, target="greedy")] == ["greedy"] * 8


def test_show_has_a_section_for_it(measured):
    sections = make_sections(measured)
    table = str(sections["gate"].table)
    assert "First-order token information (method gate) against exact values" in table
    assert table.count("keep-one") == 4
    assert "gate" not in make_sections(measured, ("horizons",))


def test_horizons_on_first_order_grids_must_be_asked_for_and_say_so(measured):
    assert not {"information", "spread"} & {found.criterion for found in vh.find_horizon(measured)}
    for criterion in ("information", "spread"):
        for found in vh.find_horizon(measured, criterion=criterion):
            assert "first-order estimates (method gate)" in found.warning
        for found in vh.compare_horizons(measured, criterion=criterion, permutations=0).groups:
            assert "first-order estimates (method gate)" in found.warning
    assert all("first-order" not in found.warning for found in vh.find_horizon(measured, criterion="removal"))


def test_curves_of_first_order_grids_are_linear(measured):
    (mean,) = information_curves(measured, ("mean",), context="leave-one-out")
    for row in (0, 3):
        grids = measured.tokens(row, context="leave-one-out")
        expected = np.exp(grids.all) * (grids.all - grids.log_p.astype(float)).mean(1)
        np.testing.assert_allclose(mean.values[mean.rows.tolist().index(row), :-1], expected, rtol=1e-6, atol=1e-12)


def test_figures_say_first_order(measured):
    ax = vh.plot_token_information(vh.gather_information(measured, context="leave-one-out")[0])
    assert ax.get_ylabel().startswith("First-order information")
    fig = vh.figure_token_heatmap(measured, context="leave-one-out")
    assert any(ax.get_ylabel().startswith("First-order information") for ax in fig.axes)


def test_more_checks_can_be_asked_for_later(tmp_path):
    out = tmp_path / "run"
    how = {**HOW, "contexts": ("leave-one-out",), "layers": (6, 7), "window": 4, "probes": ("removal", "information")}
    vh.run(demo_model(), demo_samples(2), out, method="gate", gate_checks=0, **how)
    assert vh.gate_agreement(vh.load_run(out)) == []
    run = vh.run(demo_model(), demo_samples(2), out, method="gate", gate_checks=1, **how)
    assert run.matrix("gate_top_overlap", context="leave-one-out", target="gold")[0].tolist() == [0, 2]
    again = vh.run(demo_model(), demo_samples(2), out, method="gate", gate_checks=0, **how)
    assert len(vh.gate_agreement(again)) == 2  # what is there stays


def test_methods_are_never_mixed(measured):
    with pytest.raises(vh.HorizonError, match="method 'gate' there, 'exact' now"):
        vh.run(demo_model(), demo_samples(2), measured.path, gate_checks=1, targets=("gold", "greedy"), **HOW)
    with pytest.raises(vh.HorizonError, match="gate_checks is -1"):
        vh.run(demo_model(), demo_samples(1), measured.path, method="gate", gate_checks=-1)


def test_exact_runs_carry_no_checks(tmp_path):
    how = {**HOW, "layers": (7,), "window": 4, "contexts": ("keep-one",), "probes": ("removal", "information")}
    run = vh.run(demo_model(), demo_samples(1), tmp_path / "run", **how)
    assert run.config.method == "exact"
    assert not run.curves["measure"].str.startswith("gate").any()
    assert vh.gate_agreement(run) == []
    assert "gate" not in make_sections(run)
