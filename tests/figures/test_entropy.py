import numpy as np
import pytest
from matplotlib.colors import to_rgba

from analyses.curves.spectra import MeanSpectrum, mean_spectra
from analyses.runs import HorizonError
from analyses.verdicts.collapse import CollapseDetector, CollapseLayer, find_collapse_layer
from figures.entropy import figure_entropy_curves, figure_spectrum, plot_entropy_curves, plot_spectrum
from figures.style import assign_looks


def collapse(task, layer, curve, stream="query"):
    curve = np.array(curve)
    return CollapseLayer(
        model="eight",
        group={"task_type": task},
        stream=stream,
        layer=layer,
        reason="" if layer else "the entropy drops nowhere",
        n_layers=len(curve),
        n_samples=9,
        n_images=9,
        layers=np.arange(len(curve)),
        curve=curve,
        low=curve - 0.25,
        high=curve + 0.5,
        drop=1.0,
        sharpness=9.0,
        sharpness_null=4.0,
        consistency=1.0,
        interval=(layer - 1, layer + 1) if layer else None,
        detector=CollapseDetector(),
    )


FOUND = [collapse("ocr", 2, [3.5, 3.4, 2.0, 2.1, 2.2]), collapse("vqa", None, [3.0, 2.9, 2.8, 2.7, 2.6])]


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_lines_are_the_mean_entropies_against_the_layers():
    lines = lines_by_label(plot_entropy_curves(FOUND))
    assert list(lines) == ["ocr", "vqa"]
    for found in FOUND:
        line = lines[found.group["task_type"]]
        np.testing.assert_array_equal(line.get_xdata(), found.layers)
        np.testing.assert_array_equal(line.get_ydata(), found.curve)
        assert line.get_color() == assign_looks(["ocr", "vqa"])[line.get_label()].color


def test_bands_run_along_the_interval_ends():
    ax = plot_entropy_curves(FOUND)
    for band, found in zip(ax.collections, FOUND, strict=True):
        (path,) = band.get_paths()
        corners = {tuple(corner) for corner in path.vertices}
        assert set(zip(found.layers, found.low, strict=True)) <= corners
        assert set(zip(found.layers, found.high, strict=True)) <= corners


def test_the_collapse_is_marked_on_the_curve_with_its_interval():
    ax = plot_entropy_curves(FOUND)
    marks = [line for line in ax.lines if line.get_marker() == assign_looks(["ocr"])["ocr"].marker]
    assert [(*mark.get_xdata(), *mark.get_ydata()) for mark in marks] == [(2, 2.0)]
    assert [1, 3] in [list(line.get_xdata()) for line in ax.lines]
    assert ax.texts[0].get_text() == "ECL 2: ocr; no ECL: vqa"


def test_where_nothing_collapses_the_panel_says_so_and_marks_nothing():
    ax = plot_entropy_curves(FOUND[1:])
    assert ax.texts[0].get_text() == "no ECL"
    assert len(ax.lines) == 1


def test_axes_say_what_and_in_which_unit():
    ax = plot_entropy_curves(FOUND)
    assert ax.get_xlabel() == "Layer $k$ (state at its input)"
    assert ax.get_ylabel() == "Matrix entropy (nats)"
    assert ax.get_title(loc="left") == "Query, post-RoPE"
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["ocr", "vqa"]


def test_given_axes_are_drawn_on_and_get_no_legend():
    mine = plot_entropy_curves(FOUND)
    n_legends = len(mine.figure.legends)
    assert plot_entropy_curves(FOUND, ax=mine) is mine
    assert len(mine.figure.legends) == n_legends


def test_the_figure_has_a_panel_a_model_and_stream(run, deeper):
    fig = figure_entropy_curves([run, deeper])
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == [
        "(a) eight\nQuery, post-RoPE",
        "(b) eight\nHidden state",
        "(c) twelve\nQuery, post-RoPE",
        "(d) twelve\nHidden state",
    ]
    assert [ax.texts[0].get_text() for ax in fig.axes] == ["ECL 3", "no ECL", "ECL 3", "no ECL"]
    assert fig.get_supylabel() == "Matrix entropy (nats)"
    found = find_collapse_layer(deeper)
    np.testing.assert_array_equal(lines_by_label(fig.axes[2])["vqa"].get_ydata(), found[1].curve)
    np.testing.assert_array_equal(lines_by_label(fig.axes[2])["vqa"].get_xdata(), np.arange(12))


def test_two_runs_of_one_model_on_the_same_tasks_are_not_mixed(run):
    with pytest.raises(HorizonError, match="two of the runs hold eight, ocr, query"):
        figure_entropy_curves([run, run])


def test_spectra_are_drawn_against_rank_on_logarithmic_scales():
    values = np.array([[0.6, 0.3, 0.1, 0.0], [0.9, 0.09, 0.01, 1e-12]])
    ax = plot_spectrum(MeanSpectrum("eight", "key", 2, 5, np.arange(2), values))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [line.get_label() for line in ax.lines] == ["layer 0", "layer 1"]
    for line, row in zip(ax.lines, values, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata()[:3], row[:3])
        assert np.isnan(line.get_ydata()[3])  # rounding, not an eigenvalue
    lightness = [sum(to_rgba(line.get_color())[:3]) for line in ax.lines]
    assert lightness[0] < lightness[1]
    assert ax.figure.axes[1].get_ylabel() == "Layer $k$"


def test_the_spectrum_figure_shows_the_mean_of_every_stream(run):
    fig = figure_spectrum(run, width="column")
    *panels, bar = fig.axes
    assert [ax.get_title(loc="left") for ax in panels] == ["(a) Query, post-RoPE", "(b) Hidden state"]
    np.testing.assert_array_equal(panels[0].lines[7].get_ydata(), mean_spectra(run)[0].values[7])
    assert bar.get_ylim() == (-0.5, 7.5)


def test_a_run_without_spectra_says_how_to_get_them(only_removal):
    with pytest.raises(HorizonError, match="--spectra N"):
        figure_spectrum(only_removal)
