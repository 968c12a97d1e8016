"""Time the parts of a measurement on the model itself, as far as a budget allows, and scale them up by operations.

Each call of a part is run as a measurement runs it, on as many cuts and windows as its share of the budget pays for.
Batches are as wide as those of the measurement, so overhead and products keep their proportion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from probes.cost.meters import METERS, call_work, part_work
from probes.cost.workload import Clock, Subject, timed
from probes.measures.calls import AnswerCall, Call, ForwardCall
from probes.parts.part import Part

REPEATS = 3
TIMED_TOKENS = 4  # of a whole answer


@dataclass(frozen=True)
class _Stopwatch:
    """Times calls on one sample.

    Attributes:
        subject: the sample.
        clock: the function that returns seconds.
    """

    subject: Subject
    clock: Clock

    def seconds(self, call: Call, share: float) -> float:
        """Return the seconds of a whole call, scaled up from as much of it as half its share of the budget pays for.

        A first run of the shortest version says how much that is. Where that run alone exceeds the share (in seconds),
        it is scaled up itself.
        """
        if isinstance(call, AnswerCall):
            return self._answer(call)
        meter = METERS[type(call)]
        shortest = meter.shortened(self.subject, call, 0.0)
        first = self.subject.seconds if isinstance(call, ForwardCall) else self._once(shortest)
        if first > share:
            return first * self._times(call, shortest)
        rate = call_work(self.subject, shortest).operations / first
        longest = meter.shortened(self.subject, call, rate * share / 2)
        return self._repeated(longest, share) * self._times(call, longest)

    def _once(self, call: Call) -> float:
        return self._timed(partial(METERS[type(call)].run, self.subject, call))[0]

    def _repeated(self, call: Call, share: float) -> float:
        """Return the median seconds of `REPEATS` runs after a first one; of fewer runs where these exceed the share."""
        first = self._once(call)
        if first > share:
            return first
        repeats = 1 if first * REPEATS > share else REPEATS
        return float(np.median([self._once(call) for _ in range(repeats)]))

    def _times(self, call: Call, short: Call) -> float:
        """Return the operations of a whole call as a multiple of those of a shorter one."""
        operations = call_work(self.subject, short).operations
        return call_work(self.subject, call).operations / operations if operations else 1.0

    def _timed(self, function: Callable[[], Any]) -> tuple[float, Any]:
        return timed(self.subject.case.model, function, self.clock)

    def _answer(self, call: AnswerCall) -> float:
        """Return the seconds of an answer, from its first token and a few more, each of which stands for the rest."""
        seconds_by_length: dict[int, float] = {}
        for limit in sorted({1, min(call.tokens, TIMED_TOKENS)}):
            seconds, answer = self._timed(partial(METERS[AnswerCall].run, self.subject, AnswerCall(limit)))
            seconds_by_length[len(answer.ids)] = min(seconds, seconds_by_length.get(len(answer.ids), math.inf))
        first, longest = seconds_by_length[min(seconds_by_length)], max(seconds_by_length)
        if longest > 1:
            return first + (call.tokens - 1) * max(0.0, seconds_by_length[longest] - first) / (longest - 1)
        return first * self._times(call, AnswerCall(1))  # it ends at once, so later tokens go by their operations


def time_parts(
    subject: Subject, parts: Iterable[Part], *, budget: float, clock: Clock = time.perf_counter
) -> dict[Part, float]:
    """Return about how many seconds each part takes on one sample.

    Of parts with one name the largest is timed, and the others are scaled from it by their operations.

    Args:
        subject: the sample.
        parts: the parts of the measurement.
        budget: the seconds that the timing itself may take, about.
        clock: the function that returns seconds; processor time is better on a busy machine.

    Raises:
        HorizonError: the model fails in a part.
    """
    operations = {part: part_work(subject, part).operations for part in parts}
    largest: dict[str, Part] = {}
    for part in operations:
        if part.name not in largest or operations[part] > operations[largest[part.name]]:
            largest[part.name] = part
    total = sum(operations[part] for part in largest.values()) or 1.0
    watch = _Stopwatch(subject, clock)
    seconds = {}
    for part in largest.values():
        share = budget * max(1 / 12, operations[part] / total)
        seconds[part.name] = _part_seconds(watch, part, share, operations[part])
    return {
        part: seconds[part.name] * (count / operations[largest[part.name]] if operations[largest[part.name]] else 1.0)
        for part, count in operations.items()
    }


def _part_seconds(watch: _Stopwatch, part: Part, share: float, operations: float) -> float:
    """Return the seconds of all calls of a part, which divide its share of the budget by their operations."""
    calls = part.calls(watch.subject.case)
    shares = [share * (call_work(watch.subject, call).operations / operations if operations else 1.0) for call in calls]
    return sum(watch.seconds(call, part_of) for call, part_of in zip(calls, shares, strict=True))
