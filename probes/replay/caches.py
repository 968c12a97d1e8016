"""What stands where a layer expects its cache: captured keys and values, those of all columns, or a recorder."""

from __future__ import annotations

from typing import Any

import torch


class Recorded(Exception):  # noqa: N818 (it ends a call early; nothing went wrong)
    """Carries the keys and values of a layer out of its call, each (batch, head, row, head_dim)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


class Recorder:
    """Stands where a layer expects its cache: ends the call as soon as the layer has its keys and values."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Raise an exception that carries the keys and values that the layer would store."""
        raise Recorded(keys, values)


class FrozenContext:
    """Stands where a layer expects its cache: puts the captured keys and values before those just computed.

    Args:
        keys: (1 or ablation, key head, column, head_dim) captured keys after rotary embedding.
        values: the captured values, of the same shape.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the active rows, (batch, head, row, dim), with the context's columns in front."""
        batch = (len(keys), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(batch), keys], dim=2),
            torch.cat([self.values.expand(batch), values], dim=2),
        )


class KnownContext(FrozenContext):
    """Stands where a layer expects its cache: gives stored keys and values of all columns instead of the layer's."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored keys and values of all columns, (batch, head, column, dim)."""
        return self.keys, self.values


class GrowingContext(FrozenContext):
    """Stands where a layer expects its cache: the captured keys and values, then those of the parts run so far.

    Args:
        context: keys and values of the capture.
        ablations: number of ablations that run.
        rows: number of rows of each ablation, over all parts.
    """

    def __init__(self, context: FrozenContext, ablations: int, rows: int) -> None:
        super().__init__(*(_with_room(states, ablations, rows) for states in (context.keys, context.values)))
        self._filled = context.keys.shape[2]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a part, (batch, head, row, dim), with all columns before it in front."""
        start, self._filled = self._filled, self._filled + keys.shape[2]
        self.keys[:, :, start : self._filled] = keys
        self.values[:, :, start : self._filled] = values
        return self.keys[:, :, : self._filled], self.values[:, :, : self._filled]


def _with_room(states: torch.Tensor, ablations: int, rows: int) -> torch.Tensor:
    """Return (1, head, column, dim) states, repeated for every ablation, with room for more rows behind the columns."""
    _, heads, columns, width = states.shape
    padded = states.new_empty(ablations, heads, columns + rows, width)
    padded[:, :, :columns] = states
    return padded
