"""Replays in their own right: any batch, any mixture of ablations, any mask. That they are exact: test_exactness."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deletion_oracle import ablated_logits
from hypothesis import given
from hypothesis import strategies as st
from random_models import encode as plain_inputs
from random_models import random_image, random_llava

from analyses.runs import HorizonError
from probes.capture import Capture, capture_prompt
from probes.information import visual_mask
from probes.models import load_model
from probes.prompts import encode
from probes.replay import BATCH_ROWS, Ablations, _affected, largest_batch, replay
from probes.samples import Sample

QUESTION = "what is shown ?"
SAMPLE = Sample("noise", random_image(), QUESTION, ("apple",))


@pytest.fixture(scope="module")
def captured(random_model) -> Capture:
    return capture_prompt(random_model, encode(random_model, SAMPLE), ())


def mixed(captured: Capture, n: int = 40, kind: str = "delete") -> Ablations:
    """Ablations of every start layer and of 0 to all visual tokens removed, in random order."""
    random = torch.Generator().manual_seed(0)
    layers = torch.randint(0, 4, (n,), generator=random)
    share = torch.rand(n, 1, generator=random).round(decimals=1)
    removed = visual_mask(captured) & (torch.rand(n, captured.prompt.n_tokens, generator=random) < share)
    return Ablations(layers, removed, kind)


def gathered(model, captured: Capture, ablations: Ablations, **how) -> torch.Tensor:
    """(ablation, place, vocabulary) in the order of the ablations; every one comes back once."""
    found = list(replay(model, captured, ablations, **how))
    indices = torch.cat([part for part, _ in found])
    assert sorted(indices.tolist()) == list(range(len(ablations)))
    return torch.cat([log_probs for _, log_probs in found])[indices.argsort()]


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delete", "zero", "mean"])
def test_mixed_layers_and_counts_come_back_at_their_indices(random_model, captured, kind):
    ablations = mixed(captured, kind=kind)
    assert set(ablations.layers.tolist()) == {0, 1, 2, 3}
    assert len(ablations.removed.sum(1).unique()) >= 10
    model = random_llava(34)
    inputs = plain_inputs(random_model.processor, SAMPLE.image)
    found = gathered(random_model, captured, ablations)
    pairs = zip(ablations.layers.tolist(), ablations.removed, strict=True)
    expected = torch.stack([ablated_logits(model, inputs, k, removed, kind).log_softmax(-1) for k, removed in pairs])
    torch.testing.assert_close(found[:, 0].cpu(), expected, rtol=0, atol=1e-9)
    assert (expected - expected.mean(0)).abs().median() > 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
@pytest.mark.parametrize("kind", ["delete", "mean"])
def test_the_batch_size_changes_nothing(random_model, captured, batch_size, kind):
    ablations = mixed(captured, kind=kind)
    sizes = [len(indices) for indices, _ in replay(random_model, captured, ablations, batch_size=batch_size)]
    assert max(sizes) <= batch_size
    found = gathered(random_model, captured, ablations, batch_size=batch_size)
    torch.testing.assert_close(found, gathered(random_model, captured, ablations), rtol=0, atol=1e-10)


def test_a_batch_is_as_large_as_its_rows_allow(random_model, captured, monkeypatch):
    """With all visual tokens gone six rows of text are left to run; with one gone, thirty."""
    visual = visual_mask(captured)
    n, first = captured.prompt.n_tokens, int(captured.prompt.visual[0])
    monkeypatch.setitem(BATCH_ROWS, random_model.device.type, 90)
    for removed in (visual, visual & (visual.cumsum(0) == 1)):
        gone = int(removed.sum())
        ablations = Ablations(torch.arange(40) % 4, removed.expand(40, -1))
        sizes = [len(indices) for indices, _ in replay(random_model, captured, ablations)]
        expected = min(40, 90 // (n - first - gone))
        assert max(sizes) == expected
        assert largest_batch(random_model, captured, ablations, None) == expected * (n - first - gone)
        assert largest_batch(random_model, captured, ablations, 2) == 2 * (n - first - gone)


def test_nothing_below_a_cut_is_computed(random_model, captured):
    """Each ablation joins the sweep at its own layer, with the rows that see a removed token and no others."""
    visual = visual_mask(captured)
    n, first, gone = captured.prompt.n_tokens, int(captured.prompt.visual[0]), int(visual.sum())
    seen: list[tuple[int, int, int]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _m, args, k=k: seen.append((k, *args[0].shape[:2])))
        for k, layer in enumerate(random_model.layers)
    ]
    gathered(random_model, captured, Ablations(torch.tensor([3, 1, 1, 2]), visual.expand(4, -1)))
    for handle in handles:
        handle.remove()
    rows = n - first - gone
    assert seen == [(1, 2, rows), (2, 3, rows), (3, 4, rows)]


# --- null ablations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recomputed", ["all", "from the image on", "visual", "one text token", "every third", "none"])
def test_recomputed_rows_reproduce_the_models_own_output_from_every_layer(random_model, captured, recomputed):
    n, first = captured.prompt.n_tokens, int(captured.prompt.visual[0])
    places = torch.arange(n, device=random_model.device)
    recompute = {
        "all": places >= 0,
        "from the image on": places >= first,
        "visual": visual_mask(captured),
        "one text token": places == 0,
        "every third": places % 3 == 0,
        "none": places < 0,
    }[recomputed]
    nothing = Ablations(torch.arange(4), torch.zeros(4, n, dtype=torch.bool, device=random_model.device))
    found = gathered(random_model, captured, nothing, recompute=recompute)
    torch.testing.assert_close(found, captured.log_probs.expand_as(found), rtol=0, atol=1e-9)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_recomputed_rows_do_not_change_an_ablation(random_model, attn):
    model = load_model(random_llava(34, attn=attn), processor=random_model.processor, attn=attn)
    held = capture_prompt(model, encode(model, SAMPLE), ())
    ablations = mixed(held, 8)
    places = torch.arange(held.prompt.n_tokens)
    tolerance = 1e-9 if attn == "sdpa" else 1e-5  # transformers' eager softmax is in float32
    plain = gathered(model, held, ablations)
    for recompute in (places == 0, places % 4 == 1, places >= 0):
        again = gathered(model, held, ablations, recompute=recompute)
        torch.testing.assert_close(again, plain, rtol=0, atol=tolerance)


def test_every_readout_place_of_a_forced_answer_is_replayed(random_model):
    answer = tuple(random_model.tokenizer.convert_tokens_to_ids(["apple", "bridge", "candle"]))
    held = capture_prompt(random_model, encode(random_model, SAMPLE, answer), ())
    visual = visual_mask(held)
    found = gathered(random_model, held, Ablations(torch.arange(4), visual.expand(4, -1)))
    assert found.shape[:2] == (4, 3)
    for places in range(1, 4):  # what comes after a place does not matter to it
        part = capture_prompt(random_model, encode(random_model, SAMPLE, answer[:places]), ())
        cut = Ablations(torch.arange(4), visual_mask(part).expand(4, -1))
        shorter = gathered(random_model, part, cut)
        torch.testing.assert_close(found[:, :places], shorter, rtol=0, atol=1e-9)
    assert (found[:, 1] - found[:, 0]).abs().median() > 0.01


# --- which rows are affected -----------------------------------------------------------------------------------------


def with_masks(*masks: torch.Tensor | None) -> SimpleNamespace:
    """What `_affected` reads of a capture: one attention mask a layer."""
    return SimpleNamespace(arguments=[{"attention_mask": mask} for mask in masks])


def reachable(matrices: list[np.ndarray], changed: np.ndarray) -> np.ndarray:
    """Rows from which a changed one is reached along "row sees column" steps, by search from each row."""
    edges = np.logical_or.reduce(matrices)
    found = np.zeros(len(changed), bool)
    for row in range(len(changed)):
        frontier, visited = [row], {row}
        while frontier:
            here = frontier.pop()
            found[row] |= changed[here]
            new = set(np.flatnonzero(edges[here])) - visited
            visited |= new
            frontier += new
    return found


def additive(visible: np.ndarray) -> torch.Tensor:
    allowed = torch.from_numpy(visible)
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.3), st.integers(0, 2))
def test_affected_rows_are_those_that_reach_a_changed_one(seed, density, start):
    """Masks of any shape, boolean and additive, one for some layers and another for others."""
    random = np.random.default_rng(seed)
    first, second = (random.random((12, 12)) < density for _ in range(2))
    changed = random.random(12) < 0.2
    captured = with_masks(torch.from_numpy(first)[None, None], additive(second), additive(second))
    found = _affected(captured, torch.from_numpy(changed), start)
    matrices = [first, second] if start == 0 else [second]
    np.testing.assert_array_equal(found, reachable(matrices, changed))


def test_affected_rows_of_a_prefix_that_sees_itself_both_ways():
    """As in PaliGemma: rows 0..3 see each other, later ones what lies before them; row 5 is masked out for all."""
    n = 8
    visible = np.tril(np.ones((n, n), bool))
    visible[:4, :4] = True
    visible[6:, 5] = False
    mask = torch.from_numpy(visible)[None, None]
    for changed, affected in ((2, [0, 1, 2, 3, 4, 5, 6, 7]), (4, [4, 5, 6, 7]), (5, [5])):
        one = torch.arange(n) == changed
        assert _affected(with_masks(mask, mask), one, 0).nonzero()[:, 0].tolist() == affected
        np.testing.assert_array_equal(_affected(with_masks(mask), one, 0), reachable([visible], one.numpy()))


@given(st.integers(0, 11), st.booleans())
def test_no_mask_is_the_causal_one(changed, mixed_with_a_diagonal):
    masks = (None, torch.eye(12, dtype=torch.bool)[None, None]) if mixed_with_a_diagonal else (None, None)
    one = torch.arange(12) == changed
    assert _affected(with_masks(*masks), one, 0).nonzero()[:, 0].tolist() == list(range(changed, 12))


def test_nothing_changed_affects_nothing():
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert not _affected(with_masks(mask, None), torch.zeros(5, dtype=torch.bool), 0).any()


def test_an_unknown_kind_is_named(random_model, captured):
    with pytest.raises(HorizonError, match="removal kind 'blur' is unknown; choose from delete, zero, mean"):
        next(replay(random_model, captured, mixed(captured, 2, "blur")))
