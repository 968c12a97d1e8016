"""Visibility between tokens: the rows that an ablation changes, the rows that a batch runs, their attention masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

BLOCK_PAIRS = 2**22  # (query, key) pairs of a mask that are read at once, which bounds memory


@dataclass(frozen=True)
class Rows:
    """The rows that a batch recomputes, and those that it takes from the capture.

    Attributes:
        active: (ablation or 1, row) long, ascending positions that are recomputed; 1 where all ablations share them.
        context: (column,) long, positions whose keys and values come from the capture.
    """

    active: torch.Tensor
    context: torch.Tensor

    def first(self, n: int) -> Rows:
        """Return the rows of the first n ablations."""
        return replace(self, active=self.active[:n])

    def until(self, n: int) -> Rows:
        """Return the first n active rows of each ablation, with the same context."""
        return replace(self, active=self.active[:, :n])

    def of(self, ablations: torch.Tensor, n: int) -> torch.Tensor:
        """Return the active rows of some of n ablations, (ablation, row) long."""
        return self.active.expand(n, -1)[ablations]


def affected_rows(arguments: Sequence[Mapping[str, Any]], changed: torch.Tensor) -> torch.Tensor:
    """Return the changed rows and those that see one of them, directly or through other rows.

    Args:
        arguments: the arguments of each layer's call, from the cut on.
        changed: (token,) bool, the changed rows.

    Returns:
        The affected rows, (token,) bool.
    """
    masks: list[torch.Tensor | None] = [*masks_of(arguments)]
    masks += [None] * any(kwargs["attention_mask"] is None for kwargs in arguments)
    affected, frontier = changed.clone(), changed
    while frontier.any():
        viewers = torch.zeros_like(changed)
        for mask in masks:
            viewers |= _sees(mask, frontier, ~affected)
        frontier = viewers
        affected = affected | frontier
    return affected


def masks_of(arguments: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Return the distinct masks that layers were called with; a layer that is causal by itself has none."""
    masks = {id(kwargs["attention_mask"]): kwargs["attention_mask"] for kwargs in arguments}
    return [mask for mask in masks.values() if mask is not None]


def _sees(mask: torch.Tensor | None, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return which of some rows see one of the tokens, all three (token,) bool; a mask of None is causal."""
    if mask is None:
        return rows & (tokens.int().cumsum(0) > 0)
    columns, viewers = tokens.nonzero()[:, 0], torch.zeros_like(rows)
    for part in rows.nonzero()[:, 0].split(max(1, BLOCK_PAIRS // len(columns))):
        viewers[part] = visible_at(mask, part[:, None], columns).any(1)
    return viewers


def visible(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return a layer's mask argument, boolean or additive, as (query, key) bool; None stays None."""
    return None if mask is None else _allowed(mask[0, 0])


def visible_at(mask: torch.Tensor, queries: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return entries of a layer's mask argument as bool, of the shape to which the two index tensors broadcast."""
    return _allowed(mask[0, 0][queries, columns])


def _allowed(entries: torch.Tensor) -> torch.Tensor:
    """Return mask entries, boolean or additive, as bool of the same shape, true where attention is allowed."""
    return entries if entries.dtype == torch.bool else entries > torch.finfo(entries.dtype).min / 2


def in_order(arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether no token sees a later one in any of the layers that were called with these arguments."""
    return not any(_sees_later(mask[0, 0]) for mask in masks_of(arguments))


def _sees_later(matrix: torch.Tensor) -> bool:
    """Return whether anything is visible above the diagonal of a (query, key) mask, boolean or additive."""
    starts = range(0, len(matrix), max(1, BLOCK_PAIRS // len(matrix)))
    blocks = zip(starts, matrix.split(starts.step), strict=True)
    return any(bool(_allowed(block).triu(start + 1).any()) for start, block in blocks)


def rows_to_run(removed: torch.Tensor, affected: torch.Tensor, *, deletes: bool) -> Rows:
    """Return the rows that a batch recomputes: the affected ones, without those that are deleted.

    Args:
        removed: (ablation, token) bool, the removed tokens, as many in each ablation.
        affected: (token,) bool, the rows that the batch's ablations affect.
        deletes: whether the removal kind makes the rows of removed tokens absent.
    """
    context = (~affected).nonzero()[:, 0]
    if not deletes or not removed.any():
        return Rows(affected.nonzero()[:, 0][None], context)
    shared_removal = bool((removed == removed[0]).all())
    active = affected & ~(removed[:1] if shared_removal else removed)
    return Rows(active.nonzero()[:, 1].reshape(len(active), -1), context)


def attention_mask(mask: torch.Tensor | None, rows: Rows, queries: torch.Tensor) -> torch.Tensor:
    """Return the captured mask at the rows and columns in use.

    Args:
        mask: the mask that the layer was called with; None is the causal mask.
        rows: the rows that run, and their context.
        queries: (ablation or 1, query) long, positions of the rows that attend; the last rows under the causal mask.

    Returns:
        (ablation or 1, 1, query, context + row) bool, true where a query sees a column.
    """
    if mask is None:
        return _causal(rows, queries.shape[1])[:, None]
    columns = torch.cat([rows.context.expand(len(rows.active), -1), rows.active], dim=1)
    return visible_at(mask, queries[:, :, None], columns[:, None, :])[:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a boolean mask in the form that eager attention adds: 0 where allowed, else the most negative number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _causal(rows: Rows, queries: int) -> torch.Tensor:
    """Return the mask of the last `queries` active rows under causal attention, (1, query, context + row) bool.

    Every context row lies before the active ones, so a row sees all columns up to its own.
    """
    n = rows.active.shape[1]
    columns = torch.arange(len(rows.context) + n, device=rows.active.device)
    return (columns <= columns[-queries:, None])[None]
