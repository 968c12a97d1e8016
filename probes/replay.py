"""Replays: any set of ablations of one captured forward, from the captured layer inputs, exactly.

Only rows that can see a removed token, directly or through other rows, are run again; the keys and values of all
other rows are those of the capture. Ablations that start at different layers share one sweep over the layers: each
joins the batch at its own layer, so nothing below its cut is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from analyses.runs import KINDS, HorizonError
from probes.capture import Capture, log_softmax
from probes.models import ProbedModel

# Rows (ablations x tokens) in one batch: wide enough for full matrix products, small enough for the caches of a CPU.
BATCH_ROWS = {"cpu": 2048, "cuda": 65536}


@dataclass(frozen=True)
class Ablations:
    """What is taken away, and from which layer on.

    Attributes:
        layers: (ablation,) long, the layer k at whose input each begins.
        removed: (ablation, token) bool, the tokens taken away.
        kind: "delete": absent from layer k on, the others keep their positions. "zero", "mean": their rows at the
            input of layer k are replaced once, by zeros or by the mean over the visual tokens there.
    """

    layers: torch.Tensor
    removed: torch.Tensor
    kind: str = "delete"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: torch.Tensor) -> Ablations:
        return replace(self, layers=self.layers[index], removed=self.removed[index])


@dataclass(frozen=True)
class _Rows:
    """Which rows a batch recomputes, and which it takes from the capture.

    Attributes:
        active: (ablation or 1, row) long, positions recomputed, ascending; one row if the same for all.
        context: (column,) long, positions whose keys and values are those of the capture.
    """

    active: torch.Tensor
    context: torch.Tensor


class _FrozenContext:
    """Stands where a layer expects its cache: puts the captured keys and values before those just computed."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, head, row, dim) of the active rows -> the same with the context's rows in front."""
        batch = (len(keys), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(batch), keys], dim=2),
            torch.cat([self.values.expand(batch), values], dim=2),
        )


def check_kind(kind: str) -> None:
    """Raise HorizonError unless the removal kind is known."""
    if kind not in KINDS:
        raise HorizonError(f"removal kind {kind!r} is unknown; choose from {', '.join(KINDS)}")


@torch.no_grad()
def replay(
    model: ProbedModel,
    capture: Capture,
    ablations: Ablations,
    *,
    batch_size: int | None = None,
    recompute: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Run every ablation.

    Args:
        model: the captured model.
        capture: its forward pass on one prompt.
        ablations: what is taken away.
        batch_size: ablations at once; by default as many as `BATCH_ROWS` rows hold.
        recompute: (token,) bool, rows to run again besides those that must be (a null ablation runs none), with
            those that see them.

    Yields:
        (indices, log_probs): which ablations, (batch,) long, and their (batch, place, vocabulary) log-softmax at
        the prompt's readout positions.

    Raises:
        HorizonError: the removal kind is unknown.
    """
    check_kind(ablations.kind)
    for indices in _batches(capture, ablations, batch_size, model.device.type):
        batch = ablations[indices]
        yield indices, _replay_batch(model, capture, batch, recompute)


def _batches(capture: Capture, ablations: Ablations, batch_size: int | None, device: str) -> Iterator[torch.Tensor]:
    """Indices of ablations that run together: the same number of tokens gone, the first of them close together.

    Inside a batch ablations are in the order of their layers, so that each joins the sweep at the end of the batch.
    """
    counts = ablations.removed.sum(1)
    first = ablations.removed.int().argmax(1)
    for count in counts.unique().tolist():
        same = (counts == count).nonzero()[:, 0]
        order = same[torch.argsort(first[same], stable=True)]
        size = batch_size or _default_batch(capture, count, device)
        for part in order.split(size):
            yield part[torch.argsort(ablations.layers[part], stable=True)]


def largest_batch(model: ProbedModel, capture: Capture, ablations: Ablations, batch_size: int | None) -> int:
    """Rows (ablations x recomputed tokens) in the largest batch that `replay` makes of these."""
    removed = int(ablations.removed.sum(1).min())
    rows = capture.prompt.n_tokens - int(capture.prompt.visual[0])
    size = batch_size or _default_batch(capture, removed, model.device.type)
    return min(size, len(ablations)) * max(1, rows - removed)


def _default_batch(capture: Capture, removed: int, device: str) -> int:
    rows = capture.prompt.n_tokens - int(capture.prompt.visual[0])
    return max(1, BATCH_ROWS.get(device, BATCH_ROWS["cuda"]) // max(1, rows - removed))


def _replay_batch(
    model: ProbedModel, capture: Capture, batch: Ablations, recompute: torch.Tensor | None
) -> torch.Tensor:
    start = int(batch.layers[0])
    changed = batch.removed.any(0)
    affected = _affected(capture, changed if recompute is None else changed | recompute, start)
    affected[capture.prompt.readout] = True
    rows = _rows(batch, affected)
    states = capture.inputs[start].new_empty(0, rows.active.shape[1], capture.inputs[start].shape[1])
    for k in range(start, model.n_layers):
        joining = (batch.layers == k).nonzero()[:, 0]
        if len(joining):
            states = torch.cat([states, _starting_rows(capture, batch, rows, joining, k)])
        states = _run_layer(model, capture, rows, states, k)
    last = states[:, -len(capture.prompt.readout) :]
    return log_softmax(model.head(model.norm(last)))


def _affected(capture: Capture, changed: torch.Tensor, start: int) -> torch.Tensor:
    """(token,) bool: changed rows, and those that see one from layer `start` on, directly or through others."""
    affected = changed.clone()
    if not changed.any():
        return affected
    masks = {id(kwargs["attention_mask"]): kwargs["attention_mask"] for kwargs in capture.arguments[start:]}
    visible = [_visible(mask) for mask in masks.values()]
    while True:
        seen = affected.clone()
        for matrix in visible:
            seen |= _sees(matrix, affected)
        if torch.equal(seen, affected):
            return affected
        affected = seen


def _sees(visible: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Which rows see one of the tokens; None is the causal mask."""
    if visible is None:
        return tokens.int().cumsum(0) > 0
    return visible[:, tokens].any(1)


def _visible(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(query, key) bool of a layer's mask argument, boolean or additive; None stays None."""
    if mask is None:
        return None
    matrix = mask[0, 0]
    return matrix if matrix.dtype == torch.bool else matrix > torch.finfo(matrix.dtype).min / 2


def _rows(batch: Ablations, affected: torch.Tensor) -> _Rows:
    context = (~affected).nonzero()[:, 0]
    if batch.kind != "delete" or not batch.removed.any():
        return _Rows(affected.nonzero()[:, 0][None], context)
    same = bool((batch.removed == batch.removed[0]).all())
    kept = affected & ~(batch.removed[:1] if same else batch.removed)
    return _Rows(kept.nonzero()[:, 1].reshape(len(kept), -1), context)


def _starting_rows(capture: Capture, batch: Ablations, rows: _Rows, joining: torch.Tensor, k: int) -> torch.Tensor:
    """(joining, row, hidden) input of layer k of the ablations that begin there."""
    states = capture.inputs[k]
    active = rows.active.expand(len(batch), -1)[joining]
    started = states[active]
    if batch.kind == "delete":
        return started
    fill = torch.zeros_like(states[0]) if batch.kind == "zero" else states[capture.prompt.visual].mean(0)
    gone = batch.removed[joining].gather(1, active)
    return torch.where(gone[..., None], fill, started)


def _run_layer(model: ProbedModel, capture: Capture, rows: _Rows, states: torch.Tensor, k: int) -> torch.Tensor:
    """One decoder layer on the active rows of every ablation that has begun: (ablation, row, hidden) -> the same."""
    arguments = dict(capture.arguments[k])
    active = rows.active[: len(states)]
    cos, sin = (part[0][active] for part in arguments["position_embeddings"])
    context = _FrozenContext(capture.keys[k][None, :, rows.context], capture.values[k][None, :, rows.context])
    # The rotary embedding carries the positions; gapped position ids would be read as packed sequences.
    arguments.update(
        position_embeddings=(cos, sin),
        attention_mask=_mask(model, arguments["attention_mask"], active, rows.context, states.dtype),
        past_key_values=context,
        position_ids=None,
    )
    output = model.layers[k](states, **arguments)
    return output[0] if isinstance(output, tuple) else output


def _mask(
    model: ProbedModel, mask: torch.Tensor | None, active: torch.Tensor, context: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """(ablation or 1, 1, row, context + row): the captured mask at the rows and columns in use."""
    visible = _visible(mask)
    if visible is None:
        allowed = _causal(active, context)
    else:
        columns = torch.cat([context.expand(len(active), -1), active], dim=1)
        allowed = visible[active[:, :, None], columns[:, None, :]]
    allowed = allowed[:, None]
    if model.attn != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _causal(active: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Under a causal mask kept rows see the kept rows before them and themselves; every context row lies before."""
    n = active.shape[1]
    own = torch.ones(n, n, dtype=torch.bool, device=active.device).tril()
    return torch.cat([own.new_ones(n, len(context)), own], dim=1)[None]
