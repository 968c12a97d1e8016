"""Time the parts of a measurement on the model itself, as far as a budget allows, and scale them up by operations.

Each part (forward, entropies, removals, token grids, backward passes, noise floor) is run by the functions that runs
use, on as many cuts and windows as its share of the budget pays for. Batches are as wide as those of the measurement,
so overhead and products keep their proportion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from analyses.runs import RunConfig
from probes.cost.operations import Work, decoder_weights, make_batches, replay_work
from probes.cost.passes import gate_passes, pass_work
from probes.cost.workload import (
    FLOORS,
    GATES,
    Clock,
    GridPart,
    SampleWork,
    Subject,
    gated,
    grid_cuts,
    grid_parts,
    timed,
)
from probes.directory.columns import sample_entry
from probes.gates.gate import gate_effects
from probes.measures.entropy import matrices_at_once, matrix_entropy, matrix_spectrum
from probes.measures.information import removal_curves
from probes.measures.noise import Witness, noise_floor
from probes.measures.preparing import prepare
from probes.models.probed import ProbedModel
from probes.replay.ablations import Ablations, as_numpy, check_layers, removal_ablations, window_ablations
from probes.replay.replay import replay

REPEATS = 3


@dataclass
class _Stopwatch:
    """Times parts of one sample, each within its share of a budget in seconds, and learns the machine's rate."""

    model: ProbedModel
    subject: Subject
    config: RunConfig
    work: SampleWork
    budget: float
    clock: Clock
    rate: float  # operations a second, the best seen so far

    def share(self, part: str) -> float:
        """Seconds for one part: by its operations, a twelfth at least. Half of them pay for a first call."""
        counted = self.work.operations | {name: done.operations for name, done in self.work.replays.items()}
        return self.budget * max(1 / 12, counted.get(part, 0.0) / sum(counted.values()))

    def forward(self) -> float:
        if self.subject.seconds > self.share("forward"):
            return self.subject.seconds
        targets, config = self.config.targets if self.subject.targets else (), self.config
        sample = self.subject.sample
        return self._time("forward", lambda: prepare(self.model, sample, targets, config.streams, config.tokens))

    def entropies(self, function: Callable[..., torch.Tensor], **how: Any) -> float:
        """All layers where the first promises to leave time for them, else as many as go through at once."""
        return sum(self._entropy(partial(function, **how), states) for states in self._states())

    def _states(self) -> Iterable[torch.Tensor]:
        return self.subject.captured.visual.states.values()

    def _entropy(self, function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> float:
        few = states[: matrices_at_once(states)]
        seconds, _ = timed(self.model, partial(function, few), self.clock)
        if seconds * len(states) / len(few) > self.share("entropies"):
            return seconds * len(states) / len(few)
        return self._time("entropies", partial(function, states))

    def removal(self) -> float:
        one_cut = removal_ablations(self.subject.captured, [0], self.config.kind)
        cuts = self._affordable("removal", partial(self._count, one_cut), check_layers(self.model, self.config.layers))
        seconds = self._time(
            "removal",
            lambda: removal_curves(
                self.model,
                self.subject.captured,
                self.subject.targets,
                layers=cuts,
                kind=self.config.kind,
                batch_size=self.config.batch_size,
            ),
        )
        return self._scaled("removal", seconds, self._count(one_cut, cuts))

    def grids(self, part: GridPart) -> float:
        """Windows spread over the image, at least as many as a batch holds, from the deepest cuts if not from all."""
        captured, config, windows = self.subject.captured, self.config, part.windows
        widest = max(len(batch.layers) for batch in self.work.batches[part.name])
        whole = self.work.replays[part.name].operations / self.rate <= self.share(part.name) / 2
        if not whole and len(windows) > widest:
            windows = [windows[at] for at in np.linspace(0, len(windows) - 1, widest).round().astype(int)]
        one_cut = window_ablations(captured, windows, part.context, [0], config.kind)
        cuts = self._affordable(part.name, partial(self._count, one_cut), part.cuts)
        ablations = window_ablations(captured, windows, part.context, cuts, config.kind)

        def measure() -> None:
            for _, found in replay(self.model, captured, ablations, batch_size=config.batch_size):
                for target in self.subject.targets.values():
                    as_numpy(target.log_p(found))

        return self._scaled(part.name, self._time(part.name, measure), self._count(ablations, None))

    def gates(self, context: str) -> float:
        """Backward passes, from the deepest cuts if not from all."""
        captured, targets, part = self.subject.captured, self.subject.targets, GATES[context]
        weights, places = decoder_weights(self.model), len(captured.prompt.readout)

        def count(cuts: Sequence[int]) -> Work:
            return pass_work(weights, gate_passes(captured, context, cuts), len(targets), places)

        cuts = self._affordable(part, count, grid_cuts(self.model, self.config))
        seconds = self._time(part, lambda: gate_effects(self.model, captured, targets, context, cuts))
        return self._scaled(part, seconds, count(cuts))

    def floor(self, grids: bool) -> float:
        """The real thing where it fits in, else by the rate of the other replays."""
        captured, part = self.subject.captured, FLOORS[grids]
        if self.work.replays[part].operations / self.rate > self.share(part):
            return self.work.replays[part].operations / self.rate
        target = next(iter(self.subject.targets.values()))

        def measure() -> None:
            for call in self.work.floors[part]:
                witnesses = [Witness(ablation, 0.0) for ablation in call.witnessed]
                noise_floor(self.model, captured, target, witnesses, rows=call.rows)

        return self._time(part, measure)

    def record(self) -> float:
        target = next(iter(self.subject.targets.values()), None)
        return self._time("record", lambda: sample_entry(self.model, self.subject.captured, target))

    def _affordable(self, part: str, count: Callable[[list[int]], Work], cuts: list[int]) -> list[int]:
        """All cuts, or the deepest of them that the share pays for; more than the last one, if there are more."""
        fewest = min(2, len(cuts))
        while len(cuts) > fewest and count(cuts).operations / self.rate > self.share(part) / 2:
            cuts = cuts[-max(fewest, len(cuts) // 2) :]
        return cuts

    def _count(self, ablations: Ablations, cuts: Sequence[int] | None) -> Work:
        captured = self.subject.captured
        batches = make_batches(self.model, captured, ablations, cuts=cuts, batch_size=self.config.batch_size)
        return replay_work(decoder_weights(self.model), batches, len(captured.prompt.readout))

    def _scaled(self, part: str, seconds: float, done: Work) -> float:
        self.rate = max(self.rate, done.operations / seconds)
        return seconds * self.work.replays[part].operations / done.operations

    def _time(self, part: str, function: Callable[[], Any]) -> float:
        """Median of a few calls after a first one, or the second alone, or the first where even that takes long."""
        first, _ = timed(self.model, function, self.clock)
        if first > self.share(part):
            return first
        repeats = 1 if first * REPEATS > self.share(part) else REPEATS
        return float(np.median([timed(self.model, function, self.clock)[0] for _ in range(repeats)]))


def time_parts(
    model: ProbedModel,
    subject: Subject,
    config: RunConfig,
    work: SampleWork,
    *,
    grids: bool,
    spectra: bool,
    checks: bool = False,
    budget: float,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Seconds of one sample, by part: `forward`, `entropies`, `spectra`, `record` and those of the replays.

    Args:
        model: as loaded.
        subject: the sample.
        config: of the run.
        work: its `sample_work`.
        grids: whether some samples get token grids.
        spectra: whether some keep eigenvalues.
        checks: whether estimates of some are held against exact grids.
        budget: seconds that this may take, about.
        clock: gives seconds; processor time on a busy machine.

    Raises:
        SampleError: replays do not reproduce the model.
    """
    rate = work.operations["forward"] / subject.seconds
    watch = _Stopwatch(model, subject, config, work, budget, clock, rate)
    how = {"center": config.center, "normalize_rows": config.normalize_rows}
    seconds = {"forward": watch.forward(), "record": watch.record()}
    watch.rate = max(watch.rate, work.operations["forward"] / seconds["forward"])
    seconds["entropies"] = watch.entropies(matrix_entropy, alpha=config.alpha, **how)
    if spectra:
        seconds["spectra"] = watch.entropies(matrix_spectrum, **how)
    if subject.targets:
        seconds |= {"removal": watch.removal()} if "removal" in work.batches else {}
        parts = grid_parts(model, subject.captured, config) if grids else []
        seconds |= {part.name: watch.grids(part) for part in parts if checks or config.method != "gate"}
        seconds |= {GATES[context]: watch.gates(context) for context in gated(config) if grids}
        seconds |= {
            part: watch.floor(some) for some, part in FLOORS.items() if part in work.batches and (grids or not some)
        }
    return seconds
