"""What is on disk of one sample, read back so that token grids can be added to it without measuring it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from probes.directory.columns import REMOVAL_MEASURES
from probes.directory.writer import Record
from probes.measures.information import RemovalCurve
from probes.models.targets import Target


def read_record(path: Path, part: str, row: int, layers: Sequence[int]) -> Record:
    """Return the record of one committed row as the writer took it, with arrays in float32.

    Args:
        path: the run directory.
        part: the name of the part that holds the row.
        row: the row number.
        layers: the layers of the row's token grids; ignored where the row has none.
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


def committed_removals(
    record: Record, targets: Mapping[str, Target], kind: str, tokens: str = "visual"
) -> dict[str, RemovalCurve]:
    """Return the removal curves of a committed record by the names of their targets."""
    curves = {}
    for name, target in targets.items():
        values = [(layer, measure, value) for at, _, layer, _, measure, value in record.curves if at == name]
        by_measure = {m: {layer: value for layer, measure, value in values if measure == m} for m in REMOVAL_MEASURES}
        layers = np.array(sorted(by_measure["log_p"]))
        log_p, kl, correct, same = (np.array([by_measure[m][k] for k in layers.tolist()]) for m in REMOVAL_MEASURES)
        curves[name] = RemovalCurve(layers, log_p, kl, correct.astype(bool), same.astype(bool), target, kind, tokens)
    return curves


def merge_grids(record: Record, arrays: Mapping[str, np.ndarray], layers: Sequence[int]) -> Record:
    """Return a record with token grids of new layers merged into its own, all in ascending order of their layers.

    Args:
        record: a committed record, with or without token grids.
        arrays: "<target>/<context>[/removed|/all|/coarse]" -> array over the new layers, as in `Record.tokens`.
        layers: the new layers, ascending, none of which the record has.
    """
    all_layers = [*record.token_layers, *layers]
    order = np.argsort(all_layers)
    merged = {}
    for key, new in arrays.items():
        if key.endswith("/all"):
            merged[key] = record.tokens.get(key, new)
        else:
            merged[key] = np.concatenate([record.tokens[key], new])[order] if record.token_layers else new
    return replace(record, tokens=merged, token_layers=tuple(sorted(all_layers)))


def _arrays(file: Path, row: int) -> dict[str, np.ndarray]:
    """Return the arrays of one row in a part, by the rest of their names after the row number."""
    if not file.exists():
        return {}
    with safe_open(file, framework="numpy") as stored:
        keys = [key for key in stored.keys() if key.startswith(f"{row}/")]  # noqa: SIM118 (not a dict)
        return {key.split("/", 1)[1]: stored.get_tensor(key) for key in keys}
