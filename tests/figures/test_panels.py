import numpy as np
import pytest

from analyses.runs import HorizonError
from figures.panels import (
    check_distinct,
    facet_grid,
    finish,
    label_panels,
    new_axes,
    retitle,
    share_labels,
    shared_legend,
    subtitle,
    with_probe,
)
from figures.style import WIDTHS, paper_style

TWO_MODELS = [(model, item) for model in ("a", "b") for item in ("x", "y", "z")]


def places(axes):
    specs = {pair: ax.get_subplotspec() for pair, ax in axes.items()}
    return {pair: (spec.rowspan.start, spec.colspan.start) for pair, spec in specs.items()}


def test_items_run_across_a_page_and_down_a_column():
    fig, axes = facet_grid(TWO_MODELS, "page")
    assert fig.get_figwidth() == WIDTHS["page"]
    assert places(axes) == {pair: ("ab".index(pair[0]), "xyz".index(pair[1])) for pair in TWO_MODELS}
    fig, axes = facet_grid(TWO_MODELS, "column")
    assert fig.get_figwidth() == WIDTHS["column"]
    assert places(axes) == {pair: ("xyz".index(pair[1]), "ab".index(pair[0])) for pair in TWO_MODELS}


def test_six_items_fill_two_rows_for_each_model():
    _, axes = facet_grid([("a", str(i)) for i in range(6)], "page")
    assert list(places(axes).values()) == [(i // 3, i % 3) for i in range(6)]


def test_models_run_across_when_there_is_one_item_and_missing_pairs_have_no_panel():
    _, axes = facet_grid([("a", ""), ("b", "")], "page")
    assert list(places(axes).values()) == [(0, 0), (0, 1)]
    _, axes = facet_grid([("a", "x"), ("a", "y"), ("b", "y")], "page")
    assert places(axes) == {("a", "x"): (0, 0), ("a", "y"): (0, 1), ("b", "y"): (1, 1)}


def test_shared_labels_are_said_once_and_different_ones_stay():
    fig, axes = facet_grid([("a", "x"), ("a", "y")], "page")
    for name, ax in zip("xy", axes.values(), strict=True):
        ax.set_xlabel("layer")
        ax.set_ylabel(name)
    share_labels(fig, axes.values())
    assert fig.get_supxlabel() == "layer"
    assert [ax.get_xlabel() for ax in axes.values()] == ["", ""]
    assert fig.get_supylabel() == ""
    assert [ax.get_ylabel() for ax in axes.values()] == ["x", "y"]


def test_panels_are_lettered_unless_there_is_one():
    _, axes = facet_grid([("a", "x"), ("a", "y")], "page")
    for ax in axes.values():
        retitle(ax, "entropy")
    label_panels(axes.values())
    assert [ax.get_title(loc="left") for ax in axes.values()] == ["(a) entropy", "(b) entropy"]
    ax = new_axes(None)
    retitle(ax, "entropy")
    label_panels([ax])
    assert ax.get_title(loc="left") == "entropy"


@paper_style()
def test_a_title_clears_its_wrapped_subtitle():
    ax = new_axes(None)
    subtitle(ax, "a sentence that is much too long for one line of a panel at column width, so it wraps")
    retitle(ax, "title")
    finish(ax.figure)
    (note,) = ax.texts
    title = next(text for text in ax.get_children() if getattr(text, "get_text", str)() == "title")
    assert "\n" in note.get_text()
    assert title.get_window_extent().y0 >= note.get_window_extent().y1 - 1
    assert note.get_window_extent().x1 <= ax.figure.bbox.x1


def test_the_legend_names_every_label_once_and_fits_the_figure():
    fig, axes = facet_grid([("a", "x"), ("a", "y")], "column")
    for ax in axes.values():
        for name in ("a rather long task type", "another long task type", "a third long task type"):
            ax.plot([0, 1], label=name)
    shared_legend(fig, axes.values())
    (legend,) = fig.legends
    assert len(legend.get_texts()) == 3
    assert legend.get_window_extent().width <= fig.bbox.width


def test_nothing_in_a_settled_figure_moves_or_leaves_it():
    fig, axes = facet_grid(TWO_MODELS, "column")
    for ax in axes.values():
        ax.plot([0, 1])
    finish(fig)
    before = np.array([ax.get_position().bounds for ax in axes.values()])
    fig.draw_without_rendering()
    np.testing.assert_array_equal(before, [ax.get_position().bounds for ax in axes.values()])
    box = fig.get_tightbbox()
    assert box.x0 >= -0.01
    assert box.x1 <= fig.get_figwidth() + 0.01


def test_runs_without_the_probe_are_left_out_and_all_without_it_is_an_error(run, only_removal):
    assert with_probe([run, only_removal], "entropy") == [run]
    with pytest.raises(HorizonError, match="probe 'entropy'"):
        with_probe(only_removal, "entropy")


def test_one_name_for_two_things_is_refused():
    check_distinct([("m", "ocr"), ("m", "vqa")])
    with pytest.raises(HorizonError, match="two of the runs hold m, ocr"):
        check_distinct([("m", "ocr"), ("m", "vqa"), ("m", "ocr")])
