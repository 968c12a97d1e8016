import numpy as np
import pytest

from analyses.comparisons.compare import Difference, compare_horizons
from analyses.verdicts.horizon import Horizon, HorizonDetector
from figures.comparison import difference_words, figure_horizon_comparison, plot_horizon_comparison


def horizon(task, layer, half_depth, n_layers=8, model="eight"):
    return Horizon(
        model=model,
        group={"task_type": task},
        criterion="removal",
        measure="p",
        target="gold",
        context="removal",
        layer=layer,
        censored=layer == n_layers,
        interval=None if layer is None else (layer - 2, layer),
        reason="" if layer else "no effect",
        half_depth=half_depth,
        half_depth_interval=None if half_depth is None else (half_depth - 0.5, half_depth + 1),
        half_depth_reason="",
        n_layers=n_layers,
        n_samples=9,
        n_images=9,
        layers=np.arange(n_layers + 1),
        effect=np.linspace(1, 0, n_layers + 1),
        low=np.linspace(1, 0, n_layers + 1),
        high=np.linspace(1, 0, n_layers + 1),
        threshold=0.05,
        noise_floor=0.0,
        detector=HorizonDetector(),
    )


ROWS = [horizon("ocr", 8, 6.0), horizon("puzzles", None, None), horizon("vqa", 4, 2.0)]


def marks(ax, filled):
    """(x, y) of the marks, filled for half depths, open for horizons."""
    found = [line for line in ax.lines if line.get_marker() != "None"]
    chosen = [line for line in found if (line.get_markerfacecolor() != "white") == filled]
    return [tuple(line.get_xydata()[0]) for line in chosen]


def bars(ax):
    return [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]


@pytest.mark.parametrize(("unit", "scale"), [("layers", 1), ("fraction", 1 / 8)])
def test_marks_and_bars_stand_at_the_numbers(unit, scale):
    ax = plot_horizon_comparison(ROWS, unit=unit)
    assert [x for x, _ in marks(ax, filled=True)] == [6 * scale, 2 * scale]
    assert [x for x, _ in marks(ax, filled=False)] == [8 * scale, 4 * scale]
    assert bars(ax) == [
        (5.5 * scale, 7 * scale),
        (6 * scale, 8 * scale),
        (1.5 * scale, 3 * scale),
        (2 * scale, 4 * scale),
    ]


def test_each_row_holds_the_marks_of_its_group_half_depth_above_horizon():
    ax = plot_horizon_comparison(ROWS)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ocr", "puzzles", "vqa"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row on top
    above, below = marks(ax, filled=True), marks(ax, filled=False)
    assert [round(y) for _, y in above] == [round(y) for _, y in below] == [0, 2]
    assert all(high < low for (_, high), (_, low) in zip(above, below, strict=True))


def test_an_unreached_horizon_is_an_open_arrow_and_a_missing_effect_says_none():
    ax = plot_horizon_comparison(ROWS)
    (arrow,) = [line for line in ax.lines if line.get_marker() == ">"]
    assert arrow.get_xdata()[0] == 8
    assert arrow.get_markerfacecolor() == "white"
    assert [(text.get_text().strip(), text.get_position()[1]) for text in ax.texts] == [("none", 1)]
    words = [text.get_text() for text in ax.figure.legends[0].get_texts()]
    assert words == ["half depth", "horizon", "horizon not before the end"]


def test_models_of_different_depth_meet_in_fractions():
    ax = plot_horizon_comparison([horizon("ocr", 6, 4.0), horizon("ocr", 9, 6.0, 12, "twelve")], unit="fraction")
    assert [x for x, _ in marks(ax, filled=True)] == [0.5, 0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["eight\nocr", "twelve\nocr"]
    assert ax.get_xlabel() == "Fraction of depth $k / L$"


def difference(quantity, unit, value, *, paired=False, censored=False):
    interval = None if value is None else (value / 2, value * 2)
    return Difference("ocr", "vqa", quantity, unit, value, interval, paired, 9, 7, censored, "" if value else "none")


def test_differences_in_words_half_depth_first_paired_if_it_can_be_given():
    given = [
        difference("horizon", "layers", 2.0, censored=True),
        difference("horizon", "layers", None, paired=True),
        difference("half_depth", "layers", -1.0),
        difference("half_depth", "layers", -2.0, paired=True),
        difference("half_depth", "fraction", -0.25, paired=True),
    ]
    words = [line.replace("\u00a0", " ").replace("\u2212", "-") for line in difference_words(given)]
    assert words == [
        "half depth, ocr - vqa = -2.0 [-1.0, -4.0] layers; -0.25 [-0.12, -0.50] of depth (paired, 9 images)",
        "horizon, ocr - vqa = +2.0 [+1.0, +4.0] layers (unpaired, 9 and 7 images, a bound: not before the end)",
    ]


@pytest.mark.parametrize("width", ["page", "column"])
def test_the_figure_shows_every_level_in_both_units_and_prints_the_differences(run, deeper, width):
    fig = figure_horizon_comparison([run, deeper], width=width)
    groups = compare_horizons([run, deeper], between="task_type").groups
    layers, fractions = fig.axes
    assert [x for x, _ in marks(layers, filled=True)] == [group.half_depth for group in groups]
    assert [x for x, _ in marks(fractions, filled=False)] == pytest.approx([g.layer / g.n_layers for g in groups])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["(a) In layers", "(b) In fractions of depth"]
    notes = " ".join(fig.get_supxlabel().replace("\u00a0", " ").split())
    assert "half depth, eight: ocr \u2212 eight: vqa = +" in notes
    assert "half depth, eight: vqa \u2212 twelve: vqa = \u2212" in notes


def test_the_reason_for_a_missing_horizon_is_printed(only_removal):
    fig = figure_horizon_comparison(only_removal)
    reason = compare_horizons(only_removal).groups[1].reason
    assert f"puzzles: no horizon, {reason}" in " ".join(fig.get_supxlabel().replace("\u00a0", " ").split())
