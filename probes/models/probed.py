"""A vision-language model with the parts that every measurement needs, by role."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from probes.models.families import Family

ATTENTION = {"sdpa": "sdpa", "eager": "eager", "flash": "flash_attention_2"}  # ours -> transformers'


@dataclass(frozen=True)
class Readout:
    """How a model turns the values of its output embedding into logits: scale * x, then softly capped at +- cap.

    Attributes:
        scale: the factor, as in Cohere and Granite.
        cap: c of c * tanh(x / c), as in Gemma 2; None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return the logits from the values of the output embedding, of the same shape."""
        scaled = values if self.scale == 1.0 else values * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


@dataclass(frozen=True)
class ProbedModel:
    """A vision-language model in evaluation mode, with its parts by role. Made by `load_model`, never changed.

    Attributes:
        model: the transformers model.
        processor: the model's processor (tokenizer, image processor, chat template).
        name: hub id, directory or class name.
        revision: commit of a hub model, else None.
        family: the model's family, which says where its visual tokens lie.
        decoder: the text decoder; `layers` its L layers, `norm` the final norm, `head` the output embedding.
        n_layers, n_heads, n_key_value_heads, head_dim, hidden_size, vocab_size: dimensions of the decoder.
        visual_token_ids: ids that stand for visual tokens in the prompt.
        attn: attention implementation of the decoder.
        quantization: "4bit", "8bit" or None.
        readout: how the output embedding's values become logits.
        tracer: the model's traceable views, a `probes.replay.capture.Tracer`.
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
    quantization: str | None
    readout: Readout
    tracer: Any = field(repr=False, compare=False)

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields of a run's configuration that describe the model, except those of its weights and processor."""
        attributes = (
            "revision",
            "n_layers",
            "n_heads",
            "n_key_value_heads",
            "head_dim",
            "hidden_size",
            "vocab_size",
            "attn",
        )
        names = {"model": self.name, "family": self.family.name, "quantization": self.quantization}
        dtype = str(self.dtype).removeprefix("torch.")
        return {**names, "dtype": dtype, **{name: getattr(self, name) for name in attributes}}

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """The device on which prompts are encoded and replays start: that of the input embeddings."""
        return embedding_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.model.dtype  # type: ignore[return-value]


def embedding_device(model: nn.Module) -> torch.device:
    """Return the device of a model's input embeddings, or the one to which a device map brings them for a forward."""
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    offloaded = embeddings.weight.is_meta
    return torch.device(embeddings._hf_hook.execution_device) if offloaded else embeddings.weight.device


def fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits that change with the weights: a hash of names, shapes and 64 values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with _present(model, name, parameter) as values:
            flat = values.detach().reshape(-1)
            spread = flat[torch.linspace(0, len(flat) - 1, 64, dtype=torch.float64, device=flat.device).long()]
            digest.update(f"{name}{tuple(parameter.shape)}{spread.float().cpu().tolist()}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _present(model: nn.Module, name: str, parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """Yield a parameter with its values, which a device map may leave on disk or in main memory until a forward."""
    if not parameter.is_meta:
        yield parameter
        return
    from accelerate.utils import align_module_device  # which placed the model, so it is there

    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    with align_module_device(owner):
        yield getattr(owner, leaf)
