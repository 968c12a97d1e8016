"""Coarse-to-fine windows: exact where they report, and they report wherever a coarse window shows an effect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_models import cut_from
from random_models import QUESTION, random_image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_horizon as vh
from analyses.curves.effects import information_curves, information_quantiles
from probes.data.samples import SampleError
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.preparing import prepare
from probes.measures.refinement import parents, refined_grids
from probes.models.grids import tile_windows

PLACES = np.arange(2, 66).reshape(8, 8)  # of the demo model's visual tokens in the prompt
SEEN = PLACES[2:4, 4:6]  # the only tokens that the planted model looks at


@pytest.fixture(scope="module")
def planted() -> vh.ProbedModel:
    """The demo model in float64, blind to all visual tokens but one 2x2 block."""
    path = vh.data_path("demo-models", "tiny-8")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    hidden = sorted({*PLACES.ravel().tolist()} - {*SEEN.ravel().tolist()})
    blind = cut_from(model, 0, hidden)
    return vh.load_model(blind, processor=AutoProcessor.from_pretrained(path), dtype="float64", check=False)


def both(model, sample, **how):
    """The refined grid and the exact one, from one capture and one removal curve."""
    case = prepare(model, sample, ("gold",))
    removals = removal_curves(case, kind=how.get("kind", "delete"))
    request = GridRequest(**{key: value for key, value in how.items() if key not in ("coarse", "floor")})
    exact = information_grids(case, request, removals)["gold"]
    refined = refined_grids(case, request, how["coarse"], removals=removals, floor=how.get("floor"))["gold"]
    return refined, exact, case.captured


@pytest.mark.parametrize(("window", "coarse"), [(2, 4), (1, 3), (1, 4)])
@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
@pytest.mark.parametrize("kind", ["delete", "mean"])
def test_it_reports_exactly_the_windows_whose_coarse_window_shows_an_effect(
    random_model, window, coarse, context, kind
):
    """On a grid of 5x5, where coarse and fine windows at the edge are smaller; the floor lies amid the effects."""
    sample = vh.Sample("s", random_image(), QUESTION, ("apple",))
    how = {"window": window, "context": context, "kind": kind}
    all_of_it, exact, captured = both(random_model, sample, coarse=coarse, floor=-1.0, **how)
    large = information_grids(prepare(random_model, sample, ("gold",)), GridRequest(**{**how, "window": coarse}))[
        "gold"
    ]
    np.testing.assert_allclose(all_of_it.log_p, exact.log_p, atol=1e-9)
    np.testing.assert_allclose(all_of_it.coarse, large.log_p, atol=1e-9)

    floor = float(np.quantile(np.abs(large.values), 0.6))
    refined, _, _ = both(random_model, sample, coarse=coarse, floor=floor, **how)
    small, big = (tile_windows(captured.prompt.grids, size) for size in (window, coarse))
    holds = [[set(fine.positions) <= set(block.positions) for block in big] for fine in small]
    expected = (np.abs(large.values) > floor) @ np.array(holds).T
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(~np.isnan(refined.log_p), expected)
    np.testing.assert_allclose(refined.log_p[expected], exact.log_p[expected], atol=1e-9)
    assert refined.replays == expected.sum() + large.log_p.size
    assert refined.windows.equals(exact.windows)


def test_the_floor_is_the_samples_own(demo, demo_samples):
    """In float32 every coarse window of a trained model has an effect above rounding at the first layer."""
    grid = vh.token_information(demo, demo_samples[0], window=2, coarse=4)
    exact = vh.token_information(demo, demo_samples[0], window=2)
    reported = ~np.isnan(grid.log_p)
    assert reported[0].all()
    np.testing.assert_allclose(grid.log_p[reported], exact.log_p[reported], atol=1e-5)


def test_planted_tokens_are_found_with_a_third_of_the_replays(planted, demo_samples):
    for sample in demo_samples[:1]:
        refined, exact, _ = both(planted, sample, window=1, coarse=4)
        reported = ~np.isnan(refined.log_p)
        inside = np.isin(PLACES.ravel(), SEEN)
        assert reported[:, inside].all()
        assert np.abs(exact.values[:, inside]).max() > 0.01
        np.testing.assert_allclose(refined.log_p[reported], exact.log_p[reported], atol=1e-9)
        assert np.abs(exact.values[~reported]).max() < 1e-9
        assert refined.replays * 3 <= exact.log_p.size


def test_two_targets_share_the_windows_that_one_of_them_needs(random_model):
    sample = vh.Sample("s", random_image(), QUESTION, ("apple",))
    case, request = prepare(random_model, sample, ("gold", "greedy")), GridRequest(window=1)
    alone = {
        name: refined_grids(replace(case, targets={name: target}), request, 3, floor=0.02)[name]
        for name, target in case.targets.items()
    }
    together = refined_grids(case, request, 3, floor=0.02)
    needed = [~np.isnan(grid.log_p) for grid in alone.values()]
    assert (needed[0] != needed[1]).any()
    for grid in together.values():
        np.testing.assert_array_equal(~np.isnan(grid.log_p), needed[0] | needed[1])


def test_an_output_that_is_no_number_is_not_taken_for_an_unmeasured_window(random_model):
    sample = vh.Sample("s", random_image(), QUESTION, ("apple",))
    case = prepare(random_model, sample, ("gold",))
    removals = removal_curves(case)
    broken = replace(case.captured, inputs=[rows * float("nan") for rows in case.captured.inputs])
    with pytest.raises(SampleError, match="without some visual tokens is not a number"):
        refined_grids(replace(case, captured=broken), GridRequest(), 4, removals=removals, floor=0.0)


def test_every_fine_window_has_one_parent(random_model):
    captured = prepare(random_model, vh.Sample("s", random_image(), QUESTION, ("apple",)), ("gold",)).captured
    for window, coarse in ((1, 2), (2, 4), (1, 5)):
        small, large = (tile_windows(captured.prompt.grids, size) for size in (window, coarse))
        for fine, parent in zip(small, parents(small, large), strict=True):
            assert set(fine.positions) <= set(large[parent].positions)


def test_a_run_reads_back_what_was_refined_and_counts_the_rest_as_nothing(planted, demo_samples, tmp_path):
    options = {"probes": ("removal", "information"), "window": 1, "progress": False}
    exact = vh.run(planted, demo_samples[1:3], tmp_path / "exact", **options)
    refined = vh.run(planted, demo_samples[1:3], tmp_path / "refined", coarse=4, **options)
    assert refined.config.hash != exact.config.hash
    for row in refined.token_rows():
        grid, whole = refined.tokens(row), exact.tokens(row)
        reported = ~np.isnan(grid.log_p)
        assert 0 < reported.sum() < reported.size
        np.testing.assert_allclose(grid.log_p[reported], whole.log_p[reported], atol=1e-5)
        above = np.abs(np.exp(grid.coarse) - np.exp(grid.removed)[:, None]) > refined.ok.loc[row, "noise_floor_p"]
        blocks = above.reshape(-1, 2, 2).repeat(4, axis=1).repeat(4, axis=2).reshape(len(above), -1)
        assert reported[blocks].all()
    for ours, theirs in zip(
        information_curves(refined, ("mean", "magnitude", "spread", "removal")),
        information_curves(exact, ("mean", "magnitude", "spread", "removal")),
        strict=True,
    ):
        np.testing.assert_allclose(ours.values, theirs.values, atol=1e-7)  # stored in float32
    np.testing.assert_allclose(information_quantiles(refined)[1], information_quantiles(exact)[1], atol=1e-7)
    count = vh.count_replays(refined)
    assert count.all == vh.count_replays(exact).run == len(refined.ok) * 8 * 64
    assert count.run * 3 <= count.all
