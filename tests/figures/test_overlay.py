import numpy as np
import pandas as pd
import pytest

from analyses.curves.effects import removal_effects
from analyses.runs import HorizonError
from figures.overlay import choose_layers, figure_token_heatmap, plot_token_heatmap, split_views, window_boxes

WHOLE = {"rows": 3, "columns": 5, "left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}
LEFT = {"rows": 2, "columns": 2, "left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
RIGHT = {"rows": 2, "columns": 2, "left": 0.5, "top": 0.0, "right": 1.0, "bottom": 1.0}


def windows(*rows):
    return pd.DataFrame(rows, columns=["crop", "row", "column", "height", "width"])


def cells_of(ax):
    """(left, top, width, height) of every cell that was drawn, in data coordinates."""
    (cells,) = ax.collections
    boxes = [path.get_extents() for path in cells.get_paths()]
    return np.array([(box.x0, box.y0, box.width, box.height) for box in boxes])


def panels_of(fig):
    return [ax for ax in fig.axes if ax.get_title(loc="left")]


def test_windows_lie_where_their_tokens_were_cut():
    boxes = window_boxes(windows((0, 0, 0, 2, 2), (0, 2, 4, 1, 1), (1, 0, 1, 2, 1)), [WHOLE, RIGHT])
    expected = [(0, 0, 2 / 5, 2 / 3), (4 / 5, 2 / 3, 1 / 5, 1 / 3), (0.75, 0, 0.25, 1)]
    np.testing.assert_allclose(boxes, expected)


def test_the_windows_of_a_grid_tile_its_crop():
    tiling = windows(*[(0, r, c, min(2, 3 - r), min(2, 5 - c)) for r in (0, 2) for c in (0, 2, 4)])
    boxes = window_boxes(tiling, [LEFT | {"rows": 3, "columns": 5}])
    assert (boxes[:, 2] * boxes[:, 3]).sum() == pytest.approx(0.5)
    assert (boxes[:, 0] + boxes[:, 2]).max() == pytest.approx(0.5)


def test_crops_that_overlap_are_views_of_their_own():
    assert split_views([LEFT, RIGHT, WHOLE]) == [[0, 1], [2]]
    assert split_views([WHOLE]) == [[0]]


def test_a_crop_that_overlaps_one_of_two_tiles_is_no_third_tile():
    corner = RIGHT | {"left": 0.75, "bottom": 0.5}
    assert split_views([LEFT, RIGHT, corner]) == [[0, 1], [2]]
    assert split_views([LEFT, corner, RIGHT]) == [[0, 1], [2]]
    assert split_views([LEFT, RIGHT, corner, WHOLE, corner | {"right": 0.75, "left": 0.5}]) == [[0, 1], [2, 4], [3]]


def test_cells_carry_the_values_and_stand_at_their_boxes():
    values = np.array([0.1, -0.4, 0.2])
    boxes = np.array([(0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5), (0, 0.5, 1, 0.5)])
    ax = plot_token_heatmap(values, boxes, image=np.zeros((20, 40, 3), np.uint8), label="information (nats)")
    np.testing.assert_array_equal(ax.collections[0].get_array(), values)
    np.testing.assert_allclose(cells_of(ax), boxes)
    assert ax.collections[0].get_clim() == (-0.4, 0.4)  # symmetric: white is no information
    assert ax.images[0].get_extent() == [0, 1, 1, 0]
    assert ax.get_ylim() == (1, 0)
    assert ax.get_aspect() == 0.5  # a unit is the image's width, and its height
    assert ax.figure.axes[1].get_ylabel() == "information (nats)"


def test_windows_that_were_not_measured_stay_blank():
    values = np.array([0.1, np.nan, -0.4])
    ax = plot_token_heatmap(values, np.array([(0, 0, 0.5, 0.5), (0.5, 0, 0.5, 0.5), (0, 0.5, 1, 0.5)]))
    (cells,) = ax.collections
    ax.figure.draw_without_rendering()
    np.testing.assert_array_equal(cells.get_facecolors()[:, 3] > 0, ~np.isnan(values))
    assert cells.get_clim() == (-0.4, 0.4)
    nothing = plot_token_heatmap(np.full(1, np.nan), np.array([(0, 0, 1, 1)]))
    assert nothing.collections[0].get_clim() == (-1, 1)


def test_values_that_are_all_zero_can_be_drawn():
    ax = plot_token_heatmap(np.zeros(1), np.array([(0, 0, 1, 1)]))
    assert ax.collections[0].get_clim() == (-1, 1)
    assert not ax.images


def test_the_figure_draws_the_grids_of_the_sample_with_the_largest_effect(run):
    fig = figure_token_heatmap(run)
    effects = removal_effects(run)
    carried = run.token_rows()
    largest = carried[int(np.argmax([effects.values[effects.rows == row, 0] for row in carried]))]
    grids = run.tokens(largest)
    panels = panels_of(fig)
    assert [ax.get_title(loc="left") for ax in panels] == [f"layer {layer}" for layer in range(8)]
    for ax, values in zip(panels, grids.information("p"), strict=True):
        np.testing.assert_array_equal(ax.collections[0].get_array(), values)
        np.testing.assert_allclose(cells_of(ax), window_boxes(grids.windows, run.samples.loc[largest, "crops"]))
        assert ax.collections[0].get_clim() == panels[0].collections[0].get_clim()
    limit = np.abs(grids.information("p")).max()
    np.testing.assert_allclose(panels[0].collections[0].get_clim(), (-limit, limit))
    assert fig.axes[-1].get_ylabel() == "Token information\n$I_k$ (probability)"


def test_the_title_tells_question_answer_and_first_token(run):
    record = run.samples.loc[run.row_of("vqa-1")]
    title = " ".join(figure_token_heatmap(run, sample="vqa-1").get_suptitle().replace("\u00a0", " ").split())
    assert record["question"] in title
    assert f"answer: {record['answers'][0]}" in title
    assert f"{record['prediction']}, p(target) = {record['p']:.2f}" in title


def test_samples_and_layers_can_be_chosen(run):
    fig = figure_token_heatmap(run, sample="vqa-1", layers=(6, 2), measure="log_p", width="column")
    grids = run.tokens("vqa-1")
    for ax, layer in zip(panels_of(fig), (6, 2), strict=True):
        assert ax.get_title(loc="left") == f"layer {layer}"
        np.testing.assert_array_equal(ax.collections[0].get_array(), grids.information("log_p")[layer])
    assert fig.axes[-1].get_ylabel() == "Token information\n$I_k$ (nats)"
    with pytest.raises(HorizonError, match=r"layers \[11\]"):
        figure_token_heatmap(run, sample="vqa-1", layers=(2, 11))
    with pytest.raises(HorizonError, match="vqa-7"):
        figure_token_heatmap(run, sample="vqa-7")  # measured, but without grids
    with pytest.raises(HorizonError, match="nobody"):
        figure_token_heatmap(run, sample="nobody")


def test_two_models_show_the_same_sample_in_a_row_each(run, deeper):
    fig = figure_token_heatmap([run, deeper], sample="ocr-2")
    panels = panels_of(fig)
    assert [ax.get_ylabel() for ax in panels if ax.get_ylabel()] == ["eight", "twelve"]
    np.testing.assert_array_equal(panels[0].collections[0].get_array(), run.tokens("ocr-2").information()[0])
    np.testing.assert_array_equal(panels[-1].collections[0].get_array(), deeper.tokens("ocr-2").information()[11])
    assert len({ax.collections[0].get_clim() for ax in panels}) == 1


def test_layers_are_spread_from_the_first_to_the_last():
    assert choose_layers(np.arange(32), 8).tolist() == [0, 4, 9, 13, 18, 22, 27, 31]
    assert choose_layers(np.array([1, 3]), 8).tolist() == [1, 3]


@pytest.mark.parametrize("width", ["page", "column"])
def test_nothing_is_cut_off_at_the_edges(run, deeper, width):
    fig = figure_token_heatmap([run, deeper], width=width)
    box = fig.get_tightbbox()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= fig.get_figwidth() + 0.01
    assert box.y1 <= fig.get_figheight() + 0.01
