"""Which tokens see which: rows that an ablation changes, rows that a batch runs, and their attention masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


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
    affected = changed.clone()
    if not changed.any():
        return affected
    masks = {id(kwargs["attention_mask"]): kwargs["attention_mask"] for kwargs in arguments}
    matrices = [visible(mask) for mask in masks.values()]
    while True:
        seen = affected.clone()
        for matrix in matrices:
            seen |= _sees(matrix, affected)
        if torch.equal(seen, affected):
            return affected
        affected = seen


def _sees(visible: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Which rows see one of the tokens; None is the causal mask."""
    if visible is None:
        return tokens.int().cumsum(0) > 0
    return visible[:, tokens].any(1)


def visible(mask: torch.Tensor | None) -> torch.Tensor | None:
    """(query, key) bool of a layer's mask argument, boolean or additive; None stays None."""
    if mask is None:
        return None
    matrix = mask[0, 0]
    return matrix if matrix.dtype == torch.bool else matrix > torch.finfo(matrix.dtype).min / 2


def in_order(arguments: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no token sees a later one, in any of the layers that were called with these arguments."""
    masks = {id(kwargs["attention_mask"]): kwargs["attention_mask"] for kwargs in arguments}
    matrices = [visible(mask) for mask in masks.values()]
    return not any(matrix is not None and matrix.triu(1).any() for matrix in matrices)


def rows_to_run(kind: str, removed: torch.Tensor, affected: torch.Tensor) -> Rows:
    """What a batch recomputes: the affected rows, without those that are deleted.

    Args:
        kind: removal kind.
        removed: (ablation, token) bool, the same number in each.
        affected: (token,) bool.
    """
    context = (~affected).nonzero()[:, 0]
    if kind != "delete" or not removed.any():
        return Rows(affected.nonzero()[:, 0][None], context)
    same = bool((removed == removed[0]).all())
    kept = affected & ~(removed[:1] if same else removed)
    return Rows(kept.nonzero()[:, 1].reshape(len(kept), -1), context)


def attention_mask(mask: torch.Tensor | None, rows: Rows, queries: torch.Tensor) -> torch.Tensor:
    """The captured mask at the rows and columns in use.

    Args:
        mask: what the layer was called with; None is the causal mask.
        rows: which rows run, over which context.
        queries: (ablation or 1, query) long, the last of the rows that run: those that attend.

    Returns:
        (ablation or 1, 1, query, context + row) bool.
    """
    matrix = visible(mask)
    if matrix is None:
        return _causal(rows, queries.shape[1])[:, None]
    columns = torch.cat([rows.context.expand(len(rows.active), -1), rows.active], dim=1)
    return matrix[queries[:, :, None], columns[:, None, :]][:, None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as eager attention takes it: 0 where allowed, else the most negative number."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def _causal(rows: Rows, queries: int) -> torch.Tensor:
    """Under a causal mask kept rows see the kept rows before them and themselves; every context row lies before."""
    n = rows.active.shape[1]
    columns = torch.arange(len(rows.context) + n, device=rows.active.device)
    return (columns <= columns[-queries:, None])[None]
