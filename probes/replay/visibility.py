"""Which tokens see which: rows that an ablation changes, rows that a batch runs, and their attention masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

BLOCK_PAIRS = 2**22  # (query, key) pairs of a mask that are looked at at once


@dataclass(frozen=True)
class Rows:
    """Which rows a batch recomputes, and which it takes from the capture.

    Attributes:
        active: (ablation or 1, row) long, positions recomputed, ascending; one row if the same for all.
        context: (column,) long, positions whose keys and values are those of the capture.
    """

    active: torch.Tensor
    context: torch.Tensor

    def first(self, n: int) -> Rows:
        """Those of the first n ablations."""
        return replace(self, active=self.active[:n])

    def until(self, n: int) -> Rows:
        """The first n active rows of each ablation."""
        return replace(self, active=self.active[:, :n])

    def of(self, ablations: torch.Tensor, n: int) -> torch.Tensor:
        """(ablation, row) active rows of some of n ablations."""
        return self.active.expand(n, -1)[ablations]


def affected_rows(arguments: Sequence[Mapping[str, Any]], changed: torch.Tensor) -> torch.Tensor:
    """Changed rows, and those that see one of them, directly or through others.

    Args:
        arguments: what each layer from the cut on was called with.
        changed: (token,) bool.

    Returns:
        (token,) bool.
    """
    masks: list[torch.Tensor | None] = [*masks_of(arguments)]
    masks += [None] * any(kwargs["attention_mask"] is None for kwargs in arguments)
    affected, found = changed.clone(), changed
    while found.any():
        seen = torch.zeros_like(changed)
        for mask in masks:
            seen |= _sees(mask, found, ~affected)
        found = seen
        affected = affected | found
    return affected


def masks_of(arguments: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The masks that layers were called with, each once; none where all are causal by themselves."""
    masks = {id(kwargs["attention_mask"]): kwargs["attention_mask"] for kwargs in arguments}
    return [mask for mask in masks.values() if mask is not None]


def _sees(mask: torch.Tensor | None, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Which of some rows see one of the tokens, all (token,) bool; None is the causal mask."""
    if mask is None:
        return rows & (tokens.int().cumsum(0) > 0)
    columns, found = tokens.nonzero()[:, 0], torch.zeros_like(rows)
    for part in rows.nonzero()[:, 0].split(max(1, BLOCK_PAIRS // len(columns))):
        found[part] = visible_at(mask, part[:, None], columns).any(1)
    return found


def visible(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(query, key) bool of a layer's mask argument, boolean or additive; None stays None."""
    return None if mask is None else _allowed(mask[0, 0])


def visible_at(mask: torch.Tensor, queries: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Entries of a layer's mask argument as bool, of the shape that the two index tensors make together."""
    return _allowed(mask[0, 0][queries, columns])


def _allowed(entries: torch.Tensor) -> torch.Tensor:
    return entries if entries.dtype == torch.bool else entries > torch.finfo(entries.dtype).min / 2


def in_order(arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no token sees a later one, in any of the layers that were called with these arguments."""
    return not any(_sees_later(mask[0, 0]) for mask in masks_of(arguments))


def _sees_later(matrix: torch.Tensor) -> bool:
    """Whether anything is visible above the diagonal of a (query, key) mask, boolean or additive."""
    starts = range(0, len(matrix), max(1, BLOCK_PAIRS // len(matrix)))
    blocks = zip(starts, matrix.split(starts.step), strict=True)
    return any(bool(_allowed(block).triu(start + 1).any()) for start, block in blocks)


def rows_to_run(removed: torch.Tensor, affected: torch.Tensor, *, deletes: bool) -> Rows:
    """What a batch recomputes: the affected rows, without those that are deleted.

    Args:
        removed: (ablation, token) bool, the same number in each.
        affected: (token,) bool.
        deletes: whether the rows of removed tokens are absent, by the removal kind.
    """
    context = (~affected).nonzero()[:, 0]
    if not deletes or not removed.any():
        return Rows(affected.nonzero()[:, 0][None], context)
    same = bool((removed == removed[0]).all())
    kept = affected & ~(removed[:1] if same else removed)
    return Rows(kept.nonzero()[:, 1].reshape(len(kept), -1), context)


def attention_mask(mask: torch.Tensor | None, rows: Rows, queries: torch.Tensor) -> torch.Tensor:
    """The captured mask at the rows and columns in use.

    Args:
        mask: what the layer was called with; None is the causal mask.
        rows: which rows run, over which context.
        queries: (ablation or 1, query) long, those of the rows that attend; under the causal mask, the last ones.

    Returns:
        (ablation or 1, 1, query, context + row) bool.
    """
    if mask is None:
        return _causal(rows, queries.shape[1])[:, None]
    columns = torch.cat([rows.context.expand(len(rows.active), -1), rows.active], dim=1)
    return visible_at(mask, queries[:, :, None], columns[:, None, :])[:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as eager attention takes it: 0 where allowed, else the most negative number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _causal(rows: Rows, queries: int) -> torch.Tensor:
    """Under a causal mask kept rows see the kept rows before them and themselves; every context row lies before."""
    n = rows.active.shape[1]
    columns = torch.arange(len(rows.context) + n, device=rows.active.device)
    return (columns <= columns[-queries:, None])[None]
