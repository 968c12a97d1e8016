"""Peak memory of a run, by a formula of its shapes: what is resident, one capture, and the largest of what passes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from probes.cost.operations import Batch
from probes.cost.workload import Subject
from probes.measures.calls import ReplayCall
from probes.measures.entropy import BLOCK_VALUES, matrices_at_once
from probes.models.probed import ProbedModel
from probes.replay.batching import batch_bytes, feed_forward_size, rows_at_once, score_bytes
from probes.replay.capture import Capture
from probes.replay.replay import shape_of
from probes.replay.visibility import masks_of


def resident_bytes(device: torch.device) -> int:
    """Return the bytes in use now: torch's memory on a GPU, else the resident size of this process.

    Where the system does not report that size, the largest one so far is returned, and 0 where it reports neither.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return 0
    import resource  # not on every platform

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak(parts: dict[str, int]) -> int:
    """Return the bytes at the peak: resident + capture + the largest transient part (forward, entropies, ...)."""
    transient = [size for part, size in parts.items() if part not in ("resident", "capture")]
    return parts["resident"] + parts["capture"] + max(transient)


def _width(model: ProbedModel) -> int:
    return model.n_key_value_heads * model.head_dim


def _bytes(model: ProbedModel) -> int:
    return torch.finfo(model.dtype).bits // 8


def capture_bytes(subject: Subject) -> tuple[int, str]:
    """Return the bytes of a capture, and the formula behind them.

    A capture holds layer inputs, keys and values, streams of the visual tokens, log-probabilities and masks.
    """
    model, captured = subject.case.model, subject.case.captured
    layers, d, b = model.n_layers, model.hidden_size, _bytes(model)
    n = captured.prompt.n_tokens
    streams = sum(states.numel() for states in captured.visual.states.values())
    masks = sum(mask.nbytes for mask in masks_of(captured.arguments))
    total = b * (n * ((layers + 1) * d + 2 * layers * _width(model)) + streams) + 4 * captured.log_probs.numel() + masks
    return total, (
        f"{n:,} tokens x ({layers + 1} x {d} + 2 x {layers} x {_width(model)}) + {streams:,} of the streams, "
        f"{b} bytes each" + (f"; {masks:,} bytes of the model's own attention masks" if masks else "")
    )


def forward_bytes(subject: Subject) -> tuple[int, str]:
    """Return the bytes of a forward pass beside its capture, and the formula behind them.

    They are the largest of the vision tower's states, three feed-forward widths and three streams per token, and
    attention.
    """
    model, captured = subject.case.model, subject.case.captured
    n, inner, d, b = captured.prompt.n_tokens, feed_forward_size(model), model.hidden_size, _bytes(model)
    decoder = max(b * n * 3 * (inner + d), b * n * 6 * d + _pairs(model, captured, n))
    return max(decoder, subject.vision_bytes), (
        f"the largest of {n:,} tokens x 3 x ({inner} + {d}) x {b} bytes, attention with its mask or scores, and the "
        "vision tower's states"
    )


def _pairs(model: ProbedModel, captured: Capture, n: int) -> int:
    """Return the bytes that attention holds for all pairs: scores if eager, else the mask where the model makes one."""
    if model.attn == "eager":
        return n * n * model.n_heads * score_bytes(model)
    return n * n * (1 + _bytes(model)) * bool(masks_of(captured.arguments))


def entropy_bytes(states: torch.Tensor) -> tuple[int, str]:
    """Return the bytes of an entropy, and the formula: float64 copies of a block of states, and three Gram matrices.

    Args:
        states: (layer, token, dim) float tensor.
    """
    layers, n, d = states.shape
    at_once = min(layers, matrices_at_once(states))
    block = 8 * min(at_once * n * d, BLOCK_VALUES.get(states.device.type, BLOCK_VALUES["cuda"]))
    gram = 8 * at_once * min(n, d) ** 2
    copies = 3 if n > d else 2  # blocks of tokens are centered, and scaled apart
    return copies * block + 3 * gram, f"{at_once} layers of {n:,} x {d} at once, in float64"


def replay_bytes(subject: Subject, call: ReplayCall, batch: Batch) -> tuple[int, str]:
    """Return the bytes of a batch of replays, and the formula behind them.

    They are those of the batch, of the sets of removed tokens, and of the distributions over the vocabulary where these
    are held for all ablations.
    """
    model, captured, count = subject.case.model, subject.case.captured, len(batch.layers)
    shape = shape_of(captured, batch.rows, batch.columns)
    layer = batch_bytes(model, shape, count)
    masks = 3 * call.ablations.masks.numel()
    tables_kept = len(call.ablations) if call.whole else 0
    tables = 3 * 4 * model.vocab_size * subject.places * tables_kept
    part = rows_at_once(model, shape, count)
    parts = f", {part:,} of them at once" if part < batch.rows else ""
    text = (
        f"{layer:,} bytes of {count} replays of {batch.rows:,} rows over {batch.columns:,} columns{parts} (stream, "
        f"attention or feed-forward, masks), {masks:,} of sets of tokens"
        + (f", {tables:,} of {tables_kept} replays over the vocabulary" if tables_kept else "")
    )
    return layer + masks + tables, text
