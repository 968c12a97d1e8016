"""Where tokens lie: patch grids and stretches of text, and the windows that tile them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analyses.runs import HorizonError


@dataclass(frozen=True)
class TokenGrid:
    """The visual tokens of one image, crop or frame, in their places; or a stretch of text, as one row.

    Attributes:
        positions: (rows, columns) int, the position of each token in the prompt.
        box: left, top, right, bottom of the part of the original image that the grid covers, as fractions; of text
            all are 0.
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
    """A block of neighboring tokens of one grid or stretch: its place, its extent and its tokens' positions."""

    crop: int
    row: int
    column: int
    height: int
    width: int
    positions: tuple[int, ...]


def text_stretches(positions: np.ndarray) -> list[TokenGrid]:
    """Runs of consecutive positions, each as one row: what lies between them (a picture) is no text.

    Args:
        positions: (token,) int, ascending.

    >>> [stretch.positions.tolist() for stretch in text_stretches(np.array([0, 1, 7, 8, 9]))]
    [[[0, 1]], [[7, 8, 9]]]
    """
    if not len(positions):
        return []
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    return [TokenGrid(run[None], box=(0.0, 0.0, 0.0, 0.0)) for run in runs]


def choose_window(window: int | None, max_windows: int | None, grids: Sequence[TokenGrid]) -> int:
    """Side of a sample's windows: `window` as it stands, or the smallest that makes at most `max_windows`.

    Args:
        window: side in tokens; None where `max_windows` chooses.
        max_windows: most windows that all grids of the sample may have together.
        grids: of the sample.

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
    """What these are, in words; only text covers nothing of the image."""
    text = [not any(grid.box) for grid in grids]
    return "grids" if not any(text) else "stretches of text" if all(text) else "grids and stretches of text"


def count_windows(grids: Sequence[TokenGrid], size: int) -> int:
    """How many windows `tile_windows` makes."""
    return sum(-(-grid.rows // size) * -(-grid.columns // size) for grid in grids)


def tile_windows(grids: Sequence[TokenGrid], size: int, first: int = 0) -> list[Window]:
    """Tile every grid with size x size windows from its top left, row-major; windows at the edge are smaller.

    No window crosses a crop or frame, and every token with a place lies in exactly one window. A stretch of text is one
    row, so its windows are `size` tokens.

    Args:
        grids: to tile.
        size: side of a window in tokens.
        first: number of the first grid, for `Window.crop`.

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
