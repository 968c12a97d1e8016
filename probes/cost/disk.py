"""Bytes on disk of a run, by writing a few records of its shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from analyses.runs import RunConfig
from probes.cost.workload import Subject, grid_cuts, windows_of
from probes.directory.columns import sample_entry
from probes.directory.writer import Record, RunWriter
from probes.models.grids import tile_windows
from probes.models.probed import ProbedModel
from probes.replay.ablations import check_layers, window_table

FEW = 9  # records in the larger of the trial parts


def disk_parts(
    model: ProbedModel,
    subject: Subject,
    config: RunConfig,
    *,
    samples: int,
    grids: int,
    spectra: int,
    samples_a_part: int,
    thumbnail: float | None = None,
) -> dict[str, int]:
    """Bytes of a run directory, by part: `samples and curves`, `token grids`, `spectra`, `parts` (of files, fixed).

    A few records of this shape, numbers drawn at random, are written to a temporary directory and measured.

    Args:
        model: as loaded.
        subject: the sample whose shapes count.
        config: of the run.
        samples: how many are written.
        grids: how many of them with token grids.
        spectra: how many with eigenvalues.
        samples_a_part: samples that one part holds.
        thumbnail: bytes of a thumbnail; the sample's own by default.
    """
    random = np.random.default_rng(0)
    target = next(iter(subject.targets.values()), None)
    entry = sample_entry(model, subject.captured, target)
    size = len(entry["thumbnail"]) if thumbnail is None else thumbnail
    records = [_made_up(model, subject, config, entry, int(size), random) for _ in range(FEW)]
    plain = [replace(_numbered(record, row), tokens={}, spectra={}) for row, record in enumerate(records)]
    for record in plain:
        record.sample["windows"] = None
    whole = [_numbered(record, row) for row, record in enumerate(records)]
    one, few, full = (_written(config, some) for some in (plain[:1], plain, whole))
    each = (sum(few.values()) - sum(one.values())) / (FEW - 1)
    fixed = sum(one.values()) - each - one["run.json"]
    eigenvalues = full["spectra"] / FEW
    windows = (sum(full.values()) - full["spectra"] - sum(few.values())) / FEW
    return {
        "samples and curves": round(samples * each),
        "token grids": round(grids * windows) if config.contexts else 0,
        "spectra": round(spectra * eigenvalues),
        "parts": round(ceil(samples / samples_a_part) * fixed + one["run.json"]),
    }


def _numbered(record: Record, row: int) -> Record:
    return replace(record, sample={**record.sample, "row": row})


def _written(config: RunConfig, records: Sequence[Record]) -> dict[str, int]:
    """Bytes of one part with these records, by folder."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "run")
        with RunWriter(path, config) as writer:
            for record in records:
                writer.add(record)
        sizes = {file.relative_to(path).parts: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    found = dict.fromkeys(("run.json", "samples", "curves", "tokens", "spectra"), 0)
    for parts, size in sizes.items():
        found[parts[0]] = found.get(parts[0], 0) + size
    return found


def _made_up(
    model: ProbedModel, subject: Subject, config: RunConfig, entry: dict[str, Any], thumbnail: int, random: Any
) -> Record:
    """A record as a run makes it, with other numbers: nothing in it repeats, so nothing packs too well."""
    sample, picture = subject.sample, random.bytes(thumbnail)
    numbers = ("p", "log_p", "output_entropy", "seconds", "noise_floor_p", "noise_floor_log_p", "noise_floor_kl")
    told = {
        **entry,
        **{name: float(random.normal()) for name in numbers},
        "id": sample.id,
        "task": sample.task,
        "task_type": sample.task_type,
        "category": sample.category,
        "question": f"{sample.question}{random.integers(1000)}",
        "answers": list(sample.answers),
        "options": list(sample.options),
        "status": "ok",
        "error": "",
        "probes": list(config.probes),
        "image_sha256": sha256(picture).hexdigest(),
        "thumbnail": picture,
        "windows": window_table(windows_of(subject.captured, config)).to_dict("records"),
    }
    spectra = {
        stream: random.normal(size=(len(states), min(states.shape[1:])))
        for stream, states in subject.captured.visual.states.items()
    }
    curves = list(_random_curves(model, subject, config, random))
    return Record(told, curves, _random_tokens(model, subject, config, random), spectra)


def _random_curves(
    model: ProbedModel, subject: Subject, config: RunConfig, random: Any
) -> Iterator[tuple[str, str, int, str, str, float]]:
    for stream, states in subject.captured.visual.states.items():
        for layer in range(len(states)):
            yield "", "", layer, stream, "entropy", float(random.normal())
    for name in subject.targets:
        for layer in (*check_layers(model, config.layers), model.n_layers):
            for measure in ("log_p", "kl"):
                yield name, "removal", layer, "", measure, float(np.float32(random.normal()))
            for measure in ("correct", "same"):
                yield name, "removal", layer, "", measure, float(random.integers(2))


def _random_tokens(model: ProbedModel, subject: Subject, config: RunConfig, random: Any) -> dict[str, np.ndarray]:
    cuts = len(grid_cuts(model, config))
    tiles = len(windows_of(subject.captured, config))
    arrays: dict[str, np.ndarray] = {}
    for key in (f"{name}/{context}" for name in subject.targets for context in config.contexts):
        shapes = {key: (cuts, tiles), f"{key}/removed": (cuts,), f"{key}/all": (1,)}
        if config.coarse is not None:
            large = len(tile_windows(subject.captured.prompt.grids, config.coarse))
            shapes[f"{key}/coarse"] = (cuts, large)
        arrays |= {part: random.normal(size=shape) for part, shape in shapes.items()}
    return arrays
