"""The run directory: its schema, its configuration and its reader. The one contract between probes and analyses.

A run directory holds what was measured, never a difference or a verdict:

    run.json                          the RunConfig, with every convention in force
    samples/part-<shard>-<n>.parquet  one row a sample (SAMPLES); written last, it commits its part
    curves/part-<shard>-<n>.parquet   tidy rows (CURVES): one value a sample, target, context, layer, stream, measure
    tokens/part-<shard>-<n>.safetensors   "<row>/<target>/<context>[/removed|/all|/coarse]", see TokenGrids; metadata:
                                      "layers", and "row_layers" of the rows that have others
    spectra/part-<shard>-<n>.safetensors  "<row>/<stream>": eigenvalues, (layer, rank) float32, descending
    generations/part-<shard>-<n>.parquet  on request, whole answers (GENERATIONS); the newest of a row holds

*Layer k* is the residual stream at the input of 0-based decoder layer k; k = L is the input of the final norm, so a
removal "from layer L on" removes nothing and holds the model's own forward. If a row was committed more than once
(a failed sample tried again, a token grid asked for later), the newest measured one holds; a failure never replaces it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open

SCHEMA_VERSION = 1

CONTEXTS = ("keep-one", "leave-one-out")
PROBES = ("entropy", "removal", "information")
STREAMS = ("query", "key", "query_raw", "key_raw", "value", "hidden")
# What removals and token grids take away, and what an entropy is over: a stream is of the visual tokens unless it says
# "text:query" or "all:query". Entropies of the text count the last token of the prompt, which no removal takes away.
TOKENS = ("visual", "text", "all")
KINDS = ("delete", "zero", "mean")
WRONG = "answered wrong"  # why a sample is excluded that the model does not answer right
METHODS = ("exact", "gate")  # of token grids: one replay a window, or first order from a backward pass
TARGETS = ("gold", "gold-raw", "greedy", "greedy-correct", "answer")

WINDOW = pa.struct([(name, pa.int32()) for name in ("crop", "row", "column", "height", "width")])
CROP = pa.struct(
    [("rows", pa.int32()), ("columns", pa.int32())]
    # the part of the original image that the grid covers, as fractions of its width and height
    + [(name, pa.float32()) for name in ("left", "top", "right", "bottom")]
    + [("image", pa.int32())]  # which image or frame of the sample, from 0; null in older runs, which have one
)

SAMPLES = pa.schema(
    [
        ("row", pa.int64()),  # position in the sample stream, from 0
        ("id", pa.string()),
        ("task", pa.string()),
        ("task_type", pa.string()),
        ("category", pa.string()),
        # of the decoded RGB pixels, of all images or frames together; the cluster of every resampling
        ("image_sha256", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("status", pa.string()),  # "ok", "failed" or "excluded": looked at, and left unmeasured on purpose
        ("error", pa.string()),  # why it failed or was excluded, else ""
        ("prediction", pa.string()),  # the model's first token with all visual tokens
        ("correct", pa.bool_()),  # that token is in the target set of the first target
        ("target_ids", pa.list_(pa.int32())),  # of the first target
        ("p", pa.float64()),  # of the first target, all tokens
        ("log_p", pa.float64()),  # nats
        ("output_entropy", pa.float64()),  # of the model's own distribution where the target is read, nats
        ("answer_tokens", pa.int32()),  # of the gold answer, from the first that carries information
        ("noise_floor_p", pa.float64()),
        ("noise_floor_log_p", pa.float64()),
        ("noise_floor_kl", pa.float64()),
        ("n_visual", pa.int32()),  # visual tokens, placeless ones included
        ("n_placeless", pa.int32()),
        ("n_prompt", pa.int32()),  # prompt tokens, visual ones included
        ("probes", pa.list_(pa.string())),  # what was measured on this row
        ("batch_size", pa.int32()),  # ablations at once, where the user set it
        ("seconds", pa.float64()),
        ("crops", pa.list_(CROP)),
        ("windows", pa.list_(WINDOW)),  # of the token grids; empty where none was measured
        ("thumbnail", pa.binary()),  # PNG, at most 256 px, of the first image or frame
        ("options", pa.list_(pa.string())),  # texts of the option letters A, B, ...; empty where there are none
        # of the first target: its first token decoded, blank for a bare space; of "answer": the whole answer
        ("target_text", pa.string()),
    ]
)

CURVES = pa.schema(
    [
        ("row", pa.int64()),
        ("target", pa.string()),  # "" for entropies
        ("context", pa.string()),  # "removal", "" for entropies, or that of the token grids
        ("layer", pa.int16()),
        ("stream", pa.string()),  # "" for removals
        # entropies: "entropy" (nats). Removals: "log_p" of the target (nats), "kl" of (removed || all) (nats),
        # "correct" (argmax in the target set), "same" (argmax as with all tokens). At layer L: nothing removed.
        # Checks of the method "gate" (context of the grids), first order against exact effects of a sample's windows:
        # "gate_rank_correlation" (Spearman), "gate_top_overlap" (share of the tenth of the windows with the largest
        # exact effects that is also the tenth with the largest estimates), "gate_largest_effect" (largest exact
        # effect in p, without its sign).
        ("measure", pa.string()),
        ("value", pa.float64()),
    ]
)

GENERATIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.string()),  # the model's whole answer, decoded greedily; null where it could not be generated
        ("n_tokens", pa.int32()),
        ("finished", pa.bool_()),  # the model ended it; else it was cut after `max_new_tokens`
        ("max_new_tokens", pa.int32()),
        ("error", pa.string()),  # why it could not be generated, else ""
    ]
)


CONVENTIONS = {
    "layer": "k is the residual stream at the input of 0-based decoder layer k; L is the final norm",
    "cut": "tokens are absent from the input of layer k on; all others keep their positions",
    "entropy": "nats; eigenvalues of the Gram matrix over its trace; all tokens of the kind that the stream names, "
    "visual if none; of the text, and of all, the last token of the prompt counts, which no removal takes away",
    "log_p": "nats; pooled over the ids of the target by log-sum-exp",
    "kl": "KL(removed || all) in nats over the vocabulary",
    "windows": "tiled from each grid's top left; smaller at the edge; row-major",
    "text": "prompt tokens but visual ones and the last, which is read; beginning-of-sequence and chat markup count",
    "stretches": "text without a visual token in between, one row of tokens; as windows their crops follow the grids",
    "unreported": "NaN in a token grid: below the noise floor in its coarse window, so not measured; statistics take 0",
}


def split_stream(name: str) -> tuple[str, str]:
    """The tokens that a stream is of, and its plain name.

    >>> split_stream("query"), split_stream("text:query")
    (('visual', 'query'), ('text', 'query'))
    """
    tokens, colon, stream = name.rpartition(":")
    return (tokens, stream) if colon else ("visual", stream)


def default_streams(tokens: str) -> tuple[str, ...]:
    """The streams of a run on these tokens, unless others are asked for.

    >>> default_streams("visual"), default_streams("text")
    (('query', 'key', 'hidden'), ('text:query', 'text:key', 'text:hidden'))
    """
    plain = ("query", "key", "hidden")
    return plain if tokens == "visual" else tuple(f"{tokens}:{stream}" for stream in plain)


def tokens_text(name: str, tokens: str) -> str:
    """A name, and the tokens that its effects are of where these are not the visual ones.

    >>> tokens_text("tiny-8", "visual"), tokens_text("tiny-8", "text")
    ('tiny-8', 'tiny-8, text tokens')
    """
    return name if tokens == "visual" else f"{name}, {tokens} tokens"


class HorizonError(Exception):
    """Anything the toolkit cannot do, in one sentence that names the thing and the remedy."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that fixes what a run measures, plus what it was measured with.

    The hash covers the fields that change a measured value; a directory with another hash is
    refused, never mixed. Those in `NOT_ESTIMAND` are recorded only.
    """

    model: str
    revision: str | None
    weights: str  # fingerprint of the parameters
    family: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    dtype: str
    attn: str
    quantization: str | None = None
    prompt: str | None = None  # the user's template, None for the model's own chat template
    processor: str = ""  # fingerprint of the processor: chat template, image processing, vocabulary
    probes: tuple[str, ...] = PROBES
    streams: tuple[str, ...] = ("query", "key", "hidden")
    alpha: float = 1.0
    center: bool = True
    normalize_rows: bool = True
    targets: tuple[str, ...] = ("gold",)
    contexts: tuple[str, ...] = ("keep-one",)
    window: int | None = 2  # None where `max_windows` chooses it, sample by sample
    layers: tuple[int, ...] | None = None  # of removals and token grids; None for all, 0..L-1
    kind: str = "delete"
    method: str = "exact"  # of token grids: "exact", or first order by "gate"
    positions: str = "keep"
    seed: int = 0
    schema_version: int = SCHEMA_VERSION
    conventions: dict[str, str] = field(default_factory=lambda: dict(CONVENTIONS))
    n_parameters: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    batch_size: int | None = None
    sources: tuple[str, ...] = ()
    prompt_example: str = ""  # exact text of the first sample's prompt
    token_layers: tuple[int, ...] | str | None = None  # of the token grids; None for `layers`, "auto" for chosen ones
    chosen_layers: dict[str, list[int]] = field(default_factory=dict)  # by "auto" so far, by task type
    pilot_rows: tuple[int, ...] = ()  # rows with token grids at every layer, by which "auto" looks where to look
    coarse: int | None = None  # side of the windows that are measured first; finer ones only where these show an effect
    max_windows: int | None = None  # most windows of a sample, which choose their side
    only_correct: bool = False  # samples that the model answers wrong were excluded, not measured
    with_ocr_tokens: bool = False  # prompts carry the benchmark's reference OCR tokens
    video: str = ""  # how frames of videos were chosen
    tokens: str = "visual"  # that removals and token grids take away: "visual", "text" or "all"

    NOT_ESTIMAND = (
        "conventions",
        "n_parameters",
        "versions",
        "device",
        "batch_size",
        "sources",
        "prompt_example",
        "seed",
        "chosen_layers",
        "pilot_rows",
    )

    @property
    def removal_layers(self) -> tuple[int, ...]:
        """Cuts of the removal curves, ascending, without L."""
        return tuple(range(self.n_layers)) if self.layers is None else self.layers

    def grid_layers(self, row: int | None = None, task_type: str | None = None) -> tuple[int, ...]:
        """Cuts of the token grids, ascending: none yet where they are still to be chosen.

        Args:
            row: number of a sample, where layers were chosen; those of all samples together by default.
            task_type: of that sample.
        """
        if self.token_layers != "auto":
            return self.removal_layers if self.token_layers is None else tuple(map(int, self.token_layers))
        if row is None:
            return tuple(sorted({layer for chosen in self.chosen_layers.values() for layer in chosen}))
        return self.removal_layers if row in self.pilot_rows else tuple(self.chosen_layers.get(task_type or "", ()))

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 over all fields that change a measured value."""
        kept = {k: v for k, v in self.to_dict().items() if k not in self.NOT_ESTIMAND}
        kept["model"] = short_name(self.model)  # the weights' fingerprint says which: a directory may move
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: tuples as lists."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; unknown keys (of a later version) are ignored."""
        known = {f.name for f in fields(cls)}
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
        return cls(**read)

    def stream_dim(self, stream: str) -> int:
        """Width of one token in a stream."""
        _, stream = split_stream(stream)
        if stream == "hidden":
            return self.hidden_size
        return self.head_dim * (self.n_heads if stream.startswith("query") else self.n_key_value_heads)


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

        NaN where `log_p` is: not measured, since below the noise floor. Of the method "gate" it is linear in the
        change of log p, in p as well.
        """
        if measure not in ("p", "log_p"):
            raise HorizonError(f"measure {measure!r} is unknown; choose p or log_p")
        value, removed, everything = (np.asarray(part, float) for part in (self.log_p, self.removed, self.all))
        alone = self.context == "keep-one"
        if measure == "p" and self.method == "exact":
            value, removed, everything = np.exp(value), np.exp(removed), np.exp(everything)
        effect = value - removed[:, None] if alone else everything - value
        if measure == "p" and self.method == "gate":
            effect *= np.exp(removed)[:, None] if alone else np.exp(everything)
        return effect


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


def short_name(model: str) -> str:
    """Last part of a model's id or path.

    >>> short_name("llava-hf/llava-1.5-7b-hf"), short_name("models/tiny-8/")
    ('llava-1.5-7b-hf', 'tiny-8')
    """
    return model.rstrip("/").rsplit("/", 1)[-1]


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
