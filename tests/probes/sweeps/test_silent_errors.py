"""Ways to be wrong without an error: each is run unguarded and shown to be off, beside what the project gives."""

from __future__ import annotations

import pytest
import torch
from deletion_oracle import additive, deleted_logits, last_logits, masked_logits, recorded_inputs, visible
from family_bench import bench_of, mask_of
from family_encodings import CASES
from family_models import LAYERS, FamilyCase
from transformers import DynamicCache

from probes.replay.ablations import Ablations
from probes.replay.replay import replay

OFF = 1e-3  # in log p or logits: more than any rounding, in float64
CASE = {case.name: case for case in CASES}


def removal(case: FamilyCase, kept: int = 0) -> torch.Tensor:
    """(token,) bool: the visual tokens but the first few."""
    return mask_of(case, case.visual[kept:])


def replayed(case: FamilyCase, layer: int, removed: torch.Tensor) -> torch.Tensor:
    """(vocabulary,) log p by the project."""
    return bench_of(case, "sdpa").replay(Ablations(torch.tensor([layer]), removed[None]))[0]


@torch.no_grad()
def naive_replay(model, calls, layer: int, keep: torch.Tensor, change=lambda k, arguments: arguments) -> torch.Tensor:
    """(vocabulary,) log p: the layers called one after another on the kept rows, and nothing else thought of."""
    hidden = calls[layer][0][None, keep]
    for k in range(layer, LAYERS):
        arguments = dict(calls[k][1])
        arguments["position_embeddings"] = tuple(t[..., keep, :] for t in arguments["position_embeddings"])
        arguments["position_ids"] = None
        hidden = model.get_decoder().layers[k](hidden, **change(k, arguments))
    return model.lm_head(model.get_decoder().norm(hidden[:, -1]))[0].log_softmax(-1)


def off_by(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_without_token_types_qwen2_5_vl_takes_an_image_for_text():
    case = CASE["qwen2_5_vl"]
    model, removed = case.build(), removal(case, 3)
    without = {key: value for key, value in case.inputs.items() if key != "mm_token_type_ids"}
    as_text = {**case.inputs, "position_ids": torch.arange(case.n_tokens).expand(3, 1, -1)}
    assert off_by(last_logits(model, without), last_logits(model, case.inputs)) > OFF
    torch.testing.assert_close(last_logits(model, without), last_logits(model, as_text), rtol=0, atol=1e-12)

    right, unguarded = (deleted_logits(model, i, 0, removed).log_softmax(-1) for i in (case.inputs, without))
    assert off_by(unguarded, right) > OFF
    torch.testing.assert_close(replayed(case, 0, removed), right, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_its_relatives_say_so(name):
    case = CASE[name]
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        last_logits(case.build(), {k: v for k, v in case.inputs.items() if k != "mm_token_type_ids"})


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_vl-video"])
def test_layers_called_one_by_one_lose_what_enters_between_them(name):
    case = CASE[name]
    model = case.build()
    calls, own = recorded_inputs(model, case.inputs), last_logits(model, case.inputs).log_softmax(-1)
    everything = torch.arange(case.n_tokens)
    for layer in range(LAYERS):
        off = off_by(naive_replay(model, calls, layer, everything), own)
        assert off > OFF if layer in case.enters_again else off < 1e-9


def test_a_decoder_that_is_called_with_gaps_in_its_positions_takes_them_for_packed_sequences():
    case = CASE["llava"]
    model, removed = case.build(), removal(case, 2)
    keep = (~removed).nonzero()[:, 0]
    entering = recorded_inputs(model, case.inputs)[0][0][None, keep]
    positions = {"inputs_embeds": entering, "position_ids": keep[None], "use_cache": False}
    right = deleted_logits(model, case.inputs, 0, removed).log_softmax(-1)
    with torch.no_grad():
        outputs = [
            model.get_decoder()(**positions, attention_mask=mask).last_hidden_state
            for mask in (None, torch.ones(1, len(keep), dtype=torch.long))
        ]
        unguarded, guarded = (model.lm_head(states[:, -1])[0].log_softmax(-1) for states in outputs)
    assert off_by(unguarded, right) > OFF
    torch.testing.assert_close(guarded, right, rtol=0, atol=1e-9)
    torch.testing.assert_close(replayed(case, 0, removed), right, rtol=0, atol=1e-9)


def test_no_layer_of_a_replay_is_told_positions_with_gaps():
    """FlashAttention takes gaps in a layer's position ids for packed sequences; rotary tables carry the positions."""
    case = CASE["llava"]
    bench = bench_of(case, "sdpa")
    captured = bench.capture()
    told = []
    for layer in bench.probed.layers:
        layer.register_forward_pre_hook(lambda _m, _args, kw: told.append(kw["position_ids"]), with_kwargs=True)
    ablations = Ablations(torch.zeros(1, dtype=torch.long), removal(case, 2)[None])
    list(replay(bench.probed, captured, ablations))
    assert len(told) >= LAYERS
    assert all(positions is None for positions in told)
    assert captured.arguments[0]["position_ids"] is not None


def test_a_slice_keeps_the_whole_sequence_alive_and_changes_with_it():
    case = CASE["llava"]
    rows = recorded_inputs(case.build(), case.inputs)[1][0].clone()
    first, last = int(case.visual[0]), int(case.visual[-1]) + 1
    sliced, copied = rows[first:last], rows[torch.arange(first, last)]
    before = copied.clone()
    rows[first] += 1.0  # as a later in-place edit does
    assert off_by(sliced, before) > OFF
    torch.testing.assert_close(copied, before, rtol=0, atol=0)
    assert sliced.untyped_storage().nbytes() == rows.nbytes > sliced.nbytes

    bench = bench_of(case, "sdpa")
    states = bench.capture("query", "key", "hidden").visual.states
    for stream, tensor in states.items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, stream


def test_a_captured_cache_grows_and_brings_the_removed_tokens_back():
    case = CASE["llava"]
    model, removed = case.build(), removal(case)
    keep = (~removed).nonzero()[:, 0]
    calls = recorded_inputs(model, case.inputs)
    cache = DynamicCache()
    with torch.no_grad():
        model(**case.inputs, past_key_values=cache, use_cache=True)
    sees_all = torch.ones(1, 1, len(keep), case.n_tokens + len(keep), dtype=torch.bool)

    def with_cache(_k, arguments):
        return {**arguments, "past_key_values": cache, "attention_mask": sees_all}

    unguarded = naive_replay(model, calls, 1, keep, with_cache)
    right = deleted_logits(model, case.inputs, 1, removed).log_softmax(-1)
    assert off_by(unguarded, right) > OFF
    assert cache.get_seq_length(1) == case.n_tokens + len(keep)
    torch.testing.assert_close(naive_replay(model, calls, 1, keep), right, rtol=0, atol=1e-9)

    bench = bench_of(case, "sdpa")
    captured = bench.capture()
    ablations = Ablations(torch.ones(1, dtype=torch.long), removed[None])
    for _ in range(2):  # the second would find a cache that the first had fed
        ((_, log_probs),) = replay(bench.probed, captured, ablations)
        torch.testing.assert_close(log_probs[0, 0], right, rtol=0, atol=1e-9)
    held = [value for kwargs in captured.arguments for value in kwargs.values() if isinstance(value, DynamicCache)]
    assert all(len(layer.keys[0, 0]) == case.n_tokens for kept in held for layer in kept.layers)
    assert all(keys.shape[1] == case.n_tokens for keys in captured.keys)


def test_a_window_counted_in_kept_tokens_reaches_too_far():
    case = CASE["gemma3"]
    model, removed = case.build(), removal(case, 1)
    keep = (~removed).nonzero()[:, 0]
    calls, window = recorded_inputs(model, case.inputs), model.config.text_config.sliding_window
    distance = torch.arange(len(keep))[:, None] - torch.arange(len(keep))

    def by_position(_k, arguments):
        seen = visible(arguments["attention_mask"], case.n_tokens)[keep][:, keep]
        return {**arguments, "attention_mask": additive(seen[None, None], torch.float64)}

    def by_count(k, arguments):
        if model.config.text_config.layer_types[k] == "full_attention":
            return by_position(k, arguments)
        seen = (distance >= 0) & (distance < window)
        return {**arguments, "attention_mask": additive(seen[None, None], torch.float64)}

    right = deleted_logits(model, case.inputs, 1, removed).log_softmax(-1)
    assert off_by(naive_replay(model, calls, 1, keep, by_count), right) > OFF
    torch.testing.assert_close(naive_replay(model, calls, 1, keep, by_position), right, rtol=0, atol=1e-9)
    torch.testing.assert_close(replayed(case, 1, removed), right, rtol=0, atol=1e-9)


def test_a_softmax_over_nothing_is_one_over_everything():
    """Masking every state that Mllama attends to removes none of them: all weights are equal, and none is 0."""
    case = CASE["mllama"]
    model = case.build()
    everything = torch.ones(len(case.visual), dtype=torch.bool)

    def hide(hidden, kwargs):
        mask = torch.full_like(kwargs["cross_attention_mask"], torch.finfo(torch.float64).min)
        return hidden, {**kwargs, "cross_attention_mask": mask}

    unguarded = last_logits(model, case.inputs, dict.fromkeys((1, 3), hide))
    assert off_by(unguarded, masked_logits(model, case.inputs, 0, everything)) > OFF
