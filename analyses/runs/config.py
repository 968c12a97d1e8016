"""The configuration of a run: everything that fixes what is measured, and what it was measured with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from analyses.runs.schema import CONVENTIONS, PROBES, SCHEMA_VERSION, short_name, split_stream
from analyses.runs.vocabulary import STREAM_WIDTHS


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
        _, plain = split_stream(stream)
        return STREAM_WIDTHS[plain](self)
