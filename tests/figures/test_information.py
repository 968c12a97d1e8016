import numpy as np
import pytest

from analyses.curves.effects import information_quantiles
from analyses.runs import HorizonError
from analyses.verdicts.horizon import find_horizon
from analyses.verdicts.token_information import QUANTILES, TokenInformation, gather_information
from figures.information import figure_token_information, plot_token_information

LAYERS = np.arange(4)
VALUES = np.outer([1.0, 0.8, 0.2, 0.0], [-0.3, -0.1, 0.0, 0.05, 0.2, 0.5, 0.9])
PANEL = TokenInformation("five", {"task_type": "ocr"}, "keep-one", "p", LAYERS, VALUES, None)


def corners(band):
    return {tuple(corner) for corner in band.get_paths()[0].vertices}


def test_three_bands_hold_all_ninety_and_fifty_percent_of_the_tokens():
    ax = plot_token_information(PANEL)
    for band, (low, high) in zip(ax.collections, [(0, 6), (1, 5), (2, 4)], strict=True):
        assert corners(band) >= set(zip(LAYERS, VALUES[:, low], strict=True))
        assert corners(band) >= set(zip(LAYERS, VALUES[:, high], strict=True))
    alphas = [band.get_alpha() for band in ax.collections]
    assert alphas == sorted(alphas)  # the inner, the darker


def test_the_line_is_the_median():
    ax = plot_token_information(PANEL)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), LAYERS)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), VALUES[:, QUANTILES.index(0.5)])


def test_dots_say_which_layers_were_measured_where_not_all_were():
    some = TokenInformation("five", {}, "keep-one", "p", np.array([0, 2, 3, 7]), VALUES, None)
    assert plot_token_information(some).lines[0].get_marker() == "o"
    assert plot_token_information(PANEL).lines[0].get_marker() == ""


@pytest.mark.parametrize(
    ("context", "measure", "label"),
    [
        ("keep-one", "p", "Token information $I_k$ (probability)"),
        ("leave-one-out", "log_p", "Token information $D_k$ (nats)"),
    ],
)
def test_axes_say_what_and_in_which_unit(context, measure, label):
    ax = plot_token_information(TokenInformation("five", {}, context, measure, LAYERS, VALUES, None))
    assert ax.get_ylabel() == label
    assert ax.get_xlabel() == "Layer $k$ (tokens cut at its input)"
    assert ax.get_title(loc="left") == "all samples"


def test_panels_carry_the_quantiles_and_the_horizon_of_their_group(run):
    panels = gather_information(run, ("task_type",), "keep-one", "p")
    found = find_horizon(run, criterion="information")
    assert [panel.group for panel in panels] == [horizon.group for horizon in found]
    for panel, horizon in zip(panels, found, strict=True):
        rows = run.samples.index[run.samples["task_type"] == panel.group["task_type"]]
        layers, values = information_quantiles(run, rows.tolist(), quantiles=QUANTILES)
        np.testing.assert_array_equal(panel.layers, layers)
        np.testing.assert_array_equal(panel.quantiles, values)
        ax = plot_token_information(panel)
        marks = [line for line in ax.lines if line.get_marker() in ("D", ">")]
        assert [mark.get_xdata()[0] for mark in marks] == [horizon.layer]
        np.testing.assert_array_equal(ax.lines[1].get_ydata(), horizon.effect)


def test_task_types_of_a_model_share_their_scale(run, deeper):
    fig = figure_token_information([run, deeper])
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "(a) eight\nocr",
        "(b) eight\nvqa",
        "(c) twelve\nocr",
        "(d) twelve\nvqa",
    ]
    limits = [ax.get_ylim() for ax in fig.axes]
    assert limits[0] == limits[1]
    assert limits[2] == limits[3]
    assert fig.get_supylabel() == "Token information $I_k$ (probability)"
    words = [text.get_text() for text in fig.legends[0].get_texts()]
    assert words == ["full range", "middle 90 %", "middle 50 %", "median", "mean magnitude", "horizon"]


def test_a_context_that_was_not_measured_is_named(run):
    with pytest.raises(HorizonError, match="leave-one-out"):
        figure_token_information(run, context="leave-one-out")
