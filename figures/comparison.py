"""Half depths and horizons side by side: task type against task type, model against model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analyses.comparisons.compare import Comparison, Difference, compare_horizons
from analyses.comparisons.levels import comparable
from analyses.runs import check_choice
from analyses.verdicts.horizon import NOT_REACHED, Horizon
from figures.horizon import NO_BREAK
from figures.panels import (
    Runs,
    check_distinct,
    finish,
    label_panels,
    new_axes,
    new_figure,
    retitle,
    shared_legend,
    with_probe,
)
from figures.style import GRAY, SMALL, WIDTHS, Look, assign_looks, group_label, paper_style

UNITS = {"layers": "Layer $k$", "fraction": "Fraction of depth $k / L$"}
FLAT: dict[str, Any] = {"solid_capstyle": "butt"}
MOST_NOTES = 6  # lines of differences below the panels
OFFSET = 0.16  # of the two marks of a row from its middle


@paper_style()
def plot_horizon_comparison(
    horizons: Sequence[Horizon], *, unit: str = "layers", looks: dict[str, Look] | None = None, ax: Axes | None = None
) -> Axes:
    """Half depth (filled) and horizon (open) of each group with their 95 % intervals, one row a model and group.

    A horizon that is not before the end is an open arrow; a group without an effect says so.

    Args:
        horizons: in the order of the rows, from above.
        unit: "layers" or "fraction" (of each model's own depth).
        looks: look of each group label; assigned by name if not given.
        ax: where to draw; a new figure of column width, with a legend, if not given.
    """
    check_choice("unit", unit, UNITS)
    alone, ax = ax is None, new_axes(ax)
    looks = looks or assign_looks(group_label(horizon.group, horizon.tokens) for horizon in horizons)
    several = len({horizon.model for horizon in horizons}) > 1
    rows = []
    for i, horizon in enumerate(horizons):
        label = group_label(horizon.group, horizon.tokens)
        scale = 1.0 if unit == "layers" else 1 / horizon.n_layers
        _draw_row(ax, horizon, i, scale, looks[label])
        rows.append(f"{horizon.model}\n{label}" if several else label)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    last = 1 if unit == "fraction" else max(horizon.n_layers for horizon in horizons)
    ax.set_xlim(0, last * 1.04)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=unit == "layers"))
    ax.set_xlabel(UNITS[unit])
    retitle(ax, "In layers" if unit == "layers" else "In fractions of depth")
    ax.grid(axis="x", color="0.9", linewidth=0.5)
    ax.set_axisbelow(True)
    if alone:
        shared_legend(ax.figure.get_figure(root=True), (), comparison_keys())
    return ax


def _draw_row(ax: Axes, horizon: Horizon, row: int, scale: float, look: Look) -> None:
    """The two marks of one group, or that there is none."""
    if horizon.half_depth is None and horizon.layer is None:
        ax.text(0, row, " none", va="center", fontsize=SMALL, color=GRAY)
    if horizon.half_depth is not None:
        height, low_high = row - OFFSET, horizon.half_depth_interval
        if low_high is not None:
            ax.plot([scale * end for end in low_high], [height, height], color=look.color, linewidth=2.2, **FLAT)
        ax.plot(scale * horizon.half_depth, height, look.marker, color=look.color)
    if horizon.layer is not None:
        height, ends = row + OFFSET, horizon.interval or (horizon.layer, horizon.layer)
        ax.plot([scale * end for end in ends], [height, height], color=look.color, linewidth=1, **FLAT)
        marker = ">" if horizon.censored else look.marker
        ax.plot(scale * horizon.layer, height, marker, color=look.color, markerfacecolor="white", clip_on=False)


def comparison_keys() -> list[Line2D]:
    """Legend entries of the marks, in gray: what they mean does not depend on the group."""
    return [
        Line2D([], [], color=GRAY, marker="o", linewidth=2.2, label="half depth"),
        Line2D([], [], color=GRAY, marker="o", markerfacecolor="white", linewidth=1, label="horizon"),
        Line2D([], [], color=GRAY, marker=">", markerfacecolor="white", linestyle="", label=f"horizon {NOT_REACHED}"),
    ]


def difference_words(differences: Sequence[Difference]) -> list[str]:
    """One line for each pair and quantity that can be given, half depths first: paired if possible, else unpaired."""
    lines: dict[tuple[str, str, str], dict[bool, list[Difference]]] = {}
    for difference in differences:
        if difference.value is not None:
            pair = lines.setdefault((difference.quantity, difference.a, difference.b), {})
            pair.setdefault(difference.paired, []).append(difference)
    return [
        f"{quantity.replace('_', ' ')}, {a} \N{MINUS SIGN} {b} = {_values_words(pair[max(pair)])}"
        for (quantity, a, b), pair in sorted(lines.items(), key=lambda line: line[0][0] != "half_depth")
    ]


def _values_words(differences: Sequence[Difference]) -> str:
    """Values with intervals in every unit, and what they rest on."""
    words = []
    for difference in differences:
        digits, unit = (1, "layers") if difference.unit == "layers" else (2, "of depth")
        ends = difference.interval
        interval = "" if ends is None else f" [{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]"
        words.append(f"{difference.value:+.{digits}f}{interval} {unit}".replace(" ", NO_BREAK))
    first = differences[0]
    basis = f"paired, {first.n_a} images" if first.paired else f"unpaired, {first.n_a} and {first.n_b} images"
    bound = f", a bound: {NOT_REACHED}" if first.censored else ""
    return f"{'; '.join(words)} ({basis}{bound})".replace("-", "\N{MINUS SIGN}")


@paper_style()
def figure_horizon_comparison(runs: Runs, *, width: str = "page", between: str = "task_type") -> Figure:
    """Half depths and horizons of all levels and models, in layers and in fractions of depth; their differences below.

    Args:
        runs: one run or several; several are compared with each other too.
        width: "page" or "column".
        between: "task_type", "task" or "category": what the rows of one model differ in.

    Raises:
        HorizonError: no run holds removal curves, or two runs hold the same group of one model.
    """
    opened = with_probe(runs, "removal")
    several = len(opened) > 1
    comparisons = [compare_horizons(opened, between=between)]
    for across in ("model", "tokens"):
        if comparable(opened, across):
            comparisons.append(compare_horizons(opened, between=across, within=(between,)))
    horizons = comparisons[0].groups
    check_distinct((horizon.model, group_label(horizon.group, horizon.tokens)) for horizon in horizons)
    looks = assign_looks(group_label(horizon.group, horizon.tokens) for horizon in horizons)
    lines = [
        line
        for note in _notes(comparisons, several=several)
        for line in textwrap.wrap(note, int(WIDTHS[width] * 20), subsequent_indent=3 * NO_BREAK)
    ]
    page = width == "page"
    panel = 0.5 + len(horizons) * (0.3 if several else 0.24)
    fig = new_figure(width, (1 if page else 2) * panel + 0.5 + 0.125 * len(lines))
    axes = fig.subplots(*((1, 2) if page else (2, 1)), sharey=page)
    for ax, unit in zip(axes, UNITS, strict=True):
        plot_horizon_comparison(horizons, unit=unit, looks=looks, ax=ax)
    label_panels(axes)
    shared_legend(fig, (), comparison_keys())
    fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, color=GRAY)
    return finish(fig)


def _notes(comparisons: Sequence[Comparison], *, several: bool) -> list[str]:
    """The differences in words, half depths first, and why a group has no horizon."""
    differences = [difference for comparison in comparisons for difference in comparison.differences]
    notes = difference_words(differences)
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"({len(notes) - MOST_NOTES} more differences are not printed here)"]
    lost = [horizon for horizon in comparisons[0].groups if horizon.layer is None]
    prefix = "{0.model}, {1}: no horizon, {0.reason}" if several else "{1}: no horizon, {0.reason}"
    return notes + [prefix.format(horizon, group_label(horizon.group, horizon.tokens)) for horizon in lost]
