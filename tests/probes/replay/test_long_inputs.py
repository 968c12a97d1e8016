"""Long inputs: rows run in parts that change no result, and no tensor is of the size of all masks at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import family_models as fm
import numpy as np
import pytest
import torch
from family_bench import Bench, bench_of, mask_of
from family_encodings import CASES, FamilyCase, images, lay_out, paligemma_case, positions, token_kinds
from family_models import END, IMAGE, LAYERS, START, VOCABULARY
from tensor_memory import TensorMemory

import probes.gates.trajectories
import probes.replay.visibility
from probes.cost.operations import make_batches
from probes.gates.gate import gate_effects
from probes.measures.entropy import BLOCK_VALUES, matrix_entropy
from probes.measures.noise import noise_floor
from probes.models.grids import tile_windows
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.ablations import Ablations, window_ablations
from probes.replay.batching import CHUNK_BYTES, batch_bytes
from probes.replay.capture import Capture
from probes.replay.replay import batches_of, most_rows, replay, shape_of
from probes.replay.visibility import affected_rows, in_order

TEXT = -1
SIDE = 55  # 3,025 visual tokens
CONTEXTS = ("keep-one", "leave-one-out")
IN_PARTS = ("llava", "qwen3_vl", "paligemma", "gemma3")


def long_llava() -> FamilyCase:
    """Causal, without a mask."""
    inputs, (run,) = lay_out([(TEXT, 2), (IMAGE, SIDE**2), (TEXT, 3)])
    inputs["pixel_values"] = images(1, side=SIDE)
    return FamilyCase("llava", partial(fm.llava, SIDE), inputs, positions([run]), (run.reshape(SIDE, SIDE),))


def long_paligemma() -> FamilyCase:
    """The whole prompt sees the whole prompt."""
    return paligemma_case("paligemma", partial(fm.paligemma, SIDE), SIDE)


def long_gemma3() -> FamilyCase:
    """Four images of 729 tokens, each seeing itself in both directions; sliding layers that see 1,000 tokens back."""
    inputs, runs = lay_out([(TEXT, 2), *4 * [(START, 1), (IMAGE, 27**2), (END, 1)], (TEXT, 2)])
    inputs |= {"token_type_ids": token_kinds(inputs["input_ids"]), "pixel_values": images(4, side=2 * 27)}
    grids = tuple(run.reshape(27, 27) for run in runs)
    return FamilyCase("gemma3", partial(fm.gemma3, 27, window=1000), inputs, positions(runs), grids)


@dataclass(frozen=True)
class Long:
    """A model and one captured prompt."""

    case: FamilyCase
    model: ProbedModel
    captured: Capture


@pytest.fixture(scope="module", params=[long_llava, long_paligemma, long_gemma3], ids=["causal", "prefix", "sliding"])
def long(request) -> Long:
    bench = bench_of(request.param(), "sdpa", torch.float32)
    return Long(bench.case, bench.probed, bench.capture())


def few_windows(captured: Capture, context: str, cuts: list[int]) -> Ablations:
    """Four windows from the top left of the first grid."""
    return window_ablations(captured, tile_windows(captured.prompt.grids, 3)[:4], context, cuts)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_tensor_of_a_batch_is_as_large_as_its_masks(long, context):
    """Masks of all ablations are 4 x S x S entries, of four bytes as they are added; the peak is near its formula."""
    ablations = few_windows(long.captured, context, [LAYERS - 2])
    (batch,) = make_batches(long.model, long.captured, ablations, batch_size=4)
    with TensorMemory() as memory:
        found = [log_probs for _, log_probs in replay(long.model, long.captured, ablations, batch_size=4)]
    assert torch.cat(found).shape == (4, 1, VOCABULARY)
    assert memory.largest <= CHUNK_BYTES["sdpa"] < 4 * 4 * long.case.n_tokens**2 / 4
    shape = shape_of(long.captured, batch.rows, batch.columns)
    if batch.rows > 100:  # else what is held once a batch counts for more
        assert 0.75 < memory.peak / batch_bytes(long.model, shape, 4) < 1.1


def test_derivatives_hold_the_scores_of_a_part_only(long, monkeypatch):
    """All scores at once are heads x S x S numbers."""
    pairs, gold = 2**19, {"gold": Target("gold", "", (20,))}
    monkeypatch.setattr(probes.gates.trajectories, "CHUNK_PAIRS", pairs)
    for context in CONTEXTS:
        with TensorMemory() as memory:
            effects = gate_effects(long.model, long.captured, gold, context, [LAYERS - 1])
        assert effects["gold"].shape == (1, len(long.case.visual))
        assert memory.largest <= 4 * long.model.n_heads * pairs < 4 * long.model.n_heads * long.case.n_tokens**2 / 15


def test_single_tokens_are_sorted_into_batches_without_a_number_for_every_place(long):
    ablations = window_ablations(long.captured, tile_windows(long.captured.prompt.grids, 1), "leave-one-out", [0])
    with TensorMemory() as memory:
        assert max(len(indices) for indices, _ in batches_of(long.model, long.captured, ablations, 500)) == 500
        batches = batches_of(long.model, long.captured, ablations, 500)
        assert most_rows(long.captured, ablations) == max(rows for _, rows in batches)
        make_batches(long.model, long.captured, ablations, batch_size=500)
    assert memory.largest <= ablations.masks.nbytes


def test_null_replays_of_a_long_prompt_run_one_by_one():
    """Four of them run all rows; together they would be the largest batch of a long prompt."""
    long, rows = bench_of(long_llava(), "sdpa", torch.float32), []
    hook = long.probed.layers[-1].register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[0]))
    noise_floor(long.probed, long.capture(), Target("gold", "", (20,)), [], rows=long.capture().prompt.n_tokens)
    hook.remove()
    assert set(rows) == {1}


def test_entropies_of_many_tokens_take_the_smaller_side():
    """Blocks of tokens and d x d matrices: four times the tokens take no byte more, and no N x N matrix is made."""
    peaks = []
    for n in (24_000, 96_000):
        states = torch.randn(1, n, 64, generator=torch.Generator().manual_seed(0))
        with TensorMemory() as memory:
            entropy = matrix_entropy(states)
        assert 0 < float(entropy) < math.log(64)
        peaks.append(memory.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)
    assert peaks[0] <= 3 * 8 * BLOCK_VALUES["cpu"] + 3 * 8 * 64**2 + 8 * 96_000


# --- the same results ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(n, a) for n in IN_PARTS for a in ("sdpa", "eager")], ids="-".join)
def short(request) -> Bench:
    name, attn = request.param
    return bench_of(next(case for case in CASES if case.name == name), attn)


def calls_of(bench: Bench, layer: int, function: Callable[[], torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Rows that each call of a layer gets in replays, and what the function returns."""
    seen: list[int] = []
    hook = bench.probed.layers[layer].register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
    found = function()
    hook.remove()
    return seen[1:], found  # the first call is that of the capture


@pytest.mark.parametrize("context", CONTEXTS)
def test_rows_in_parts_change_no_replay(short, monkeypatch, context):
    ablations = few_windows(short.capture(), context, [0, 1])
    whole, expected = calls_of(short, 1, lambda: short.replay(ablations, batch_size=3))
    entry = 3 * short.probed.n_heads * 16 if short.attn == "eager" else 9  # bytes of three ablations' pair, about
    for part, most in ((1, 1), (None, 5 * entry * short.case.n_tokens)):
        monkeypatch.setitem(CHUNK_BYTES, short.attn, most)
        parts, found = calls_of(short, 1, lambda: short.replay(ablations, batch_size=3))
        assert len(parts) > len(whole)
        assert part is None or part in parts
        torch.testing.assert_close(found, expected, rtol=0, atol=short.tolerance)
    assert (expected - expected.mean(0)).abs().max() > 0.01


@pytest.mark.parametrize("short", [(name, "sdpa") for name in IN_PARTS], ids="-".join, indirect=True)
@pytest.mark.parametrize("context", CONTEXTS)
def test_rows_in_parts_change_no_derivative(short, monkeypatch, context):
    targets = {"gold": Target("gold", "", (20, 25)), "other": Target("other", "", (14,))}
    captured = short.capture()
    expected = gate_effects(short.probed, captured, targets, context, [2])
    for rows in (1, 4):
        monkeypatch.setattr(probes.gates.trajectories, "CHUNK_PAIRS", rows * short.case.n_tokens)
        found = gate_effects(short.probed, captured, targets, context, [2])
        for name in targets:
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(found[name] / scale, expected[name] / scale, atol=1e-3 * short.tolerance**0.3)
            assert scale > 1e-6


def test_masks_are_read_block_by_block(short, monkeypatch):
    """Which rows see which, and whether any sees a later one, whatever the size of a block."""
    captured = short.capture()
    ordered = in_order(captured.arguments)
    assert ordered == (short.probed.family.name in ("llava", "qwen3_vl"))
    changed = [mask_of(short.case, torch.tensor([place])) for place in range(0, short.case.n_tokens, 3)]
    expected = [affected_rows(captured.arguments, one) for one in changed]
    monkeypatch.setattr(probes.replay.visibility, "BLOCK_PAIRS", 1)
    assert in_order(captured.arguments) == ordered
    for one, rows in zip(changed, expected, strict=True):
        assert torch.equal(affected_rows(captured.arguments, one), rows)
