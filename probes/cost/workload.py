"""One sample, captured, whose cost stands for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from analyses.runs import RunConfig
from probes.cost.operations import DecoderWeights, counted_vision, decoder_weights
from probes.data.samples import Sample, SampleError
from probes.measures.case import Case
from probes.measures.preparing import prepare
from probes.models.probed import ProbedModel
from probes.plans.plans import replayed

Clock = Callable[[], float]


@dataclass(frozen=True)
class Subject:
    """One sample, captured, whose cost stands for all.

    Attributes:
        sample: the sample, with the run's prompt.
        case: its captured forward pass with the targets of the run, which are none where nothing is replayed.
        weights: the multiplications of the model's decoder.
        vision: the operations outside the decoder.
        vision_bytes: the bytes of the vision tower's states, about.
        seconds: the time of the first forward pass, including the encoding.
    """

    sample: Sample
    case: Case
    weights: DecoderWeights
    vision: float
    vision_bytes: int
    seconds: float

    @property
    def places(self) -> int:
        """The number of readout places of the prompt."""
        return len(self.case.captured.prompt.readout)


def meet(model: ProbedModel, sample: Sample, config: RunConfig, clock: Clock = time.perf_counter) -> Subject:
    """Return a sample captured, with its operations counted and its time taken.

    Raises:
        SampleError: the sample cannot be measured, or has none of the targets.
    """
    targets = config.targets if replayed(config) else ()
    with counted_vision(model) as vision:
        seconds, case = timed(model, lambda: prepare(model, sample, targets, config.streams, config.tokens), clock)
    if targets and not case.targets:
        raise SampleError(f"sample {sample.id!r}: the model answers wrong, so it has no {targets[0]!r} target")
    return Subject(sample, case, decoder_weights(model), vision.operations, vision.stored, seconds)


def timed(model: ProbedModel, function: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    """Return the seconds of one call, including what a GPU still computes, and the call's result."""
    _wait(model)
    started = clock()
    result = function()
    _wait(model)
    return max(clock() - started, 1e-9), result


def _wait(model: ProbedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
