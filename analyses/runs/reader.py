"""The reader of run directories: samples, curves, token grids and spectra as tables and arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

from analyses.runs.config import RunConfig
from analyses.runs.schema import (
    CURVES,
    GENERATIONS,
    SAMPLES,
    SCHEMA_VERSION,
    HorizonError,
    check_choice,
    short_name,
)
from analyses.runs.vocabulary import CONTEXT_TABLE, METHOD_TABLE

GROUP_COLUMNS = ("task_type", "task", "category")


def split_groups(samples: pd.DataFrame, by: Sequence[str]) -> list[tuple[dict[str, str], np.ndarray]]:
    """Split samples by columns; no columns means one group of all.

    Returns:
        One (column -> value, row numbers) a group, sorted by value.

    Raises:
        HorizonError: a column that samples cannot be grouped by.
    """
    for column in by:
        check_choice("column to group by", column, GROUP_COLUMNS)
    if not by:
        return [({}, samples.index.to_numpy(int))]
    labels = samples[list(by)].fillna("").astype(str)
    found = labels.groupby(list(by)).indices.values()  # positions, keys sorted
    return [(dict(labels.iloc[where[0]]), samples.index[where].to_numpy(int)) for where in found]


def check_target(run: Run, target: str | None) -> str:
    """The target itself, or the run's first if it is None; raises HorizonError if the run has no such target."""
    if target is None:
        return run.config.targets[0]
    check_choice("target", target, run.config.targets)
    return target


@dataclass(frozen=True)
class TokenGrids:
    """Raw log p of every ablation of one sample, one target and one context.

    Attributes:
        log_p: (layer, window) float32, log p of the target in nats under each ablation. NaN where coarse windows
            were measured first and theirs showed no effect above the sample's noise floor; statistics take 0 there.
        removed: (layer,) float32, log p with none of `tokens` from that layer on.
        all: log p with every token.
        layers: (layer,) int, the cut of each row.
        windows: DataFrame, one row a window: crop, row, column, height, width.
        context: "keep-one" or "leave-one-out".
        target: name of the target.
        method: "exact", or "gate": `log_p` is the baseline and its first-order change, and effects in p are first
            order too, p of the baseline times the change in log p.
        coarse: (layer, coarse window) log p in nats of the windows that were measured first; None if none were.
        tokens: what was removed, and what the windows are of: "visual", "text" or "all".
    """

    log_p: np.ndarray
    removed: np.ndarray
    all: float
    layers: np.ndarray
    windows: pd.DataFrame
    context: str
    target: str
    method: str = "exact"
    coarse: np.ndarray | None = None
    tokens: str = "visual"

    @property
    def weights(self) -> np.ndarray:
        """(window,) tokens in each window: means over tokens weight windows by their size."""
        return (self.windows["height"] * self.windows["width"]).to_numpy(float)

    @property
    def replays(self) -> int:
        """Ablations that were run for this grid, those of coarse windows included."""
        return int((~np.isnan(self.log_p)).sum()) + (0 if self.coarse is None else self.coarse.size)

    def information(self, measure: str = "p") -> np.ndarray:
        """(layer, window) effect: I_k(v) for keep-one, D_k(v) for leave-one-out, in p or in nats of log p.

        NaN where `log_p` is: not measured, since below the noise floor. Where the method is of first order it
        is linear in the change of log p, in p as well.
        """
        check_choice("measure", measure, ("p", "log_p"))
        context, first_order = CONTEXT_TABLE[self.context], METHOD_TABLE[self.method].first_order
        value, removed, everything = (np.asarray(part, float) for part in (self.log_p, self.removed, self.all))
        if measure == "p" and not first_order:
            value, removed, everything = np.exp(value), np.exp(removed), np.exp(everything)
        baseline = context.baseline(removed, everything)
        effects = context.effects(value, baseline)
        return effects * np.exp(baseline) if measure == "p" and first_order else effects


@dataclass(frozen=True)
class Run:
    """A run directory, read. DataFrames are loaded on first use; token grids and spectra sample by sample.

    Attributes:
        path: the directory.
        config: what it was measured with.
        left_out: row number -> why `select_samples` left it out; nothing in the directory changes.
        caution: what a selection does to every result on the effect; "" without one.
    """

    path: Path
    config: RunConfig
    left_out: Mapping[int, str] = field(default_factory=dict, repr=False, compare=False)
    caution: str = field(default="", repr=False, compare=False)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def model(self) -> str:
        """Short name of the model: the last part of its id or path."""
        return short_name(self.config.model)

    @cached_property
    def _commits(self) -> pd.DataFrame:
        """Every committed row, newest part last, with the part that holds it."""
        tables = []
        columns = [name for name in SAMPLES.names if name != "thumbnail"]
        for part in sorted((self.path / "samples").glob("part-*.parquet"), key=part_order):
            held = pq.read_schema(part).names
            frame = pq.read_table(part, columns=[name for name in columns if name in held]).to_pandas()
            frame = frame.assign(**{name: None for name in columns if name not in held})  # of an earlier version
            frame["part"] = part.stem
            tables.append(frame)
        if not tables:
            return pd.DataFrame({name: [] for name in [*columns, "part"]})
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row a sample, indexed by row number: `SAMPLES` without the thumbnail, plus `part` and `generation`."""
        commits = self._commits.assign(measured=self._commits["status"] == "ok")
        newest = commits.sort_values("measured", kind="stable").drop(columns="measured")
        frame = newest.drop_duplicates("row", keep="last")
        frame = frame.set_index("row", drop=False).sort_index().rename_axis(None)
        frame["generation"] = self.generations["text"].reindex(frame.index)
        left_out = [row for row in self.left_out if row in frame.index]
        frame.loc[left_out, "status"] = "excluded"
        frame.loc[left_out, "error"] = [self.left_out[row] for row in left_out]
        return frame

    @cached_property
    def generations(self) -> pd.DataFrame:
        """The whole answers, indexed by row number; columns of `GENERATIONS`, empty where none were asked for."""
        parts = sorted((self.path / "generations").glob("part-*.parquet"), key=part_order)
        tables = [pq.read_table(part, schema=GENERATIONS) for part in parts]
        frame = pa.concat_tables(tables or [GENERATIONS.empty_table()]).to_pandas()
        return frame.drop_duplicates("row", keep="last").set_index("row").sort_index().rename_axis(None)

    @property
    def ok(self) -> pd.DataFrame:
        """The samples that were measured, without those that a selection leaves out."""
        return self.samples[self.samples["status"] == "ok"]

    @property
    def failed(self) -> pd.DataFrame:
        """The samples that could not be measured, with their `error`."""
        return self.samples[self.samples["status"] == "failed"]

    @property
    def excluded(self) -> pd.DataFrame:
        """The samples left out on purpose, by the run itself or by a selection, with the reason as `error`."""
        return self.samples[self.samples["status"] == "excluded"]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Tidy rows with the columns of `CURVES`, of the newest commit of each sample."""
        wanted = self.ok.groupby("part")["row"].agg(set)
        tables = []
        for part, rows in wanted.items():
            frame = pq.read_table(self.path / "curves" / f"{part}.parquet", schema=CURVES).to_pandas()
            tables.append(frame[frame["row"].isin(rows)])
        if not tables:
            return pd.DataFrame({name: [] for name in CURVES.names})
        return pd.concat(tables, ignore_index=True)

    def matrix(
        self, measure: str, *, context: str = "", target: str = "", stream: str = ""
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pivot one measure of the curves.

        Returns:
            rows: (sample,) int row numbers, ascending. layers: (layer,) int, ascending.
            values: (sample, layer) float, NaN where nothing was measured.
        """
        c = self.curves
        chosen = c[
            (c["measure"] == measure) & (c["context"] == context) & (c["target"] == target) & (c["stream"] == stream)
        ]
        table = chosen.pivot(index="row", columns="layer", values="value").sort_index().sort_index(axis=1)
        return table.index.to_numpy(int), table.columns.to_numpy(int), table.to_numpy(float)

    def row_of(self, sample_id: str) -> int:
        """Row number of a sample; raises HorizonError unless exactly one has the id."""
        rows = self.samples.index[self.samples["id"] == sample_id].tolist()
        if len(rows) != 1:
            number = f"{len(rows)} samples (rows {rows})" if rows else "no sample"
            raise HorizonError(f"run {self.name} has {number} with id {sample_id!r}")
        return int(rows[0])

    def thumbnail(self, row: int) -> bytes | None:
        """PNG of a sample's image, at most 256 px; None if the run kept none."""
        part = self.path / "samples" / f"{self.samples['part'][row]}.parquet"
        stored = pq.read_table(part, columns=["thumbnail"], filters=[("row", "==", row)])
        return stored["thumbnail"][0].as_py()

    def token_rows(self, context: str = "keep-one", target: str | None = None) -> list[int]:
        """Row numbers of the samples that carry token grids of this context and target, ascending."""
        if context not in self.config.contexts:
            return []
        target = target or self.config.targets[0]
        measured = set(self.curves.loc[self.curves["target"] == target, "row"])
        carried = self.ok.index[self.ok["probes"].map(lambda done: "information" in list(done))]
        return [int(row) for row in carried if row in measured]

    def tokens(self, sample_id: str | int, *, context: str = "keep-one", target: str | None = None) -> TokenGrids:
        """Token grids of one sample, by id or row number.

        Raises:
            HorizonError: the sample is unknown or carries no grid for that context and target.
        """
        row = sample_id if isinstance(sample_id, int) else self.row_of(sample_id)
        target = target or self.config.targets[0]
        key = f"{row}/{target}/{context}"
        if row not in self.samples.index:
            raise HorizonError(f"run {self.name} has no row {row}")
        record = self.samples.loc[row]
        path = self.path / "tokens" / f"{record['part']}.safetensors"
        if not path.exists():
            raise HorizonError(f"sample {record['id']!r} of run {self.name} carries no token grids")
        with safe_open(path, framework="numpy") as stored:
            if key not in stored.keys():  # noqa: SIM118 (not a dict)
                raise HorizonError(f"sample {record['id']!r} of run {self.name} carries no token grid for {key!r}")
            layers = np.array(_stored_layers(stored.metadata(), row), dtype=int)
            return TokenGrids(
                log_p=stored.get_tensor(key),
                removed=stored.get_tensor(f"{key}/removed"),
                all=float(stored.get_tensor(f"{key}/all")[0]),
                layers=layers,
                windows=pd.DataFrame(list(record["windows"])),
                context=context,
                target=target,
                method=self.config.method,
                coarse=stored.get_tensor(f"{key}/coarse") if f"{key}/coarse" in stored.keys() else None,  # noqa: SIM118
                tokens=self.config.tokens,
            )

    @cached_property
    def _token_metadata(self) -> dict[str, dict[str, str]]:
        """Part -> metadata of the token grids in it."""
        found = {}
        for file in sorted((self.path / "tokens").glob("part-*.safetensors")):
            with safe_open(file, framework="numpy") as stored:
                found[file.stem] = stored.metadata()
        return found

    def token_layers(self, row: int) -> tuple[int, ...]:
        """Layers of the token grids of one row, ascending; empty if it has none."""
        record = self.samples.loc[row]
        if record["status"] != "ok" or "information" not in list(record["probes"]):
            return ()
        metadata = self._token_metadata.get(str(record["part"]))
        return _stored_layers(metadata, row) if metadata else ()

    def spectra(self, stream: str) -> dict[int, np.ndarray]:
        """Row number -> (layer, rank) eigenvalues of the trace-one Gram, descending; empty if none were kept."""
        found = {}
        for part, frame in self.ok.groupby("part"):
            path = self.path / "spectra" / f"{part}.safetensors"
            if not path.exists():
                continue
            with safe_open(path, framework="numpy") as stored:
                held = set(stored.keys())
                for row in frame["row"]:
                    if f"{row}/{stream}" in held:
                        found[int(row)] = stored.get_tensor(f"{row}/{stream}")
        return found


def _stored_layers(metadata: dict[str, str], row: int) -> tuple[int, ...]:
    """Layers of the token grids of one row of a part: those of the part, unless the row has its own."""
    own = json.loads(metadata.get("row_layers", "{}"))
    return tuple(own.get(str(row)) or json.loads(metadata["layers"]))


def part_order(path: Path) -> tuple[int, str]:
    """Sort key of a part: its number, then its shard, so that a later commit of one shard comes later."""
    number = path.stem.rsplit("-", 1)[-1]
    return int(number), path.stem


def load_run(path: str | Path) -> Run:
    """Open a run directory for reading; no torch needed.

    Args:
        path: the directory that `vh.run` or `vlm-horizon run` wrote.

    Raises:
        HorizonError: it is not a run directory, or of a schema this version cannot read.
    """
    path = Path(path)
    file = path / "run.json"
    if not file.is_file():
        raise HorizonError(f"{path} is not a run directory: it has no run.json. `vlm-horizon run` writes one.")
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise HorizonError(f"{file} does not parse as JSON: {error}") from error
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise HorizonError(f"{path} has schema version {version}, this vlm-horizon reads {SCHEMA_VERSION}")
    return Run(path, RunConfig.from_dict(record))


def load_runs(paths: Iterable[str | Path | Run]) -> list[Run]:
    """Open several; what is already a Run passes through."""
    return [path if isinstance(path, Run) else load_run(path) for path in paths]


def as_runs(run_or_runs: str | Path | Run | Iterable[str | Path | Run]) -> list[Run]:
    """One run or several, open or by path, as a list of open runs."""
    return load_runs([run_or_runs] if isinstance(run_or_runs, Run | str | Path) else run_or_runs)
