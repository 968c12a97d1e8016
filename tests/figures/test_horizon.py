import numpy as np
import pytest

from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon
from figures.horizon import figure_removal_curves, horizon_words, plot_removal_curves
from figures.style import assign_looks

EFFECT = np.array([0.8, 0.8, 0.6, 0.2, 0.02, 0.0])


def horizon(task="ocr", layer=4, **changes):
    given = {
        "model": "five",
        "group": {"task_type": task},
        "criterion": "removal",
        "measure": "p",
        "target": "gold",
        "context": "removal",
        "layer": layer,
        "censored": layer == 5,
        "interval": None if layer is None else (layer - 1, min(layer + 1, 5)),
        "reason": "",
        "half_depth": 2.5,
        "half_depth_interval": (2.2, 2.9),
        "half_depth_reason": "",
        "n_layers": 5,
        "n_samples": 9,
        "n_images": 9,
        "layers": np.arange(6),
        "effect": EFFECT,
        "low": EFFECT - 0.1,
        "high": EFFECT + 0.05,
        "threshold": 0.04,
        "noise_floor": 1e-6,
        "detector": HorizonDetector(),
    }
    return Horizon(**{**given, **changes})


def with_marker(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def test_the_line_is_the_effect_and_the_band_its_simultaneous_interval():
    ax = plot_removal_curves([horizon()])
    (line,) = [line for line in ax.lines if line.get_label() == "ocr"]
    np.testing.assert_array_equal(line.get_xdata(), np.arange(6))
    np.testing.assert_array_equal(line.get_ydata(), EFFECT)
    corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices}
    assert set(zip(range(6), EFFECT - 0.1, strict=True)) <= corners
    assert set(zip(range(6), EFFECT + 0.05, strict=True)) <= corners


def test_half_depth_is_a_circle_at_half_the_first_effect_with_its_interval():
    ax = plot_removal_curves([horizon()])
    (circle,) = with_marker(ax, "o")
    assert (*circle.get_xdata(), *circle.get_ydata()) == (2.5, 0.4)
    (bar,) = [line for line in ax.lines if list(line.get_xdata()) == [2.2, 2.9]]
    assert list(bar.get_ydata()) == [0.4, 0.4]


def test_horizons_are_diamonds_above_the_curves_with_their_intervals():
    ax = plot_removal_curves([horizon("ocr", 4), horizon("vqa", 3)])
    diamonds = with_marker(ax, "D")
    assert [mark.get_xdata()[0] for mark in diamonds] == [4, 3]
    assert [mark.get_color() for mark in diamonds] == [assign_looks(["ocr", "vqa"])[n].color for n in ("ocr", "vqa")]
    intervals = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert [3, 5] in intervals
    assert [2, 4] in intervals
    to_data = ax.transData.inverted()
    for mark in diamonds:
        height = to_data.transform(mark.get_transform().transform(mark.get_xydata()))[0, 1]
        assert height > (EFFECT + 0.05).max()


def test_a_horizon_that_is_not_before_the_end_is_an_arrow():
    ax = plot_removal_curves([horizon(layer=5)])
    (arrow,) = with_marker(ax, ">")
    assert arrow.get_xdata()[0] == 5
    assert arrow.get_markerfacecolor() == "white"
    assert not with_marker(ax, "D")
    assert ax.texts[0].get_text() == "Horizon: not before the end"


def test_a_group_without_an_effect_gets_no_mark_and_is_named():
    nothing = horizon("puzzles", None, half_depth=None, half_depth_interval=None, reason="no effect")
    ax = plot_removal_curves([horizon(), nothing])
    assert len(with_marker(ax, "D")) == len(with_marker(ax, "o")) == 1
    assert ax.texts[0].get_text().replace("\u00a0", " ") == "Horizon: ocr 4 [3, 5]; puzzles none"


def test_the_threshold_is_drawn_across():
    ax = plot_removal_curves([horizon()])
    assert [0.04, 0.04] in [list(line.get_ydata()) for line in ax.lines]


@pytest.mark.parametrize(
    ("measure", "label"),
    [("p", "Removal effect on $p$ (probability)"), ("log_p", r"Removal effect on $\log p$ (nats)")],
)
def test_axes_say_what_and_in_which_unit(measure, label):
    ax = plot_removal_curves([horizon(measure=measure)])
    assert ax.get_ylabel() == label
    assert ax.get_xlabel() == "Layer $k$ (tokens cut at its input)"
    assert ax.get_xlim()[0] < 0 < 5 < ax.get_xlim()[1]


def test_the_legend_explains_lines_and_marks():
    ax = plot_removal_curves([horizon("ocr"), horizon("vqa")])
    words = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert words == ["ocr", "vqa", "horizon", "half depth", "threshold"]


def test_horizons_in_words():
    assert horizon_words(horizon()).replace("\u00a0", " ") == "4 [3, 5]"
    assert horizon_words(horizon(layer=None)) == "none"


def test_the_figure_has_a_panel_a_model_with_what_the_analysis_found(run, deeper):
    fig = figure_removal_curves([run, deeper], width="column")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["(a) eight", "(b) twelve"]
    for ax, source in zip(fig.axes, (run, deeper), strict=True):
        found = find_horizon(source, criterion="removal")
        lines = {line.get_label(): line for line in ax.lines}
        for result in found:
            line = lines[result.group["task_type"]]
            np.testing.assert_array_equal(line.get_xdata(), np.arange(source.config.n_layers + 1))
            np.testing.assert_array_equal(line.get_ydata(), result.effect)
        assert [mark.get_xdata()[0] for mark in with_marker(ax, "D")] == [result.layer for result in found]
