"""What one sample of a run takes: its operations and its replays, counted before anything is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from analyses.runs import RunConfig
from probes.capture import Capture
from probes.grids import Window, choose_window, tile_windows
from probes.information import check_layers, prepare, removal_ablations, window_ablations
from probes.models import ProbedModel
from probes.noise import null_ablations, nulls_at_once
from probes.operations import (
    Batch,
    Work,
    counted_vision,
    decoder_weights,
    entropy_operations,
    forward_operations,
    make_batches,
    replay_work,
)
from probes.replay import Ablations, largest_batch
from probes.samples import Sample, SampleError
from probes.targets import Target

Clock = Callable[[], float]
FLOORS = {False: "noise floor", True: "noise floor, with grids"}  # by whether the sample gets token grids


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
class SampleWork:
    """What one sample takes, by part.

    Attributes:
        operations: of `forward`, `entropies` and `spectra`.
        replays: work of `removal`, of each context, and of `noise floor`, this one for samples with and without grids.
        batches: of the same, as they run.
    """

    operations: dict[str, float]
    replays: dict[str, Work]
    batches: dict[str, list[Batch]]


def meet(model: ProbedModel, sample: Sample, config: RunConfig, clock: Clock = time.perf_counter) -> Subject:
    """Capture a sample, and count and time it.

    Raises:
        SampleError: it cannot be measured, or has none of the targets.
    """
    wanted = config.targets if replayed(config) else ()
    with counted_vision(model) as vision:
        seconds, (captured, targets) = timed(model, lambda: prepare(model, sample, wanted, config.streams), clock)
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
    batches = _replay_batches(model, captured, config) if subject.targets else {}
    return SampleWork(operations, {part: replay_work(weights, made, places) for part, made in batches.items()}, batches)


def windows_of(captured: Capture, config: RunConfig) -> list[Window]:
    """The windows of a sample's token grids."""
    grids = captured.prompt.grids
    return tile_windows(grids, choose_window(config.window, config.max_windows, grids))


def grid_cuts(model: ProbedModel, config: RunConfig) -> list[int]:
    """The layers at which token grids are measured; one, where none is chosen yet."""
    return check_layers(model, config.grid_layers() or (0,))


def _replay_batches(model: ProbedModel, captured: Capture, config: RunConfig) -> dict[str, list[Batch]]:
    one_cut = {"removal": removal_ablations(captured, [0], config.kind)}
    windows = windows_of(captured, config)
    for context in config.contexts:
        one_cut[context] = window_ablations(captured, windows, context, [0], config.kind)
    batches: dict[str, list[Batch]] = {}
    rows: dict[str, int] = {}
    for part, ablations in one_cut.items():
        cuts = check_layers(model, config.layers) if part == "removal" else grid_cuts(model, config)
        batches[part] = make_batches(model, captured, ablations, cuts=cuts, batch_size=config.batch_size)
        every = Ablations.at_every(cuts, ablations.masks, ablations.kind)
        rows[part] = largest_batch(model, captured, every, config.batch_size)
    batches[FLOORS[False]] = _floor_batches(model, captured, config, rows["removal"], grids=False)
    if config.contexts:
        batches[FLOORS[True]] = _floor_batches(model, captured, config, max(rows.values()), grids=True)
    return batches


def _floor_batches(model: ProbedModel, captured: Capture, config: RunConfig, rows: int, *, grids: bool) -> list[Batch]:
    null, recompute = null_ablations(model, captured, rows)
    at_once = nulls_at_once(null, recompute, rows)
    batches = make_batches(model, captured, null, batch_size=at_once, recompute=recompute)
    for ablation in witnessed(model, captured, config, grids=grids):
        batches += make_batches(model, captured, ablation, batch_size=1)
    return batches


def witnessed(model: ProbedModel, captured: Capture, config: RunConfig, *, grids: bool) -> list[Ablations]:
    """The single ablations that the noise floor measures again, at the middle cut: which it takes lies in the data."""
    cuts = check_layers(model, config.layers)
    found = [removal_ablations(captured, [cuts[len(cuts) // 2]], config.kind)]
    if grids:
        cuts, windows = grid_cuts(model, config), windows_of(captured, config)
        middle = windows[len(windows) // 2 :][:1]
        found += [
            window_ablations(captured, middle, context, [cuts[len(cuts) // 2]], config.kind)
            for context in config.contexts
        ]
    return found


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
