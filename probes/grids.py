"""Where visual tokens lie: patch grids, and the windows that tile them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.runs import HorizonError


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one image, crop or frame, in their places.

    Attributes:
        positions: (rows, columns) int, the position of each token in the prompt.
        box: left, top, right, bottom of the part of the original image that the grid covers, as fractions.
        image: which image or frame of the sample it shows, from 0.
    """

    positions: np.ndarray
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    image: int = 0

    @property
    def rows(self) -> int:
        """Rows of tokens."""
        return self.positions.shape[0]

    @property
    def columns(self) -> int:
        """Columns of tokens."""
        return self.positions.shape[1]


@dataclass(frozen=True)
class Window:
    """A block of neighboring tokens of one grid: its place, its extent and its tokens' positions."""

    crop: int
    row: int
    column: int
    height: int
    width: int
    positions: tuple[int, ...]


def tile_windows(grids: Sequence[TokenGrid], size: int) -> list[Window]:
    """Tile every grid with size x size windows from its top left, row-major; windows at the edge are smaller.

    No window crosses a crop or frame, and every token with a place lies in exactly one window.

    Raises:
        HorizonError: `size` is not a whole number of at least 1.

    >>> grid = TokenGrid(np.arange(6).reshape(2, 3))
    >>> [window.positions for window in tile_windows([grid], 2)]
    [(0, 1, 3, 4), (2, 5)]
    """
    if size != int(size) or size < 1:
        raise HorizonError(f"window is {size!r}; it must be a whole number of tokens, at least 1")
    windows = []
    for crop, grid in enumerate(grids):
        for row in range(0, grid.rows, size):
            for column in range(0, grid.columns, size):
                block = grid.positions[row : row + size, column : column + size]
                windows.append(Window(crop, row, column, block.shape[0], block.shape[1], tuple(block.ravel().tolist())))
    return windows
