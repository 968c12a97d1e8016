"""How many ablations run at once: as many rows as keep the arithmetic busy, and as free memory holds."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from probes.models import ProbedModel

# Rows (ablations x tokens) in one batch: wide enough for full matrix products, small enough for the caches of a CPU.
BATCH_ROWS = {"cpu": 2048, "cuda": 65536}
MEMORY_SHARE = {"cpu": 0.25, "cuda": 0.6}  # of what is free, for one batch
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


def ablation_bytes(model: ProbedModel, shape: Shape) -> int:
    """Memory that one more ablation of a batch takes at its peak.

    The residual stream with its norm, the attention's or the feed-forward block's intermediates, whichever are
    larger, keys and values of all columns (repeated to all heads where they are grouped), the scores under eager
    attention, an own mask, and the distributions at the readout positions in float32.
    """
    item = model.dtype.itemsize
    queries, keys = model.n_heads * model.head_dim, model.n_key_value_heads * model.head_dim
    repeated = 2 * queries if queries != keys else 0
    attention = shape.rows * (2 * queries + 2 * keys) + shape.columns * (2 * keys + repeated)
    stream = 3 * shape.rows * model.hidden_size
    scores = shape.rows * shape.columns * model.n_heads * (item + 4) if model.attn == "eager" else 0
    mask = shape.rows * shape.columns * (1 + item) if shape.own_mask else 0
    feed_forward = 3 * shape.rows * feed_forward_size(model)
    outputs = shape.places * model.vocab_size * (item + 8)
    return item * (stream + max(attention, feed_forward)) + scores + mask + outputs


def feed_forward_size(model: ProbedModel) -> int:
    """Width of the feed-forward block, from the configuration, or the usual four times the stream."""
    text = model.model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    return int(getattr(text, "intermediate_size", None) or 4 * model.hidden_size)


def default_batch(model: ProbedModel, shape: Shape) -> int:
    """Ablations of one shape that run at once."""
    device = model.device.type
    by_rows = BATCH_ROWS.get(device, BATCH_ROWS["cuda"]) // max(1, shape.rows)
    by_memory = MEMORY_SHARE.get(device, 0.25) * free_memory(model.device) / ablation_bytes(model, shape)
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
