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
from probes.directory.columns import question_entry, thumbnail
from probes.directory.writer import FOLDERS, Record, RunWriter
from probes.parts.forward import Forward
from probes.parts.part import Outline, outline_of
from probes.plans.plans import Parts

TRIAL_RECORDS = 9  # records in the larger of the two trial parts; the smaller one holds one record


def disk_parts(
    subject: Subject,
    config: RunConfig,
    lists: Mapping[Parts, int],
    *,
    samples_a_part: int,
    thumbnail_bytes: float | None = None,
) -> dict[str, int]:
    """Return the bytes of a run directory by kind: samples and curves, token grids, spectra, and overhead of files.

    For every list of parts, a few records of the shape that it leaves, with random numbers, are written to a temporary
    directory, whose files are measured. The overhead of files is named "parts".

    Args:
        subject: the sample whose shapes stand for all.
        config: the configuration of the run.
        lists: the number of samples that get each list of parts.
        samples_a_part: the number of samples in one part of the directory.
        thumbnail_bytes: the bytes of a thumbnail; by default those of the subject's.
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
    """Return the bytes of one part of a run directory with these records, by folder."""
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
    """Return a record of the shape that a run writes, with random numbers, so that compression gains no more on it."""
    sample = subject.sample
    columns = {
        **{name: _number(value, random) if isinstance(value, type) else value for name, value in shape.columns.items()},
        **question_entry(row, sample),
        "question": f"{sample.question}{random.integers(1000)}",
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
    """Return a random number of this type as a float."""
    return float(random.integers(2)) if kind is bool else float(kind(random.normal()))
