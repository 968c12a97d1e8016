"""Removal kinds: what replaces removed tokens from the input of one layer on. A new kind is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Fill = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """One way to take tokens away.

    Attributes:
        name: one of `KINDS`.
        fill: the function that returns what replaces the rows of removed tokens, of a shape that broadcasts to
            (ablation, row, hidden). It takes the (ablation, row, hidden) rows that run at the cut, the captured
            (token, hidden) input of that layer, and the (removable,) positions of all tokens that may be removed.
            Rows are replaced once, and later layers refill them. None where removed rows are absent from the cut on.
    """

    name: str
    fill: Fill | None = None

    @property
    def deletes(self) -> bool:
        """Whether the rows of removed tokens are absent from the cut on."""
        return self.fill is None


def _zeros(_rows: torch.Tensor, states: torch.Tensor, _removable: torch.Tensor) -> torch.Tensor:
    """Return a row of zeros, (hidden,)."""
    return torch.zeros_like(states[0])


def _mean(_rows: torch.Tensor, states: torch.Tensor, removable: torch.Tensor) -> torch.Tensor:
    """Return the mean of the captured states over the removable tokens, (hidden,)."""
    return states[removable].mean(0)


KIND_TABLE = {kind.name: kind for kind in (Kind("delete"), Kind("zero", _zeros), Kind("mean", _mean))}
