"""How the information of the visual tokens, or of others, is spread over tokens, layer by layer."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analyses.curves.effects import MEASURES
from analyses.runs import CONTEXT_TABLE, METHOD_TABLE, HorizonError, as_runs
from analyses.verdicts.token_information import QUANTILES, TokenInformation, gather_information
from figures.horizon import mark_horizons, mark_keys
from figures.panels import (
    CUT_AXIS,
    Runs,
    check_distinct,
    facet_grid,
    finish,
    label_panels,
    layer_axis,
    new_axes,
    panel_title,
    retitle,
    share_labels,
    shared_legend,
    unique,
    value_axis,
)
from figures.style import GRAY, Look, assign_looks, group_label, paper_style

# outermost first; each pair of quantiles bounds one band
BANDS = (((0.0, 1.0), 0.13, "full range"), ((0.05, 0.95), 0.3, "middle 90 %"), ((0.25, 0.75), 0.5, "middle 50 %"))


@paper_style()
def plot_token_information(information: TokenInformation, *, look: Look | None = None, ax: Axes | None = None) -> Axes:
    """Distribution of the information over tokens by layer: three bands of quantiles, the median, the horizon.

    Where not every layer was measured, dots on the median say which were.

    Args:
        information: quantiles and horizon of one group.
        look: color of the group; assigned by its name if not given.
        ax: where to draw; a new figure of column width, with a legend, if not given.
    """
    alone, ax = ax is None, new_axes(ax)
    label = group_label(information.group, information.tokens)
    look = look or assign_looks([label])[label]
    columns = {quantile: information.quantiles[:, i] for i, quantile in enumerate(QUANTILES)}
    for (low, high), alpha, _ in BANDS:
        ax.fill_between(information.layers, columns[low], columns[high], color=look.color, alpha=alpha, linewidth=0)
    some = len(information.layers) and len(information.layers) <= np.ptp(information.layers)
    marker = "o" if some else ""  # between the dots the lines are only lines
    ax.plot(information.layers, columns[0.5], color=look.color, marker=marker, markersize=2.5)
    horizon = information.horizon
    last = int(information.layers.max())
    if horizon is not None:
        last = horizon.n_layers
        ax.plot(horizon.layers, horizon.effect, color="black", linewidth=0.9, linestyle=(0, (2, 1)))
    layer_axis(ax, int(information.layers.min()), last, CUT_AXIS)
    if horizon is not None:
        mark_horizons(ax, [horizon], {group_label(horizon.group, horizon.tokens): look})
    ax.axhline(0, color=GRAY, linewidth=0.5, zorder=0)
    symbol, unit = CONTEXT_TABLE[information.context].symbol, MEASURES[information.measure]
    value_axis(ax, f"{METHOD_TABLE[information.method].quantity} ${symbol}$ ({unit})")
    retitle(ax, label)
    if alone:
        shared_legend(ax.figure.get_figure(root=True), (), information_keys())
    return ax


def information_keys() -> list[Patch | Line2D]:
    """Legend entries in gray: what bands and lines mean does not depend on the group."""
    bands = [Patch(facecolor=GRAY, alpha=alpha, linewidth=0, label=words) for _, alpha, words in BANDS]
    lines = [
        Line2D([], [], color=GRAY, label="median"),
        Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (2, 1)), label="mean magnitude"),
    ]
    return [*bands, *lines, *mark_keys(half_depth=False)]


@paper_style()
def figure_token_information(
    runs: Runs,
    *,
    width: str = "page",
    by: tuple[str, ...] = ("task_type",),
    context: str = "keep-one",
    measure: str = "p",
) -> Figure:
    """Distribution of the information over tokens by layer, one panel a model and group of samples.

    Args:
        runs: one run or several.
        width: "page" or "column".
        by: columns of the samples; each of their combinations gets a panel.
        context: "keep-one" or "leave-one-out".
        measure: "p" or "log_p".

    Raises:
        HorizonError: no run holds token grids in this context, or two runs hold the same group of one model.
    """
    panels = [panel for run in as_runs(runs) for panel in gather_information(run, by, context, measure)]
    if not panels:
        raise HorizonError(f"the runs hold no {context} token grids; measure them with the probe 'information'")
    check_distinct((panel.model, group_label(panel.group, panel.tokens)) for panel in panels)
    looks = assign_looks(group_label(panel.group, panel.tokens) for panel in panels)
    by_panel = {(panel.model, group_label(panel.group, panel.tokens)): panel for panel in panels}
    several = len(unique(panel.model for panel in panels)) > 1
    fig, axes = facet_grid(by_panel, width, extra=0.45)
    for (model, label), ax in axes.items():
        plot_token_information(by_panel[model, label], look=looks[label], ax=ax)
        retitle(ax, panel_title(model, label, several=several))
    for model in unique(panel.model for panel in panels):  # task types are compared within a model
        model_axes = [ax for (name, _), ax in axes.items() if name == model]
        low, high = zip(*(ax.get_ylim() for ax in model_axes), strict=True)
        for ax in model_axes:
            ax.set_ylim(min(low), max(high))
    share_labels(fig, axes.values())
    label_panels(axes.values())
    shared_legend(fig, (), information_keys())
    return finish(fig)
