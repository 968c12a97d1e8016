"""What one sample of a run takes: its operations and its replays, counted before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from analyses.runs import CONTEXTS, RunConfig
from probes.cost.operations import (
    Batch,
    Work,
    counted_vision,
    decoder_weights,
    entropy_operations,
    forward_operations,
    make_batches,
    replay_work,
)
from probes.cost.passes import Pass, gate_passes, pass_work
from probes.data.samples import Sample, SampleError
from probes.measures.gate_checks import checked_layers
from probes.measures.noise import grid_witness_layers, null_ablations, removal_witness_layers
from probes.measures.preparing import prepare
from probes.models.grids import Window, choose_window
from probes.models.probed import ProbedModel
from probes.models.prompts import removable_windows
from probes.models.targets import Target
from probes.replay.ablations import Ablations, check_layers, removal_ablations, window_ablations
from probes.replay.capture import Capture
from probes.replay.replay import most_rows

Clock = Callable[[], float]
FLOORS = {False: "noise floor", True: "noise floor, with grids"}  # by whether the sample gets token grids
COARSE = {context: f"{context}, coarse" for context in CONTEXTS}  # parts: windows measured first, of each context
GATES = {context: f"gate {context}" for context in CONTEXTS}  # parts: backward passes
CHECKS = {context: f"{context} check" for context in CONTEXTS}  # parts: exact grids that estimates are held against
GRID_PARTS = (*CONTEXTS, *COARSE.values(), *GATES.values())  # what every sample with token grids takes


@dataclass(frozen=True)
class Subject:
    """One sample, captured, whose cost stands for all.

    Attributes:
        sample: it.
        captured: its forward pass.
        targets: of the run, by name; none where nothing is replayed.
        vision: operations outside the decoder.
        vision_bytes: of the vision tower's states, about.
        seconds: of the first forward pass, encoding included.
    """

    sample: Sample
    captured: Capture
    targets: dict[str, Target]
    vision: float
    vision_bytes: int
    seconds: float


@dataclass(frozen=True)
class GridPart:
    """Token grids that are measured by replays: every window at every cut."""

    name: str
    context: str
    windows: list[Window]
    cuts: list[int]


@dataclass(frozen=True)
class FloorCall:
    """One measurement of the noise floor: rows of each null replay, and the ablations that it measures again."""

    rows: int
    witnessed: list[Ablations]


@dataclass(frozen=True)
class SampleWork:
    """What one sample takes, by part.

    Attributes:
        operations: of `forward`, `entropies` and `spectra`.
        replays: work of `removal`; of each context, where coarse windows decide about them of all that they may ask
            for, and of the coarse ones; of the exact checks of estimates and of backward passes, which are no
            replays; and of `noise floor`, for samples with and without grids.
        batches: of the same as they run, but for backward passes.
        passes: the backward passes.
        floors: the measurements of the noise floor.
    """

    operations: dict[str, float]
    replays: dict[str, Work]
    batches: dict[str, list[Batch]]
    passes: dict[str, list[Pass]]
    floors: dict[str, list[FloorCall]]

    def only(self, parts: Collection[str]) -> SampleWork:
        """The same with some of the parts that replay."""
        return replace(
            self,
            replays={part: self.replays[part] for part in self.replays if part in parts},
            batches={part: self.batches[part] for part in self.batches if part in parts},
            passes={part: self.passes[part] for part in self.passes if part in parts},
            floors={part: self.floors[part] for part in self.floors if part in parts},
        )


def meet(model: ProbedModel, sample: Sample, config: RunConfig, clock: Clock = time.perf_counter) -> Subject:
    """Capture a sample, and count and time it.

    Raises:
        SampleError: it cannot be measured, or has none of the targets.
    """
    wanted = config.targets if replayed(config) else ()
    with counted_vision(model) as vision:
        seconds, (captured, targets) = timed(
            model, lambda: prepare(model, sample, wanted, config.streams, config.tokens), clock
        )
    if wanted and not targets:
        raise SampleError(f"sample {sample.id!r}: the model answers wrong, so it has no {wanted[0]!r} target")
    return Subject(sample, captured, targets, vision.operations, vision.stored, seconds)


def replayed(config: RunConfig) -> bool:
    """Whether a run replays anything."""
    return bool({"removal", "information"} & set(config.probes))


def sample_work(model: ProbedModel, subject: Subject, config: RunConfig) -> SampleWork:
    """Count one sample's operations and replays.

    Args:
        model: as loaded.
        subject: the sample.
        config: of the run.
    """
    captured, weights = subject.captured, decoder_weights(model)
    places = len(captured.prompt.readout)
    shapes = [states.shape for states in captured.visual.states.values()]
    operations = {
        "forward": subject.vision + forward_operations(weights, captured.prompt.n_tokens, places),
        "entropies": sum(entropy_operations(n, d, layers, eigenvalues=config.alpha != 2) for layers, n, d in shapes),
        "spectra": sum(entropy_operations(n, d, layers) for layers, n, d in shapes),
    }
    if not subject.targets:
        return SampleWork(operations, {}, {}, {}, {})
    batches, floors = _replay_batches(model, captured, config)
    passes = {GATES[context]: gate_passes(captured, context, grid_cuts(model, config)) for context in gated(config)}
    replays = {part: replay_work(weights, made, places) for part, made in batches.items()}
    replays |= {part: pass_work(weights, made, len(subject.targets), places) for part, made in passes.items()}
    return SampleWork(operations, replays, batches, passes, floors)


def gated(config: RunConfig) -> tuple[str, ...]:
    """The contexts that are estimated by backward passes."""
    return config.contexts if config.method == "gate" else ()


def windows_of(captured: Capture, config: RunConfig) -> list[Window]:
    """The windows of a sample's token grids."""
    prompt = captured.prompt
    return removable_windows(prompt, choose_window(config.window, config.max_windows, prompt.removable_grids))


def grid_cuts(model: ProbedModel, config: RunConfig) -> list[int]:
    """The layers at which token grids are measured; one, where none is chosen yet."""
    return check_layers(model, config.grid_layers() or (0,))


def grid_parts(model: ProbedModel, captured: Capture, config: RunConfig) -> list[GridPart]:
    """Token grids that are measured by replays, or at most, where coarse windows decide; of estimates, their checks."""
    windows, cuts = windows_of(captured, config), grid_cuts(model, config)
    if config.method == "gate":
        return [GridPart(CHECKS[one], one, windows, checked_layers(np.array(cuts))) for one in config.contexts]
    parts = [GridPart(context, context, windows, cuts) for context in config.contexts]
    if config.coarse is not None:
        large = removable_windows(captured.prompt, config.coarse)
        parts = [GridPart(COARSE[context], context, large, cuts) for context in config.contexts] + parts
    return parts


def _replay_batches(
    model: ProbedModel, captured: Capture, config: RunConfig
) -> tuple[dict[str, list[Batch]], dict[str, list[FloorCall]]]:
    one_cut = {"removal": (removal_ablations(captured, [0], config.kind), check_layers(model, config.layers))}
    for part in grid_parts(model, captured, config):
        ablations = window_ablations(captured, part.windows, part.context, [0], config.kind)
        one_cut[part.name] = ablations, part.cuts
    batches: dict[str, list[Batch]] = {}
    rows: dict[str, int] = {}
    for name, (ablations, cuts) in one_cut.items():
        batches[name] = make_batches(model, captured, ablations, cuts=cuts, batch_size=config.batch_size)
        rows[name] = most_rows(captured, ablations)
    floors = {FLOORS[False]: [FloorCall(rows["removal"], witnessed(model, captured, config, grids=False))]}
    if config.contexts:
        floors[FLOORS[True]] = _floors_with_grids(model, captured, config, rows)
    for name, calls in floors.items():
        batches[name] = [batch for call in calls for batch in _floor_batches(model, captured, call)]
    return batches, floors


def _floors_with_grids(
    model: ProbedModel, captured: Capture, config: RunConfig, rows: dict[str, int]
) -> list[FloorCall]:
    """One measurement after the grids; one a context before them where it decides which windows are refined."""
    alone = witnessed(model, captured, config, grids=False)
    if config.method == "gate":  # estimates have no floor
        return [FloorCall(rows["removal"], alone)]
    exact = {context: max(rows["removal"], rows[context]) for context in config.contexts}
    before = [FloorCall(most, alone) for most in exact.values()] if config.coarse is not None else []
    return [*before, FloorCall(max(exact.values()), witnessed(model, captured, config, grids=True))]


def _floor_batches(model: ProbedModel, captured: Capture, call: FloorCall) -> list[Batch]:
    null, recompute = null_ablations(model, captured, call.rows)
    batches = make_batches(model, captured, null, recompute=recompute)
    for ablation in call.witnessed:
        batches += make_batches(model, captured, ablation, batch_size=1)
    return batches


def witnessed(model: ProbedModel, captured: Capture, config: RunConfig, *, grids: bool) -> list[Ablations]:
    """The single ablations that the noise floor measures again.

    Of windows the middle one, at the cuts that will be measured: which window it is, and which cut of the removals,
    lies in the data.
    """
    cuts = removal_witness_layers(check_layers(model, config.layers))
    ablations = [removal_ablations(captured, [cut], config.kind) for cut in cuts]
    if grids:
        windows = windows_of(captured, config)
        middle = windows[len(windows) // 2 :][:1]
        ablations += [
            window_ablations(captured, middle, context, [cut], config.kind)
            for context in config.contexts
            for cut in grid_witness_layers(grid_cuts(model, config), len(windows))
        ]
    return ablations


def timed(model: ProbedModel, function: Callable[[], Any], clock: Clock) -> tuple[float, Any]:
    """Seconds of one call, and what it returned; a GPU is waited for."""
    _wait(model)
    started = clock()
    found = function()
    _wait(model)
    return max(clock() - started, 1e-9), found


def _wait(model: ProbedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
