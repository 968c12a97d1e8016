"""The tiny models of all families and the oracle, held against each other: the ground on which engine tests stand."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from deletion_oracle import deleted_logits, last_logits, masked_logits, recorded_inputs, visual_tokens
from family_encodings import CASES
from family_models import LAYERS, FamilyCase

POWER = 0.01  # in the probability of some token: an oracle proves nothing where ablations do nothing
# Transformers' eager attention takes its softmax in float32, whatever the model's precision.
TOLERANCE = {"sdpa": 1e-9, "eager": 2e-5}
RUNS = [(case, attn) for case in CASES for attn in case.attention]


def named(value: object) -> str | None:
    return value.name if isinstance(value, FamilyCase) else None


def over_visual(case: FamilyCase, chosen: torch.Tensor) -> torch.Tensor:
    """(token,) bool from (n_visual,) bool; states beside the sequence have positions of their own."""
    removed = torch.zeros(len(case.visual) if case.cross_attention else case.n_tokens, dtype=torch.bool)
    removed[case.visual[chosen]] = True
    return removed


def ablations_of(case: FamilyCase) -> list[torch.Tensor]:
    """All visual tokens, all but one, the first one, a random half."""
    n = len(case.visual)
    every, first = torch.ones(n, dtype=torch.bool), torch.arange(n) == 0
    half = torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.5
    return [over_visual(case, chosen) for chosen in (every, torch.arange(n) != n // 2, first, half)]


def shift(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.softmax(-1) - other.softmax(-1)).abs().max())


@pytest.mark.parametrize(("case", "attn"), RUNS, ids=named)
def test_the_two_oracles_agree_and_ablations_matter(case, attn):
    model = case.build(attn=attn)
    own = last_logits(model, case.inputs)
    moved = []
    for layer in range(LAYERS):
        for removed in ablations_of(case):
            deleted = deleted_logits(model, case.inputs, layer, removed)
            masked = masked_logits(model, case.inputs, layer, removed)
            torch.testing.assert_close(deleted, masked, rtol=0, atol=TOLERANCE[attn])
            moved.append(shift(deleted, own))
    assert np.median(moved) >= POWER
    everything = ablations_of(case)[0]
    torch.testing.assert_close(deleted_logits(model, case.inputs, LAYERS, everything), own, rtol=0, atol=0)
    torch.testing.assert_close(masked_logits(model, case.inputs, LAYERS, everything), own, rtol=0, atol=0)
    nothing = torch.zeros_like(everything)
    torch.testing.assert_close(deleted_logits(model, case.inputs, 0, nothing), own, rtol=0, atol=TOLERANCE[attn])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_ground_truth_accounts_for_every_visual_token(case):
    placed = np.concatenate([grid.ravel() for grid in case.grids])
    assert sorted([*placed.tolist(), *case.placeless]) == case.visual.tolist()
    if not case.cross_attention:
        marked = visual_tokens(case.build(attn=case.attention[0]), case.inputs)
        assert marked.nonzero()[:, 0].tolist() == case.visual.tolist()


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_pixels_of_a_cell_reach_the_token_that_the_grid_puts_there(case):
    model = patches_apart(case.build(attn=case.attention[0]))
    before = entering_states(case, model, case.inputs)
    for g, grid in enumerate(case.grids):
        for (row, column), position in np.ndenumerate(grid):
            key, place = case.cells(g, row, column)
            pixels = case.inputs[key].clone()
            pixels[place] = pixels[place].flip(-1) + 0.5
            after = entering_states(case, model, {**case.inputs, key: pixels})
            assert (before != after).any(-1).nonzero()[:, 0].tolist() == [position]


def patches_apart(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose vision tower lets no patch see another."""
    model = deepcopy(model)
    decoder = {id(module) for module in model.get_decoder().modules()}
    ends = ("out_proj", "attn.proj", "projection_layer", "self_attn.o_proj")
    towers = [m for name, m in model.named_modules() if name.endswith(ends) and id(m) not in decoder]
    assert towers
    for module in towers:
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    return model


def entering_states(case: FamilyCase, model: torch.nn.Module, inputs) -> torch.Tensor:
    """(token, hidden) that enter the decoder, or the states that its layers attend to."""
    calls = recorded_inputs(model, inputs)
    return calls[1][1]["cross_attention_states"].flatten(0, 1) if case.cross_attention else calls[0][0]


def test_a_case_covers_what_its_family_is_known_for():
    cases = {case.name: case for case in CASES}
    assert any(grid.shape[0] != grid.shape[1] for grid in cases["qwen2_5_vl"].grids)
    masks = {
        name: [kwargs["attention_mask"] for _, kwargs in recorded_inputs(cases[name].build(), cases[name].inputs)[:-1]]
        for name in ("gemma3", "paligemma", "llava")
    }
    assert masks["llava"] == [None] * LAYERS
    assert bool(masks["paligemma"][0].all())  # the whole prompt attends in both directions
    sliding, full = masks["gemma3"][0][0, 0], masks["gemma3"][1][0, 0]
    assert bool(full[-1].all())
    assert not bool(sliding[-1, 0])  # the window does not reach the first token
    first = cases["gemma3"].grids[0].ravel()
    assert bool(full[first[0], first[-1]])  # an image's first token sees its last


@pytest.mark.parametrize("case", [case for case in CASES if case.enters_again], ids=named)
def test_features_that_enter_again_are_no_part_of_hidden_states(case):
    model = case.build()
    with torch.no_grad():
        states = model(**case.inputs, use_cache=False, output_hidden_states=True).hidden_states
    entering = [rows for rows, _ in recorded_inputs(model, case.inputs)]
    for layer in range(1, LAYERS):
        added = (entering[layer] - states[layer][0]).abs().amax(-1)
        where = added.nonzero()[:, 0].tolist()
        assert where == (case.visual.tolist() if layer - 1 in case.enters_again else [])
        assert not where or float(added.max()) > 0.1


def test_text_alone_is_what_mllama_gives_without_its_states():
    case = next(case for case in CASES if case.cross_attention)
    model = case.build()
    text = {key: case.inputs[key] for key in ("input_ids", "attention_mask")}
    everything = torch.ones(len(case.visual), dtype=torch.bool)
    torch.testing.assert_close(
        deleted_logits(model, case.inputs, 0, everything), last_logits(model, text), rtol=0, atol=1e-12
    )
