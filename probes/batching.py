"""How many ablations run at once: as many rows as keep the arithmetic busy, and as free memory holds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from probes.models import ProbedModel

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


def rows_at_once(model: ProbedModel, shape: Shape, ablations: int) -> int:
    """Rows of each ablation in one call of a layer: all of them, unless masks or scores would grow too large."""
    if model.attn not in CHUNK_BYTES:  # flash attention takes neither
        return max(1, shape.rows)
    most = CHUNK_BYTES[model.attn] // (_pair_bytes(model, shape, ablations) * max(1, shape.columns))
    return max(1, min(shape.rows, most))


def batch_bytes(model: ProbedModel, shape: Shape, ablations: int = 1) -> int:
    """Memory that a batch of ablations takes at its peak, in a layer or where the vocabulary is read.

    In a layer: the residual stream with its norm, the attention's or the feed-forward block's intermediates, whichever
    are larger, keys and values of all columns (repeated to all heads where they are grouped), and the masks, or the
    scores under eager attention. Where rows run in parts, the intermediates are those of a part, beside the stream.
    """
    item, part = model.dtype.itemsize, rows_at_once(model, shape, ablations)
    queries, keys = model.n_heads * model.head_dim, model.n_key_value_heads * model.head_dim
    repeated = 2 * queries if queries != keys else 0
    attention = part * (2 * queries + 2 * keys) + shape.columns * (2 * keys + repeated)
    whole = shape.rows * model.hidden_size if part < shape.rows else 0
    stream = whole + 3 * part * model.hidden_size
    feed_forward = 3 * part * feed_forward_size(model)
    pairs = part * shape.columns * _pair_bytes(model, shape, ablations) if model.attn in CHUNK_BYTES else 0
    layer = ablations * item * (stream + max(attention, feed_forward)) + pairs
    return layer + ablations * shape.places * model.vocab_size * (item + 8)


def _pair_bytes(model: ProbedModel, shape: Shape, ablations: int) -> int:
    """Of one (query, key) pair: scores of every head, or a mask, boolean and as it is added."""
    if model.attn == "eager":
        return ablations * model.n_heads * (model.dtype.itemsize + 8)
    return (ablations if shape.own_mask else 1) * (1 + model.dtype.itemsize)


def feed_forward_size(model: ProbedModel) -> int:
    """Width of the feed-forward block, from the configuration, or the usual four times the stream."""
    text = model.model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return int(getattr(text, "intermediate_size", None) or 4 * model.hidden_size)


def default_batch(model: ProbedModel, shape: Shape) -> int:
    """Ablations of one shape that run at once."""
    device = model.device.type
    by_rows = BATCH_ROWS.get(device, BATCH_ROWS["cuda"]) // max(1, shape.rows)
    by_memory = MEMORY_SHARE.get(device, 0.25) * free_memory(model.device) / batch_bytes(model, shape)
    largest = model.memo.get("largest_batch_rows")  # what an earlier batch ran out of memory with, halved
    by_experience = largest // max(1, shape.rows) if largest else by_rows
    return max(1, min(by_rows, int(by_memory), by_experience))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such figure on this system
        return UNKNOWN_FREE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
