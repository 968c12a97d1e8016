"""From the residual stream to log-probabilities: final norm, output embedding, and what a model does to its logits."""

from __future__ import annotations

import torch

from probes.models.probed import ProbedModel


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the vocabulary, the last axis, of the same shape, in float32 at least."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def read_out(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """(..., hidden) input of the final norm -> (..., vocabulary) log-softmax, as the model itself gives it."""
    return log_softmax(read_logits(model, states))


def read_logits(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """(..., hidden) input of the final norm -> (..., vocabulary) logits, as the model itself gives them."""
    return model.readout(model.head(model.norm(states)))
