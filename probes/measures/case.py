"""One captured sample, as every measurement takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.batching import BatchPolicy
from probes.replay.capture import Capture


@dataclass(frozen=True)
class Case:
    """One captured sample and what counts as its answer.

    Attributes:
        model: the model whose forward pass was captured.
        captured: the forward pass on the sample's prompt.
        targets: the targets by name; empty where no answer is read.
        batches: the policy for the size of replay batches. A batch that did not fit in memory bounds all later ones.
    """

    model: ProbedModel
    captured: Capture
    targets: Mapping[str, Target]
    batches: BatchPolicy = field(default_factory=BatchPolicy, compare=False)

    @property
    def first_target(self) -> tuple[str, Target]:
        """Name and value of the first target, which judges the sample and whose noise floor is measured."""
        return next(iter(self.targets.items()))
