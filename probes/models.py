"""Load a vision-language model and find the parts that every measurement needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from analyses.runs import HorizonError
from probes.admission import (
    check_attention,
    check_config,
    check_device_map,
    check_layers,
    check_processor,
    find_parts,
    find_visual_tokens,
)
from probes.families import Family, find_family

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps over all GPUs that are visible
ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}  # ours -> transformers'
NO_PROCESSOR = "copy its processor and tokenizer files beside the weights, or pass processor="


@dataclass(frozen=True)
class ProbedModel:
    """A vision-language model in evaluation mode, with its parts by role. Made by `load_model`.

    Attributes:
        model: the transformers model.
        processor: its processor (tokenizer, image processor, chat template).
        name: hub id, directory or class name.
        revision: commit of a hub model, else None.
        family: where its visual tokens lie.
        decoder: the text decoder; `layers` its L layers, `norm` the final norm, `head` the output embedding.
        n_layers, n_heads, n_key_value_heads, head_dim, hidden_size, vocab_size: dimensions of the decoder.
        visual_token_ids: ids that stand for visual tokens in the prompt.
        attn: attention implementation of the decoder.
        quantization: "4bit", "8bit" or None.
    """

    model: nn.Module
    processor: Any
    name: str
    revision: str | None
    family: Family
    decoder: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    visual_token_ids: tuple[int, ...]
    attn: str
    quantization: str | None = None
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # what is built once a model

    @property
    def recorded(self) -> dict[str, Any]:
        """What a run's configuration says of a model, but for its weights and processor."""
        same = ("revision", "n_layers", "n_heads", "n_key_value_heads", "head_dim", "hidden_size", "vocab_size", "attn")
        own = {"model": self.name, "family": self.family.name, "quantization": self.quantization}
        return {**own, "dtype": str(self.dtype).removeprefix("torch."), **{name: getattr(self, name) for name in same}}

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the input embeddings live, or are taken to when they are needed."""
        embeddings = self.model.get_input_embeddings()  # type: ignore[operator]
        away = embeddings.weight.is_meta
        return torch.device(embeddings._hf_hook.execution_device) if away else embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self.model.dtype  # type: ignore[return-value]


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
    """Load a model from a directory or hub id, or wrap one that is already built.

    Args:
        name_or_path_or_model: a checkpoint directory, a hub id, or a transformers model.
        processor: its processor; loaded from the same place by default, required with a built model.
        name: what to call the model in runs; its id, directory or class by default. Name a model that you changed.
        revision: branch, tag or commit of a hub model.
        device_map: as in transformers (needs accelerate); by default the first GPU if there is one, else the CPU.
            Layers may wait in main memory or on disk, but not be spread over several GPUs.
        dtype: a torch dtype or its name; "auto" is the checkpoint's on a GPU and float32 on a CPU, where half
            precision is slow, or float16 with 8-bit weights, whose products are in it.
        attn: "sdpa", "eager", or "flash" (needs flash-attn and a GPU; refused where it is not exact).
        quantization: "4bit" or "8bit" (needs bitsandbytes); states are then those of the quantized model. The
            rounding of 8-bit products depends on what else is in a batch: the noise floor shows about how much.
        check: prove on one prompt that it can be measured exactly (`check_model`): about ten forwards.

    Raises:
        HorizonError: nothing is there, it has no processor or that of another model, it is no decoder-only
            vision-language model, it is of a family that is refused, or it fails the self-test.
    """
    model = _load(name_or_path_or_model, processor, name, revision, device_map, dtype, attn, quantization)
    if check:
        from probes.check import check_model  # it runs captures and replays, which know this module

        if refusal := check_model(model).refusal:
            raise HorizonError(refusal)
    return model


def _load(
    name_or_path_or_model: str | Path | nn.Module,
    processor: Any,
    name: str | None,
    revision: str | None,
    device_map: Any,
    dtype: str | torch.dtype,
    attn: str,
    quantization: str | None,
) -> ProbedModel:
    if attn not in ATTENTION:
        raise HorizonError(f"attention {attn!r} is not supported; choose one of {', '.join(ATTENTION)}")
    if isinstance(name_or_path_or_model, nn.Module):
        return _wrap_built(name_or_path_or_model, processor, name, dtype, attn)
    place = str(name_or_path_or_model)
    source, commit = _resolve(place, revision)
    config = _load_config(place, source, commit)
    family = find_family(config)
    check_config(place, config, family)
    check_attention(place, attn, config, family)
    processor = processor or _load_processor(place, source, commit)
    model = _load_weights(place, source, commit, device_map, dtype, attn, quantization)
    _keep_unpacked(name or place, model)
    return _checked(_probed(model, processor, name or place, commit, family, attn, quantization))


def _resolve(name: str, revision: str | None) -> tuple[str, str | None]:
    """A directory as it stands, or a hub id and its commit, so that a branch that moves is not read half.

    What looks like a path must exist.
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
        at = f" at revision {revision!r}" if revision else ""
        raise HorizonError(
            f"model {name!r}{at} is no directory here and cannot be found on the hub or in its cache: {_first(error)}"
        ) from error
    return name, Path(config).parent.name  # .../snapshots/<commit>/config.json


def _load_config(name: str, source: str, commit: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(source, revision=commit)
    except (OSError, ValueError) as error:
        raise HorizonError(f"the configuration of model {name!r} cannot be read: {_first(error)}") from error


def _load_processor(name: str, source: str, commit: str | None) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(source, revision=commit)
    except (OSError, ValueError, ImportError) as error:
        if "torchvision" in str(error).lower():
            raise HorizonError(
                f"the processor of {name!r} needs torchvision, which is not installed: install the build that belongs "
                "to your torch, or pass processor= yourself"
            ) from error
        raise HorizonError(f"model {name!r} has no processor that loads ({_first(error)}): {NO_PROCESSOR}") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise HorizonError(
            f"model {name!r} has no processor for images and text (found {type(processor).__name__}): {NO_PROCESSOR}"
        )
    return processor


def _load_weights(
    name: str,
    source: str,
    commit: str | None,
    device_map: Any,
    dtype: str | torch.dtype,
    attn: str,
    quantization: str | None,
) -> nn.Module:
    cuda = torch.cuda.is_available()
    wanted = _as_dtype(dtype)
    if dtype == "auto" and (quantization == "8bit" or not cuda):
        wanted = torch.float16 if quantization == "8bit" else torch.float32
    extra: dict[str, Any] = {}
    if device_map is not None:
        if find_spec("accelerate") is None:
            raise HorizonError(
                f"device_map {device_map!r} needs accelerate: pip install 'vlm-horizon[quantized]', or leave it out"
            )
        check_device_map(name, device_map if isinstance(device_map, dict) else None)
        if device_map in SPREADING and torch.cuda.device_count() > 1:
            raise HorizonError(
                f"device_map {device_map!r} spreads {name!r} over {torch.cuda.device_count()} GPUs, where replays have "
                "not been proved: make one visible (CUDA_VISIBLE_DEVICES=0), and what does not fit waits in main memory"
            )
        extra["device_map"] = device_map
    if quantization is not None:
        extra["quantization_config"] = _quantization_config(quantization)
    try:
        with _quiet_loading():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source,
                revision=commit,
                dtype=wanted,
                attn_implementation=ATTENTION[attn],
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise HorizonError(f"the weights of {name!r} cannot be loaded: {_first(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise HorizonError(
            f"the checkpoint of {name!r} lacks {len(missing)} of the model's tensors (the first is {missing[0]}), "
            "which would be random: take a complete checkpoint"
        )
    check_device_map(name, getattr(model, "hf_device_map", None))
    if not extra and cuda:
        model = model.to("cuda")
    return model


def _as_dtype(dtype: str | torch.dtype) -> Any:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise HorizonError(f"dtype {dtype!r} is unknown; choose auto, float32, bfloat16, float16 or float64")
    return found


def _quantization_config(quantization: str) -> Any:
    if quantization not in {"4bit", "8bit"}:
        raise HorizonError(f"quantization {quantization!r} is unknown; choose 4bit or 8bit")
    if find_spec("bitsandbytes") is None:
        raise HorizonError(
            f"quantization {quantization!r} needs bitsandbytes: pip install 'vlm-horizon[quantized]', or leave it out"
        )
    return transformers.BitsAndBytesConfig(**{f"load_in_{quantization}": True})


def _keep_unpacked(name: str, model: nn.Module) -> None:
    """Have 4-bit weights stay as they were read, on every processor.

    Where a processor has AVX512-BF16, bitsandbytes repacks them at their first product on the CPU: that fails unless
    every input width is a multiple of 64 and every output width one of 32, which the towers of PaliGemma or
    Qwen2.5-VL are not, and what is repacked is multiplied in bfloat16, too coarse for replays in float32.

    Raises:
        HorizonError: a forward pass has repacked some of them already, and what was there before is gone.
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
    """Without transformers' own progress bar: a load has one line of ours."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _wrap_built(model: nn.Module, processor: Any, name: str | None, dtype: str | torch.dtype, attn: str) -> ProbedModel:
    if processor is None:
        raise HorizonError(f"a built model needs its processor: load_model({type(model).__name__}, processor=...)")
    config: Any = model.config
    name = name or type(model).__name__
    family = find_family(config)
    check_config(name, config, family)
    check_attention(name, attn, config, family)
    check_device_map(name, getattr(model, "hf_device_map", None))
    if dtype != "auto" and _quantized(model):
        raise HorizonError(f"model {name!r} is quantized, so its dtype cannot be changed to {dtype}: leave dtype out")
    if dtype != "auto":
        model = model.to(_as_dtype(dtype))
    _keep_unpacked(name, model)
    model.set_attn_implementation(ATTENTION[attn])  # type: ignore[operator]
    return _checked(_probed(model, processor, name, None, family, attn, _quantized(model)))


def _probed(
    model: nn.Module,
    processor: Any,
    name: str,
    revision: str | None,
    family: Family,
    attn: str,
    quantization: str | None,
) -> ProbedModel:
    config: Any = model.config
    decoder, head = find_parts(name, model)
    text = config.get_text_config(decoder=True)
    ids = find_visual_tokens(name, config)
    layers: Any = decoder.layers
    check_layers(name, layers)
    vocabulary: Any = head.weight
    return ProbedModel(
        model=model.eval(),
        processor=processor,
        name=name,
        revision=revision,
        family=family,
        decoder=decoder,
        layers=layers,
        norm=decoder.norm,  # type: ignore[arg-type]
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
    )


def _checked(probed: ProbedModel) -> ProbedModel:
    """The same, once its layers and its processor are known to be of use."""
    embeddings = probed.model.get_input_embeddings().weight  # type: ignore[operator]
    check_processor(probed.name, probed.processor, probed.visual_token_ids, embeddings.shape[0])
    return probed


def _head_dim(layer: Any, text: Any) -> int:
    """As the layer has it, else as configured: some configurations leave it to be computed."""
    declared = getattr(getattr(layer, "self_attn", None), "head_dim", None) or getattr(text, "head_dim", None)
    return declared or text.hidden_size // text.num_attention_heads


def _quantized(model: nn.Module) -> str | None:
    """What a model that was built elsewhere says of itself."""
    bits = {"is_loaded_in_4bit": "4bit", "is_loaded_in_8bit": "8bit"}
    return next((name for attribute, name in bits.items() if getattr(model, attribute, False)), None)


def fingerprint(model: nn.Module) -> str:
    """16 hex digits over names, shapes and 64 spread values of every parameter: other weights, other digits."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with _present(model, name, parameter) as present:
            flat = present.detach().reshape(-1)
            spread = flat[torch.linspace(0, len(flat) - 1, 64, dtype=torch.float64, device=flat.device).long()]
            digest.update(f"{name}{tuple(parameter.shape)}{spread.float().cpu().tolist()}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _present(model: nn.Module, name: str, parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """A parameter with its values: a device map may leave them on disk or in main memory until they are needed."""
    if not parameter.is_meta:
        yield parameter
        return
    from accelerate.utils import align_module_device  # which placed the model, so it is there

    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    with align_module_device(owner):
        yield getattr(owner, leaf)


def _first(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
