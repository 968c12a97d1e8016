"""Windows tile every grid from its top left: each token once, none across grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.runs import HorizonError
from probes.grids import TokenGrid, tile_windows

extents = st.tuples(st.integers(1, 7), st.integers(1, 7))


def grids_of(shapes: list[tuple[int, int]]) -> list[TokenGrid]:
    """Grids one after the other in the prompt, with a placeless token between two."""
    grids, start = [], 3
    for rows, columns in shapes:
        grids.append(TokenGrid(np.arange(start, start + rows * columns).reshape(rows, columns)))
        start += rows * columns + 1
    return grids


@given(st.lists(extents, min_size=1, max_size=3), st.integers(1, 8))
def test_every_token_with_a_place_lies_in_exactly_one_window(shapes, size):
    grids = grids_of(shapes)
    windows = tile_windows(grids, size)
    placed = sorted(position for window in windows for position in window.positions)
    assert placed == sorted(int(position) for grid in grids for position in grid.positions.ravel())


@given(st.lists(extents, min_size=1, max_size=3), st.integers(1, 8))
def test_a_window_is_the_block_at_its_place(shapes, size):
    grids = grids_of(shapes)
    for window in tile_windows(grids, size):
        grid = grids[window.crop]
        assert window.row % size == window.column % size == 0
        assert window.height == min(size, grid.rows - window.row)
        assert window.width == min(size, grid.columns - window.column)
        expected = [
            int(grid.positions[row, column])
            for row in range(window.row, window.row + window.height)
            for column in range(window.column, window.column + window.width)
        ]
        assert list(window.positions) == expected


def test_windows_come_grid_by_grid_and_row_by_row():
    windows = tile_windows(grids_of([(5, 3), (2, 2)]), 2)
    places = [(window.crop, window.row, window.column, window.height, window.width) for window in windows]
    assert places == [
        (0, 0, 0, 2, 2),
        (0, 0, 2, 2, 1),
        (0, 2, 0, 2, 2),
        (0, 2, 2, 2, 1),
        (0, 4, 0, 1, 2),
        (0, 4, 2, 1, 1),
        (1, 0, 0, 2, 2),
    ]


def test_windows_of_one_token_and_larger_than_the_grid():
    grids = grids_of([(2, 3)])
    assert [window.positions for window in tile_windows(grids, 1)] == [(3,), (4,), (5,), (6,), (7,), (8,)]
    assert [window.positions for window in tile_windows(grids, 9)] == [(3, 4, 5, 6, 7, 8)]


def test_no_grid_has_no_window():
    assert tile_windows([], 2) == []


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_sizes_that_are_no_number_of_tokens_are_refused(size):
    with pytest.raises(HorizonError, match=f"window is {size}; it must be a whole number"):
        tile_windows(grids_of([(2, 2)]), size)
