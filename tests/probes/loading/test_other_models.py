"""Families that nobody has described: each is exact as it is, or refused with a reason; never silently wrong."""

from __future__ import annotations

import pytest
import torch
from deletion_oracle import last_logits, masked_logits, recorded_states
from family_bench import Bench, bench_of, mask_of
from family_models import LAYERS, FamilyCase
from other_encodings import OTHERS

from analyses.runs import HorizonError
from probes.replay.ablations import Ablations

POWER = 0.01  # in the probability of some token
REFUSED = ("llama4", "lfm2_vl", "gemma4", "gemma4-shared", "qwen3_5")
EXACT = [case for case in OTHERS if case.name not in REFUSED]
RUNS = [(case, attn) for case in EXACT for attn in case.attention]

# nnsight says so of a Q-Former's attention, which no trace here touches
pytestmark = pytest.mark.filterwarnings("ignore:Module '.*' has a submodule named 'output'")


@pytest.fixture(scope="module", params=RUNS, ids=[f"{case.name}-{attn}" for case, attn in RUNS])
def bench(request) -> Bench:
    return bench_of(*request.param)


def removals(case: FamilyCase) -> torch.Tensor:
    """(ablation, token) bool: all visual tokens, all but one, that one."""
    every, one = mask_of(case, case.visual), mask_of(case, case.visual[1:2])
    return torch.stack([every, every & ~one, one])


def test_ablations_equal_the_models_own_masked_run(bench):
    each = removals(bench.case)
    found = bench.replay(Ablations(torch.arange(LAYERS).repeat_interleave(len(each)), each.repeat(LAYERS, 1)))
    logits = [
        masked_logits(bench.model, bench.case.inputs, layer, removed) for layer in range(LAYERS) for removed in each
    ]
    expected = torch.stack(logits).log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=bench.tolerance)
    own = last_logits(bench.model, bench.case.inputs).softmax(-1)
    assert float((expected.exp() - own).abs().amax(1).median()) >= POWER


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_streams_are_what_the_attention_function_receives(case):
    bench = bench_of(case, case.attention[0])
    recorded = recorded_states(bench.model, case.inputs)
    found = bench.capture(*recorded).visual.states
    for stream, states in recorded.items():
        torch.testing.assert_close(found[stream], states, rtol=0, atol=bench.tolerance, msg=stream)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("case", [case for case in OTHERS if case.name in REFUSED], ids=lambda case: case.name)
def test_what_cannot_be_measured_is_refused_with_a_sentence(case):
    with pytest.raises(HorizonError, match=case.name):
        bench_of(case, "sdpa").replay(Ablations(torch.zeros(1, dtype=torch.long), removals(case)[:1]))
