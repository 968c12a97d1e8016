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
        model: that was captured.
        captured: its forward pass on the sample's prompt.
        targets: by name; none where no answer is read.
        batches: how many replays run at once; what memory did not hold bounds all later ones of this sample.
    """

    model: ProbedModel
    captured: Capture
    targets: Mapping[str, Target]
    batches: BatchPolicy = field(default_factory=BatchPolicy, compare=False)

    @property
    def first_target(self) -> tuple[str, Target]:
        """Name and target of the first, by which a sample is judged and its noise floor measured."""
        return next(iter(self.targets.items()))
