"""What stands where a layer expects its cache: captured keys and values, those of all columns, or a recorder."""

from __future__ import annotations

from typing import Any

import torch


class Recorded(Exception):  # noqa: N818 (it ends a call early; nothing went wrong)
    """Carries keys and values out of a layer: (batch, head, row, dim)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


class Recorder:
    """Stands where a layer expects its cache: ends the call as soon as keys and values are there."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Raise what the layer would store."""
        raise Recorded(keys, values)


class FrozenContext:
    """Stands where a layer expects its cache: puts the captured keys and values before those just computed.

    Args:
        keys: (1 or ablation, key head, column, head_dim).
        values: the same.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, head, row, dim) of the active rows -> the same with the context's rows in front."""
        batch = (len(keys), -1, -1, -1)
        return (
            torch.cat([self.keys.expand(batch), keys], dim=2),
            torch.cat([self.values.expand(batch), values], dim=2),
        )


class KnownContext(FrozenContext):
    """Stands where a layer expects its cache: gives keys and values of all columns, whatever the layer computed."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, head, row, dim) of the rows at hand -> those of all columns."""
        return self.keys, self.values


class GrowingContext(FrozenContext):
    """Stands where a layer expects its cache: the captured keys and values, then those of the parts run so far.

    Args:
        context: keys and values of the capture.
        ablations: how many run.
        rows: of each, all parts together.
    """

    def __init__(self, context: FrozenContext, ablations: int, rows: int) -> None:
        super().__init__(*(_with_room(held, ablations, rows) for held in (context.keys, context.values)))
        self._filled = context.keys.shape[2]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, head, row, dim) of a part -> the same with all columns before it in front."""
        start, self._filled = self._filled, self._filled + keys.shape[2]
        self.keys[:, :, start : self._filled] = keys
        self.values[:, :, start : self._filled] = values
        return self.keys[:, :, : self._filled], self.values[:, :, : self._filled]


def _with_room(held: torch.Tensor, ablations: int, rows: int) -> torch.Tensor:
    """(1, head, column, dim) -> (ablation, head, column + row, dim): the same for every ablation, rows to be filled."""
    _, heads, columns, width = held.shape
    room = held.new_empty(ablations, heads, columns + rows, width)
    room[:, :, :columns] = held
    return room
