"""What is on disk of one sample, read back so that token grids can be added to it without measuring it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from probes.directory.writer import Record
from probes.measures.information import RemovalCurve
from probes.models.targets import Target

REMOVAL_MEASURES = ("log_p", "kl", "correct", "same")


def read_record(path: Path, part: str, row: int, layers: Sequence[int]) -> Record:
    """The record of one committed row, as it was given to the writer; arrays in float32.

    Args:
        path: the run directory.
        part: that holds the row.
        row: its number.
        layers: of the token grids in its part; they are not the row's own if it has none.
    """
    of_row = [("row", "==", row)]
    tokens = _arrays(path / "tokens" / f"{part}.safetensors", row)
    (sample,) = pq.read_table(path / "samples" / f"{part}.parquet", filters=of_row).to_pylist()
    curves = pq.read_table(path / "curves" / f"{part}.parquet", filters=of_row).to_pylist()
    return Record(
        sample=sample,
        curves=[(c["target"], c["context"], c["layer"], c["stream"], c["measure"], c["value"]) for c in curves],
        tokens=tokens,
        spectra=_arrays(path / "spectra" / f"{part}.safetensors", row),
        token_layers=tuple(layers) if tokens else (),
    )


def held_removals(
    held: Record, targets: Mapping[str, Target], kind: str, tokens: str = "visual"
) -> dict[str, RemovalCurve]:
    """The removal curves of a committed record, one a target."""
    found = {}
    for name, target in targets.items():
        own = [(layer, measure, value) for at, _, layer, _, measure, value in held.curves if at == name]
        by_measure = {m: {layer: value for layer, measure, value in own if measure == m} for m in REMOVAL_MEASURES}
        layers = np.array(sorted(by_measure["log_p"]))
        log_p, kl, correct, same = (np.array([by_measure[m][k] for k in layers.tolist()]) for m in REMOVAL_MEASURES)
        found[name] = RemovalCurve(layers, log_p, kl, correct.astype(bool), same.astype(bool), target, kind, tokens)
    return found


def merge_grids(held: Record, arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> Record:
    """Put token grids of new layers among those of a record, all in the order of their layers.

    Args:
        held: a committed record, with or without token grids.
        arrays: "<target>/<context>[/removed|/all|/coarse]" -> array over the new layers, as `Record.tokens`.
        layers: the new ones, ascending, none of them held.
    """
    both = [*held.token_layers, *layers]
    order = np.argsort(both)
    merged = {}
    for key, new in arrays.items():
        if key.endswith("/all"):
            merged[key] = held.tokens.get(key, new)
        else:
            merged[key] = np.concatenate([held.tokens[key], new])[order] if held.token_layers else new
    return replace(held, tokens=merged, token_layers=tuple(sorted(both)))


def _arrays(file: Path, row: int) -> dict[str, np.ndarray]:
    """The arrays of one row in a part, by what follows the row number in their names."""
    if not file.exists():
        return {}
    with safe_open(file, framework="numpy") as stored:
        own = [key for key in stored.keys() if key.startswith(f"{row}/")]  # noqa: SIM118 (not a dict)
        return {key.split("/", 1)[1]: stored.get_tensor(key) for key in own}
