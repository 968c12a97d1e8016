"""Removal curves, the horizons and half depths read off them, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.curves.effects import MEASURES
from analyses.verdicts.horizon import NOT_REACHED, Horizon, find_horizon
from figures.panels import (
    CUT_AXIS,
    Runs,
    across,
    check_distinct,
    facet_grid,
    finish,
    label_panels,
    layer_axis,
    new_axes,
    retitle,
    share_labels,
    shared_legend,
    subtitle,
    value_axis,
    with_probe,
)
from figures.style import GRAY, Look, assign_looks, group_label, paper_style

MEASURE_NAMES = {"p": "p", "log_p": r"\log p", "kl": r"\mathrm{KL}", "correct": r"\mathrm{accuracy}"}
NO_BREAK = "\N{NO-BREAK SPACE}"


def horizon_words(horizon: Horizon) -> str:
    """The horizon and its interval, as a figure prints them."""
    if horizon.layer is None:
        return "none"
    if horizon.censored:
        return NOT_REACHED
    low, high = horizon.interval or (horizon.layer, horizon.layer)
    return f"{horizon.layer} [{low}, {high}]".replace(" ", NO_BREAK)


@paper_style()
def plot_removal_curves(
    horizons: Sequence[Horizon], *, looks: dict[str, Look] | None = None, ax: Axes | None = None
) -> Axes:
    """Effect of removing all visual tokens, or others, from layer k on: one line a group, its simultaneous 95 % band.

    The half depth is a circle on the curve, the horizon a diamond along the upper edge (an arrow if it is not before
    the end), both with their intervals; the dashed line is the effect below which the tokens count as spent.

    Args:
        horizons: results of one model, criterion and measure, one a group.
        looks: look of each group label; assigned by name if not given.
        ax: where to draw; a new figure of column width, with a legend, if not given.
    """
    alone, ax = ax is None, new_axes(ax)
    looks = looks or assign_looks(group_label(horizon.group, horizon.tokens) for horizon in horizons)
    for horizon in horizons:
        label = group_label(horizon.group, horizon.tokens)
        look = looks[label]
        ax.fill_between(horizon.layers, horizon.low, horizon.high, color=look.color, alpha=0.2, linewidth=0)
        ax.plot(horizon.layers, horizon.effect, color=look.color, linestyle=look.linestyle, label=label)
        ax.axhline(horizon.threshold, color=look.color, linewidth=0.6, linestyle=(0, (4, 2)), zorder=1)
        _mark_half_depth(ax, horizon, look)
    first = horizons[0]
    layer_axis(ax, min(horizon.layers.min() for horizon in horizons), first.n_layers, CUT_AXIS)
    mark_horizons(ax, horizons, looks)
    value_axis(ax, f"Removal effect on ${MEASURE_NAMES[first.measure]}$ ({MEASURES[first.measure]})")
    retitle(ax, first.model)
    if alone:
        shared_legend(ax.figure.get_figure(root=True), [ax], mark_keys())
    return ax


def _mark_half_depth(ax: Axes, horizon: Horizon, look: Look) -> None:
    """An open circle where the curve passes half its first value, with the interval as a bar."""
    if horizon.half_depth is None:
        return
    height = float(horizon.effect[0]) / 2
    if horizon.half_depth_interval is not None:
        ax.plot(horizon.half_depth_interval, [height, height], color=look.color, linewidth=2.2, solid_capstyle="butt")
    ax.plot(horizon.half_depth, height, "o", color=look.color, markerfacecolor="white", markersize=4.5, zorder=4)


def mark_horizons(ax: Axes, horizons: Sequence[Horizon], looks: dict[str, Look]) -> None:
    """Mark horizons with their intervals in a strip of their own along the upper edge, and print them above it."""
    share = min(0.07, 0.35 / len(horizons))  # of the panel's height, for each
    low, high = ax.get_ylim()
    ax.set_ylim(low, low + (high - low) / (1 - share * len(horizons)))
    for i, horizon in enumerate(horizons):
        look = looks[group_label(horizon.group, horizon.tokens)]
        if horizon.layer is None:
            continue
        height = 1 - share * (i + 0.5)
        ax.axvline(horizon.layer, ymax=height, color=look.color, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=0)
        ends = horizon.interval or (horizon.layer, horizon.layer)
        bar: dict[str, Any] = {"color": look.color, "transform": across(ax), "clip_on": False}
        ax.plot(ends, [height, height], linewidth=1.6, solid_capstyle="butt", **bar)
        end: dict[str, Any] = {"marker": ">", "markerfacecolor": "white"} if horizon.censored else {"marker": "D"}
        ax.plot(horizon.layer, height, markersize=4, **end, **bar)
    if len(horizons) == 1:
        subtitle(ax, f"Horizon: {horizon_words(horizons[0])}")
    else:
        words = (f"{group_label(h.group, h.tokens)}{NO_BREAK}{horizon_words(h)}" for h in horizons)
        subtitle(ax, f"Horizon: {'; '.join(words)}")


def mark_keys(*, half_depth: bool = True) -> list[Line2D]:
    """Legend entries of the marks, in gray: what they mean does not depend on the group."""
    keys = [
        Line2D([], [], color=GRAY, marker="D", linewidth=1.6, label="horizon"),
        Line2D([], [], color=GRAY, marker="o", markerfacecolor="white", linewidth=2.2, label="half depth"),
        Line2D([], [], color=GRAY, linewidth=0.6, linestyle=(0, (4, 2)), label="threshold"),
    ]
    return keys if half_depth else keys[:1]


@paper_style()
def figure_removal_curves(
    runs: Runs, *, width: str = "page", by: tuple[str, ...] = ("task_type",), measure: str = "p"
) -> Figure:
    """Removal effect against the layer of the cut: one line a group of samples, one panel a model.

    Lines of runs that take away text, or all tokens, say so; they stand beside those of the visual tokens.

    Args:
        runs: one run or several.
        width: "page" or "column".
        by: columns of the samples; each of their combinations gets a line.
        measure: "p" or "log_p".

    Raises:
        HorizonError: no run holds removal curves, or two runs hold the same group of one model.
    """
    opened = with_probe(runs, "removal")
    horizons = [horizon for run in opened for horizon in find_horizon(run, by=by, criterion="removal", measure=measure)]
    check_distinct((horizon.model, group_label(horizon.group, horizon.tokens)) for horizon in horizons)
    looks = assign_looks(group_label(horizon.group, horizon.tokens) for horizon in horizons)
    fig, axes = facet_grid([(horizon.model, "") for horizon in horizons], width, ratio=0.7, extra=0.5)
    for (model, _), ax in axes.items():
        plot_removal_curves([horizon for horizon in horizons if horizon.model == model], looks=looks, ax=ax)
    share_labels(fig, axes.values())
    label_panels(axes.values())
    shared_legend(fig, axes.values(), mark_keys())
    return finish(fig)
