"""The configuration of a run: everything that fixes what is measured, and what it was measured with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, ClassVar

from analyses.runs.options import Entry, Measurement, hints_of
from analyses.runs.schema import CONVENTIONS, PROBES, SCHEMA_VERSION, short_name, split_stream
from analyses.runs.vocabulary import STREAM_WIDTHS

REMARK = Entry(estimand=False)  # recorded only


@dataclass(frozen=True)
class ModelFacts:
    """What a run's configuration says of the model, as it was loaded."""

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
    processor: str = ""  # fingerprint of the processor: chat template, image processing, vocabulary


@dataclass(frozen=True, kw_only=True)
class RunConfig(Measurement, ModelFacts):
    """Everything that fixes what a run measures, plus what it was measured with.

    What was asked for is recorded as a `Measurement`, with what followed from the model and its samples where an
    option was left open. The hash covers the fields that change a measured value; a directory with another hash is
    refused, never mixed. Those in `NOT_ESTIMAND` are recorded only.
    """

    # words that are read from a file may be those of a later version: any, where what is asked for is one of a few
    probes: tuple[str, ...] = PROBES  # type: ignore[assignment]
    streams: tuple[str, ...] = ("query", "key", "hidden")  # type: ignore[assignment]
    targets: tuple[str, ...] = ("gold",)  # type: ignore[assignment]
    contexts: tuple[str, ...] = ("keep-one",)  # type: ignore[assignment]
    window: int | None = 2  # None where `max_windows` chooses it, sample by sample
    with_ocr_tokens: bool = False
    video: str = ""
    positions: str = "keep"
    schema_version: int = SCHEMA_VERSION
    conventions: Annotated[dict[str, str], REMARK] = field(default_factory=lambda: dict(CONVENTIONS))
    n_parameters: Annotated[int | None, REMARK] = None
    versions: Annotated[dict[str, str], REMARK] = field(default_factory=dict)
    device: Annotated[str, REMARK] = ""
    prompt_example: Annotated[str, REMARK] = ""  # exact text of the first sample's prompt
    # by token_layers "auto" so far, by task type
    chosen_layers: Annotated[dict[str, list[int]], REMARK] = field(default_factory=dict)
    # rows with token grids at every layer, by which "auto" looks where to look
    pilot_rows: Annotated[tuple[int, ...], REMARK] = ()

    NOT_ESTIMAND: ClassVar[tuple[str, ...]]

    @property
    def removal_layers(self) -> tuple[int, ...]:
        """Cuts of the removal curves, ascending, without L."""
        return tuple(range(self.n_layers)) if self.layers is None else tuple(self.layers)

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


RunConfig.NOT_ESTIMAND = tuple(
    name
    for name, hint in hints_of(RunConfig).items()
    if not all(extra.estimand for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Entry))
)
