"""Captures hold what they promise and no more; what the model computes is proved in test_exactness."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from deletion_oracle import deleted_logits, recorded_states
from random_models import GRID, PATCH, SPECIAL, random_image, random_llava, random_processor
from random_models import encode as random_inputs
from transformers import CLIPVisionConfig, Gemma3TextConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen3Config

from analyses.runs import STREAMS, HorizonError
from probes.data.samples import Sample
from probes.loading.check import _recorded_attention
from probes.loading.loading import load_model
from probes.models.probed import ProbedModel
from probes.models.prompts import encode
from probes.replay.ablations import removal_ablations, visual_mask
from probes.replay.capture import Capture, capture, capture_prompt
from probes.replay.replay import replay

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))


@pytest.fixture(scope="module")
def captured(random_model) -> Capture:
    return capture_prompt(random_model, encode(random_model, SAMPLE), STREAMS)


def normalizing_model(transposed: bool = False) -> ProbedModel:
    """A LLaVA over Qwen3 or Gemma 3, whose attention normalizes queries and keys between projection and rotation."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = (Gemma3TextConfig if transposed else Qwen3Config)(vocab_size=64, num_key_value_heads=1, head_dim=8, **sizes)
    vision = CLIPVisionConfig(image_size=GRID * PATCH, patch_size=PATCH, **sizes)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=GRID**2,
        vision_feature_layer=-1,
    )
    return load_model(LlavaForConditionalGeneration(config), processor=random_processor())


def test_dimensions_are_layer_token_and_all_heads(captured):
    n = GRID**2
    dims = {"query": 32, "query_raw": 32, "key": 16, "key_raw": 16, "value": 16, "hidden": 32}
    layers = dict.fromkeys(STREAMS, 4) | {"hidden": 5}
    shapes = {stream: tuple(states.shape) for stream, states in captured.visual.states.items()}
    assert shapes == {stream: (layers[stream], n, dims[stream]) for stream in STREAMS}
    assert captured.visual.positions.tolist() == captured.prompt.visual.tolist()
    assert captured.visual.grids == captured.prompt.grids


def test_only_the_streams_asked_for_are_kept(random_model):
    assert tuple(capture(random_model, SAMPLE, streams=("value",)).states) == ("value",)
    assert capture(random_model, SAMPLE, streams=()).states == {}


def test_states_own_their_memory_and_no_more(captured):
    for states in captured.visual.states.values():
        assert states.untyped_storage().nbytes() == states.numel() * states.element_size()
        assert not states.requires_grad


def test_a_captures_full_sequences_go_with_it(random_model):
    """What the visual states came from is freed at once, without waiting for the garbage collector's cycles."""
    whole = capture_prompt(random_model, encode(random_model, SAMPLE), STREAMS)
    watched = [weakref.ref(tensor) for tensor in (*whole.inputs, whole.final, *whole.keys, *whole.values)]
    kept = whole.visual
    del whole
    gc.collect()
    assert [watch for watch in watched if watch() is not None] == []
    assert torch.isfinite(kept.states["query"]).all()


def test_captures_do_not_pile_up(random_model):
    """Memory does not grow with the number of samples."""

    def live_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    capture(random_model, SAMPLE)
    before = live_tensors()
    for _ in range(5):
        capture(random_model, SAMPLE)
    assert live_tensors() == before


def test_replays_leave_the_capture_as_it_was(random_model):
    """The cache of the captured forward is what context rows are taken from: it neither grows nor changes."""
    held = capture_prompt(random_model, encode(random_model, SAMPLE), ())
    n = held.prompt.n_tokens
    (cache,) = {id(kwargs["past_key_values"]): kwargs["past_key_values"] for kwargs in held.arguments}.values()
    tensors = (*held.inputs, held.final, *held.keys, *held.values, held.log_probs)
    before = [tensor.clone() for tensor in tensors]
    moved = 0.0
    for kind in ("delete", "mean"):
        for _, found in replay(random_model, held, removal_ablations(held, range(4), kind)):
            moved = max(moved, float((found - held.log_probs).abs().max()))
    assert cache.get_seq_length() == n
    assert all(torch.equal(was, now) for was, now in zip(before, tensors, strict=True))
    assert moved > 0.1


def test_an_unknown_stream_is_named(random_model):
    with pytest.raises(
        HorizonError, match=r"stream 'queries' is unknown; did you mean 'query'\? choose from query, .*text:query"
    ):
        capture(random_model, SAMPLE, streams=("queries", "key", "logits"))


@torch.no_grad()
@pytest.mark.parametrize("transposed", [False, True])
def test_queries_and_keys_are_read_behind_their_norms(transposed):
    """Norms see (token, head, dim) in Qwen3 and (head, token, dim) in Gemma 3."""
    model = normalizing_model(transposed)
    held = capture_prompt(model, encode(model, SAMPLE), STREAMS)
    inputs = random_inputs(model.processor, SAMPLE.image)
    received = recorded_states(model.model, inputs)
    for stream in ("query", "key", "value"):
        torch.testing.assert_close(held.visual.states[stream], received[stream], rtol=0, atol=1e-6)
    for stream, letter in (("query_raw", "q"), ("key_raw", "k")):
        seen: list[torch.Tensor] = []
        hooks = [
            getattr(layer.self_attn, f"{letter}_norm").register_forward_hook(
                lambda _m, _a, out, to=seen: to.append(out[0])
            )
            for layer in model.layers
        ]
        model.model(**held.prompt.inputs)
        for hook in hooks:
            hook.remove()
        rows = [state.transpose(0, 1) if transposed else state for state in seen]
        normed = torch.stack([state[held.prompt.visual].flatten(1) for state in rows])
        torch.testing.assert_close(held.visual.states[stream], normed, rtol=0, atol=1e-6)
        turned = held.visual.states[stream.removesuffix("_raw")]
        torch.testing.assert_close(held.visual.states[stream].norm(dim=-1), turned.norm(dim=-1))  # a rotation
        assert (held.visual.states[stream] - turned).abs().median() > 0.01


@pytest.mark.parametrize("transposed", [None, False, True])
def test_text_and_all_tokens_have_the_same_streams(random_model, transposed):
    """Rows of all tokens, taken apart; those of the visual ones are what the plain stream gives."""
    model = random_model if transposed is None else normalizing_model(transposed)
    names = [f"{tokens}{stream}" for stream in STREAMS for tokens in ("", "text:", "all:")]
    answer = tuple(model.tokenizer.convert_tokens_to_ids(["apple", "bridge"]))
    held = capture_prompt(model, encode(model, SAMPLE, answer), names)
    n, visual = int(held.prompt.readout[0]) + 1, held.prompt.visual
    text = torch.tensor([at for at in range(n) if at not in visual.tolist()], device=visual.device)
    assert n == held.prompt.n_tokens - 1
    for stream in STREAMS:
        every = held.visual.states[f"all:{stream}"]
        assert every.shape[1] == n
        torch.testing.assert_close(every[:, visual], held.visual.states[stream], rtol=0, atol=0)
        torch.testing.assert_close(every[:, text], held.visual.states[f"text:{stream}"], rtol=0, atol=0)
    torch.testing.assert_close(held.visual.states["all:hidden"][1], held.inputs[1][:n], rtol=0, atol=0)
    with _recorded_attention(model) as received, torch.no_grad():
        model.model(**held.prompt.inputs, use_cache=False)
    for stream, handed in zip(("query", "key"), zip(*received, strict=True), strict=True):
        rows = torch.stack([state[0].transpose(0, 1).flatten(1)[:n] for state in handed])
        torch.testing.assert_close(held.visual.states[f"all:{stream}"], rows, rtol=0, atol=1e-6)


@torch.no_grad()
def test_replays_of_such_a_model_are_exact():
    model = normalizing_model()
    held = capture_prompt(model, encode(model, SAMPLE), ())
    inputs = random_inputs(model.processor, SAMPLE.image)
    visual = visual_mask(held)
    for indices, found in replay(model, held, removal_ablations(held, range(2))):
        for k, log_probs in zip(indices.tolist(), found[:, 0], strict=True):
            oracle = deleted_logits(model.model, inputs, k, visual).log_softmax(-1)
            torch.testing.assert_close(log_probs, oracle, rtol=0, atol=2e-5)


@pytest.mark.parametrize("k", [0, 2, 3])
def test_what_a_model_adds_behind_a_layer_is_kept_with_that_layer(k):
    """Before the next layer, or behind the last one before the final norm."""
    model = load_model(random_llava(34), processor=random_processor(), dtype="float64", check=False)
    following = [*model.layers[1:], model.norm][k]
    hook = following.register_forward_pre_hook(lambda _m, args: (args[0] + 0.25, *args[1:]))
    found = capture_prompt(model, encode(model, SAMPLE), ())
    hook.remove()
    assert list(found.additions) == [k]
    torch.testing.assert_close(found.additions[k], torch.full_like(found.inputs[0], 0.25))
