"""Replays in their own right: any batch, any mixture of ablations, any mask. That they are exact: test_exactness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from deletion_oracle import ablated_logits
from hypothesis import given
from hypothesis import strategies as st
from random_models import encode as plain_inputs
from random_models import random_image, random_llava, random_processor

from analyses.runs import HorizonError
from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.models.prompts import encode
from probes.replay.ablations import Ablations, visual_mask
from probes.replay.batching import (
    BATCH_ROWS,
    CHUNK_BYTES,
    MEMORY_SHARE,
    UNKNOWN_FREE,
    BatchPolicy,
    Shape,
    batch_bytes,
    free_memory,
    is_out_of_memory,
    rows_at_once,
)
from probes.replay.capture import Capture, capture_prompt
from probes.replay.replay import batches_of, replay
from probes.replay.visibility import affected_rows, in_order

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
        for batch_size, largest in ((None, expected), (2, 2)):
            batches = list(batches_of(random_model, captured, ablations, batch_size))
            assert max(len(indices) for indices, _ in batches) == largest
            assert {rows for _, rows in batches} == {n - first - gone}


def test_nothing_below_a_cut_is_computed(random_model, captured):
    """Each ablation joins the sweep at its own layer, with the rows that see a removed token and no others.

    In the last layer the rows that nobody reads give their keys and values first, then the one that is read runs.
    """
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
    assert seen == [(1, 2, rows), (2, 3, rows), (3, 4, rows - 1), (3, 4, 1)]


def test_in_the_last_layer_the_feed_forward_block_runs_for_the_rows_that_are_read_only(random_model, captured):
    seen: list[tuple[int, ...]] = []
    hook = random_model.layers[-1].mlp.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[:2])))
    gathered(random_model, captured, Ablations(torch.arange(4), visual_mask(captured).expand(4, -1)))
    hook.remove()
    assert seen == [(4, 1)]


# --- memory ----------------------------------------------------------------------------------------------------------


def failing_above(model, largest: int, message: str = "out of memory"):
    """Make layer 1 fail as a full device does on batches above a size; returns the hook and the sizes that ran."""
    ran: list[int] = []

    def before(_module, args):
        if len(args[0]) > largest:
            raise RuntimeError(f"DefaultCPUAllocator: {message}: you tried to allocate 99 bytes")
        ran.append(len(args[0]))

    return model.layers[1].register_forward_pre_hook(before), ran


def test_a_batch_that_memory_does_not_hold_is_halved_with_a_line_and_changes_nothing(captured, caplog):
    model = load_model(random_llava(34), processor=random_processor(), check=False)
    ablations = Ablations(torch.zeros(40, dtype=torch.long), visual_mask(captured).expand(40, -1).clone())
    ablations.masks[torch.arange(40), captured.prompt.visual[torch.arange(40) % 25]] = False  # one token stays
    expected = gathered(model, captured, ablations)
    hook, ran = failing_above(model, 12)
    policy = BatchPolicy()
    found = gathered(model, captured, ablations, batch_size=policy)
    assert ran == [10, 10, 10, 10]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"out of memory with 40 ablations at once on {model.device}: going on with 20"
    rows = captured.prompt.n_tokens - int(captured.prompt.visual[0]) - 24
    assert policy.limits == [20 * rows, 10 * rows]
    ran.clear()
    caplog.clear()
    gathered(model, captured, ablations, batch_size=policy)  # later batches are small from the start
    hook.remove()
    assert ran == [10, 10, 10, 10]
    assert not caplog.records
    assert {(len(indices), run) for indices, run in batches_of(model, captured, ablations, policy)} == {(10, rows)}


@pytest.mark.parametrize("batch_size", [None, 40])
def test_what_memory_did_not_hold_bounds_batches_of_other_shapes_too(captured, caplog, batch_size):
    """Twenty ablations that keep two tokens fail, then twenty that keep one: these are small from the start."""
    model = load_model(random_llava(34), processor=random_processor(), check=False)
    visual, places = captured.prompt.visual, torch.arange(20)
    masks = visual_mask(captured).expand(40, -1).clone()
    masks[torch.arange(40), visual[places.repeat(2)]] = False
    masks[20:][places, visual[places + 1]] = False
    ablations = Ablations(torch.zeros(40, dtype=torch.long), masks)
    expected = gathered(model, captured, ablations, batch_size=batch_size)
    hook, ran = failing_above(model, 12)
    found = gathered(model, captured, ablations, batch_size=batch_size)
    hook.remove()
    assert len(caplog.records) == 1
    rows = captured.prompt.n_tokens - int(visual[0]) - 23  # of an ablation that keeps two tokens
    most = 10 * rows // (rows - 1)
    assert ran == [10, 10, most, 20 - most]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_batch_of_one_stays_one_where_memory_holds_no_more(captured, caplog):
    """20, 10, 5 and 2 ablations at once are too many; whatever follows runs alone, without another attempt."""
    model = load_model(random_llava(34), processor=random_processor(), check=False)
    visual = captured.prompt.visual
    masks = visual_mask(captured).expand(24, -1).clone()
    masks[:20, visual[0]] = masks[:20, visual[1]] = masks[20:, visual[2]] = False
    hook, ran = failing_above(model, 1)
    gathered(model, captured, Ablations(torch.zeros(24, dtype=torch.long), masks), batch_size=20)
    hook.remove()
    assert ran == [1] * 24
    assert len(caplog.records) == 4


def test_what_says_that_memory_ran_out():
    assert is_out_of_memory(MemoryError())
    for words in ("CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory", "Not enough memory"):
        assert is_out_of_memory(RuntimeError(words))
        assert not is_out_of_memory(ValueError(words))
    assert not is_out_of_memory(RuntimeError("the size of tensor a must match"))


def test_free_memory_is_in_bytes(monkeypatch):
    assert 2**26 < free_memory(torch.device("cpu")) < 2**46

    def unknown(_name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert free_memory(torch.device("cpu")) == UNKNOWN_FREE


@pytest.mark.parametrize("attn", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("own_mask", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_batch_in_bytes_restated_by_hand(random_model, attn, own_mask, key_heads):
    """Three ablations of 10 rows over 30 columns: 4 heads of 8 dimensions, stream 32, feed-forward 48, float64."""
    model, keys = replace(random_model, attn=attn, n_key_value_heads=key_heads), 8 * key_heads
    shape, n, item = Shape(10, 30, 2, own_mask), 3, 8
    masks = n if own_mask else 1
    pairs = {"sdpa": masks * (1 + item), "eager": n * 4 * (2 * item + 4), "flash": 0}[attn]
    outside = {"sdpa": masks, "eager": masks * item, "flash": 0}[attn]
    vocabulary = n * 2 * model.vocab_size * (item + 8)
    cache, repeated, context = 2 * keys * 30, 0 if key_heads == 4 else 2 * 32 * 30, item * 2 * keys * 20
    projected = 96 if key_heads == 4 else 64  # queries, keys and values, or queries and what attention gives
    for part in (10, 4):
        kept = n * 32 * 10 if part < 10 else 0
        attention = n * item * (part * (2 * 32 + projected) + cache + repeated) + part * 30 * pairs
        forward = n * item * (part * 3 * (32 + 48) + (cache if part < 10 else 0)) + part * 30 * outside
        expected = max(attention, forward) + item * kept + context + vocabulary
        assert batch_bytes(model, shape, n, part=part) == expected
    assert batch_bytes(model, shape, n) == batch_bytes(model, shape, n, part=10)


def test_rows_at_once_keep_masks_below_their_bound(random_model, monkeypatch):
    shape = Shape(10, 30, 1, own_mask=True)
    for attn, each in (("sdpa", 3 * 9), ("eager", 3 * 4 * 20)):
        model = replace(random_model, attn=attn)
        for rows in (1, 4, 10, 11):
            monkeypatch.setitem(CHUNK_BYTES, attn, rows * 30 * each)
            assert rows_at_once(model, shape, 3) == min(rows, 10)
            monkeypatch.setitem(CHUNK_BYTES, attn, rows * 30 * each - 1)
            assert rows_at_once(model, shape, 3) == max(1, rows - 1)
    assert rows_at_once(replace(random_model, attn="flash"), shape, 3) == 10


def test_a_lack_of_memory_reaches_no_further_than_its_policy(captured):
    """A size that was asked for shrinks under its policy; other calls, and the model, know nothing of it."""
    model = load_model(random_llava(34), processor=random_processor(), check=False)
    ablations = Ablations(torch.zeros(8, dtype=torch.long), visual_mask(captured).expand(8, -1))
    rows = captured.prompt.n_tokens - int(captured.prompt.visual[0]) - 25
    hook, ran = failing_above(model, 3)
    policy = BatchPolicy(size=4)
    gathered(model, captured, ablations, batch_size=policy)
    assert (ran, policy.limits) == ([2, 2, 2, 2], [2 * rows])
    hook.remove()
    sizes = (policy, policy.sized(3), policy.sized(1), 4, None)
    widest = [max(len(indices) for indices, _ in batches_of(model, captured, ablations, size)) for size in sizes]
    assert widest == [2, 2, 1, 4, 8]


def test_a_single_replay_that_memory_does_not_hold_is_named(captured):
    model = load_model(random_llava(34), processor=random_processor(), name="big", check=False)
    hook, _ = failing_above(model, 0, "can't allocate memory")
    with pytest.raises(HorizonError, match=r"'big' runs out of memory in a single replay of 32 tokens on cpu"):
        gathered(model, captured, mixed(captured, 2))
    hook.remove()


def test_other_errors_are_not_taken_for_a_full_memory(captured):
    model = load_model(random_llava(34), processor=random_processor(), check=False)
    hook = model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gathered(model, captured, mixed(captured))
    hook.remove()


def test_batches_fit_what_memory_is_free(random_model, captured, monkeypatch):
    visual = visual_mask(captured)
    one_gone = visual & (visual.cumsum(0) == 1)
    ablations = Ablations(torch.arange(40) % 4, one_gone.expand(40, -1))
    rows = captured.prompt.n_tokens - int(captured.prompt.visual[0]) - 1
    each = batch_bytes(random_model, Shape(rows, captured.prompt.n_tokens - 1, 1, own_mask=False))
    monkeypatch.setattr("probes.replay.batching.free_memory", lambda _device: int(each * 6.5 / MEMORY_SHARE["cpu"]))
    assert max(len(indices) for indices, _ in replay(random_model, captured, ablations)) == 6
    monkeypatch.setattr("probes.replay.batching.free_memory", lambda _device: 0)
    assert max(len(indices) for indices, _ in replay(random_model, captured, ablations)) == 1


def test_the_same_tokens_at_many_layers_are_held_once(captured):
    masks = visual_mask(captured) & (torch.arange(captured.prompt.n_tokens) != torch.arange(3, 6)[:, None])
    crossed = Ablations.at_every([1, 3], masks, "zero")
    assert crossed.masks is masks
    assert crossed.layers.tolist() == [1, 1, 1, 3, 3, 3]
    assert torch.equal(crossed.removed, masks.repeat(2, 1))
    part = crossed[torch.tensor([5, 0])]
    assert (part.layers.tolist(), part.kind) == ([3, 1], "zero")
    assert torch.equal(part.removed, masks[[2, 0]])


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
    model = load_model(random_llava(34, attn=attn), processor=random_model.processor, attn=attn, check=False)
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


def with_masks(*masks: torch.Tensor | None) -> list[dict[str, torch.Tensor | None]]:
    """What `affected_rows` reads: one attention mask a layer."""
    return [{"attention_mask": mask} for mask in masks]


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
    found = affected_rows(captured[start:], torch.from_numpy(changed))
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
        assert affected_rows(with_masks(mask, mask), one).nonzero()[:, 0].tolist() == affected
        np.testing.assert_array_equal(affected_rows(with_masks(mask), one), reachable([visible], one.numpy()))


@given(st.integers(0, 11), st.booleans())
def test_no_mask_is_the_causal_one(changed, mixed_with_a_diagonal):
    masks = (None, torch.eye(12, dtype=torch.bool)[None, None]) if mixed_with_a_diagonal else (None, None)
    one = torch.arange(12) == changed
    assert affected_rows(with_masks(*masks), one).nonzero()[:, 0].tolist() == list(range(changed, 12))


def test_nothing_changed_affects_nothing():
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    assert not affected_rows(with_masks(mask, None), torch.zeros(5, dtype=torch.bool)).any()


def test_an_unknown_kind_is_named(random_model, captured):
    with pytest.raises(HorizonError, match="removal kind 'blur' is unknown; choose from delete, zero, mean"):
        next(replay(random_model, captured, mixed(captured, 2, "blur")))


@pytest.mark.parametrize("block", [1, 12, 40, 2**22])
def test_layers_are_in_order_if_no_token_sees_a_later_one(monkeypatch, block):
    """Whatever the number of pairs looked at at once; one pair above the diagonal, anywhere, is enough."""
    monkeypatch.setattr("probes.replay.visibility.BLOCK_PAIRS", block)
    causal = np.tril(np.ones((12, 12), bool))
    assert in_order(with_masks(None, None))
    for form in (additive, lambda visible: torch.from_numpy(visible)[None, None]):
        assert in_order(with_masks(form(causal), None, form(np.eye(12, dtype=bool))))
        for row, column in ((0, 1), (5, 6), (10, 11), (0, 11), (3, 9)):
            seeing = causal.copy()
            seeing[row, column] = True
            assert not in_order(with_masks(form(causal), form(seeing)))
