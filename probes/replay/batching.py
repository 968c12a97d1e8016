"""How many ablations run at once: enough rows to keep the arithmetic busy, and no more than free memory holds."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from probes.models.probed import ProbedModel

LOG = logging.getLogger("vlm_horizon")
# Rows (ablations x tokens) in one batch: wide enough for full matrix products, small enough for the caches of a CPU.
BATCH_ROWS = {"cpu": 2048, "cuda": 65536}
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.6}  # of what is free, for one batch
# Bytes of attention masks (eager: of scores) in one call of a layer; where a batch takes more, its rows run in parts.
CHUNK_BYTES = {"sdpa": 2**25, "eager": 2**28}
UNKNOWN_FREE = 2**31  # bytes that count as free where the system gives no figure
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Shape:
    """One ablation as a layer computes it.

    Attributes:
        rows: number of tokens that the layer computes.
        columns: number of tokens attended to, from the capture and from the rows that run.
        places: number of readout positions.
        own_mask: whether every ablation needs an attention mask of its own.
    """

    rows: int
    columns: int
    places: int
    own_mask: bool


@dataclass(eq=False)
class BatchPolicy:
    """How many ablations run at once, and what memory has not held so far.

    One policy serves one call, one sample or one run: whoever makes it decides how far a lack of memory reaches. It is
    asked and changed by the one thread that runs the model.

    Attributes:
        size: number of ablations at once; None for as many as rows and free memory allow.
        most_rows: largest number of rows (ablations x tokens) in a batch, by type of device.
        memory_share: share of the free memory that one batch may take, by type of device.
        limits: for each batch that memory did not hold, in order, the rows that later batches have at most: its half.
    """

    size: int | None = None
    most_rows: Mapping[str, int] = field(default_factory=lambda: BATCH_ROWS)
    memory_share: Mapping[str, float] = field(default_factory=lambda: MEMORY_SHARE)
    limits: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, batch_size: BatchPolicy | int | None) -> BatchPolicy:
        """Return the policy itself, or a new policy with this number of ablations at once."""
        return batch_size if isinstance(batch_size, BatchPolicy) else cls(batch_size)

    def sized(self, size: int | None) -> BatchPolicy:
        """Return the policy with another number of ablations; both share the record of what memory did not hold."""
        return replace(self, size=size)

    def ablations_at_once(self, model: ProbedModel, shape: Shape) -> int:
        """Return how many ablations of one shape run together on the model's device, at least 1."""
        rows = max(1, shape.rows)
        bounds = [limit // rows for limit in self.limits]
        if self.size is None:
            device = model.device.type
            bounds.append(self.most_rows.get(device, self.most_rows["cuda"]) // rows)
            free = self.memory_share.get(device, self.memory_share["cpu"]) * free_memory(model.device)
            bounds.append(int(free / batch_bytes(model, shape)))
        else:
            bounds.append(self.size)
        return max(1, min(bounds))

    def shrink(self, model: ProbedModel, ablations: int, rows: int) -> int:
        """Record and log that memory did not hold a batch; return how many ablations of this size run from now on."""
        half = ablations // 2
        self.limits.append(half * rows)
        LOG.warning(
            "out of memory with %d ablations at once on %s: going on with %d",
            ablations,
            model.device,
            half,
        )
        return half


def rows_at_once(model: ProbedModel, shape: Shape, ablations: int) -> int:
    """Return how many rows of each ablation one call of a layer runs: all, unless masks or scores grow too large."""
    pair_bytes, _ = _pair_bytes(model, shape, ablations)
    limit = CHUNK_BYTES[model.attn] // (pair_bytes * max(1, shape.columns)) if pair_bytes else shape.rows
    return max(1, min(shape.rows, limit))


def batch_bytes(model: ProbedModel, shape: Shape, ablations: int = 1, *, part: int | None = None) -> int:
    """Return the bytes that a batch of ablations takes at its peak, in a layer and where the vocabulary is read.

    In a layer: the residual stream with its norm, the attention's or the feed-forward block's intermediates, whichever
    are larger, keys and values of all columns (repeated to all heads where they are grouped), and the masks, or the
    scores under eager attention. Where rows run in parts, the intermediates are those of a part, while the stream, keys
    and values of all rows stay.

    Args:
        model: the model that runs.
        shape: the shape of each ablation.
        ablations: number of ablations that run together.
        part: number of rows of each ablation that run at once; by default `rows_at_once` decides.
    """
    item, d = model.dtype.itemsize, model.hidden_size
    part = rows_at_once(model, shape, ablations) if part is None else part
    queries, keys = model.n_heads * model.head_dim, model.n_key_value_heads * model.head_dim
    stream = d * shape.rows if part < shape.rows else 0
    cache = 2 * keys * shape.columns
    repeated = 2 * queries * shape.columns if queries != keys else 0
    attention = part * (2 * d + max(2 * queries, queries + 2 * keys)) + cache + repeated
    feed_forward = part * 3 * (d + feed_forward_size(model)) + (cache if stream else 0)
    pairs, masks = (part * shape.columns * pair_bytes for pair_bytes in _pair_bytes(model, shape, ablations))
    layer = max(ablations * item * attention + pairs, ablations * item * feed_forward + masks)
    context = 2 * keys * (shape.columns - shape.rows)
    return layer + item * (ablations * stream + context) + ablations * shape.places * model.vocab_size * (item + 8)


def _pair_bytes(model: ProbedModel, shape: Shape, ablations: int) -> tuple[int, int]:
    """Return the bytes that one (query, key) pair of a batch takes inside attention, and outside of it.

    Inside are the scores of every head, or the mask as it is added; outside is the mask alone. Flash attention takes
    neither.
    """
    item, n_masks = model.dtype.itemsize, ablations if shape.own_mask else 1
    if model.attn == "eager":
        return ablations * model.n_heads * score_bytes(model), n_masks * item
    return (0, 0) if model.attn == "flash" else (n_masks * (1 + item), n_masks)


def score_bytes(model: ProbedModel) -> int:
    """Return the bytes of one score of eager attention, before and after its softmax, which is computed in float32."""
    item = model.dtype.itemsize
    return 2 * item if item == 4 else 2 * item + 4


def feed_forward_size(model: ProbedModel) -> int:
    """Return the width of the feed-forward block: as configured, or the usual four times the hidden size."""
    text = model.model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return int(getattr(text, "intermediate_size", None) or 4 * model.hidden_size)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on a device, with those that torch reserves and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such figure on this system
        return UNKNOWN_FREE


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
