"""What was measured of one sample as the columns, rows and arrays that the run directory holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from probes.data.samples import Sample
from probes.measures.information import InformationGrid, RemovalCurve
from probes.measures.noise import NoiseFloor
from probes.models.grids import TokenGrid
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.capture import Capture

THUMBNAIL = 256  # px, longest side
FLOORS = ("noise_floor_p", "noise_floor_log_p", "noise_floor_kl")
REMOVAL_MEASURES = ("log_p", "kl", "correct", "same")
Grids = dict[tuple[str, str], InformationGrid]  # by target and context
CurveRow = tuple[str, str, int, str, str, float]  # target, context, layer, stream, measure, value


def question_entry(row: int, sample: Sample) -> dict[str, Any]:
    """Return the `SAMPLES` columns that a sample itself gives, in the row of that number."""
    names = ("id", "task", "task_type", "category", "question")
    lists = {name: list(getattr(sample, name)) for name in ("answers", "options")}
    return {"row": row, **{name: getattr(sample, name) for name in names}, **lists}


def sample_entry(model: ProbedModel, captured: Capture, target: Target | None) -> dict[str, Any]:
    """Return the `SAMPLES` columns of one forward pass; those of the target are absent where it is None."""
    prompt, log_probs = captured.prompt, captured.log_probs
    at_target = log_probs[target.place if target else 0]
    top_token = at_target.argmax()
    entry: dict[str, Any] = {
        "prediction": model.tokenizer.decode([int(top_token)]),
        "output_entropy": float(torch.special.entr(at_target.double().exp()).sum()),
        "n_visual": len(prompt.visual),
        "n_placeless": prompt.placeless,
        "n_prompt": int(prompt.readout[0]) + 1,
        "crops": [_crop(grid) for grid in prompt.grids],
    }
    if target:
        log_p = float(target.log_p(log_probs))
        entry.update(
            correct=bool(target.contains(top_token)),
            target_ids=list(target.ids),
            target_text=target.answer if target.name == "answer" else model.tokenizer.decode([target.ids[0]]),
            p=float(np.exp(log_p)),
            log_p=log_p,
        )
    return entry


def floor_columns(floor: NoiseFloor) -> dict[str, float]:
    """Return the `SAMPLES` columns of a noise floor: in p, log p (nats) and KL (nats)."""
    return dict(zip(FLOORS, (floor.p, floor.log_p, floor.kl), strict=True))


def entropy_rows(entropies: dict[str, np.ndarray]) -> Iterator[CurveRow]:
    """Yield the rows of `CURVES` for each stream's (layer,) entropies, in nats."""
    for stream, values in entropies.items():
        for layer, value in enumerate(values.tolist()):
            yield "", "", layer, stream, "entropy", value


def removal_rows(removals: dict[str, RemovalCurve]) -> Iterator[CurveRow]:
    """Yield the rows of `CURVES` for each target's removal curve."""
    for name, curve in removals.items():
        for measure in REMOVAL_MEASURES:
            for layer, value in zip(curve.layers.tolist(), getattr(curve, measure).tolist(), strict=True):
                yield name, "removal", layer, "", measure, float(value)


def token_arrays(grids: Grids) -> dict[str, np.ndarray]:
    """Return the arrays of token grids by their names in the run directory, without the row number."""
    arrays: dict[str, np.ndarray] = {}
    for (name, context), grid in grids.items():
        key = f"{name}/{context}"
        arrays |= {key: grid.log_p, f"{key}/removed": grid.removed, f"{key}/all": np.array([grid.all])}
        arrays |= {f"{key}/coarse": grid.coarse} if grid.coarse is not None else {}
    return arrays


def _crop(grid: TokenGrid) -> dict[str, float]:
    left, top, right, bottom = grid.box
    box = {"left": left, "top": top, "right": right, "bottom": bottom}
    return {"rows": grid.rows, "columns": grid.columns, **box, "image": grid.image}


def thumbnail(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG of at most `THUMBNAIL` pixels a side."""
    reduced = image.copy()
    reduced.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    reduced.save(buffer, format="PNG")
    return buffer.getvalue()
