"""Weights that are quantized, or wait on disk: the self-test holds, and what is measured is what such a model gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from demo_data import demo_model, demo_samples
from random_models import random_llava, random_processor

import vlm_horizon as vh
from probes.loading.check import check_model
from probes.loading.loading import load_model

DIRECTORY = vh.data_path("demo-models", "tiny-8")
OPTIONS = {"window": 4, "layers": (2, 6), "streams": ("query",), "progress": False}
OUTSIDE = (
    *("model.multi_modal_projector", "lm_head"),
    *(f"model.language_model.{part}" for part in ("embed_tokens", "rotary_emb", "norm")),
)


def waiting(*layers: int, others: str = "cpu") -> dict[str, str]:
    """A device map with some decoder layers on disk, or all else but the vision tower, which comes first."""
    inner = {f"model.language_model.layers.{k}": "disk" if k in layers else "cpu" for k in range(8)}
    return {"model.vision_tower": "cpu"} | dict.fromkeys(OUTSIDE, others) | inner


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> vh.Run:
    return vh.run(demo_model(), demo_samples(1), tmp_path_factory.mktemp("plain") / "run", **OPTIONS)


@pytest.mark.parametrize(
    "device_map", ["cpu", waiting(0, 5, 6, 7), waiting(3, others="disk")], ids=["cpu", "layers", "others"]
)
def test_where_weights_wait_changes_nothing(device_map, plain, tmp_path):
    model = load_model(DIRECTORY, device_map=device_map)
    assert model.device == torch.device("cpu")
    run = vh.run(model, demo_samples(1), tmp_path / "run", **OPTIONS)
    assert run.failed.empty
    np.testing.assert_array_equal(run.curves["value"], plain.curves["value"])
    assert run.config.weights == plain.config.weights
    assert run.config.hash == plain.config.hash


@pytest.mark.parametrize(("quantization", "dtype"), [("4bit", "float32"), ("8bit", "float16")])
def test_a_quantized_model_passes_and_its_run_says_so(quantization, dtype, plain, tmp_path):
    model = load_model(DIRECTORY, quantization=quantization)
    assert (model.quantization, str(model.dtype)) == (quantization, f"torch.{dtype}")
    run = vh.run(model, demo_samples(1), tmp_path / "run", **OPTIONS)
    assert run.failed.empty
    assert run.config.quantization == quantization
    assert run.config.n_parameters == plain.config.n_parameters
    assert run.config.hash != plain.config.hash
    assert run.curves["layer"].tolist() == plain.curves["layer"].tolist()
    assert (run.curves["value"] - plain.curves["value"]).abs().max() > 0.01  # other weights
    assert (run.ok["p"] - plain.ok["p"]).abs().max() < 0.1
    assert (run.ok["noise_floor_p"] < 0.02).all()


@pytest.fixture
def avx512_bf16(monkeypatch) -> None:
    """A processor of which bitsandbytes believes that it has AVX512-BF16."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


def test_4bit_weights_give_the_same_on_a_processor_for_which_they_would_be_repacked(avx512_bf16, tmp_path):
    """Not even where the width of a layer, as 352 here, is no multiple of a block."""
    packed = load_model(DIRECTORY, quantization="4bit")
    assert {module.in_features % 64 for module in packed.layers.modules() if hasattr(module, "in_features")} == {0, 32}
    with pytest.MonkeyPatch.context() as other:
        other.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        plain = load_model(DIRECTORY, quantization="4bit")
    runs = [vh.run(model, demo_samples(1), tmp_path / name, **OPTIONS) for name, model in (("a", packed), ("b", plain))]
    assert runs[0].failed.empty
    np.testing.assert_array_equal(runs[0].curves["value"], runs[1].curves["value"])
    assert not any(
        getattr(module.weight.quant_state, "packing_format_for_cpu", False)
        for module in packed.model.modules()
        if hasattr(module, "support_avx512bf16_for_cpu")
    )


def test_quantized_weights_that_fail_on_a_processor_are_named_with_a_remedy(avx512_bf16):
    """As bitsandbytes fails there where its repacking is not switched off."""
    model = load_model(DIRECTORY, quantization="4bit", check=False)
    for module in model.layers.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    with pytest.raises(vh.HorizonError, match=r"with 4bit weights on cpu \(RuntimeError: shape .* leave quantization"):
        check_model(model)


def test_a_built_model_whose_weights_were_repacked_is_refused():
    """By a forward pass on such a processor: what was there before is gone."""
    quantized = load_model(DIRECTORY, quantization="4bit", check=False)
    layer = quantized.layers[0].self_attn.q_proj
    layer.weight.data, _ = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    with pytest.raises(
        vh.HorizonError, match=r"repacked for AVX512-BF16 \(model.language_model.layers.0.*load it anew"
    ):
        load_model(quantized.model, processor=quantized.processor)


def test_a_built_quantized_model_keeps_its_dtype():
    quantized = load_model(DIRECTORY, quantization="4bit", check=False)
    again = load_model(quantized.model, processor=quantized.processor, check=False)
    assert again.quantization == "4bit"
    with pytest.raises(vh.HorizonError, match="is quantized, so its dtype cannot be changed to float64"):
        load_model(quantized.model, processor=quantized.processor, dtype="float64")


def test_layers_on_several_gpus_are_refused():
    """Told by the device map alone, so that it needs no GPU."""
    model = random_llava()
    model.hf_device_map = {"model": 0, "lm_head": "cuda:1", "model.vision_tower": "cpu"}
    with pytest.raises(vh.HorizonError, match=r"is spread over 2 GPUs \(0, 1\)"):
        load_model(model, processor=random_processor())
    model.hf_device_map = {"model": 0, "lm_head": "cuda:0", "model.vision_tower": "cpu"}
    assert load_model(model, processor=random_processor(), check=False).n_layers


def test_a_map_that_would_spread_over_gpus_is_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("probes.loading.loading.AutoModelForImageTextToText", None)
    for device_map, reason in (("auto", "over 2 GPUs, where"), ({"model": 0, "lm_head": 1}, r"over 2 GPUs \(0, 1\)")):
        with pytest.raises(vh.HorizonError, match=reason):
            load_model(DIRECTORY, device_map=device_map)
