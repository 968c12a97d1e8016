"""What a call takes, kind by kind: its operations, its memory, a shorter version of it, and how it is run.

The kinds of calls are few (`probes.measures.calls`) and every part of a measurement is made of them, so a new probe
needs no line here; a new kind of call is one entry of `METERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probes.cost.memory import capture_bytes, entropy_bytes, forward_bytes, replay_bytes
from probes.cost.operations import (
    Batch,
    Work,
    entropy_operations,
    forward_operations,
    make_batches,
    replay_work,
)
from probes.cost.passes import Pass, gate_passes, pass_bytes, pass_work
from probes.cost.workload import Subject
from probes.measures.calls import (
    AnswerCall,
    Call,
    EntropyCall,
    ForwardCall,
    GateCall,
    PlainCall,
    ReplayCall,
)
from probes.measures.entropy import matrices_at_once
from probes.measures.generation import generate_answer
from probes.measures.information import target_log_p
from probes.measures.preparing import prepare
from probes.parts.part import Part

Memory = tuple[str, int, str]  # the name of the part of memory, its bytes, and the formula behind them


class Meter(ABC):
    """Measures the cost of calls of one kind, on one subject."""

    def work(self, subject: Subject, call: Any) -> Work:
        """Return the replays, rows and operations of a call."""
        return Work()

    def shortened(self, subject: Subject, call: Any, operations: float) -> Any:
        """Return the largest call of the same kind with at most so many operations.

        Where none is that small, it is the smallest call from which the whole one can be extrapolated.
        """
        return call

    @abstractmethod
    def run(self, subject: Subject, call: Any) -> object:
        """Run a call as a measurement does."""

    def memory(self, subject: Subject, call: Any) -> Memory | None:
        """Return the memory that a call takes beside the capture; None where a forward pass takes more."""
        return None


class _ForwardMeter(Meter):
    def work(self, subject: Subject, call: ForwardCall) -> Work:
        n_tokens = subject.case.captured.prompt.n_tokens
        return Work(operations=subject.vision + forward_operations(subject.weights, n_tokens, subject.places))

    def run(self, subject: Subject, call: ForwardCall) -> object:
        targets = call.targets if subject.case.targets else ()
        return prepare(subject.case.model, subject.sample, targets, call.streams, call.tokens)

    def memory(self, subject: Subject, call: ForwardCall) -> Memory:
        return "forward", *forward_bytes(subject)


class _ReplayMeter(Meter):
    def work(self, subject: Subject, call: ReplayCall) -> Work:
        return replay_work(subject.weights, _batches(subject, call), subject.places)

    def shortened(self, subject: Subject, call: ReplayCall, operations: float) -> ReplayCall:
        """Return the call with as many evenly spread sets of tokens as a batch holds, at the deepest cuts that fit."""
        if self.work(subject, call).operations <= operations:
            return call
        ablations = call.ablations
        sets = ablations.of_each(torch.arange(len(ablations.masks), device=ablations.layers.device))
        widest = max(len(batch.layers) for batch in _batches(subject, call))
        if len(ablations.masks) > widest:
            spread = np.linspace(0, len(ablations.masks) - 1, widest).round().astype(int)
            in_subset = torch.isin(sets, torch.from_numpy(spread).to(sets))
        else:
            in_subset = torch.ones_like(sets, dtype=torch.bool)

        def at(cuts: list[int]) -> ReplayCall:
            deep = torch.isin(ablations.layers, ablations.layers.new_tensor(cuts))
            return replace(call, ablations=ablations[(in_subset & deep).nonzero()[:, 0]])

        cuts = ablations.layers.unique().tolist()
        return at(_deepest(cuts, lambda subset: self.work(subject, at(subset)).operations <= operations))

    def run(self, subject: Subject, call: ReplayCall) -> object:
        return target_log_p(subject.case, call)

    def memory(self, subject: Subject, call: ReplayCall) -> Memory:
        return "replays", *max(replay_bytes(subject, call, batch) for batch in _batches(subject, call))


def _batches(subject: Subject, call: ReplayCall) -> list[Batch]:
    return make_batches(
        subject.case.model,
        subject.case.captured,
        call.ablations,
        batch_size=call.batch_size,
        recompute=call.recompute,
    )


class _GateMeter(Meter):
    def work(self, subject: Subject, call: GateCall) -> Work:
        return pass_work(subject.weights, _passes(subject, call), len(subject.case.targets), subject.places)

    def shortened(self, subject: Subject, call: GateCall, operations: float) -> GateCall:
        """Return the call at the deepest cuts that fit, or at all of them."""

        def at(cuts: list[int]) -> GateCall:
            return replace(call, cuts=tuple(cuts))

        return at(_deepest(list(call.cuts), lambda subset: self.work(subject, at(subset)).operations <= operations))

    def run(self, subject: Subject, call: GateCall) -> object:
        return call.run(subject.case)

    def memory(self, subject: Subject, call: GateCall) -> Memory:
        model, captured, targets = subject.case.model, subject.case.captured, len(subject.case.targets)
        return "gates", *max(pass_bytes(model, captured, gate_pass, targets) for gate_pass in _passes(subject, call))


def _passes(subject: Subject, call: GateCall) -> list[Pass]:
    return gate_passes(subject.case.captured, call.context, call.cuts)


def _deepest(cuts: list[int], fits: Callable[[list[int]], bool]) -> list[int]:
    """Return all cuts, or the deepest of them that fit, but at least two where there are two."""
    fewest = min(2, len(cuts))
    while len(cuts) > fewest and not fits(cuts):
        cuts = cuts[-max(fewest, len(cuts) // 2) :]
    return cuts


class _EntropyMeter(Meter):
    def work(self, subject: Subject, call: EntropyCall) -> Work:
        layers, n, d = call.states.shape
        return Work(operations=entropy_operations(n, d, layers, eigenvalues=call.alpha != 2))

    def shortened(self, subject: Subject, call: EntropyCall, operations: float) -> EntropyCall:
        """Return the call on as many layers as fit, but at least on those of one chunk."""
        layers = len(call.states)
        affordable = int(operations * layers / self.work(subject, call).operations)
        return replace(call, states=call.states[: min(layers, max(matrices_at_once(call.states), affordable))])

    def run(self, subject: Subject, call: EntropyCall) -> object:
        return call.run()

    def memory(self, subject: Subject, call: EntropyCall) -> Memory:
        return "entropies", *entropy_bytes(call.states)


class _AnswerMeter(Meter):
    def work(self, subject: Subject, call: AnswerCall) -> Work:
        """Return the work of a forward pass and then of one token at a time."""
        n_tokens = subject.case.captured.prompt.n_tokens
        steps = [Batch(np.zeros(1, int), 1, n, n) for n in range(n_tokens + 1, n_tokens + call.tokens)]
        stepwise = replay_work(subject.weights, steps, 1).operations
        forward = subject.vision + forward_operations(subject.weights, n_tokens, subject.places)
        return Work(operations=forward + stepwise)

    def run(self, subject: Subject, call: AnswerCall) -> object:
        return generate_answer(subject.case.model, subject.sample, max_new_tokens=call.tokens)


class _PlainMeter(Meter):
    def run(self, subject: Subject, call: PlainCall) -> object:
        return call.function()


METERS: dict[type, Meter] = {
    ForwardCall: _ForwardMeter(),
    ReplayCall: _ReplayMeter(),
    GateCall: _GateMeter(),
    EntropyCall: _EntropyMeter(),
    AnswerCall: _AnswerMeter(),
    PlainCall: _PlainMeter(),
}


def call_work(subject: Subject, call: Call) -> Work:
    """Return the replays, rows and operations of one call."""
    return METERS[type(call)].work(subject, call)


def part_work(subject: Subject, part: Part) -> Work:
    """Return the work of a part of a measurement; none where it reads targets and the subject has none."""
    if part.reads_targets and not subject.case.targets:
        return Work()
    return sum((call_work(subject, call) for call in part.calls(subject.case)), start=Work())


def memory_parts(subject: Subject, parts: Iterable[Part]) -> tuple[dict[str, int], dict[str, str]]:
    """Return the bytes that one sample takes, and the formulas behind them, both by part of memory.

    The parts are the capture, which stays, and the largest call of each kind, which is transient.
    """
    largest = {"capture": capture_bytes(subject), "forward": forward_bytes(subject)}
    for call in (call for part in parts for call in part.calls(subject.case)):
        memory = METERS[type(call)].memory(subject, call)
        if memory is not None:
            label, size, text = memory
            largest[label] = max(largest.get(label, (0, "")), (size, text))
    return {label: size for label, (size, _) in largest.items()}, {label: text for label, (_, text) in largest.items()}
