"""Loading: from a name, a path or a built model to a proved `ProbedModel`, or a refusal in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from analyses.runs import HorizonError, check_choice
from analyses.runs.schema import DtypeName, QuantizationName
from probes.data.samples import first_line
from probes.loading.admission import (
    check_attending,
    check_attention,
    check_config,
    check_device_map,
    check_processor,
    find_parts,
    find_visual_tokens,
    several_gpus,
)
from probes.loading.check import check_model
from probes.loading.readouts import find_readout
from probes.models.families import Family, find_family
from probes.models.probed import ATTENTION, ProbedModel
from probes.replay.capture import Tracer

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps over all GPUs that are visible
NO_PROCESSOR = "copy its processor and tokenizer files beside the weights, or pass processor="


def load_model(
    name_or_path_or_model: str | Path | nn.Module,
    *,
    processor: Any = None,
    name: str | None = None,
    revision: str | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype = "auto",
    attn: str = "sdpa",
    quantization: str | None = None,
    check: bool = True,
) -> ProbedModel:
    """Return the probed model of a directory or hub id, or of a transformers model that is already built.

    Args:
        name_or_path_or_model: a checkpoint directory, a hub id, or a transformers model.
        processor: the model's processor; loaded from the same place by default, required with a built model.
        name: the model's name in runs; its id, directory or class by default. Name a model that you changed.
        revision: branch, tag or commit of a hub model.
        device_map: the device map of transformers (needs accelerate); by default the first GPU if there is one, else
            the CPU. Layers may wait in main memory or on disk, but not be spread over several GPUs.
        dtype: a torch dtype, or one of auto, float32, bfloat16, float16, float64; "auto" is the checkpoint's on a GPU
            and float32 on a CPU, where half precision is slow, or float16 with 8-bit weights, whose products are in it.
        attn: "sdpa", "eager", or "flash" (needs flash-attn and a GPU; refused where it is not exact).
        quantization: "4bit" or "8bit" (needs bitsandbytes); states are then those of the quantized model. The
            rounding of 8-bit products depends on what else is in a batch: the noise floor shows about how much.
        check: whether to prove on one prompt, in about ten forwards, that the model can be measured exactly
            (`check_model`).

    Raises:
        HorizonError: no model is at this place, it has no processor or that of another model, it is no decoder-only
            vision-language model, it is of a family that is refused, or it fails the self-test.
    """
    options = LoadOptions(dtype, attn, device_map, quantization)
    if isinstance(name_or_path_or_model, nn.Module):
        model = _wrap_built(name_or_path_or_model, processor, name, options)
    else:
        model = _load(str(name_or_path_or_model), processor, name, revision, options)
    if check and (refusal := check_model(model).refusal):
        raise HorizonError(refusal)
    return model


@dataclass(frozen=True)
class LoadOptions:
    """How weights are loaded, as `load_model` explains.

    Attributes:
        dtype: a torch dtype or its name, or "auto".
        attn: one of `ATTENTION`.
        device_map: the device map of transformers, or None.
        quantization: "4bit", "8bit" or None.
    """

    dtype: str | torch.dtype
    attn: str
    device_map: Any
    quantization: str | None

    def __post_init__(self) -> None:
        """Raise HorizonError where a word is unknown, before anything is read."""
        check_choice("attention", self.attn, ATTENTION)
        if isinstance(self.dtype, str):
            check_choice("dtype", self.dtype, get_args(DtypeName))
        if self.quantization is not None:
            check_choice("quantization", self.quantization, get_args(QuantizationName))


@dataclass(frozen=True)
class Checkpoint:
    """Where weights are: the place in the user's words, the directory or hub id, and the commit of a hub model."""

    place: str
    source: str
    commit: str | None


def _load(place: str, processor: Any, name: str | None, revision: str | None, options: LoadOptions) -> ProbedModel:
    """Return the probed model of a directory or hub id."""
    source, commit = _resolve(place, revision)
    checkpoint = Checkpoint(place, source, commit)
    config = _load_config(checkpoint)
    family = find_family(config)
    check_config(place, config, family)
    check_attention(place, options.attn, config, family)
    processor = processor or _load_processor(checkpoint)
    model = _load_weights(checkpoint, options)
    _keep_unpacked(name or place, model)
    return _checked(_probed(model, processor, name or place, commit, family, options.attn, options.quantization))


def _resolve(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return a directory and None, or a hub id and its commit, so that all files come from one commit of a branch.

    A name that looks like a path must exist.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise HorizonError(f"{path} holds no config.json: it is not a model directory")
        if revision is not None:
            raise HorizonError(f"revision {revision!r} belongs to a hub id, and {path} is a directory: leave it out")
        return str(path), None
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise HorizonError(f"no model directory at {path}")
    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        version = f" at revision {revision!r}" if revision else ""
        raise HorizonError(
            f"model {name!r}{version} is no directory here and cannot be found on the hub or in its cache: "
            f"{first_line(error)}"
        ) from error
    return name, Path(config).parent.name  # .../snapshots/<commit>/config.json


def _load_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a checkpoint."""
    name = checkpoint.place
    try:
        return AutoConfig.from_pretrained(checkpoint.source, revision=checkpoint.commit)
    except (OSError, ValueError) as error:
        raise HorizonError(f"the configuration of model {name!r} cannot be read: {first_line(error)}") from error


def _load_processor(checkpoint: Checkpoint) -> Any:
    """Return the processor of a checkpoint, which must have an image processor and a tokenizer."""
    name = checkpoint.place
    try:
        processor = AutoProcessor.from_pretrained(checkpoint.source, revision=checkpoint.commit)
    except (OSError, ValueError, ImportError) as error:
        if "torchvision" in str(error).lower():
            raise HorizonError(
                f"the processor of {name!r} needs torchvision, which is not installed: install the build that belongs "
                "to your torch, or pass processor= yourself"
            ) from error
        raise HorizonError(
            f"model {name!r} has no processor that loads ({first_line(error)}): {NO_PROCESSOR}"
        ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise HorizonError(
            f"model {name!r} has no processor for images and text (found {type(processor).__name__}): {NO_PROCESSOR}"
        )
    return processor


def _load_weights(checkpoint: Checkpoint, options: LoadOptions) -> nn.Module:
    """Return the transformers model of a checkpoint, on the device that the options name."""
    name, cuda = checkpoint.place, torch.cuda.is_available()
    placing = _placing_arguments(name, options)
    try:
        with _quiet_loading():
            model, report = AutoModelForImageTextToText.from_pretrained(
                checkpoint.source,
                revision=checkpoint.commit,
                dtype=_loaded_dtype(options),
                attn_implementation=ATTENTION[options.attn],
                output_loading_info=True,
                **placing,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise HorizonError(f"the weights of {name!r} cannot be loaded: {first_line(error)}") from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise HorizonError(
            f"the checkpoint of {name!r} lacks {len(absent)} of the model's tensors (the first is {absent[0]}), "
            "which would be random: take a complete checkpoint"
        )
    check_device_map(name, getattr(model, "hf_device_map", None))
    return model.to("cuda") if cuda and not placing else model


def _placing_arguments(name: str, options: LoadOptions) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where weights lie and in how many bits; none by default.

    Raises:
        HorizonError: a package that they need is not installed, or the layers would lie on several GPUs.
    """
    device_map, arguments = options.device_map, {}
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise HorizonError(
                f"device_map {device_map!r} needs accelerate: pip install 'vlm-horizon[quantized]', or leave it out"
            )
        check_device_map(name, device_map if isinstance(device_map, dict) else None)
        if device_map in SPREADING and torch.cuda.device_count() > 1:
            raise several_gpus(name, torch.cuda.device_count())
        arguments["device_map"] = device_map
    if options.quantization is not None:
        arguments["quantization_config"] = _quantization_config(options.quantization)
    return arguments


def _loaded_dtype(options: LoadOptions) -> Any:
    """Return the dtype to load weights in; "auto" is the checkpoint's on a GPU, float32 on a CPU, float16 in 8 bits."""
    dtype = _as_dtype(options.dtype)
    if dtype == "auto" and options.quantization == "8bit":
        return torch.float16
    return torch.float32 if dtype == "auto" and not torch.cuda.is_available() else dtype


def _as_dtype(dtype: str | torch.dtype) -> Any:
    """Return the torch dtype of this name, or "auto"."""
    return dtype if isinstance(dtype, torch.dtype) or dtype == "auto" else getattr(torch, dtype)


def _quantization_config(quantization: str) -> Any:
    """Return transformers' configuration of bitsandbytes for this quantization."""
    if find_spec("bitsandbytes") is None:
        raise HorizonError(
            f"quantization {quantization!r} needs bitsandbytes: pip install 'vlm-horizon[quantized]', or leave it out"
        )
    return transformers.BitsAndBytesConfig(**{f"load_in_{quantization}": True})


def _keep_unpacked(name: str, model: nn.Module) -> None:
    """Keep 4-bit weights in the layout of their file, on every processor.

    Where a processor has AVX512-BF16, bitsandbytes repacks them at their first product on the CPU: that fails unless
    every input width is a multiple of 64 and every output width one of 32, which the towers of PaliGemma or
    Qwen2.5-VL are not, and what is repacked is multiplied in bfloat16, too coarse for replays in float32.

    Raises:
        HorizonError: a forward pass has repacked some weights already, and their first layout is lost.
    """
    for path, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(module.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise HorizonError(
                f"the 4-bit weights of {name!r} were repacked for AVX512-BF16 ({path}) by a forward pass before it "
                "was given here, so that its products are in bfloat16: load it anew, and give it before it runs"
            )
        module.support_avx512bf16_for_cpu = False


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Turn transformers' own progress bar off for a while, since a load already has one line of ours."""
    had_progress_bar = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_progress_bar:
            transformers.utils.logging.enable_progress_bar()


def _wrap_built(model: nn.Module, processor: Any, name: str | None, options: LoadOptions) -> ProbedModel:
    """Return the probed model of a transformers model that is built already."""
    if processor is None:
        raise HorizonError(f"a built model needs its processor: load_model({type(model).__name__}, processor=...)")
    config: Any = model.config
    name = name or type(model).__name__
    family = find_family(config)
    check_config(name, config, family)
    check_attention(name, options.attn, config, family)
    check_device_map(name, getattr(model, "hf_device_map", None))
    dtype = options.dtype
    if dtype != "auto" and _quantized(model):
        raise HorizonError(f"model {name!r} is quantized, so its dtype cannot be changed to {dtype}: leave dtype out")
    if dtype != "auto":
        model = model.to(_as_dtype(dtype))
    _keep_unpacked(name, model)
    model.set_attn_implementation(ATTENTION[options.attn])  # type: ignore[operator]
    return _checked(_probed(model, processor, name, None, family, options.attn, _quantized(model)))


def _probed(
    model: nn.Module,
    processor: Any,
    name: str,
    revision: str | None,
    family: Family,
    attn: str,
    quantization: str | None,
) -> ProbedModel:
    """Return a model with its parts by role, after a check that its layers can be measured."""
    config: Any = model.config
    decoder, head = find_parts(name, model)
    text = config.get_text_config(decoder=True)
    ids = find_visual_tokens(name, config)
    layers: Any = decoder.layers
    norm: Any = decoder.norm
    check_attending(name, layers)
    vocabulary: Any = head.weight
    model = model.eval()
    return ProbedModel(
        model=model,
        processor=processor,
        name=name,
        revision=revision,
        family=family,
        decoder=decoder,
        layers=layers,
        norm=norm,
        head=head,
        n_layers=len(layers),
        n_heads=text.num_attention_heads,
        n_key_value_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=_head_dim(layers[0], text),
        hidden_size=text.hidden_size,
        vocab_size=vocabulary.shape[0],
        visual_token_ids=ids,
        attn=attn,
        quantization=quantization,
        readout=find_readout(name, model, norm, head, ids),
        tracer=Tracer(model, decoder),
    )


def _checked(probed: ProbedModel) -> ProbedModel:
    """Return the same model, after a check that its processor belongs to it."""
    embeddings = probed.model.get_input_embeddings().weight  # type: ignore[operator]
    check_processor(probed.name, probed.processor, probed.visual_token_ids, embeddings.shape[0])
    return probed


def _head_dim(layer: Any, text: Any) -> int:
    """Return the width of an attention head: the layer's, else the configured one, else hidden size over heads."""
    declared = getattr(getattr(layer, "self_attn", None), "head_dim", None) or getattr(text, "head_dim", None)
    return declared or text.hidden_size // text.num_attention_heads


def _quantized(model: nn.Module) -> str | None:
    """Return the quantization that a built model declares: "4bit", "8bit" or None."""
    bits = {"is_loaded_in_4bit": "4bit", "is_loaded_in_8bit": "8bit"}
    return next((name for attribute, name in bits.items() if getattr(model, attribute, False)), None)
