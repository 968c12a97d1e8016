"""Measure one sample: entropies, removals, token grids and noise floor from one capture, as a record to write."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from analyses.runs import WRONG, HorizonError, RunConfig
from probes.capture import Capture
from probes.entropy import matrix_entropy, matrix_spectrum
from probes.grids import TokenGrid, tile_windows
from probes.information import (
    InformationGrid,
    RemovalCurve,
    information_grids,
    prepare,
    removal_ablations,
    removal_curves,
    window_ablations,
)
from probes.models import ProbedModel
from probes.noise import NoiseFloor, grid_witness, noise_floor, removal_witness
from probes.replay import largest_batch
from probes.samples import Sample, pictures_sha256
from probes.targets import Target, answer_length
from probes.writer import Record

THUMBNAIL = 256  # px, longest side

Grids = dict[tuple[str, str], InformationGrid]  # by target and context


@dataclass(frozen=True)
class Plan:
    """What one sample gets, besides what the configuration fixes for all."""

    tokens: bool
    spectra: bool


def wanted_probes(config: RunConfig, plan: Plan) -> list[str]:
    """What a committed row of this plan carries."""
    probes = [probe for probe in config.probes if probe != "information" or plan.tokens]
    return [*probes, "spectra"] if plan.spectra and config.streams else probes


def measure_sample(model: ProbedModel, row: int, sample: Sample, config: RunConfig, plan: Plan) -> Record:
    """Measure one sample; whatever goes wrong with it becomes its record, with the reason."""
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
    try:
        measured = _measure(model, sample, config, plan)
    except Exception as error:  # one bad sample never ends a run
        reason = str(error) if isinstance(error, HorizonError) else f"{type(error).__name__}: {error}"
        return Record({**entry, "status": "failed", "error": reason, "seconds": time.monotonic() - started})
    if measured.sample.get("status") == "excluded":
        return replace(measured, sample={**entry, **measured.sample, "seconds": time.monotonic() - started})
    done = {
        "status": "ok",
        "error": "",
        "probes": wanted_probes(config, plan),
        "batch_size": config.batch_size,
        "seconds": time.monotonic() - started,
    }
    return replace(measured, sample={**entry, **measured.sample, **done})


def _measure(model: ProbedModel, sample: Sample, config: RunConfig, plan: Plan) -> Record:
    replayed = bool({"removal", "information"} & set(config.probes))
    wanted = config.targets if replayed or config.only_correct else ()
    captured, targets = prepare(model, sample, wanted, config.streams)
    if config.only_correct and not _answered_right(captured, targets):
        entry = _entry(model, sample, captured, targets.get(config.targets[0]))
        return Record({**entry, "status": "excluded", "error": WRONG, "probes": []})
    states = captured.visual.states
    how = {"center": config.center, "normalize_rows": config.normalize_rows}
    entropies = {s: matrix_entropy(states[s], alpha=config.alpha, **how).cpu().numpy() for s in config.streams}
    spectra = {s: matrix_spectrum(states[s], **how).cpu().numpy() for s in config.streams if plan.spectra}
    entry = _entry(model, sample, captured, targets.get(config.targets[0]))
    curves = list(_entropy_rows(entropies))
    grids: Grids = {}
    if targets and replayed:
        removals = removal_curves(
            model, captured, targets, layers=config.layers, kind=config.kind, batch_size=config.batch_size
        )
        if plan.tokens and "information" in config.probes:
            grids = _token_grids(model, captured, targets, config, removals)
            entry["windows"] = next(iter(grids.values())).windows.to_dict("records")
        floor = _floor(model, captured, targets, removals, grids, config)
        entry.update(noise_floor_p=floor.p, noise_floor_log_p=floor.log_p, noise_floor_kl=floor.kl)
        curves += _removal_rows(removals)
    return Record(entry, curves, _token_arrays(grids), spectra)


def _answered_right(captured: Capture, targets: dict[str, Target]) -> bool:
    """By the first target that is not the model's own token; `greedy-correct` is absent where the answer is wrong."""
    judge = next((target for name, target in targets.items() if name != "greedy"), None)
    return judge is not None and bool(judge.contains(captured.log_probs[judge.place].argmax()))


def _entry(model: ProbedModel, sample: Sample, captured: Capture, target: Target | None) -> dict[str, Any]:
    """The `SAMPLES` columns that one forward pass gives; those of the first target are null where it is absent."""
    prompt, own = captured.prompt, captured.log_probs
    there = own[target.place if target else 0]
    best = there.argmax()
    entry: dict[str, Any] = {
        "image_sha256": pictures_sha256(prompt.images or (prompt.image,)),
        "prediction": model.tokenizer.decode([int(best)]),
        "output_entropy": float(torch.special.entr(there.double().exp()).sum()),
        "answer_tokens": answer_length(model.tokenizer, sample),
        "n_visual": len(prompt.visual),
        "n_placeless": prompt.placeless,
        "n_prompt": int(prompt.readout[0]) + 1,
        "crops": [_crop(grid) for grid in prompt.grids],
        "thumbnail": _thumbnail(prompt.image),
    }
    if target:
        log_p = float(target.log_p(own))
        entry.update(
            correct=bool(target.contains(best)),
            target_ids=list(target.ids),
            target_text=target.answer if target.name == "answer" else model.tokenizer.decode([target.ids[0]]),
            p=float(np.exp(log_p)),
            log_p=log_p,
        )
    return entry


def _token_grids(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    config: RunConfig,
    removals: dict[str, RemovalCurve],
) -> Grids:
    return {
        (name, context): grid
        for context in config.contexts
        for name, grid in information_grids(
            model,
            captured,
            targets,
            context=context,
            window=config.window,
            layers=config.layers,
            kind=config.kind,
            batch_size=config.batch_size,
            removal=removals,
        ).items()
    }


def _floor(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    removals: dict[str, RemovalCurve],
    grids: Grids,
    config: RunConfig,
) -> NoiseFloor:
    """Noise floor of the first target, in the batches that were in use."""
    name, target = next(iter(targets.items()))
    curve = removals[name]
    cuts = curve.layers[:-1].tolist()
    windows = tile_windows(captured.prompt.grids, config.window)
    witnesses = [removal_witness(captured, curve)]
    batches = [removal_ablations(captured, cuts, config.kind)]
    for (measured, context), grid in grids.items():
        if measured == name:
            witnesses.append(grid_witness(captured, grid, config.window, config.kind))
            batches.append(window_ablations(captured, windows, context, cuts, config.kind))
    rows = max(largest_batch(model, captured, batch, config.batch_size) for batch in batches)
    return noise_floor(model, captured, target, witnesses, batch_rows=rows)


def _entropy_rows(entropies: dict[str, np.ndarray]) -> Iterator[tuple[str, str, int, str, str, float]]:
    for stream, values in entropies.items():
        for layer, value in enumerate(values.tolist()):
            yield "", "", layer, stream, "entropy", value


def _removal_rows(removals: dict[str, RemovalCurve]) -> Iterator[tuple[str, str, int, str, str, float]]:
    for name, curve in removals.items():
        for measure in ("log_p", "kl", "correct", "same"):
            for layer, value in zip(curve.layers.tolist(), getattr(curve, measure).tolist(), strict=True):
                yield name, "removal", layer, "", measure, float(value)


def _token_arrays(grids: Grids) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for (name, context), grid in grids.items():
        key = f"{name}/{context}"
        arrays |= {key: grid.log_p, f"{key}/removed": grid.removed, f"{key}/all": np.array([grid.all])}
    return arrays


def _crop(grid: TokenGrid) -> dict[str, float]:
    left, top, right, bottom = grid.box
    box = {"left": left, "top": top, "right": right, "bottom": bottom}
    return {"rows": grid.rows, "columns": grid.columns, **box, "image": grid.image}


def _thumbnail(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stored = io.BytesIO()
    small.save(stored, format="PNG")
    return stored.getvalue()
