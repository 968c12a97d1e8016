"""Windows tile every grid from its top left: each token once, none across grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.runs import HorizonError, check_windows
from probes.models.grids import TokenGrid, choose_window, tile_windows

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


@given(st.lists(extents, min_size=1, max_size=3), st.integers(1, 60))
def test_windows_by_count_are_the_smallest_that_are_so_few(shapes, most):
    grids = grids_of(shapes)
    if most < len(grids):
        with pytest.raises(HorizonError, match=f"max_windows is {most}, but this sample has {len(grids)} grids"):
            choose_window(None, most, grids)
        return
    size = choose_window(None, most, grids)
    assert len(tile_windows(grids, size)) <= most
    assert all(len(tile_windows(grids, smaller)) > most for smaller in range(1, size))


def test_a_side_that_is_given_stands():
    assert choose_window(3, None, grids_of([(9, 9)])) == 3
    assert check_windows(None, None, None) == 2
    assert check_windows(3, None, 9) == 3
    assert check_windows(None, 64, None) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((2, 64, None), "goes with neither window nor coarse"),
        ((None, 64, 8), "goes with neither window nor coarse"),
        ((None, 0, None), "max_windows is 0; it must be a whole number"),
        ((None, 2.5, None), "max_windows is 2.5; it must be a whole number"),
        ((2, None, 3), "coarse is 3 and window 2: coarse must be a larger multiple"),
        ((2, None, 2), "coarse is 2 and window 2: coarse must be a larger multiple"),
        ((0, None, None), "window is 0; it must be a whole number"),
    ],
)
def test_windows_that_contradict_each_other_are_refused(asked, message):
    with pytest.raises(HorizonError, match=message):
        check_windows(*asked)
