"""Operation counts are those that torch's own counter finds in the real calls, every linear layer and attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_models import random_image, random_llava, random_processor
from torch.utils.flop_counter import FlopCounterMode

import probes.gates.trajectories
from probes.cost.operations import (
    counted_vision,
    decoder_weights,
    entropy_operations,
    forward_operations,
    make_batches,
    replay_work,
)
from probes.cost.passes import gate_passes, pass_work
from probes.data.samples import Sample
from probes.gates.gate import gate_effects
from probes.loading.loading import load_model
from probes.measures.noise import null_ablations
from probes.measures.preparing import prepare
from probes.models.grids import tile_windows
from probes.models.probed import ProbedModel
from probes.replay.ablations import Ablations, removal_ablations, window_ablations
from probes.replay.batching import CHUNK_BYTES
from probes.replay.capture import Capture
from probes.replay.replay import replay
from probes.replay.visibility import in_order

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))
CUTS = (0, 1, 3)


def small_model(attn: str = "eager") -> ProbedModel:
    """Eager attention: the counter knows its products, not those of the fused kernel of a CPU."""
    plain = random_llava(34, attn=attn, dtype=torch.float32)
    return load_model(plain, processor=random_processor(), attn=attn, check=False)


@pytest.fixture(scope="module")
def model() -> ProbedModel:
    return small_model()


@pytest.fixture(scope="module")
def captured(model) -> Capture:
    return prepare(model, SAMPLE, ("gold",)).captured


def counted(function) -> int:
    """Operations that torch counts while a function runs."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def counted_replays(model, captured: Capture, ablations: Ablations, **how) -> int:
    return counted(lambda: list(replay(model, captured, ablations, **how)))


def ablations_of(captured: Capture, part: str, cuts, kind: str) -> Ablations:
    if part == "removal":
        return removal_ablations(captured, cuts, kind)
    return window_ablations(captured, tile_windows(captured.prompt.grids, 2), part, cuts, kind)


@pytest.mark.parametrize("targets", [("gold",), ("answer",)])
def test_a_forward_is_counted_with_its_tower(model, targets):
    sample = replace(SAMPLE, answers=("apple bridge candle",))
    prepare(model, sample, targets)
    with counted_vision(model) as vision:
        found = counted(lambda: prepare(model, sample, targets))
    prompt = prepare(model, sample, targets).captured.prompt
    decoder = forward_operations(decoder_weights(model), prompt.n_tokens, len(prompt.readout))
    assert vision.operations > 0
    assert decoder > 0
    assert vision.operations + decoder == found


@pytest.mark.parametrize("part", ["removal", "keep-one", "leave-one-out"])
@pytest.mark.parametrize("kind", ["delete", "zero"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_replays_are_counted_in_the_batches_that_run(model, captured, part, kind, batch_size):
    every = ablations_of(captured, part, CUTS, kind)
    batches = make_batches(model, captured, every, batch_size=batch_size)
    work = replay_work(decoder_weights(model), batches, places(captured))
    assert work.replays == len(every)
    assert work.operations == counted_replays(model, captured, every, batch_size=batch_size)


def places(captured: Capture) -> int:
    return len(captured.prompt.readout)


def test_several_readout_places_are_counted(model):
    captured = prepare(model, replace(SAMPLE, answers=("apple bridge candle",)), ("answer",)).captured
    assert places(captured) == 3
    every = ablations_of(captured, "keep-one", CUTS, "delete")
    work = replay_work(decoder_weights(model), make_batches(model, captured, every), places(captured))
    assert work.operations == counted_replays(model, captured, every)


def test_ablations_of_any_mixture_are_counted(model, captured):
    random = torch.Generator().manual_seed(0)
    share = torch.rand(30, 1, generator=random).round(decimals=1)
    visual = torch.isin(torch.arange(captured.prompt.n_tokens), captured.prompt.visual)
    removed = visual & (torch.rand(30, len(visual), generator=random) < share)
    mixed = Ablations(torch.randint(0, 4, (30,), generator=random), removed)
    assert len(removed.sum(1).unique()) >= 8
    work = replay_work(decoder_weights(model), make_batches(model, captured, mixed), 1)
    assert work.operations == counted_replays(model, captured, mixed)


def test_null_replays_are_counted(model, captured):
    null, recompute = null_ablations(model, captured, captured.prompt.n_tokens - int(captured.prompt.visual[0]))
    how = {"recompute": recompute}
    work = replay_work(decoder_weights(model), make_batches(model, captured, null, **how), 1)
    assert work.replays == len(null) == 4
    assert work.operations == counted_replays(model, captured, null, **how)


def test_where_tokens_see_later_ones_all_that_see_the_image_run(model, captured):
    everything = torch.zeros(1, 1, captured.prompt.n_tokens, captured.prompt.n_tokens)
    open_ = replace(captured, arguments=[{**each, "attention_mask": everything} for each in captured.arguments])
    assert in_order(captured.arguments)
    assert not in_order(open_.arguments)
    removals = removal_ablations(open_, CUTS)
    (batch,) = make_batches(model, open_, removals)
    assert batch.rows == batch.columns == open_.prompt.n_tokens - len(open_.prompt.visual)
    work = replay_work(decoder_weights(model), [batch], 1)
    assert work.operations == counted_replays(model, open_, removals)


@pytest.mark.parametrize("part", ["keep-one", "leave-one-out"])
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_in_parts_are_counted_as_they_run(model, captured, part, ordered, monkeypatch):
    """Parts see no later columns; where they must, keys and values are computed twice."""
    everything = torch.zeros(1, 1, captured.prompt.n_tokens, captured.prompt.n_tokens)
    masked = replace(captured, arguments=[{**each, "attention_mask": everything} for each in captured.arguments])
    one = captured if ordered else masked
    ablations = ablations_of(one, part, CUTS, "delete")
    how = {"batch_size": 4}
    whole = replay_work(decoder_weights(model), make_batches(model, one, ablations, **how), 1)
    monkeypatch.setitem(CHUNK_BYTES, "eager", 4 * model.n_heads * 12 * captured.prompt.n_tokens)
    parts = replay_work(decoder_weights(model), make_batches(model, one, ablations, **how), 1)
    assert (parts.operations < whole.operations) == ordered
    assert parts.operations == counted_replays(model, one, ablations, **how)


@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("rows", [None, 5])
def test_backward_passes_are_counted(model, context, ordered, rows, monkeypatch):
    """With several targets and places, whole and in parts, under a causal mask and one that lets all see all."""
    case = prepare(model, replace(SAMPLE, answers=("apple bridge candle",)), ("gold", "answer"))
    captured, targets = case.captured, case.targets
    n = captured.prompt.n_tokens
    if not ordered:
        everything = torch.zeros(1, 1, n, n)
        captured = replace(captured, arguments=[{**one, "attention_mask": everything} for one in captured.arguments])
    if rows is not None:
        monkeypatch.setattr(probes.gates.trajectories, "CHUNK_PAIRS", rows * n)
    passes = gate_passes(captured, context, CUTS)
    assert len(passes) == (1 if context == "leave-one-out" else len(CUTS))
    work = pass_work(decoder_weights(model), passes, len(targets), places(captured))
    found = counted(lambda: gate_effects(model, captured, targets, context, CUTS))
    assert (work.replays, work.operations) == (0, found)


def test_the_kind_of_attention_changes_no_count(model, captured):
    fused = small_model("sdpa")
    again = prepare(fused, SAMPLE, ("gold",)).captured
    for part in ("removal", "keep-one", "leave-one-out"):
        found = [
            replay_work(decoder_weights(m), make_batches(m, c, ablations_of(c, part, CUTS, "delete")), 1)
            for m, c in ((model, captured), (fused, again))
        ]
        assert found[0] == found[1]


def test_keep_one_runs_the_window_and_the_text_behind_the_image(model, captured):
    windows = tile_windows(captured.prompt.grids, 5)  # one window: everything is kept
    (batch,) = make_batches(model, captured, window_ablations(captured, windows, "keep-one", [2]))
    assert batch.rows == 1  # nothing changes but what is read
    (removal,) = make_batches(model, captured, removal_ablations(captured, [2]))
    behind = captured.prompt.n_tokens - 1 - int(captured.prompt.visual[-1])
    assert (removal.rows, removal.columns) == (behind, captured.prompt.n_tokens - 25)
    work = replay_work(decoder_weights(model), [removal], 1)
    assert work.rows == 2 * behind


def test_entropies_take_the_smaller_side():
    assert entropy_operations(576, 4096, 33) == 33 * (2 * 576**2 * 4096 + 4 / 3 * 576**3)
    assert entropy_operations(576, 4096, 1) == entropy_operations(4096, 576, 1)
    gram = torch.rand(3, 576, 64)
    products = counted(lambda: gram.mT @ gram)
    assert entropy_operations(576, 64, 3, eigenvalues=False) == products
