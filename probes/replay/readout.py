"""From the residual stream to log-probabilities: final norm, output embedding, and what a model does to its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from probes.models.probed import ProbedModel


@dataclass(frozen=True)
class Logits:
    """What a model makes of the output embedding's values: scale * x, then softly capped at +- cap.

    Attributes:
        scale: factor, as in Cohere and Granite.
        cap: c of c * tanh(x / c), as in Gemma 2; None for no cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Logits of the output embedding's values, the same shape."""
        scaled = values if self.scale == 1.0 else values * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the vocabulary, in float32 at least."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def note_logits(model: ProbedModel, states: torch.Tensor, logits: torch.Tensor) -> None:
    """Find out, once a model, what it does to its logits: whether its class follows its configuration is not said.

    Args:
        model: as loaded.
        states: (place, hidden) input of the final norm.
        logits: (place, vocabulary) of the model's own forward there.
    """
    if "logits" in model.memo:
        return
    values = model.head(model.norm(states))
    model.memo["logits"] = min(_candidates(model), key=lambda one: float((one(values) - logits).abs().max()))


def read_out(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """(..., hidden) input of the final norm -> (..., vocabulary) log-softmax, as the model itself gives it."""
    return log_softmax(read_logits(model, states))


def read_logits(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """(..., hidden) input of the final norm -> (..., vocabulary) logits, as the model itself gives them."""
    logits: torch.Tensor = model.memo.get("logits", Logits())(model.head(model.norm(states)))
    return logits


def _candidates(model: ProbedModel) -> list[Logits]:
    """What the configurations name, the plain output embedding first."""
    config: Any = model.model.config
    found = [Logits()]
    for one in (config, config.get_text_config(decoder=True)):
        cap, scale = getattr(one, "final_logit_softcapping", None), getattr(one, "logit_scale", None)
        divisor = getattr(one, "logits_scaling", None)
        found += [Logits(cap=float(cap))] if cap else []
        found += [Logits(scale=float(scale))] if isinstance(scale, int | float) and scale else []
        found += [Logits(scale=1.0 / float(divisor))] if divisor else []
    return found
