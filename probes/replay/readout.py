"""From the residual stream to log-probabilities: final norm, output embedding, and what a model does to its logits."""

from __future__ import annotations

import torch

from probes.models.probed import ProbedModel


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Return the log-softmax over the last axis, the vocabulary, in nats, of the same shape and in float32 at least."""
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def read_out(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """Return the model's log-softmax in nats, (..., vocabulary), from the (..., hidden) input of its final norm."""
    return log_softmax(read_logits(model, states))


def read_logits(model: ProbedModel, states: torch.Tensor) -> torch.Tensor:
    """Return the model's logits, (..., vocabulary), from the (..., hidden) input of its final norm."""
    return model.readout(model.head(model.norm(states)))
