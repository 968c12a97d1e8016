"""Bytes on disk of a run, by writing a few records of the shape that its parts leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from analyses.runs import RunConfig
from probes.cost.workload import Subject
from probes.directory.columns import thumbnail
from probes.directory.writer import FOLDERS, Record, RunWriter
from probes.parts.forward import Forward
from probes.parts.part import Outline, outline_of
from probes.plans.plans import Parts

TRIAL_RECORDS = 9  # records in the larger of the trial parts


def disk_parts(
    subject: Subject,
    config: RunConfig,
    lists: Mapping[Parts, int],
    *,
    samples_a_part: int,
    thumbnail_bytes: float | None = None,
) -> dict[str, int]:
    """Bytes of a run directory: `samples and curves`, `token grids`, `spectra`, `parts` (of files, whatever they hold).

    For every list of parts, a few records of the shape that it leaves, numbers drawn at random, are written to a
    temporary directory and measured.

    Args:
        subject: the sample whose shapes count.
        config: of the run.
        lists: how many samples get each list of parts.
        samples_a_part: samples that one part of the directory holds.
        thumbnail_bytes: of a thumbnail; the sample's own by default.
    """
    counts = {parts: count for parts, count in lists.items() if any(isinstance(part, Forward) for part in parts)}
    prompt, random = subject.case.captured.prompt, np.random.default_rng(0)
    size = len(thumbnail(prompt.image)) if thumbnail_bytes is None else int(thumbnail_bytes)
    sums = dict.fromkeys(("samples and curves", "token grids", "spectra"), 0.0)
    fixed = header = 0.0
    for parts, count in counts.items():
        shape = outline_of(parts, subject.case)
        records = [
            _random_record(subject, config, shape, row, random.bytes(size), random) for row in range(TRIAL_RECORDS)
        ]
        single_sizes, sizes = (_sizes(config, subset) for subset in (records[:1], records))
        sample_bytes = (sizes["samples"] + sizes["curves"] - single_sizes["samples"] - single_sizes["curves"]) / (
            TRIAL_RECORDS - 1
        )
        fixed, header = single_sizes["samples"] + single_sizes["curves"] - sample_bytes, single_sizes["run.json"]
        sums["samples and curves"] += count * sample_bytes
        sums["token grids"] += count * sizes["tokens"] / TRIAL_RECORDS
        sums["spectra"] += count * sizes["spectra"] / TRIAL_RECORDS
    sums["parts"] = ceil(sum(counts.values()) / samples_a_part) * fixed + header
    return {part: round(size) for part, size in sums.items()}


def _sizes(config: RunConfig, records: Sequence[Record]) -> Counter[str]:
    """Bytes of one part with these records, by folder."""
    sizes: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        path = Path(folder, "run")
        with RunWriter(path, config) as writer:
            for record in records:
                writer.add(record)
        for file in path.rglob("*"):
            top = file.relative_to(path).parts[0]
            if file.is_file() and top in (*FOLDERS, "run.json"):
                sizes[top] += file.stat().st_size
    return sizes


def _random_record(
    subject: Subject, config: RunConfig, shape: Outline, row: int, picture: bytes, random: np.random.Generator
) -> Record:
    """A record as a run makes it, with other numbers: nothing in it repeats, so nothing packs too well."""
    sample = subject.sample
    columns = {
        **{name: _number(value, random) if isinstance(value, type) else value for name, value in shape.columns.items()},
        "row": row,
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
        "seconds": float(random.normal()),
        "image_sha256": sha256(picture).hexdigest(),
        "thumbnail": picture,
    }
    curves = [(*row[:-1], _number(row[-1], random)) for row in shape.curves]
    tokens, spectra = (
        {key: random.normal(size=size) for key, size in arrays.items()} for arrays in (shape.tokens, shape.spectra)
    )
    return Record(columns, curves, tokens, spectra, shape.token_layers)


def _number(kind: Any, random: np.random.Generator) -> float:
    """A number of this type."""
    return float(random.integers(2)) if kind is bool else float(kind(random.normal()))
