"""Loading: from a directory, from a prepared hub cache, from objects; and what cannot be measured, said at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from family_processors import PAIRS
from random_models import random_llava, random_processor
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    Florence2Config,
    FuyuConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MllamaConfig,
)

from analyses.runs import HorizonError
from probes.loading.admission import find_visual_tokens
from probes.loading.loading import load_model
from probes.models.families import Family
from probes.models.probed import fingerprint

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PROCESSOR = ("processor_config.json", *TOKENIZER)
DEEP, SHALLOW, ABSENT = "b" * 40, "a" * 40, "c" * 40


@pytest.fixture(scope="module")
def tiny(data) -> Path:
    return data / "demo-models" / "tiny-8"


@pytest.fixture
def copied(tiny, tmp_path):
    """A function that makes a copy of a checkpoint directory without some files and with other configuration values."""

    def make(without: Sequence[str] = (), **changes) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        for file in tiny.iterdir():
            if file.name not in without:
                (folder / file.name).symlink_to(file)
        if changes:
            config = json.loads((tiny / "config.json").read_text()) | changes
            (folder / "config.json").unlink()
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


# --- what loads ------------------------------------------------------------------------------------------------------


def test_a_directory_gives_every_part_by_its_role(tiny):
    probed = load_model(tiny)
    assert probed.name == str(tiny)
    assert probed.revision is None
    assert probed.family.name == "llava"
    assert (probed.n_layers, probed.n_heads, probed.n_key_value_heads) == (8, 4, 4)
    assert (probed.head_dim, probed.hidden_size, probed.vocab_size) == (32, 128, 91)
    assert probed.visual_token_ids == (probed.tokenizer.convert_tokens_to_ids("<image>"),)
    decoder = probed.model.model.language_model
    assert probed.decoder is decoder
    assert probed.layers is decoder.layers
    assert probed.norm is decoder.norm
    assert probed.head is probed.model.lm_head
    assert (probed.attn, probed.quantization) == ("sdpa", None)
    assert not any(module.training for module in probed.model.modules())


def test_a_directory_as_text_and_its_processor_given(tiny):
    processor = random_processor()
    probed = load_model(str(tiny), processor=processor, check=False)  # it makes smaller pictures
    assert probed.processor is processor
    assert fingerprint(probed.model) == fingerprint(load_model(tiny, check=False).model)


def test_auto_is_the_checkpoints_precision_on_a_gpu_and_float32_on_a_cpu(tiny):
    cuda = torch.cuda.is_available()
    probed = load_model(tiny)
    assert probed.dtype == (torch.float16 if cuda else torch.float32)
    assert probed.device.type == ("cuda" if cuda else "cpu")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float64", torch.float64)]
    + [(dtype, dtype) for dtype in (torch.float32, torch.float16)],
)
def test_a_precision_that_is_named_is_the_models(tiny, given, dtype):
    probed = load_model(tiny, dtype=given, check=False)
    assert probed.dtype == dtype
    assert {parameter.dtype for parameter in probed.model.parameters()} == {dtype}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_attention_that_is_named_is_the_models(tiny, attn):
    built = AutoModelForImageTextToText.from_pretrained(tiny)
    wrapped = load_model(built, processor=random_processor(), attn=attn, check=False)
    for probed in (load_model(tiny, attn=attn, check=False), wrapped):
        assert probed.attn == attn
        assert probed.decoder.config._attn_implementation == attn


def test_a_built_model_is_wrapped_as_it_is():
    model, processor = random_llava(layers=3).train(), random_processor()
    probed = load_model(model, processor=processor)
    assert probed.model is model
    assert probed.processor is processor
    assert probed.name == "LlavaForConditionalGeneration"
    assert probed.dtype == torch.float64
    assert (probed.n_layers, probed.n_heads, probed.n_key_value_heads, probed.head_dim) == (3, 4, 2, 8)
    assert not model.training
    assert load_model(model, processor=processor, dtype="float32", check=False).dtype == torch.float32


# --- the hub ---------------------------------------------------------------------------------------------------------

HUB_SCRIPT = """
import json, sys
from analyses.runs import HorizonError
from probes.loading.loading import load_model

def outcome(name, revision):
    try:
        model = load_model(name, revision=revision, check=False)
    except HorizonError as error:
        return str(error)
    return [model.name, model.revision, model.n_layers, model.processor.image_processor.size["height"]]

print(json.dumps([outcome(name, revision) for name, revision in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def hub(data, tmp_path_factory):
    """A function that loads (name, revision) pairs in another process, offline, from a cache with one repository.

    A branch and a tag point at one commit, the main branch at another, as the hub's client lays a cache out. The
    commits differ in depth and, so that the processor's commit shows, in the size that images are given.
    """
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--lab--tiny"
    for commit, name in ((SHALLOW, "tiny-8"), (DEEP, "tiny-12")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in (data / "demo-models" / name).iterdir():
            blob = repository / "blobs" / f"{commit}-{file.name}"
            blob.parent.mkdir(exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(blob)
    settings = repository / "blobs" / f"{DEEP}-processor_config.json"
    settings.write_text(settings.read_text().replace('"height": 64', '"height": 48'))
    for reference, commit in (("main", SHALLOW), ("deeper", DEEP), ("v1.0", DEEP)):
        path = repository / "refs" / reference
        path.parent.mkdir(exist_ok=True)
        path.write_text(commit)

    def load(pairs: list[tuple[str, str | None]]) -> list[list | str]:
        environment = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", "-c", HUB_SCRIPT, json.dumps(pairs)]
        done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    return load


def test_a_hub_id_gives_the_revision_asked_for_and_the_commit_it_stood_for(hub):
    revisions = {None: SHALLOW, "main": SHALLOW, "deeper": DEEP, "v1.0": DEEP, DEEP: DEEP, SHALLOW: SHALLOW}
    layers_and_height = {SHALLOW: [8, 64], DEEP: [12, 48]}
    missing = [("lab/tiny", "nowhere"), ("lab/tiny", ABSENT), ("lab/none", None), ("lab/a b", None)]
    found = hub([("lab/tiny", revision) for revision in revisions] + missing)
    expected = [["lab/tiny", commit, *layers_and_height[commit]] for commit in revisions.values()]
    assert found[: len(revisions)] == expected
    for (name, revision), reason in zip(missing, found[len(revisions) :], strict=True):
        at = f" at revision {revision!r}" if revision else ""
        assert reason.startswith(f"model {name!r}{at} is no directory here and cannot be found on the hub or in its")
        assert "\n" not in reason


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}/none", "./none", "~/none-of-mine", "a/b/c", "{}/file.json"])
def test_a_missing_directory_is_named(tmp_path, name):
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(HorizonError, match=r"^no model directory at .*(none|none-of-mine|c|file.json)$"):
        load_model(name.format(tmp_path))


def test_a_directory_without_a_configuration_is_named(copied):
    with pytest.raises(HorizonError, match=r"model holds no config.json: it is not a model directory"):
        load_model(copied(without=["config.json"]))


@pytest.mark.parametrize("text", ['{"model_type": ', "[1]", "{}", '{"model_type": "martian"}'])
def test_a_configuration_that_says_nothing_is_named(copied, text):
    folder = copied(without=["config.json"])
    (folder / "config.json").write_text(text)
    with pytest.raises(HorizonError, match=f"^the configuration of model '{folder}' cannot be read: "):
        load_model(folder)


@pytest.mark.parametrize("without", [PROCESSOR, PROCESSOR[:1], TOKENIZER, TOKENIZER[:1]])
def test_a_directory_without_a_processor_is_named_with_the_remedy(copied, without):
    with pytest.raises(HorizonError, match=r"model' has no processor that loads .*: copy its .* or pass processor="):
        load_model(copied(without=without))


def test_a_directory_without_weights_is_named(copied):
    with pytest.raises(HorizonError, match=r"^the weights of '.*model' cannot be loaded: "):
        load_model(copied(without=["model.safetensors"]))


@pytest.mark.parametrize("kept", [3, 100_000])
def test_weights_that_are_cut_off_are_named(tiny, copied, kept):
    folder = copied(without=["model.safetensors"])
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:kept])
    with pytest.raises(HorizonError, match=r"^the weights of '.*model' cannot be loaded: .*header"):
        load_model(folder)


def text_only() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=91, **sizes))


def test_weights_that_lack_a_tensor_are_refused_rather_than_random(tiny, copied):
    folder = copied(without=["model.safetensors"])
    tensors = load_file(tiny / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("layers.3.mlp.up_proj.weight"))
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HorizonError, match=r"lacks 1 of the model's tensors .*layers\.3\.mlp\.up_proj\.weight"):
        load_model(folder)


def test_a_revision_of_a_directory_is_refused(tiny):
    with pytest.raises(HorizonError, match="revision 'main' belongs to a hub id"):
        load_model(tiny, revision="main")


def test_a_text_only_model_is_named(tiny, tmp_path):
    text_only().save_pretrained(tmp_path)
    for name in TOKENIZER:
        shutil.copy(tiny / name, tmp_path)
    with pytest.raises(HorizonError, match=rf"^model '{tmp_path}' \(llama\) has no vision tower: it is a text-only"):
        load_model(tmp_path)
    with pytest.raises(HorizonError, match=r"LlamaForCausalLM' \(llama\) has no vision tower"):
        load_model(text_only(), processor=random_processor())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MllamaConfig, r"\(mllama\) is refused: its visual tokens never enter the sequence: .*; take a model whose"),
        (Florence2Config, r"\(florence2\) is an encoder-decoder, .*: take a decoder-only model"),
        (FuyuConfig, r"\(fuyu\) has no vision_config, .*: take one of the families that the README lists"),
    ],
)
def test_what_its_configuration_rules_out_is_named_before_weights_are_read(tmp_path, config, reason):
    config().save_pretrained(tmp_path)
    with pytest.raises(HorizonError, match=f"^model '{tmp_path}' {reason}"):
        load_model(tmp_path)


def test_a_family_without_a_description_loads_and_has_no_grid():
    model = random_llava(layers=1)
    model.config.model_type = "brand_new"
    probed = load_model(model, processor=random_processor())
    assert probed.family == Family("brand_new", None)


def test_a_decoder_that_cannot_be_captured_is_named():
    model = random_llava(layers=2)
    model.get_decoder = lambda: torch.nn.Identity()
    with pytest.raises(HorizonError, match="no decoder with layers, final norm and output embedding was found"):
        load_model(model, processor=random_processor())
    model = random_llava(layers=2)
    del model.get_decoder().layers[1].self_attn
    with pytest.raises(HorizonError, match=r"layer 1 has no self-attention \(1 such layers\), and removing tokens"):
        load_model(model, processor=random_processor())
    with pytest.raises(
        HorizonError, match="'m' declares no image token: its visual tokens cannot be found in a prompt"
    ):
        find_visual_tokens("m", LlamaConfig())


def test_a_processor_of_another_model_is_named():
    model = random_llava(layers=1)
    model.config.image_token_index = 7
    with pytest.raises(
        HorizonError, match=r"takes tokens 7 for visual ones, and its processor \(Llava.*\) writes 4: take"
    ):
        load_model(model, processor=random_processor())
    model = random_llava(layers=1)
    model.resize_token_embeddings(20)
    with pytest.raises(HorizonError, match="knows 32 tokens and the model embeds 20: take the processor that belongs"):
        load_model(model, processor=random_processor())


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="with torchvision these processors load")
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.video], ids=lambda pair: pair.name)
def test_a_processor_that_needs_torchvision_says_so_before_weights_are_read(tmp_path, pair):
    processor = pair.processor()
    pair.make()[1].save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": type(processor).__name__}))
    reason = f"^the processor of '{tmp_path}' needs torchvision, which is not installed: install the build that belongs"
    with pytest.raises(HorizonError, match=reason):
        load_model(tmp_path)


def test_dimensions_that_a_configuration_leaves_out_are_found():
    model = random_llava(layers=1)
    text = model.config.text_config
    for name in ("head_dim", "num_key_value_heads"):
        setattr(text, name, None)
    probed = load_model(model, processor=random_processor())
    assert (probed.n_heads, probed.n_key_value_heads, probed.head_dim) == (4, 4, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("paligemma", "its prefix attends both ways; choose sdpa"),
        ("gemma3", "its image attends both ways and some layers see 8 tokens back only; choose sdpa"),
    ],
)
def test_flash_attention_is_refused_where_it_is_not_exact(name, reason):
    (pair,) = [pair for pair in PAIRS if pair.name == name]
    model, processor = pair.build()
    with pytest.raises(HorizonError, match=rf"attention 'flash' is not exact for .* \({name}\): {reason}"):
        load_model(model, processor=processor, attn="flash")


def test_flash_attention_is_refused_over_sliding_layers():
    model = random_llava(layers=1)
    model.config.text_config.sliding_window = 8
    with pytest.raises(
        HorizonError, match=r"is not exact for .* \(llava\): some layers see 8 tokens back only; choose"
    ):
        load_model(model, processor=random_processor(), attn="flash")


def test_a_built_model_needs_its_processor():
    with pytest.raises(HorizonError, match=r"load_model\(LlavaForConditionalGeneration, processor=...\)"):
        load_model(random_llava(layers=1))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"attn": "flex"}, "attention 'flex' is unknown; choose from sdpa, eager, flash"),
        ({"dtype": "float99"}, r"dtype 'float99' is unknown; did you mean 'float64'\? choose from auto, float32"),
        ({"dtype": "int32"}, "dtype 'int32' is unknown"),
        ({"dtype": "half"}, "dtype 'half' is unknown; choose from auto, float32, bfloat16, float16, float64"),
        ({"dtype": torch.int32}, "the weights of .* cannot be loaded: .*not a floating-point dtype"),
        ({"quantization": "3bit"}, r"quantization '3bit' is unknown; did you mean '8bit'\? choose from 4bit, 8bit"),
    ],
)
def test_unknown_ways_to_load_are_refused(tiny, how, reason):
    with pytest.raises(HorizonError, match=reason):
        load_model(tiny, **how)


@pytest.mark.parametrize(
    ("home", "how", "reason"),
    [
        (
            "probes.loading.admission",
            {"attn": "flash"},
            "'flash' needs the package flash-attn and a GPU: pip install flash-attn, or",
        ),
        (
            "probes.loading.loading",
            {"quantization": "4bit"},
            r"needs bitsandbytes: pip install 'vlm-horizon\[quantized\]', or",
        ),
        (
            "probes.loading.loading",
            {"device_map": "auto"},
            r"'auto' needs accelerate: pip install 'vlm-horizon\[quantized\]', or",
        ),
    ],
)
def test_a_missing_package_is_named_with_the_remedy(tiny, home, how, reason, monkeypatch):
    monkeypatch.setattr(f"{home}.find_spec", lambda name: None)
    with pytest.raises(HorizonError, match=reason):
        load_model(tiny, **how)


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_for_the_same_weights(data, tiny):
    first, again = (fingerprint(load_model(tiny, dtype="float32", check=False).model) for _ in range(2))
    assert first == again
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(load_model(data / "demo-models" / "tiny-12", dtype="float32", check=False).model) != first


def test_the_fingerprint_differs_when_any_one_tensor_does():
    model = random_llava()
    seen = {fingerprint(model)}
    parameters = list(model.parameters())
    for parameter in parameters:
        kept = parameter.detach().clone()
        parameter.data += 1e-3
        seen.add(fingerprint(model))
        parameter.data = kept
    assert len(seen) == 1 + len(parameters)
    assert fingerprint(model) in seen


def test_the_fingerprint_reads_tensors_of_any_length():
    """Float32 cannot count the values of an embedding: 32,000 x 4,096 and more."""
    for length in (1, 2, 7, 2**24 + 4, 32_000 * 4_096):
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.zeros(1).expand(length))  # one value in memory
        assert len(fingerprint(model)) == 16


def test_a_processor_that_makes_other_pictures_is_refused_at_load(tiny):
    with pytest.raises(HorizonError, match=r"cannot be captured: .*Input image size \(20\*20\) doesn't match model"):
        load_model(tiny, processor=random_processor())
    assert load_model(tiny, processor=random_processor(), check=False).n_layers == 8
