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
        targets: the names of the targets that are resolved from it.
        streams: the names of the streams whose states are kept.
        tokens: the tokens that the replays will remove: "visual", "text" or "all".
    """

    targets: tuple[str, ...]
    streams: tuple[str, ...]
    tokens: str


@dataclass(frozen=True, eq=False)
class ReplayCall:
    """One call of `replay`.

    Attributes:
        ablations: the sets of tokens that are removed, each from a layer on.
        batch_size: the number of ablations in one batch; by default as many as fit.
        recompute: (token,) bool, rows that are computed again besides those that an ablation changes.
        whole: whether the distributions of all ablations are held together, not reduced batch by batch.
    """

    ablations: Ablations
    batch_size: int | None = None
    recompute: torch.Tensor | None = None
    whole: bool = False

    def run(self, case: Case) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, batch by batch, the ablations' indices and their (batch, place, vocabulary) log-softmax in nats."""
        batches = case.batches.sized(self.batch_size)
        return replay(case.model, case.captured, self.ablations, batch_size=batches, recompute=self.recompute)


@dataclass(frozen=True)
class GateCall:
    """First-order effects of every visual token, by derivatives along gates, at ascending cuts."""

    context: str
    cuts: tuple[int, ...]

    def run(self, case: Case) -> dict[str, np.ndarray]:
        """Return the (cut, visual token) effects of each target, by its name, in nats of log p."""
        return gate_effects(case.model, case.captured, case.targets, self.context, self.cuts)


@dataclass(frozen=True, eq=False)
class EntropyCall:
    """Entropies, or eigenvalues, of one stream's states at every layer.

    Attributes:
        states: (layer, token, dim) float tensor.
        alpha: the Renyi order of the entropies; None for the eigenvalues themselves.
        center: whether the mean over tokens is subtracted first.
        normalize_rows: whether every token is then scaled to length 1.
    """

    states: torch.Tensor
    alpha: float | None
    center: bool
    normalize_rows: bool

    def run(self) -> np.ndarray:
        """Return (layer,) entropies in nats, or (layer, rank) eigenvalues as shares of the trace."""
        if self.alpha is None:
            values = matrix_spectrum(self.states, center=self.center, normalize_rows=self.normalize_rows)
        else:
            values = matrix_entropy(
                self.states, alpha=self.alpha, center=self.center, normalize_rows=self.normalize_rows
            )
        return values.cpu().numpy()


@dataclass(frozen=True)
class AnswerCall:
    """A whole answer, written out by the model in at most `tokens` tokens."""

    tokens: int


@dataclass(frozen=True, eq=False)
class PlainCall:
    """A call that multiplies no large matrices: it is timed, and its operations are not counted."""

    function: Callable[[], object]


Call = ForwardCall | ReplayCall | GateCall | EntropyCall | AnswerCall | PlainCall
Calls = Sequence[Call]
