"""Text, or all tokens, taken away instead of the visual ones: which they are, and that every ablation is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from deletion_oracle import deleted_logits, last_logits, replaced_logits, target_log_p
from family_bench import Bench, bench_of
from family_encodings import CASES
from family_models import LAYERS, FamilyCase
from random_models import random_image

from analyses.runs import CONTEXTS, HorizonError
from probes.data.samples import Sample, SampleError
from probes.loading.check import check_model
from probes.measures.case import Case
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.preparing import prepare
from probes.measures.refinement import parents, refined_grids
from probes.measures.single import removal_curve, token_information
from probes.models.families import Family, check_grids
from probes.models.grids import choose_window
from probes.models.prompts import encode, removable_windows
from probes.models.targets import Target
from probes.replay.ablations import kl_divergence
from probes.replay.capture import capture_prompt

POWER = 0.01  # in the probability of some token
SIZE = 3  # tokens a side
CHOICES = ("text", "all")
IN_SEQUENCE = [case for case in CASES if not case.cross_attention]
THOROUGH = ("llava", "paligemma", "gemma3")  # every window; of the others a few at every layer
SHOWN = Sample("s", random_image(), "what is shown ?", ("apple",))
PLACE = ["crop", "row", "column", "height", "width"]


@pytest.fixture(scope="module", params=IN_SEQUENCE, ids=[case.name for case in IN_SEQUENCE])
def bench(request) -> Bench:
    return bench_of(request.param, request.param.attention[0])


def stretches_of(case: FamilyCase) -> list[list[int]]:
    """Positions of the text before the last token, cut where visual tokens stand; token by token."""
    visual, found = set(case.visual.tolist()), [[]]
    for position in range(case.n_tokens - 1):
        if position not in visual:
            found[-1].append(position)
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]


def expected_windows(case: FamilyCase, tokens: str) -> list[tuple[tuple[int, ...], list[int]]]:
    """((crop, row, column, height, width), positions) of every window, in order."""
    rows = [(len(case.grids) + number, np.array([text])) for number, text in enumerate(stretches_of(case))]
    pieces = [*(enumerate(case.grids) if tokens == "all" else ()), *rows]
    found = []
    for crop, grid in pieces:
        for row in range(0, grid.shape[0], SIZE):
            for column in range(0, grid.shape[1], SIZE):
                block = grid[row : row + SIZE, column : column + SIZE]
                found.append(((crop, row, column, *block.shape), block.ravel().tolist()))
    return found


def mask_of(case: FamilyCase, positions) -> torch.Tensor:
    mask = torch.zeros(case.n_tokens, dtype=torch.bool)
    mask[list(positions)] = True
    return mask


def chosen_of(case: FamilyCase, tokens: str) -> torch.Tensor:
    """(token,) bool, what is taken away altogether."""
    text = [position for stretch in stretches_of(case) for position in stretch]
    return mask_of(case, [*text, *(case.visual.tolist() if tokens == "all" else ())])


@pytest.mark.parametrize("tokens", CHOICES)
def test_every_family_loses_text_and_all_tokens_as_the_plain_model_does(bench, tokens):
    case, inputs = bench.case, bench.case.inputs
    captured = capture_prompt(bench.probed, replace(bench.prompt, tokens=tokens), ())
    target = Target("greedy", "", (int(captured.log_probs[0].argmax()),))
    curve = removal_curves(Case(bench.probed, captured, {"greedy": target}))["greedy"]
    chosen, own = chosen_of(case, tokens), last_logits(bench.model, inputs).log_softmax(-1)
    gone = torch.stack([deleted_logits(bench.model, inputs, k, chosen) for k in range(LAYERS)]).log_softmax(-1)

    close = {"rtol": 0, "atol": bench.tolerance}
    np.testing.assert_allclose(curve.log_p[:-1], gone[:, target.ids[0]], **close)
    np.testing.assert_allclose(curve.kl[:-1], (gone.exp() * (gone - own)).sum(-1), **close)
    moved = [logits.exp() - own.exp() for logits in gone]

    windows = expected_windows(case, tokens)
    some = range(len(windows)) if case.name in THOROUGH else sorted({0, len(windows) - 1})
    for context in CONTEXTS:
        measured = Case(bench.probed, captured, {"greedy": target})
        grid = information_grids(measured, GridRequest(context, SIZE), {"greedy": curve})["greedy"]
        assert list(grid.windows[PLACE].itertuples(index=False, name=None)) == [place for place, _ in windows]
        for at in some:
            window = mask_of(case, windows[at][1])
            removed = chosen & ~window if context == "keep-one" else window
            logits = [deleted_logits(bench.model, inputs, k, removed) for k in range(LAYERS)]
            expected = np.array([target_log_p(found, target.ids) for found in logits])
            np.testing.assert_allclose(grid.log_p[:, at], expected, **close)
            moved += [found.softmax(-1) - own.exp() for found in logits]
    assert float(torch.stack(moved).abs().amax(1).median()) >= POWER


def test_windows_of_text_never_cross_a_picture_and_hold_every_token_once(bench):
    case = bench.case
    for tokens in CHOICES:
        prompt = replace(bench.prompt, tokens=tokens)
        found = removable_windows(prompt, SIZE)
        held = [position for window in found for position in window.positions]
        assert sorted([*held, *(case.placeless if tokens == "all" else ())]) == prompt.removable.tolist()
        for window in found:
            if window.crop >= len(case.grids):
                assert np.diff(window.positions).tolist() == [1] * (window.width - 1)
    both = set(replace(bench.prompt, tokens="text").removable.tolist()) | set(case.visual.tolist())
    assert both == set(range(case.n_tokens - 1))
    assert torch.equal(bench.prompt.removable, case.visual)
    assert bench.prompt.removable_grids == bench.prompt.grids


# --- one prompt of the random LLaVA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("tokens", CHOICES)
def test_rows_are_replaced_by_zeros_or_by_the_mean_of_the_chosen_tokens(random_model, tokens, kind):
    prompt = encode(random_model, SHOWN, tokens=tokens)
    chosen = torch.zeros(prompt.n_tokens, dtype=torch.bool)
    chosen[prompt.removable] = True
    curve = removal_curve(random_model, SHOWN, target="greedy", kind=kind, tokens=tokens)
    grid = token_information(random_model, SHOWN, target="greedy", kind=kind, window=5, tokens=tokens)
    assert (curve.tokens, grid.tokens) == (tokens, tokens)
    window = torch.zeros_like(chosen)
    window[list(removable_windows(prompt, 5)[-1].positions)] = True
    effects = []
    for k in range(4):
        for removed, found in ((chosen, curve.log_p[k]), (chosen & ~window, grid.log_p[k, -1])):
            logits = replaced_logits(random_model.model, prompt.inputs, k, removed, kind, chosen)
            assert found == pytest.approx(target_log_p(logits, curve.target.ids), abs=1e-9)
            effects.append(np.exp(found) - np.exp(curve.log_p_all))
    assert np.median(np.abs(effects)) >= POWER


def test_a_forced_answer_and_the_token_that_is_read_stay(random_model):
    case = prepare(random_model, replace(SHOWN, answers=("apple bridge candle",)), ("answer",), tokens="all")
    prompt = case.captured.prompt
    assert len(prompt.readout) == 3
    assert prompt.removable.tolist() == list(range(prompt.n_tokens - 3))


def test_windows_by_count_and_coarse_windows_tile_text_too(random_model):
    prompt = encode(random_model, replace(SHOWN, question="what is shown ? here look what is apple"), tokens="all")
    grids = prompt.removable_grids
    assert [grid.positions.shape for grid in grids] == [(5, 5), (1, 2), (1, 9)]
    size = choose_window(None, 5, grids)
    assert size == 5
    assert len(removable_windows(prompt, size)) == 4
    with pytest.raises(HorizonError, match=r"has 3 grids and stretches of text, which windows never cross"):
        choose_window(None, 2, grids)
    with pytest.raises(HorizonError, match=r"has 2 stretches of text, which windows never cross"):
        choose_window(None, 1, replace(prompt, tokens="text").removable_grids)


@pytest.mark.parametrize("tokens", CHOICES)
def test_refined_windows_are_the_exact_ones_where_they_are_measured(random_model, tokens):
    case = prepare(random_model, SHOWN, ("greedy",), tokens=tokens)
    exact, first = (information_grids(case, GridRequest(window=size))["greedy"] for size in (1, 4))
    floor = float(np.median(np.abs(first.values)))
    found = refined_grids(case, GridRequest(window=1), 4, floor=floor)["greedy"]
    held = parents(*(removable_windows(case.captured.prompt, size) for size in (1, 4)))
    wanted = np.abs(first.values)[:, held] > floor
    assert 0 < wanted.sum() < wanted.size
    np.testing.assert_array_equal(~np.isnan(found.log_p), wanted)
    np.testing.assert_allclose(found.log_p[wanted], exact.log_p[wanted], rtol=0, atol=1e-9)


# --- refusals, and the self-test --------------------------------------------------------------------------------------


def test_other_tokens_are_refused_where_they_cannot_be_taken_away(random_model):
    with pytest.raises(HorizonError, match=r"tokens 'question' is unknown; choose from visual, text, all"):
        removal_curve(random_model, SHOWN, tokens="question")
    with pytest.raises(HorizonError, match=r"'gate' has gates on visual tokens only .* tokens 'text'"):
        token_information(random_model, SHOWN, method="gate", tokens="text")
    unknown = Family("brand_new", None)
    with pytest.raises(HorizonError, match="token grids need a description"):
        check_grids("m", unknown, "all")
    check_grids("m", unknown, "text")  # text needs no patch grid


def test_text_of_a_family_that_nobody_has_described_has_token_grids(random_model):
    undescribed = replace(random_model, family=Family("brand_new", None))
    found, known = (token_information(model, SHOWN, tokens="text") for model in (undescribed, random_model))
    np.testing.assert_array_equal(found.log_p, known.log_p)
    assert found.windows["crop"].tolist() == (known.windows["crop"] - 1).tolist()  # there is no grid before them


def test_a_prompt_without_text_before_the_last_token_is_refused(random_model, monkeypatch):
    monkeypatch.setattr("probes.models.prompts.chat_text", lambda *_, **__: "<image> answer")
    monkeypatch.setattr("probes.models.prompts._special_tokens", lambda *_: {"add_special_tokens": False})
    removal_curve(random_model, SHOWN)
    with pytest.raises(SampleError, match="has no text token before the one read"):
        removal_curve(random_model, SHOWN, tokens="text")


def test_the_self_test_takes_text_away_too(random_model):
    (found,) = [tested for tested in check_model(random_model).properties if "text" in tested.name]
    assert found.name == "half of the text removed from layer 0 on"
    assert found.passed
    assert found.effect > 20 * found.tolerance


def test_divergence_is_over_the_vocabulary_and_never_negative():
    """Of any number of axes before it, against one distribution or as many."""
    logits = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ablated, own = logits.log_softmax(-1), logits[0].log_softmax(-1)
    found = kl_divergence(ablated, own)
    for i in range(3):
        for place in range(2):
            expected = sum(float(a.exp() * (a - b)) for a, b in zip(ablated[i, place], own[place], strict=True))
            assert float(found[i, place]) == pytest.approx(max(expected, 0.0), abs=1e-12)
    assert found[0].tolist() == [0.0, 0.0]
    assert (kl_divergence(own, own + 1e-9) >= 0).all()
