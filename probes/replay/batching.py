"""How many ablations run at once: as many rows as keep the arithmetic busy, and as free memory holds."""

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
UNKNOWN_FREE = 2**31  # bytes taken for free where the system does not say
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Shape:
    """One ablation as a layer computes it.

    Attributes:
        rows: tokens run.
        columns: tokens attended to, those of the capture and those run.
        places: readout positions.
        own_mask: whether every ablation needs an attention mask of its own.
    """

    rows: int
    columns: int
    places: int
    own_mask: bool


@dataclass(frozen=True)
class Shrink:
    """A batch that memory did not hold.

    Attributes:
        ablations: how many ran together.
        rows: tokens that each of them ran.
    """

    ablations: int
    rows: int

    @property
    def ablations_left(self) -> int:
        """How many of them run together from then on."""
        return self.ablations // 2


@dataclass(eq=False)
class BatchPolicy:
    """How many ablations run at once, and what memory has not held so far.

    One policy serves one call, one sample or one run: whoever makes it decides how far a lack of memory reaches. It is
    asked and changed by the one thread that runs the model.

    Attributes:
        size: ablations at once; None for as many as rows and free memory allow.
        most_rows: rows (ablations x tokens) of a batch, by type of device.
        memory_share: share of the free memory that one batch may take, by type of device.
        shrinks: the batches that memory did not hold, in order; later ones have no more rows than their halves.
    """

    size: int | None = None
    most_rows: Mapping[str, int] = field(default_factory=lambda: BATCH_ROWS)
    memory_share: Mapping[str, float] = field(default_factory=lambda: MEMORY_SHARE)
    shrinks: list[Shrink] = field(default_factory=list)

    @classmethod
    def of(cls, batch_size: BatchPolicy | int | None) -> BatchPolicy:
        """The policy itself, or a fresh one of this size."""
        return batch_size if isinstance(batch_size, BatchPolicy) else cls(batch_size)

    def sized(self, size: int | None) -> BatchPolicy:
        """The same policy for another number of ablations: what memory does not hold under one bounds the other."""
        return replace(self, size=size)

    def ablations_at_once(self, model: ProbedModel, shape: Shape) -> int:
        """How many ablations of one shape run together on the model's device."""
        rows = max(1, shape.rows)
        bounds = [shrink.ablations_left * shrink.rows // rows for shrink in self.shrinks]
        if self.size is None:
            device = model.device.type
            bounds.append(self.most_rows.get(device, self.most_rows["cuda"]) // rows)
            free = self.memory_share.get(device, self.memory_share["cpu"]) * free_memory(model.device)
            bounds.append(int(free / batch_bytes(model, shape)))
        else:
            bounds.append(self.size)
        return max(1, min(bounds))

    def shrink(self, model: ProbedModel, ablations: int, rows: int) -> int:
        """Record, with a line in the log, that memory did not hold a batch; returns how many of it run from now on."""
        shrink = Shrink(ablations, rows)
        self.shrinks.append(shrink)
        LOG.warning(
            "out of memory with %d ablations at once on %s: going on with %d",
            ablations,
            model.device,
            shrink.ablations_left,
        )
        return shrink.ablations_left


def rows_at_once(model: ProbedModel, shape: Shape, ablations: int) -> int:
    """Rows of each ablation in one call of a layer: all of them, unless masks or scores would grow too large."""
    each, _ = _pair_bytes(model, shape, ablations)
    most = CHUNK_BYTES[model.attn] // (each * max(1, shape.columns)) if each else shape.rows
    return max(1, min(shape.rows, most))


def batch_bytes(model: ProbedModel, shape: Shape, ablations: int = 1, *, part: int | None = None) -> int:
    """Memory that a batch of ablations takes at its peak, in a layer and where the vocabulary is read.

    In a layer: the residual stream with its norm, the attention's or the feed-forward block's intermediates, whichever
    are larger, keys and values of all columns (repeated to all heads where they are grouped), and the masks, or the
    scores under eager attention. Where rows run in parts, the intermediates are those of a part, while the stream, keys
    and values of all rows stay.

    Args:
        model: as loaded.
        shape: of each ablation.
        ablations: how many run together.
        part: rows of each that run at once, where that is not for the masks to say.
    """
    item, d = model.dtype.itemsize, model.hidden_size
    part = rows_at_once(model, shape, ablations) if part is None else part
    queries, keys = model.n_heads * model.head_dim, model.n_key_value_heads * model.head_dim
    whole = d * shape.rows if part < shape.rows else 0
    cache = 2 * keys * shape.columns
    repeated = 2 * queries * shape.columns if queries != keys else 0
    attention = part * (2 * d + max(2 * queries, queries + 2 * keys)) + cache + repeated
    feed_forward = part * 3 * (d + feed_forward_size(model)) + (cache if whole else 0)
    pairs, masks = (part * shape.columns * each for each in _pair_bytes(model, shape, ablations))
    layer = max(ablations * item * attention + pairs, ablations * item * feed_forward + masks)
    context = 2 * keys * (shape.columns - shape.rows)
    return layer + item * (ablations * whole + context) + ablations * shape.places * model.vocab_size * (item + 8)


def _pair_bytes(model: ProbedModel, shape: Shape, ablations: int) -> tuple[int, int]:
    """Of one (query, key) pair of a batch: inside attention, and outside of it.

    Scores of every head, or a mask as it is added; outside, the mask alone. Flash attention takes neither.
    """
    item, own = model.dtype.itemsize, ablations if shape.own_mask else 1
    if model.attn == "eager":
        return ablations * model.n_heads * score_bytes(model), own * item
    return (0, 0) if model.attn == "flash" else (own * (1 + item), own)


def score_bytes(model: ProbedModel) -> int:
    """Of one score of eager attention: as it is, and after its softmax, which is taken in float32."""
    item = model.dtype.itemsize
    return 2 * item if item == 4 else 2 * item + 4


def feed_forward_size(model: ProbedModel) -> int:
    """Width of the feed-forward block, from the configuration, or the usual four times the stream."""
    text = model.model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return int(getattr(text, "intermediate_size", None) or 4 * model.hidden_size)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, those included that torch keeps for itself and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such figure on this system
        return UNKNOWN_FREE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
