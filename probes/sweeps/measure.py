"""Measure one sample: entropies, removals, token grids and noise floor from one capture, as a record to write.

In three stages, so that a run can encode the next sample and finish the last one while the model is at work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from PIL import Image

from analyses.runs import METHOD_TABLE, WRONG, HorizonError, RunConfig
from probes.data.samples import Sample, pictures_sha256
from probes.directory.columns import (
    FLOORS,
    Grids,
    entropy_rows,
    floor_columns,
    removal_rows,
    sample_entry,
    thumbnail,
    token_arrays,
)
from probes.directory.committed import held_removals, merge_grids
from probes.directory.writer import Record
from probes.measures.entropy import matrix_entropy, matrix_spectrum
from probes.measures.gate_checks import check_rows
from probes.measures.information import InformationGrid, RemovalCurve, information_grids, removal_curves
from probes.measures.noise import NoiseFloor, Witness, grid_witness, noise_floor, removal_witness
from probes.measures.preparing import capture_targets, encode_targets
from probes.measures.refinement import floor_before_grids, refined_grids
from probes.models.grids import choose_window
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, removable_windows
from probes.models.targets import Target, answer_length
from probes.plans.plans import Plan, checks_gates, wanted_probes
from probes.replay.ablations import removal_ablations, window_ablations
from probes.replay.batching import BatchPolicy
from probes.replay.capture import Capture
from probes.replay.replay import largest_batch


@dataclass(frozen=True)
class Encoded:
    """A sample before its forward pass: the prompt, or the reason why there is none.

    Attributes:
        entry: the `SAMPLES` columns that the sample itself gives.
        sample: what was asked.
        plan: what it gets.
        prompt: None where the sample cannot be encoded.
        fixed: the targets that need no forward pass.
        answer_tokens: as the `SAMPLES` column.
        error: why the sample cannot be encoded, or "".
        seconds: spent on it so far, waiting not included.
    """

    entry: dict[str, Any]
    sample: Sample
    plan: Plan
    prompt: Prompt | None
    fixed: dict[str, Target]
    answer_tokens: int | None
    error: str
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A sample after all that needs the model.

    Attributes:
        entry: the `SAMPLES` columns that the sample itself gives.
        record: what the model gave; empty where it could not be measured.
        states: stream -> (layer, token, dim), whose entropies are still to be taken.
        images: the decoded image, or all images or frames.
        plan: what it gets.
        error: why it could not be measured, or "".
        seconds: spent on it so far, waiting not included.
    """

    entry: dict[str, Any]
    record: Record
    states: dict[str, torch.Tensor]
    images: tuple[Image.Image, ...]
    plan: Plan
    error: str
    seconds: float


def encode_sample(model: ProbedModel, row: int, sample: Sample, config: RunConfig, plan: Plan) -> Encoded:
    """First stage: decode the image, encode the prompt and the answers. Runs nothing of the model."""
    started = time.monotonic()
    entry: dict[str, Any] = {
        "row": row,
        "id": sample.id,
        "task": sample.task,
        "task_type": sample.task_type,
        "category": sample.category,
        "question": sample.question,
        "answers": list(sample.answers),
        "options": list(sample.options),
    }
    prompt, answer_tokens, error = None, None, ""
    fixed: dict[str, Target] = {}
    try:
        prompt, fixed = encode_targets(model, sample, _wanted_targets(config), config.tokens)
        answer_tokens = answer_length(model.tokenizer, sample)
    except Exception as caught:  # one bad sample never ends a run
        error = _reason(caught)
    return Encoded(entry, sample, plan, prompt, fixed, answer_tokens, error, time.monotonic() - started)


def measure(model: ProbedModel, encoded: Encoded, config: RunConfig, batches: BatchPolicy | None = None) -> Measured:
    """Second stage: the capture and every replay. Only this one traces, so it belongs to one thread.

    What memory did not hold under `batches` bounds the later batches of this sample, and of all that share the policy.
    """
    batches = batches or BatchPolicy(config.batch_size)
    started = time.monotonic()
    record, error = Record({}), encoded.error
    states: dict[str, torch.Tensor] = {}
    fresh = encoded.prompt if encoded.plan.held is None else None  # a held record has its picture
    images = (fresh.images or (fresh.image,)) if fresh else ()
    if encoded.prompt is not None and not error:
        try:
            if encoded.plan.held is None:
                record, states = _measure(model, encoded, encoded.prompt, config, batches)
            else:
                record = _extend(model, encoded, encoded.prompt, config, encoded.plan.held, batches)
        except Exception as caught:  # one bad sample never ends a run
            error = _reason(caught)
    seconds = encoded.seconds + time.monotonic() - started
    return Measured(encoded.entry, record, states, images, encoded.plan, error, seconds)


def finish(measured: Measured, config: RunConfig) -> Record:
    """Third stage: entropies of the captured states, and what is kept of the image. Needs no model."""
    started = time.monotonic()
    error = measured.error
    if not error:
        try:
            record = _finish(measured, config)
        except Exception as caught:  # one bad sample never ends a run
            error = _reason(caught)
    seconds = measured.seconds + time.monotonic() - started
    if error:
        return Record({**measured.entry, "status": "failed", "error": error, "seconds": seconds})
    if record.excluded:
        return replace(record, sample={**measured.entry, **record.sample, "seconds": seconds})
    done = {
        "status": "ok",
        "error": "",
        "probes": wanted_probes(config, measured.plan),
        "batch_size": config.batch_size,
        "seconds": seconds + (measured.plan.held.sample["seconds"] if measured.plan.held else 0.0),
    }
    return replace(record, sample={**measured.entry, **record.sample, **done})


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, HorizonError) else f"{type(error).__name__}: {error}"


def _replayed(config: RunConfig) -> bool:
    return bool({"removal", "information"} & set(config.probes))


def _wanted_targets(config: RunConfig) -> tuple[str, ...]:
    return config.targets if _replayed(config) or config.only_correct else ()


def _measure(
    model: ProbedModel, encoded: Encoded, prompt: Prompt, config: RunConfig, batches: BatchPolicy
) -> tuple[Record, dict[str, torch.Tensor]]:
    """What the model gives, and the states whose entropies are to be taken."""
    names, plan = _wanted_targets(config), encoded.plan
    captured, targets = capture_targets(model, encoded.sample, prompt, names, encoded.fixed, config.streams)
    entry = sample_entry(model, captured, targets.get(config.targets[0])) | {"answer_tokens": encoded.answer_tokens}
    if config.only_correct and not _answered_right(captured, targets):
        return Record({**entry, "status": "excluded", "error": WRONG, "probes": []}), {}
    curves: list[tuple[str, str, int, str, str, float]] = []
    grids: Grids = {}
    before: NoiseFloor | None = None
    window = choose_window(config.window, config.max_windows, captured.prompt.removable_grids)
    if targets and _replayed(config):
        removals = removal_curves(model, captured, targets, layers=config.layers, kind=config.kind, batch_size=batches)
        if plan.tokens and "information" in config.probes:
            if config.coarse is not None:
                before = _floor_before(model, captured, targets, removals, window, plan.layers, config, batches)
            grids = _token_grids(model, captured, targets, config, removals, window, plan.layers, before, batches)
            entry["windows"] = next(iter(grids.values())).windows.to_dict("records")
            if checks_gates(config, plan):
                curves += check_rows(model, captured, targets, grids, config, removals, batches)
        floor = _floor(model, captured, targets, removals, grids, window, config, batches)
        entry.update(floor_columns(floor if before is None else floor.or_larger(before)))
        curves += removal_rows(removals)
    return Record(entry, curves, token_arrays(grids), token_layers=plan.layers), captured.visual.states


def _extend(
    model: ProbedModel, encoded: Encoded, prompt: Prompt, config: RunConfig, held: Record, batches: BatchPolicy
) -> Record:
    """Add token grids at the layers that a held record lacks; everything else stays as it was measured."""
    plan = encoded.plan
    captured, targets = capture_targets(model, encoded.sample, prompt, config.targets, encoded.fixed)
    missing = [layer for layer in plan.layers if layer not in held.token_layers]
    if not targets or not missing:
        return held
    window = choose_window(config.window, config.max_windows, captured.prompt.removable_grids)
    removals = held_removals(held, targets, config.kind, config.tokens)
    before = NoiseFloor(*(held.sample[name] for name in FLOORS))
    if config.coarse is not None and not held.token_layers:  # as in a row that is measured at once
        before = before.or_larger(_floor_before(model, captured, targets, removals, window, missing, config, batches))
    grids = _token_grids(model, captured, targets, config, removals, window, missing, before, batches)
    floor = before
    if not held.token_layers:  # later grids come in the same batches
        floor = _floor(model, captured, targets, removals, grids, window, config, batches).or_larger(before)
    windows = next(iter(grids.values())).windows.to_dict("records")
    entry = {**held.sample, "windows": windows, **floor_columns(floor)}
    return merge_grids(replace(held, sample=entry), token_arrays(grids), missing)


def _finish(measured: Measured, config: RunConfig) -> Record:
    states, record = measured.states, measured.record
    if measured.plan.held is not None:
        return record
    entry = dict(record.sample)
    if measured.images:
        entry.update(image_sha256=pictures_sha256(measured.images), thumbnail=thumbnail(measured.images[0]))
    if record.excluded:
        return replace(record, sample=entry)
    how = {"center": config.center, "normalize_rows": config.normalize_rows}
    entropies = {s: matrix_entropy(states[s], alpha=config.alpha, **how).cpu().numpy() for s in config.streams}
    spectra = {s: matrix_spectrum(states[s], **how).cpu().numpy() for s in config.streams if measured.plan.spectra}
    return replace(record, sample=entry, curves=[*entropy_rows(entropies), *record.curves], spectra=spectra)


def _answered_right(captured: Capture, targets: dict[str, Target]) -> bool:
    """By the first target that is not the model's own token; `greedy-correct` is absent where the answer is wrong."""
    judge = next((target for name, target in targets.items() if name != "greedy"), None)
    return judge is not None and bool(judge.contains(captured.log_probs[judge.place].argmax()))


def _token_grids(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    config: RunConfig,
    removals: dict[str, RemovalCurve],
    window: int,
    layers: Sequence[int],
    floor: NoiseFloor | None,
    batches: BatchPolicy,
) -> Grids:
    how: dict[str, Any] = {"window": window, "layers": layers, "kind": config.kind, "batch_size": batches}
    grids_of: Callable[..., dict[str, InformationGrid]] = partial(information_grids, method=config.method)
    if config.coarse is not None and floor is not None:
        grids_of = partial(refined_grids, coarse=config.coarse, floor=floor.p)
    return {
        (name, context): grid
        for context in config.contexts
        for name, grid in grids_of(model, captured, targets, context=context, removal=removals, **how).items()
    }


def _floor_before(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    removals: dict[str, RemovalCurve],
    window: int,
    layers: Sequence[int],
    config: RunConfig,
    batches: BatchPolicy,
) -> NoiseFloor:
    """The floor that decides where coarse windows are refined, for all contexts together."""
    how: dict[str, Any] = {"layers": layers, "kind": config.kind, "batch_size": batches}
    first, *others = (
        floor_before_grids(model, captured, targets, removals, window=window, context=context, **how)
        for context in config.contexts
    )
    return reduce(NoiseFloor.or_larger, others, first)


def _floor(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    removals: dict[str, RemovalCurve],
    grids: Grids,
    window: int,
    config: RunConfig,
    batches: BatchPolicy,
) -> NoiseFloor:
    """Noise floor of the first target, in the batches that were in use."""
    name, target = next(iter(targets.items()))
    curve = removals[name]
    windows = removable_windows(captured.prompt, window)
    witnesses: list[Witness | None] = [removal_witness(captured, curve)]
    ablations = [removal_ablations(captured, curve.layers[:-1].tolist(), config.kind)]
    for (measured, context), grid in grids.items():
        if measured == name and METHOD_TABLE[grid.method].has_floor:  # an estimate is off by more than rounding
            witnesses.append(grid_witness(captured, grid, window, config.kind))
            ablations.append(window_ablations(captured, windows, context, grid.layers.tolist(), config.kind))
    rows = max(largest_batch(model, captured, batch, batches) for batch in ablations)
    return noise_floor(model, captured, target, [one for one in witnesses if one], batch_rows=rows)
