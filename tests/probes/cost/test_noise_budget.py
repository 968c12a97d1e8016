"""The noise floor takes at most 5 % of what it is the floor of, counted with the dimensions of LLaVA-1.5-7B."""

from __future__ import annotations

import pytest
from large_subject import large_forward, large_model, large_parts, large_subject, large_work

from probes.cost.operations import decoder_weights, make_batches, replay_work
from probes.measures.noise import grid_witness_layers
from probes.models.prompts import removable_windows
from probes.replay.ablations import window_ablations
from probes.replay.batching import BATCH_ROWS


@pytest.fixture(params=["cpu", "cuda"])
def batches(request, monkeypatch) -> int:
    """As many rows in a batch as on that device, as if its memory held them."""
    monkeypatch.setitem(BATCH_ROWS, "cpu", BATCH_ROWS[request.param])
    monkeypatch.setattr("probes.replay.batching.free_memory", lambda _device: 2**40)
    return BATCH_ROWS["cpu"]


@pytest.mark.parametrize(
    "options",
    [
        {"contexts": ("keep-one",), "window": 2},
        {"contexts": ("leave-one-out",), "window": 2},
        {"contexts": ("keep-one", "leave-one-out"), "window": 2},
        {"contexts": ("keep-one",), "window": 2, "layers": (0, 8, 16, 24)},
        {"contexts": ("leave-one-out",), "window": 1, "layers": (16,)},
        {"contexts": ("keep-one",), "window": 3, "kind": "mean"},
    ],
)
def test_of_a_grid(batches, options):
    work = large_work(**options)
    grids = sum(work[context].operations for context in options["contexts"])
    assert 0 < work["noise floor"].operations <= 0.05 * grids
    (part,) = (part for part in large_parts(**options) if part.name == options["contexts"][0])
    model = large_model()
    subject = large_subject(model)
    (call,) = part.calls(subject.case)
    made = make_batches(model, subject.case.captured, call.ablations)
    rows, widest = max((batch.rows, len(batch.layers) * batch.rows) for batch in made)
    assert min(batches, 8 * rows) - rows < widest <= batches  # batches are those of the device


@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
def test_of_a_grid_whose_most_sensitive_windows_are_the_longest_to_replay(context):
    """Which windows are measured again lies in the data: with the first of the image, as many rows as there can be."""
    model = large_model()
    captured, weights = large_subject(model).case.captured, decoder_weights(model)
    windows, cuts = removable_windows(captured.prompt, 2), list(range(model.n_layers))
    grid = large_work(contexts=(context,), window=2)[context].operations
    again = sum(
        replay_work(
            weights, make_batches(model, captured, window_ablations(captured, windows[:1], context, [cut])), 1
        ).operations
        for cut in grid_witness_layers(cuts, len(windows))
    )
    assert again <= 0.02 * grid


def test_of_a_removal_sweep(batches):
    """Few replays are a large share of few: a sixth of the sweep, a twelfth with the forward pass before it."""
    work = large_work(probes=("removal",), contexts=())
    floor, sweep = work["noise floor"].operations, work["removal"].operations
    assert work["noise floor"].replays == 6
    assert floor <= 0.2 * sweep
    assert floor <= 0.1 * (sweep + large_forward())
