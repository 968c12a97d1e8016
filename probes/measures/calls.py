"""What a measurement runs, as values: made before anything runs, so that what is counted is what runs.

Whoever measures makes a call and runs it; whoever wants to know what that takes (`probes.cost`) makes the same call
and counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probes.gates.gate import gate_effects
from probes.measures.case import Case
from probes.measures.entropy import matrix_entropy, matrix_spectrum
from probes.replay.ablations import Ablations
from probes.replay.replay import replay


@dataclass(frozen=True)
class ForwardCall:
    """One forward pass of the model itself, captured.

    Attributes:
        targets: names of those that are resolved.
        streams: whose states are kept.
        tokens: which are to be taken away: visual, text or all.
    """

    targets: tuple[str, ...]
    streams: tuple[str, ...]
    tokens: str


@dataclass(frozen=True, eq=False)
class ReplayCall:
    """One call of `replay`.

    Attributes:
        ablations: what is taken away, and from which layer on.
        batch_size: ablations at once; as many as fit by default.
        recompute: (token,) bool, rows to run again besides those that must be.
        whole: the distributions of all ablations are held together, not reduced batch by batch.
    """

    ablations: Ablations
    batch_size: int | None = None
    recompute: torch.Tensor | None = None
    whole: bool = False

    def run(self, case: Case) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Indices of ablations and their (batch, place, vocabulary) log-softmax, batch by batch."""
        batches = case.batches.sized(self.batch_size)
        return replay(case.model, case.captured, self.ablations, batch_size=batches, recompute=self.recompute)


@dataclass(frozen=True)
class GateCall:
    """First-order effects of every visual token, by derivatives along gates, at ascending cuts."""

    context: str
    cuts: tuple[int, ...]

    def run(self, case: Case) -> dict[str, np.ndarray]:
        """By target: (cut, visual token) effects in nats of log p."""
        return gate_effects(case.model, case.captured, case.targets, self.context, self.cuts)


@dataclass(frozen=True, eq=False)
class EntropyCall:
    """Entropies, or eigenvalues, of one stream's states at every layer.

    Attributes:
        states: (layer, token, dim).
        alpha: Renyi order of the entropies; None for the eigenvalues themselves.
        center: center tokens first.
        normalize_rows: scale tokens to length 1 then.
    """

    states: torch.Tensor
    alpha: float | None
    center: bool
    normalize_rows: bool

    def run(self) -> np.ndarray:
        """(layer,) entropies in nats, or (layer, rank) eigenvalues over the trace."""
        if self.alpha is None:
            found = matrix_spectrum(self.states, center=self.center, normalize_rows=self.normalize_rows)
        else:
            found = matrix_entropy(
                self.states, alpha=self.alpha, center=self.center, normalize_rows=self.normalize_rows
            )
        return found.cpu().numpy()


@dataclass(frozen=True)
class AnswerCall:
    """A whole answer, written out by the model in at most so many tokens."""

    tokens: int


@dataclass(frozen=True, eq=False)
class PlainCall:
    """Anything that multiplies no large matrices: it is timed, not counted."""

    function: Callable[[], object]


Call = ForwardCall | ReplayCall | GateCall | EntropyCall | AnswerCall | PlainCall
Calls = Sequence[Call]
