"""Run directories with planted numbers, written by the schema itself: no model, no torch.

Samples are grouped by keys "task_type", "task_type/task" or "task_type/task/category"; every argument that says
something about samples maps such a key to an array whose first axis is the key's samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import save_file

from analyses.runs import CURVES, GENERATIONS, SAMPLES, Run, RunConfig, load_run

CONFIG = {
    "model": "made-up/synthetic",
    "revision": None,
    "weights": "0" * 16,
    "family": "llava",
    "n_heads": 4,
    "n_key_value_heads": 4,
    "head_dim": 32,
    "hidden_size": 128,
    "vocab_size": 91,
    "dtype": "float32",
    "attn": "sdpa",
}


def write_run(
    path: str | Path,
    *,
    effects: Mapping[str, np.ndarray] | None = None,
    entropies: Mapping[str, Mapping[str, np.ndarray] | np.ndarray] | None = None,
    grids: Mapping[str, np.ndarray] | None = None,
    leave_one_out: Mapping[str, np.ndarray] | None = None,
    spectra: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    images: Mapping[str, Sequence[Any]] | None = None,
    kl: Mapping[str, np.ndarray] | None = None,
    correct: Mapping[str, np.ndarray] | None = None,
    questions: Mapping[str, Sequence[str]] | None = None,
    answers: Mapping[str, Sequence[Sequence[str]]] | None = None,
    noise_floor: float | Mapping[str, np.ndarray] = 1e-6,
    grid_shape: tuple[int, int] | None = None,
    log: bool = False,
    failed: Mapping[str, int] | None = None,
    order: Sequence[int] | None = None,
    part_size: int | None = None,
    target_tokens: Mapping[str, Sequence[tuple[Sequence[int], str]]] | None = None,
    options: Mapping[str, Sequence[Sequence[str]]] | None = None,
    generations: Mapping[str, Sequence[str | None]] | None = None,
    cut: Sequence[int] = (),
    **config: Any,
) -> Run:
    """Write a run directory and read it back.

    Args:
        path: directory to make.
        effects: key -> (sample, L + 1) p of the target after removal from layer k on; at L nothing is removed.
            With `layers=(...)` in the config: one column for each of these layers and a last one for L.
        entropies: stream -> key -> (sample, L) nats, or one (L,) curve for every sample. `hidden` may have L + 1.
        grids: key -> (sample, layer, window) p under "keep-one" at the cut layers. A sample that is all NaN
            carries no grid. Baselines come from `effects`.
        leave_one_out: the same for "leave-one-out".
        spectra: stream -> key -> (sample, layer, rank) eigenvalues.
        images: key -> one hashable name a sample; equal names are one image. By default every sample has its own.
        kl: key -> (sample, L + 1) KL(removed || all) in nats; by default the squared effect.
        correct: key -> (sample, L + 1) bool; by default p > 0.5.
        questions: key -> one question a sample; by default "what ?".
        answers: key -> the reference answers of each sample; by default ["yes"].
        noise_floor: of every sample and measure, or key -> (sample,).
        grid_shape: rows and columns of the token grid; by default square and just large enough for the windows.
        log: numbers in `effects` and the grids are log p (nats) instead of p.
        failed: key -> how many failed samples to add.
        order: permutation of all measured samples; failed ones come after them.
        part_size: samples in a part; by default one part holds all.
        target_tokens: key -> the target's ids and text of each sample; by default ([7], "yes").
        options: key -> the texts of each sample's options.
        generations: key -> the whole answer of each sample; None for one that could not be generated.
        cut: row numbers of the answers that the limit of tokens cut.
        config: fields of RunConfig; `n_layers` by default follows from `effects` or `entropies`.
    """
    removal = {key: np.asarray(a, float) if log else _log(a) for key, a in (effects or {}).items()}
    tables = {"keep-one": grids or {}, "leave-one-out": leave_one_out or {}}
    tables = {c: {k: a if log else _log(a) for k, a in t.items()} for c, t in tables.items() if t}
    samples = _samples(removal, entropies or {}, images or {}, order)
    settings = RunConfig(**{**CONFIG, **_implied(removal, entropies or {}, tables), **config})
    curves = (removal, entropies or {}, tables, spectra or {}, kl or {}, correct or {})
    planted = _Planted(
        settings, *curves, grid_shape, questions or {}, answers or {}, target_tokens or {}, options or {}
    )
    for name in ("samples", "curves", "tokens", "spectra"):
        (Path(path) / name).mkdir(parents=True)
    (Path(path) / "run.json").write_text(json.dumps(settings.to_dict()))
    size = part_size or max(len(samples), 1)
    for number, start in enumerate(range(0, max(len(samples), 1), size)):
        chunk = list(enumerate(samples))[start : start + size]
        lost = _failures(failed or {}, len(samples)) if start + size >= len(samples) else []
        _write_part(Path(path), f"part-0-{number}", planted, chunk, lost, noise_floor)
    if generations:
        _write_generations(Path(path), samples, generations, cut)
    return load_run(path)


def step_curve(n_layers: int, at: int, before: float = 4.0, after: float = 2.0) -> np.ndarray:
    """(n_layers,) curve that is `before` up to layer at - 1 and `after` from layer `at` on."""
    return np.where(np.arange(n_layers) < at, before, after)


def fade_curve(n_layers: int, half: float, width: float = 0.5, p_all: float = 0.9, p_none: float = 0.1) -> np.ndarray:
    """(n_layers + 1,) p after removal: a logistic rise from `p_none` to `p_all` with its middle at `half`."""
    rise = 1 / (1 + np.exp(-(np.arange(n_layers + 1) - half) / width))
    rise = (rise - rise[0]) / (rise[-1] - rise[0])
    return p_none + (p_all - p_none) * rise


@dataclass(frozen=True)
class _Planted:
    config: RunConfig
    removal: dict[str, np.ndarray]  # log p
    entropies: Mapping[str, Any]
    grids: dict[str, dict[str, np.ndarray]]  # context -> key -> log p
    spectra: Mapping[str, Mapping[str, np.ndarray]]
    kl: Mapping[str, np.ndarray]
    correct: Mapping[str, np.ndarray]
    grid_shape: tuple[int, int] | None
    questions: Mapping[str, Sequence[str]]
    answers: Mapping[str, Sequence[Sequence[str]]]
    target_tokens: Mapping[str, Sequence[tuple[Sequence[int], str]]]
    options: Mapping[str, Sequence[Sequence[str]]]

    @property
    def cuts(self) -> list[int]:
        """Cut layers of removals and grids, without L."""
        chosen = self.config.layers
        return list(range(self.config.n_layers)) if chosen is None else list(chosen)

    def windows(self, key: str) -> list[dict[str, int]]:
        """Windows of a sample's grid, row-major, smaller at the edge."""
        counts = {a.shape[2] for table in self.grids.values() for k, a in table.items() if k == key}
        if not counts:
            return []
        rows, columns = self.shape(counts.pop())
        w = self.config.window
        return [
            {"crop": 0, "row": r, "column": c, "height": min(w, rows - r), "width": min(w, columns - c)}
            for r in range(0, rows, w)
            for c in range(0, columns, w)
        ]

    def shape(self, n_windows: int) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        w = self.config.window
        side = math.isqrt(n_windows)
        rows, columns = self.grid_shape or ((side * w, side * w) if side * side == n_windows else (w, n_windows * w))
        assert math.ceil(rows / w) * math.ceil(columns / w) == n_windows, "grid_shape does not hold these windows"
        return rows, columns


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p, float))


def _samples(
    removal: Mapping[str, np.ndarray],
    entropies: Mapping[str, Any],
    images: Mapping[str, Sequence[Any]],
    order: Sequence[int] | None,
) -> list[tuple[str, int, str]]:
    """(key, position within the key, image hash) of every sample in the order of its row number."""
    sizes = {key: len(a) for key, a in removal.items()}
    for curves in entropies.values():
        sizes |= {key: len(a) for key, a in curves.items()} if isinstance(curves, Mapping) else {}
    listed = [
        (key, i, _sha256(images[key][i] if key in images else (key, i))) for key, n in sizes.items() for i in range(n)
    ]
    return listed if order is None else [listed[i] for i in order]


def _sha256(name: Any) -> str:
    return hashlib.sha256(repr(name).encode()).hexdigest()


def _implied(
    removal: Mapping[str, np.ndarray], entropies: Mapping[str, Any], grids: Mapping[str, Any]
) -> dict[str, Any]:
    """Configuration that follows from the arrays."""
    depths = [a.shape[1] - 1 for a in removal.values()]
    for stream, curves in entropies.items():
        arrays = list(curves.values()) if isinstance(curves, Mapping) else [curves]
        depths += [np.shape(a)[-1] for a in arrays if stream != "hidden"]
    if not depths:
        depths = [np.shape(a)[-1] for a in dict(entropies["hidden"]).values()]
    held = {"entropy": bool(entropies), "removal": bool(removal), "information": bool(grids)}
    return {
        "n_layers": depths[0],
        "streams": tuple(entropies),
        "probes": tuple(name for name, there in held.items() if there),
        "contexts": tuple(grids),
    }


def _failures(failed: Mapping[str, int], first: int) -> list[dict[str, Any]]:
    keys = [key for key, n in failed.items() for _ in range(n)]
    blank = {"answers": ["no"], "status": "failed", "error": "the image cannot be read", "correct": False}
    return [
        {"row": first + i, "id": f"failed-{i}", **_labels(key), "image_sha256": "", "question": "what ?", **blank}
        for i, key in enumerate(keys)
    ]


def _labels(key: str) -> dict[str, str]:
    parts = key.split("/")
    task = parts[1] if len(parts) > 1 else parts[0]
    return {"task_type": parts[0], "task": task, "category": parts[2] if len(parts) > 2 else ""}


def _write_part(
    path: Path,
    part: str,
    planted: _Planted,
    chunk: list[tuple[int, tuple[str, int, str]]],
    lost: list[dict[str, Any]],
    noise_floor: float | Mapping[str, np.ndarray],
) -> None:
    records, curves, tokens, spectra = list(lost), [], {}, {}
    for row, (key, i, image) in chunk:
        floor = float(noise_floor[key][i]) if isinstance(noise_floor, Mapping) else noise_floor
        stored = _grids_of(planted, row, key, i)
        tokens |= stored
        for stream, table in planted.spectra.items():
            if key in table:
                spectra[f"{row}/{stream}"] = np.asarray(table[key][i], np.float32)
        curves += _curves_of(planted, row, key, i)
        records.append(_record(planted, row, key, i, image, floor, bool(stored)))
    pq.write_table(pa.Table.from_pylist(curves, CURVES), path / "curves" / f"{part}.parquet")
    if tokens:
        layers = {"layers": json.dumps(planted.cuts), "window": str(planted.config.window), "unit": "nats"}
        save_file(tokens, path / "tokens" / f"{part}.safetensors", metadata=layers)
    if spectra:
        save_file(spectra, path / "spectra" / f"{part}.safetensors")
    pq.write_table(pa.Table.from_pylist(records, SAMPLES), path / "samples" / f"{part}.parquet")


def _write_generations(
    path: Path, samples: list[tuple[str, int, str]], generations: Mapping[str, Sequence[str | None]], cut: Sequence[int]
) -> None:
    (path / "generations").mkdir()
    records = [
        {
            "row": row,
            "text": generations[key][i],
            "n_tokens": 4,
            "finished": row not in cut,
            "max_new_tokens": 4,
            "error": "" if generations[key][i] is not None else "it does not generate",
        }
        for row, (key, i, _) in enumerate(samples)
        if key in generations
    ]
    pq.write_table(pa.Table.from_pylist(records, GENERATIONS), path / "generations" / "part-0-0.parquet")


def _record(planted: _Planted, row: int, key: str, i: int, image: str, floor: float, has_grid: bool) -> dict[str, Any]:
    log_p = float(planted.removal[key][i][-1]) if key in planted.removal else math.nan
    windows = planted.windows(key) if has_grid else []
    rows, columns = planted.shape(len(windows)) if windows else (8, 8)
    crop = {"rows": rows, "columns": columns, "left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}
    probes = [name for name in planted.config.probes if name != "information" or has_grid]
    return {
        "row": row,
        "id": f"{key}-{i}",
        **_labels(key),
        "image_sha256": image,
        "question": planted.questions[key][i] if key in planted.questions else "what ?",
        "answers": list(planted.answers[key][i]) if key in planted.answers else ["yes"],
        "status": "ok",
        "error": "",
        "prediction": "yes",
        "correct": bool(planted.correct[key][i][-1]) if key in planted.correct else math.exp(log_p) > 0.5,
        "target_ids": list(planted.target_tokens[key][i][0]) if key in planted.target_tokens else [7],
        "target_text": planted.target_tokens[key][i][1] if key in planted.target_tokens else "yes",
        "options": list(planted.options[key][i]) if key in planted.options else [],
        "p": math.exp(log_p),
        "log_p": log_p,
        "noise_floor_p": floor,
        "noise_floor_log_p": floor,
        "noise_floor_kl": floor,
        "n_visual": rows * columns,
        "n_placeless": 0,
        "n_prompt": rows * columns + 10,
        "probes": probes,
        "batch_size": 8,
        "seconds": 0.1,
        "crops": [crop],
        "windows": windows,
        "thumbnail": _thumbnail(row),
    }


def _curves_of(planted: _Planted, row: int, key: str, i: int) -> list[dict[str, Any]]:
    found = []

    def add(layers: Sequence[int], values: np.ndarray, measure: str, stream: str = "") -> None:
        where = ("", "") if stream else (planted.config.targets[0], "removal")
        for layer, value in zip(layers, np.asarray(values, float), strict=True):
            labels = {"row": row, "target": where[0], "context": where[1], "layer": int(layer)}
            found.append({**labels, "stream": stream, "measure": measure, "value": float(value)})

    for stream, curves in planted.entropies.items():
        if not isinstance(curves, Mapping):
            add(range(len(curves)), curves, "entropy", stream)
        elif key in curves:
            add(range(len(curves[key][i])), curves[key][i], "entropy", stream)
    if key in planted.removal:
        log_p = planted.removal[key][i]
        p = np.exp(log_p)
        layers = [*planted.cuts, planted.config.n_layers]
        correct = planted.correct[key][i] if key in planted.correct else p > 0.5
        add(layers, log_p, "log_p")
        add(layers, planted.kl[key][i] if key in planted.kl else (p[-1] - p) ** 2, "kl")
        add(layers, correct, "correct")
        add(layers, correct == correct[-1], "same")
    return found


def _grids_of(planted: _Planted, row: int, key: str, i: int) -> dict[str, np.ndarray]:
    found = {}
    for context, table in planted.grids.items():
        if key not in table or np.isnan(table[key][i]).all():
            continue
        name = f"{row}/{planted.config.targets[0]}/{context}"
        removal = planted.removal[key][i].astype(np.float32)
        found |= {name: np.asarray(table[key][i], np.float32)}
        found |= {f"{name}/removed": removal[:-1].copy(), f"{name}/all": removal[-1:].copy()}
    return found


def _thumbnail(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
