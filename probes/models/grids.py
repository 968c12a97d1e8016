"""Where tokens lie: patch grids and stretches of text, and the windows that tile them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.runs import HorizonError


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one image, crop or frame in rows and columns, or a stretch of text as one row.

    Attributes:
        positions: (rows, columns) int, the position of each token in the prompt.
        box: left, top, right, bottom of the part of the original image that the grid covers, as fractions; of text
            all are 0.
        image: number, from 0, of the image or frame of the sample that the grid shows.
    """

    positions: np.ndarray
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    image: int = 0

    @property
    def rows(self) -> int:
        """Number of rows of tokens."""
        return self.positions.shape[0]

    @property
    def columns(self) -> int:
        """Number of columns of tokens."""
        return self.positions.shape[1]


@dataclass(frozen=True)
class Window:
    """A block of neighboring tokens of one grid or stretch: its place, its extent and its tokens' positions."""

    crop: int
    row: int
    column: int
    height: int
    width: int
    positions: tuple[int, ...]


def text_stretches(positions: np.ndarray) -> list[TokenGrid]:
    """Return the runs of consecutive positions, each as a grid of one row; a picture between two runs is no text.

    Args:
        positions: (token,) int, ascending positions of the text.

    >>> [stretch.positions.tolist() for stretch in text_stretches(np.array([0, 1, 7, 8, 9]))]
    [[[0, 1]], [[7, 8, 9]]]
    """
    if not len(positions):
        return []
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return [TokenGrid(run[None], box=(0.0, 0.0, 0.0, 0.0)) for run in runs]


def choose_window(window: int | None, max_windows: int | None, grids: Sequence[TokenGrid]) -> int:
    """Return the side of a sample's windows in tokens: `window`, or the smallest that makes at most `max_windows`.

    Args:
        window: the side in tokens; None where `max_windows` decides.
        max_windows: largest number of windows over all grids of the sample.
        grids: the grids of the sample.

    Raises:
        HorizonError: `max_windows` is less than the number of grids: windows never cross grids.

    >>> choose_window(None, 9, [TokenGrid(np.arange(24 * 24).reshape(24, 24))])
    8
    """
    if window is not None:
        return window
    if max_windows is None or max_windows < len(grids):
        raise HorizonError(
            f"max_windows is {max_windows}, but this sample has {len(grids)} {_pieces(grids)}, which windows never "
            f"cross: allow at least {len(grids)} windows"
        )
    largest = max((max(grid.positions.shape) for grid in grids), default=1)
    return next(size for size in range(1, largest + 1) if count_windows(grids, size) <= max_windows)


def _pieces(grids: Sequence[TokenGrid]) -> str:
    """Return the noun for these grids; a stretch of text is known by an empty box."""
    text = [not any(grid.box) for grid in grids]
    return "grids" if not any(text) else "stretches of text" if all(text) else "grids and stretches of text"


def count_windows(grids: Sequence[TokenGrid], size: int) -> int:
    """Return how many windows of this side `tile_windows` makes."""
    return sum(-(-grid.rows // size) * -(-grid.columns // size) for grid in grids)


def tile_windows(grids: Sequence[TokenGrid], size: int, first: int = 0) -> list[Window]:
    """Return the windows of size x size tokens that tile every grid, row by row from its top left.

    Windows at the edge are smaller. No window crosses a crop or frame, and every token with a place lies in exactly one
    window. A stretch of text is one row, so its windows have `size` tokens.

    Args:
        grids: the grids to tile.
        size: side of a window in tokens.
        first: number of the first grid in `Window.crop`.

    Raises:
        HorizonError: `size` is not a whole number of at least 1.

    >>> grid = TokenGrid(np.arange(6).reshape(2, 3))
    >>> [window.positions for window in tile_windows([grid], 2)]
    [(0, 1, 3, 4), (2, 5)]
    """
    if size != int(size) or size < 1:
        raise HorizonError(f"window is {size!r}; it must be a whole number of tokens, at least 1")
    windows = []
    for crop, grid in enumerate(grids, start=first):
        for row in range(0, grid.rows, size):
            for column in range(0, grid.columns, size):
                block = grid.positions[row : row + size, column : column + size]
                windows.append(Window(crop, row, column, block.shape[0], block.shape[1], tuple(block.ravel().tolist())))
    return windows
