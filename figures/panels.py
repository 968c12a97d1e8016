"""Panels and what surrounds them: grids of axes, axis labels, titles, legends, color bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from string import ascii_lowercase

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Transform, blended_transform_factory

from analyses.runs import HorizonError, Run, as_runs
from figures.style import GRAY, SMALL, WIDTHS, figure_width

CUT_AXIS = "Layer $k$ (tokens cut at its input)"
SUBTITLE = "_subtitle"  # label of the text below a title; legends leave out what starts with an underscore
STATE_AXIS = "Layer $k$ (state at its input)"

Runs = Run | str | Path | Sequence[Run | str | Path]


def with_probe(runs: Runs, probe: str) -> list[Run]:
    """Those of the runs that were made with a probe and measured any sample.

    Raises:
        HorizonError: none was.
    """
    opened = as_runs(runs)
    usable = [run for run in opened if probe in run.config.probes and len(run.ok)]
    if not usable:
        names = ", ".join(run.name for run in opened) or "no run"
        empty = any(probe in run.config.probes for run in opened)
        remedy = "no sample was measured" if empty else f"run it again with the probe {probe!r}"
        raise HorizonError(f"nothing to draw in {names}: {remedy}")
    return usable


def check_distinct(keys: Iterable[tuple[str, ...]]) -> None:
    """Refuse to draw two things under one name: two runs of one model on the same task type, for instance.

    Raises:
        HorizonError: a key occurs twice.
    """
    earlier: set[tuple[str, ...]] = set()
    for key in keys:
        if key in earlier:
            raise HorizonError(f"two of the runs hold {', '.join(key)}: draw them in figures of their own")
        earlier.add(key)


def unique(names: Iterable[str]) -> list[str]:
    """Every name once, in the order of its first appearance."""
    return list(dict.fromkeys(names))


def new_figure(width: str, height: float) -> Figure:
    """An empty figure of a named width and a height in inches, known to no pyplot state, laid out by constraints."""
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.04)
    return Figure(figsize=(figure_width(width), height), layout=layout)


def new_axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure of column width."""
    return ax if ax is not None else new_figure("column", 0.75 * WIDTHS["column"]).add_subplot()


def facet_grid(
    pairs: Iterable[tuple[str, str]], width: str, *, ratio: float = 0.8, extra: float = 0.3
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A figure of a named width with one panel for each pair of a model and an item (a stream, a task type).

    On a page the items run across and the models down; in a column the items run down, models in pairs across.
    A single item leaves its direction to the models. A pair that does not occur leaves its place empty.

    Args:
        pairs: (model, name) of every panel; any order, repeats allowed.
        width: "column" or "page".
        ratio: height of a panel with its labels over its width.
        extra: inches above the panels, for the legend.

    Returns:
        the figure and its axes by (model, item), the items of a model in a row.
    """
    panels = set(pairs := list(pairs))
    models, items = unique(model for model, _ in pairs), unique(item for _, item in pairs)
    n = len(items)
    if n == 1:
        place = _places(len(models), 3 if width == "page" else 1)
        spots = [place(i) for i in range(len(models))]
    elif width == "page":
        place = _places(n, 3)
        block = place(n - 1)[0] + 1
        spots = [(i * block + place(j)[0], place(j)[1]) for i in range(len(models)) for j in range(n)]
    else:
        place = _places(len(models), 2)
        spots = [(place(i)[0] * n + j, place(i)[1]) for i in range(len(models)) for j in range(n)]
    n_rows, n_columns = (1 + max(spot[axis] for spot in spots) for axis in (0, 1))
    height = min(max(ratio * figure_width(width) / n_columns, 1.6), 2.4 if n_rows == 1 else 1.8)
    fig = new_figure(width, n_rows * height + extra)
    grid = fig.add_gridspec(n_rows, n_columns)
    places = zip(product(models, items), spots, strict=True)
    return fig, {pair: fig.add_subplot(grid[spot]) for pair, spot in places if pair in panels}


def _places(n: int, most: int) -> Callable[[int], tuple[int, int]]:
    """Row and column of the i-th of `n` panels: the fewest rows of at most `most`, as even as can be."""
    n_columns = math.ceil(n / math.ceil(n / most))
    return lambda i: divmod(i, n_columns)


def share_labels(fig: Figure, axes: Iterable[Axes]) -> None:
    """Say an axis label once for the whole figure where all of its panels say the same."""
    panels = list(axes)
    if len(panels) < 2:
        return
    if len({ax.get_xlabel() for ax in panels}) == 1:
        fig.supxlabel(panels[0].get_xlabel())
        for ax in panels:
            ax.set_xlabel("")
    if len({ax.get_ylabel() for ax in panels}) == 1:
        fig.supylabel(panels[0].get_ylabel())
        for ax in panels:
            ax.set_ylabel("")


def label_panels(axes: Iterable[Axes]) -> None:
    """Letter the panels (a), (b), ... before their titles; a single panel needs none."""
    panels = list(axes)
    if len(panels) < 2:
        return
    for i, ax in enumerate(panels):
        letter = ascii_lowercase[i] if i < 26 else str(i + 1)
        retitle(ax, f"({letter}) {ax.get_title(loc='left')}")


def subtitle(ax: Axes, text: str) -> None:
    """Small gray lines between the title and the panel, wrapped to about the panel's width."""
    inches = ax.get_position().width * ax.figure.get_figure(root=True).get_figwidth()
    lines = textwrap.wrap(text, max(int(inches * 20), 16))  # some 20 characters of this size to the inch
    ax.annotate(
        "\n".join(lines),
        (0, 1),
        xytext=(0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        fontsize=SMALL,
        color=GRAY,
        label=SUBTITLE,
    )
    retitle(ax, ax.get_title(loc="left"))


def retitle(ax: Axes, title: str) -> None:
    """Set the words of a panel's title, above its subtitle if it has one."""
    lines = [line for text in ax.texts if text.get_label() == SUBTITLE for line in text.get_text().split("\n")]
    ax.set_title(title, loc="left", pad=5 + 1.35 * SMALL * len(lines))


def panel_title(model: str, words: str, *, several: bool) -> str:
    """What a panel shows, below the name of its model if the figure has several."""
    return f"{model}\n{words}" if several else words


def layer_axis(ax: Axes, first: int, last: int, meaning: str) -> None:
    """Put whole layers, all of them in view, on the x axis and say what layer k is here."""
    margin = 0.03 * max(last - first, 1)
    ax.set_xlim(first - margin, last + margin)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=3))
    ax.set_xlabel(meaning)


def value_axis(ax: Axes, meaning: str) -> None:
    """Name the y axis and fix how many ticks it has: ticks that follow the height of the panel unsettle the layout."""
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    ax.set_ylabel(meaning)


def across(ax: Axes) -> Transform:
    """Coordinates with x in data and y in fractions of the panel: for marks at a layer, whatever the scale of y."""
    return blended_transform_factory(ax.transData, ax.transAxes)


def shared_legend(fig: Figure, axes: Iterable[Axes], extra: Iterable[Artist] = ()) -> None:
    """One legend above all panels, every label once, in as few rows as the width of the figure allows."""
    entries: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    entries |= {str(handle.get_label()): handle for handle in extra}
    for n_columns in range(len(entries), 0, -1):
        legend = fig.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=n_columns)
        if n_columns == 1 or legend.get_window_extent().width <= 0.96 * fig.bbox.width:
            return
        legend.remove()


def finish(fig: Figure) -> Figure:
    """Settle ticks and layout while the style still holds: later drawing, in any format, may happen outside it."""
    fig.draw_without_rendering()
    fig.set_layout_engine(None)
    return fig
