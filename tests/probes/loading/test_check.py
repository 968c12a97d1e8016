"""The self-test: it passes what is exact, and names what is not, by how much, with a remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import random_llava, random_processor

from analyses.runs import HorizonError
from probes.loading.check import ModelCheck, check_model, default_sample
from probes.loading.loading import load_model
from probes.models.probed import ProbedModel


def built(dtype: str = "float64", attn: str = "sdpa") -> ProbedModel:
    return load_model(random_llava(34), processor=random_processor(), name="tiny", dtype=dtype, attn=attn, check=False)


def failures(found: ModelCheck) -> dict[str, float]:
    return {tested.name: tested.error for tested in found.properties if not tested.passed}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_an_exact_model_passes_with_power(dtype, attn):
    found = check_model(built(dtype, attn))
    assert found.passed
    assert found.refusal == ""
    assert (found.n_visual, found.grids, found.n_placeless, found.additions) == (25, ((5, 5),), 0, ())
    ablated = [tested for tested in found.properties if tested.effect is not None]
    assert len(ablated) >= 3
    assert all(tested.effect > 20 * tested.tolerance for tested in ablated if dtype in ("float64", "float32"))
    assert all(tested.effect > 2 * tested.error for tested in ablated)


def test_the_demo_models_pass(demo):
    found = check_model(demo)
    assert found.passed
    assert max(tested.error for tested in found.properties if tested.unit == "nats") < 1e-4


def in_the_decoder(model: ProbedModel, k: int, change: Any) -> None:
    """Let the decoder itself change the stream before layer k, which replays of single layers do not see."""
    inside = []
    model.decoder.register_forward_pre_hook(lambda *_: inside.append(1))
    model.decoder.register_forward_hook(lambda *_: inside.clear())
    model.layers[k].register_forward_pre_hook(
        lambda _m, args: (change(args[0]), *args[1:]) if inside else None,
    )


def test_what_a_model_adds_whatever_its_rows_are_is_found_and_replayed():
    """Additive and at visual rows, as deepstack: exact, and said."""
    model = built()
    added = torch.randn(1, 200, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    visual = slice(2, 27)

    def add(hidden):
        changed = hidden.clone()
        changed[:, visual] += added[:, :25]
        return changed

    for k in (1, 2):
        in_the_decoder(model, k, add)
    found = check_model(model)
    assert found.passed
    assert found.additions == (0, 1)


def test_what_a_model_does_between_layers_with_its_rows_is_refused():
    model = built()
    in_the_decoder(model, 2, lambda hidden: 1.5 * hidden + hidden.mean(1, keepdim=True))
    found = check_model(model)
    assert not found.passed
    assert all("removed from layer" in name for name in failures(found))
    assert "'tiny' cannot be measured: it fails the self-test" in found.refusal
    assert "describe it in probes/models/families.py" in found.refusal


def test_rows_that_see_each_other_outside_of_attention_are_refused():
    """A short convolution over tokens, as some hybrid decoders have: rows that are left out are missed."""
    model = built()
    plain = model.layers[1].mlp.forward
    model.layers[1].mlp.forward = lambda hidden: plain(hidden + hidden.roll(1, dims=1))
    found = check_model(model)
    assert "an unablated replay is the model" in failures(found)
    assert min(failures(found).values()) > 1e-3


def test_layers_that_run_twice_are_refused():
    model = built()
    model.model.get_decoder().layers[2] = model.layers[1]  # the same module at two depths
    with pytest.raises(HorizonError, match="'tiny' cannot be captured: its layers do not run once each and in order"):
        check_model(model)


def test_queries_that_are_not_what_attention_receives_are_named(monkeypatch):
    import transformers.models.llama.modeling_llama as architecture

    model = built()
    rotate = architecture.apply_rotary_pos_emb
    calls = []

    def turned(query, key, *rest, **kwargs):
        calls.append(query.shape)
        factor = 1.0 if query is key else 1.3  # streams hand one tensor twice; layers scale their queries besides
        query, key = rotate(query, key, *rest, **kwargs)
        return factor * query, key

    monkeypatch.setattr(architecture, "apply_rotary_pos_emb", turned)
    found = check_model(model)
    assert calls
    assert list(failures(found)) == ["the stream query is what attention receives"]
    assert "leave the stream 'query' out" in found.refusal


def test_a_tokenizer_without_words_is_named():
    model = built()
    model.tokenizer.decode = lambda *_, **__: ""
    found = check_model(model)
    assert list(failures(found)) == ["an answer has a token"]
    assert "is it the model's own?" in found.refusal


def test_states_that_are_not_numbers_fail():
    model = built()
    with torch.no_grad():
        model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    found = check_model(model)
    assert not found.passed


def test_the_default_sample_is_the_same_every_time():
    first, second = default_sample(), default_sample()
    assert first.load_image().tobytes() == second.load_image().tobytes()
    assert first.load_image().size == (360, 240)
