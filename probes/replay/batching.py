"""How many ablations run at once: as many rows as keep the arithmetic busy, and as free memory holds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from probes.models.probed import ProbedModel

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
