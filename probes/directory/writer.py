"""Write a run directory, part by part, so that what is listed exists and an interrupted run resumes (no torch here).

A part is written under temporary names and renamed into place, the samples part last: it is the commit record.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from safetensors.numpy import save_file

from analyses.runs import CURVES, GENERATIONS, SAMPLES, HorizonError, Run, RunConfig, load_run, part_order

FOLDERS = ("samples", "curves", "tokens", "spectra")
GENERATED = "generations"  # beside them: whole answers, made once a row is committed
FLUSH_SAMPLES, FLUSH_SECONDS = 64, 30.0  # after so many samples, or so long, a run commits a part
COMMITTED = ("id", "task", "task_type", "question", "answers", "status", "probes", "part")


@dataclass(frozen=True)
class Record:
    """What was measured on one sample.

    Attributes:
        sample: values of the `SAMPLES` columns; missing ones are null.
        curves: rows (target, context, layer, stream, measure, value).
        tokens: "<target>/<context>[/removed|/all|/coarse]" -> float32 array.
        spectra: stream -> (layer, rank) float32 array.
        token_layers: the layers of `tokens`.
    """

    sample: dict[str, Any]
    curves: list[tuple[str, str, int, str, str, float]] = field(default_factory=list)
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)
    spectra: Mapping[str, np.ndarray] = field(default_factory=dict)
    token_layers: tuple[int, ...] = ()

    @property
    def excluded(self) -> bool:
        """Whether the sample was looked at, and left unmeasured on purpose."""
        return self.sample.get("status") == "excluded"


class RunWriter:
    """Adds records to one shard of a run directory; `flush` commits what was added since the last flush.

    A context manager: it holds a lock on its shard until it is left, and flushes then. Threads may share it.
    """

    def __init__(self, path: str | Path, config: RunConfig, *, shard: tuple[int, int] = (0, 1)) -> None:
        """Create the directory, or open it to go on.

        Raises:
            HorizonError: it holds a run of another configuration, is no run directory and not empty, or another
                process is writing the same shard.
        """
        self.path, self.config = Path(path), config
        self.label = f"{shard[0]}of{shard[1]}"
        self._pending: list[Record] = []
        self._generated: list[dict[str, Any]] = []
        self._flushing = threading.Lock()  # whoever leaves in haste may flush while another thread still does
        self._open()
        self._lock = FileLock(self.path / f".lock-{self.label}", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise HorizonError(
                f"another process is writing shard {shard[0]}/{shard[1]} of {self.path}: wait for it, or split the run "
                "with --shard i/n"
            ) from None
        self.committed = self._read_committed()
        self.generations: dict[Any, Any] = load_run(self.path).generations.to_dict("index")

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()  # also on Ctrl-C: everything finished is on disk
        finally:
            self._lock.release()

    def _open(self) -> None:
        file = self.path / "run.json"
        ours = {*FOLDERS, GENERATED, "run.json"}
        if self.path.exists() and not file.exists():
            is_foreign = not self.path.is_dir() or any(
                entry.name not in ours and not entry.name.startswith(".") for entry in self.path.iterdir()
            )
            if is_foreign:
                raise HorizonError(f"{self.path} exists and is not a run directory: choose another, or empty it first")
        self.path.mkdir(parents=True, exist_ok=True)
        _create(file, json.dumps(self.config.to_dict(), indent=2))
        run = load_run(self.path)
        _refuse_other(run, self.config)
        layers, pilot = run.config.chosen_layers, run.config.pilot_rows
        self.config = replace(self.config, chosen_layers=layers, pilot_rows=pilot)
        for folder in FOLDERS:
            (self.path / folder).mkdir(exist_ok=True)

    def _read_committed(self) -> dict[int, dict[str, Any]]:
        """Return for each row number of every shard the `COMMITTED` columns and the layers of its token grids."""
        self._discard_uncommitted()
        run = Run(self.path, self.config)
        return {
            int(row): {**dict(zip(COMMITTED, values, strict=True)), "token_layers": run.token_layers(int(row))}
            for row, *values in run.samples[["row", *COMMITTED]].values
        }

    def _discard_uncommitted(self) -> None:
        """Remove the files that an interrupted flush of this shard left behind: those without a samples part."""
        committed = {part.stem for part in (self.path / "samples").glob("part-*.parquet")}
        for folder in FOLDERS:
            for file in (self.path / folder).glob(f"*part-{self.label}-*"):
                if file.stem not in committed:
                    file.unlink()

    def add(self, record: Record) -> None:
        """Hold a record until the next flush."""
        self._pending.append(record)

    def add_generation(self, generation: dict[str, Any]) -> None:
        """Hold a row of `GENERATIONS` until the next flush; its sample is committed, or added before."""
        self._generated.append(generation)

    def __len__(self) -> int:
        return max(len(self._pending), len(self._generated))

    def flush(self) -> None:
        """Commit everything added since the last flush as one part; does nothing if there is none."""
        with self._flushing:
            records, self._pending = self._pending, []
            generated, self._generated = self._generated, []
            if records:
                self._commit(records)
            if generated:  # after the samples, so that no answer is ever without its question
                self._commit_generations(generated)

    def _commit_generations(self, generated: list[dict[str, Any]]) -> None:
        folder = self.path / GENERATED
        folder.mkdir(exist_ok=True)
        name = f"part-{self.label}-{_next_number(folder):05d}.parquet"
        _write_table(folder / name, pa.Table.from_pylist(generated, schema=GENERATIONS))

    def _commit(self, records: list[Record]) -> None:
        part = f"part-{self.label}-{_next_number(self.path / 'samples'):05d}"
        tokens = {f"{r.sample['row']}/{key}": value for r in records for key, value in r.tokens.items()}
        spectra = {f"{r.sample['row']}/{key}": value for r in records for key, value in r.spectra.items()}
        if tokens:
            self._write_arrays(self.path / "tokens" / f"{part}.safetensors", tokens, _layer_labels(records))
        if spectra:
            labels = {"layers": json.dumps(self.config.removal_layers)}
            self._write_arrays(self.path / "spectra" / f"{part}.safetensors", spectra, labels)
        _write_table(self.path / "curves" / f"{part}.parquet", _curve_table(records))
        samples = pa.Table.from_pylist([record.sample for record in records], schema=SAMPLES)
        _write_table(self.path / "samples" / f"{part}.parquet", samples)

    def _write_arrays(self, file: Path, arrays: dict[str, np.ndarray], labels: dict[str, str]) -> None:
        metadata = {
            **labels,
            "window": str(self.config.window or f"at most {self.config.max_windows} of them"),
            "unit": "log p in nats" if file.parent.name == "tokens" else "share of the trace",
        }
        temporary = file.with_name(f".{file.name}")
        stored = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in arrays.items()}
        save_file(stored, temporary, metadata=metadata)
        temporary.chmod((self.path / "run.json").stat().st_mode)  # safetensors makes files that only their owner reads
        temporary.replace(file)


def _next_number(folder: Path) -> int:
    """Return the number of the next part, above those of every shard: the later commit of a row has a higher one."""
    return max((part_order(part)[0] for part in folder.glob("part-*.parquet")), default=-1) + 1


def _layer_labels(records: Sequence[Record]) -> dict[str, str]:
    """Return the metadata of a part: the layers of its first row's token grids, and those of each row that differs."""
    by_row = {str(record.sample["row"]): list(record.token_layers) for record in records if record.tokens}
    layers = next(iter(by_row.values()))
    exceptions = {row: row_layers for row, row_layers in by_row.items() if row_layers != layers}
    return {"layers": json.dumps(layers)} | ({"row_layers": json.dumps(exceptions)} if exceptions else {})


def record_choice(path: str | Path, *, layers: Mapping[str, Sequence[int]], pilot: Sequence[int] = ()) -> None:
    """Note in a run with `token_layers="auto"` which token grids to measure next; what was noted before stays.

    Args:
        path: the run directory.
        layers: task type -> cuts to add to those of its samples.
        pilot: row numbers to add to those that get every cut.
    """
    file = Path(path) / "run.json"
    with FileLock(Path(path) / ".lock-layers"):
        config = load_run(path).config
        by_type = {name: sorted({*config.chosen_layers.get(name, ()), *more}) for name, more in layers.items()}
        rows = tuple(sorted({*config.pilot_rows, *pilot}))
        config = replace(config, chosen_layers={**config.chosen_layers, **by_type}, pilot_rows=rows)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(config.to_dict(), indent=2))
        temporary.replace(file)


def _refuse_other(run: Run, config: RunConfig) -> None:
    if run.config.hash == config.hash:
        return
    old, new = run.config.to_dict(), config.to_dict()
    differing = [
        f"{key} {old[key]!r} there, {new[key]!r} now"
        for key in new
        if key not in RunConfig.NOT_ESTIMAND and old[key] != new[key]
    ]
    raise HorizonError(
        f"{run.path} holds a run of another configuration ({'; '.join(differing)}): "
        "choose another output directory; runs are never mixed"
    )


def _curve_table(records: list[Record]) -> pa.Table:
    rows = [(record.sample["row"], *row) for record in records for row in record.curves]
    columns = zip(*rows, strict=True) if rows else ([] for _ in CURVES.names)
    return pa.table(
        [pa.array(column, type=kind) for column, kind in zip(columns, CURVES.types, strict=True)], schema=CURVES
    )


def _write_table(file: Path, table: pa.Table) -> None:
    temporary = file.with_name(f".{file.name}")
    pq.write_table(table, temporary)
    temporary.replace(file)


def _create(file: Path, text: str) -> None:
    """Write a file whole, unless it is there already: of several processes that start together, one does."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, file)
    temporary.unlink()
