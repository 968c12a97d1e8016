"""Every family, from encodings built by hand: captures are the model's own, and every ablation equals the oracle's.

Mllama is not among them: its visual tokens are no rows of the decoder.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deletion_oracle import deleted_logits, last_logits, recorded_inputs, recorded_states
from family_bench import Bench, bench_of, mask_of
from family_encodings import CASES
from family_models import LAYERS, FamilyCase

from probes.replay.ablations import Ablations

POWER = 0.01  # in the probability of some token
IN_SEQUENCE = [case for case in CASES if not case.cross_attention]

RUNS = [(case, attn) for case in IN_SEQUENCE for attn in case.attention]


@pytest.fixture(scope="module", params=RUNS, ids=[f"{case.name}-{attn}" for case, attn in RUNS])
def bench(request) -> Bench:
    return bench_of(*request.param)


def removals(case: FamilyCase) -> torch.Tensor:
    """(ablation, token) bool: all; all but a token, all but a window; a token, a window, a token without a place."""
    parts = [case.grids[0][-1, :1], case.grids[-1][:2, :2].ravel(), np.array(case.placeless[:1], dtype=int)]
    token, window, placeless = (mask_of(case, torch.from_numpy(part)) for part in parts)
    visual = mask_of(case, case.visual)
    found = [visual, visual & ~token, visual & ~window, token, window]
    return torch.stack([*found, placeless] if case.placeless else found)


def test_captured_inputs_are_those_the_model_computes(bench):
    captured = bench.capture()
    with torch.no_grad():
        states = bench.model(**bench.case.inputs, use_cache=False, output_hidden_states=True).hidden_states
    calls = recorded_inputs(bench.model, bench.case.inputs)
    for layer in range(LAYERS):
        torch.testing.assert_close(captured.inputs[layer], calls[layer][0], rtol=0, atol=bench.tolerance)
        if layer - 1 not in bench.case.enters_again:  # what enters between layers is no part of transformers' states
            torch.testing.assert_close(captured.inputs[layer], states[layer][0], rtol=0, atol=bench.tolerance)
    torch.testing.assert_close(captured.final, calls[-1][0], rtol=0, atol=bench.tolerance)
    own = last_logits(bench.model, bench.case.inputs).log_softmax(-1)
    torch.testing.assert_close(captured.log_probs[0], own, rtol=0, atol=bench.tolerance)


def test_every_ablation_at_every_layer_equals_deletion(bench):
    each = removals(bench.case)
    ablations = Ablations(torch.arange(LAYERS).repeat_interleave(len(each)), each.repeat(LAYERS, 1))
    found = bench.replay(ablations)
    logits = [
        deleted_logits(bench.model, bench.case.inputs, layer, removed) for layer in range(LAYERS) for removed in each
    ]
    expected = torch.stack(logits).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=bench.tolerance)
    own = last_logits(bench.model, bench.case.inputs).softmax(-1)
    assert float((expected.exp() - own).abs().amax(1).median()) >= POWER


def test_a_replay_of_everything_gives_the_models_own_output(bench):
    n = bench.case.n_tokens
    null = Ablations(torch.arange(LAYERS), torch.zeros(LAYERS, n, dtype=torch.bool))
    found = bench.replay(null, recompute=torch.ones(n, dtype=torch.bool))
    own = last_logits(bench.model, bench.case.inputs).log_softmax(-1)
    torch.testing.assert_close(found, own.expand(LAYERS, -1), rtol=0, atol=bench.tolerance)


@pytest.mark.parametrize("streams", [("key", "value", "hidden"), ("query",), ("query_raw", "key_raw")], ids="-".join)
def test_streams_are_what_the_attention_function_receives(bench, streams):
    captured = bench.capture(*streams)
    recorded = recorded_states(bench.model, bench.case.inputs)
    for stream in streams:
        torch.testing.assert_close(
            captured.visual.states[stream], recorded[stream], rtol=0, atol=bench.tolerance, msg=stream
        )
