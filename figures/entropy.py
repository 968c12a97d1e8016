"""Matrix entropy through the layers, and the eigenvalues behind it."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from analyses.curves.spectra import MeanSpectrum, mean_spectra
from analyses.runs import HorizonError, as_runs
from analyses.verdicts.collapse import CollapseLayer, find_collapse_layer
from figures.panels import (
    STATE_AXIS,
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
    subtitle,
    value_axis,
    with_probe,
)
from figures.style import Look, assign_looks, group_label, paper_style, stream_title

# The Gram matrix has trace one and is kept in float32: what is smaller is rounding, the zero of centering included
SMALLEST_EIGENVALUE = 1e-8


@paper_style()
def plot_entropy_curves(
    collapse: Sequence[CollapseLayer], *, looks: dict[str, Look] | None = None, ax: Axes | None = None
) -> Axes:
    """Matrix entropy against layer: one line a group with its 95 % band, the ECL marked or said to be absent.

    Args:
        collapse: results of one model and one stream, one a group.
        looks: look of each group label; assigned by name if not given.
        ax: where to draw; a new figure of column width if not given.
    """
    alone, ax = ax is None, new_axes(ax)
    looks = looks or assign_looks(group_label(result.group) for result in collapse)
    verdicts: dict[str, list[str]] = {}
    for result in collapse:
        label = group_label(result.group)
        look = looks[label]
        ax.fill_between(result.layers, result.low, result.high, color=look.color, alpha=0.2, linewidth=0)
        ax.plot(result.layers, result.curve, color=look.color, linestyle=look.linestyle, label=label)
        if result.layer is not None:
            _mark_collapse(ax, result, look)
        verdicts.setdefault("no ECL" if result.layer is None else f"ECL {result.layer}", []).append(label)
    layers = np.concatenate([result.layers for result in collapse])
    layer_axis(ax, layers.min(), layers.max(), STATE_AXIS)
    value_axis(ax, "Matrix entropy (nats)")
    several = len(verdicts) > 1
    subtitle(ax, "; ".join(f"{v}: {', '.join(labels)}" if several else v for v, labels in verdicts.items()))
    retitle(ax, stream_title(collapse[0].stream))
    if alone:
        shared_legend(ax.figure.get_figure(root=True), [ax])
    return ax


def _mark_collapse(ax: Axes, collapse: CollapseLayer, look: Look) -> None:
    """Mark the first layer after the drop on the curve, with its interval as a horizontal bar."""
    assert collapse.layer is not None
    height = collapse.curve[np.searchsorted(collapse.layers, collapse.layer)]
    low, high = collapse.interval or (collapse.layer, collapse.layer)
    ax.plot([low, high], [height, height], color=look.color, linewidth=2.2, solid_capstyle="butt")
    ax.plot(collapse.layer, height, look.marker, color=look.color, markersize=5, markeredgecolor="white", zorder=4)
    ax.axvline(collapse.layer, color=look.color, linewidth=0.6, linestyle=(0, (1, 1.5)), zorder=0)


@paper_style()
def figure_entropy_curves(runs: Runs, *, width: str = "page", by: tuple[str, ...] = ("task_type",)) -> Figure:
    """Layer against matrix entropy: one line a group of samples, one panel a model and stream.

    Args:
        runs: one run or several.
        width: "page" or "column".
        by: columns of the samples; each of their combinations gets a line.

    Raises:
        HorizonError: no run holds entropies, or two runs hold the same group of one model.
    """
    collapses = [result for run in with_probe(runs, "entropy") for result in find_collapse_layer(run, by=by)]
    check_distinct((result.model, group_label(result.group), result.stream) for result in collapses)
    looks = assign_looks(group_label(result.group) for result in collapses)
    several = len({result.model for result in collapses}) > 1
    fig, axes = facet_grid([(result.model, result.stream) for result in collapses], width)
    for (model, stream), ax in axes.items():
        plot_entropy_curves([f for f in collapses if (f.model, f.stream) == (model, stream)], looks=looks, ax=ax)
        retitle(ax, panel_title(model, stream_title(stream), several=several))
    share_labels(fig, axes.values())
    label_panels(axes.values())
    shared_legend(fig, axes.values())
    return finish(fig)


@paper_style()
def plot_spectrum(spectrum: MeanSpectrum, *, colors: ListedColormap | None = None, ax: Axes | None = None) -> Axes:
    """Eigenvalue of the trace-one Gram matrix against rank, both logarithmic: one line a layer, dark to light.

    Args:
        spectrum: mean eigenvalues of one model and stream; those below `SMALLEST_EIGENVALUE` are left out.
        colors: one color for each layer from 0 on; with a color bar of its own if not given.
        ax: where to draw; a new figure of column width if not given.
    """
    ax = new_axes(ax)
    palette = colors or layer_colors(int(spectrum.layers.max()))
    ranks = np.arange(1, spectrum.values.shape[1] + 1)
    for layer, values in zip(spectrum.layers, spectrum.values, strict=True):
        visible = np.where(values >= SMALLEST_EIGENVALUE, values, np.nan)
        ax.plot(ranks, visible, color=palette(int(layer)), linewidth=0.9, label=f"layer {layer}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("Rank")
    ax.set_ylabel("Eigenvalue (trace one)")
    retitle(ax, stream_title(spectrum.stream))
    if colors is None:
        layer_bar(ax.figure.get_figure(root=True), [ax], palette)
    return ax


def layer_colors(last: int) -> ListedColormap:
    """One color for each layer 0..last, dark to light, stopping short of what is too pale for a line on white."""
    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, last + 1)), name="layers")


def layer_bar(fig: Figure, axes: Sequence[Axes], colors: ListedColormap) -> None:
    """The color bar of the layers, right of the axes given."""
    norm = BoundaryNorm(np.arange(colors.N + 1) - 0.5, colors.N)
    ticks = np.arange(0, colors.N, -(-colors.N // 7))
    thin = 10 * fig.get_figheight()
    bar = fig.colorbar(ScalarMappable(norm, colors), ax=axes, ticks=ticks, aspect=thin, pad=0.02, label="Layer $k$")
    bar.ax.tick_params(which="both", length=0)
    bar.outline.set_visible(False)


@paper_style()
def figure_spectrum(runs: Runs, *, width: str = "page") -> Figure:
    """Eigenvalue against rank, one line a layer, one panel a model and stream.

    Args:
        runs: one run or several.
        width: "page" or "column".

    Raises:
        HorizonError: no run holds spectra, or two runs hold the same stream of one model.
    """
    spectra = [spectrum for run in as_runs(runs) for spectrum in mean_spectra(run)]
    if not spectra:
        raise HorizonError(
            "the runs hold no spectra; run the samples again with `--spectra N` (vh.run(..., spectra=N))"
        )
    check_distinct((spectrum.model, spectrum.stream) for spectrum in spectra)
    by_panel = {(spectrum.model, spectrum.stream): spectrum for spectrum in spectra}
    several = len({spectrum.model for spectrum in spectra}) > 1
    colors = layer_colors(max(int(spectrum.layers.max()) for spectrum in spectra))
    fig, axes = facet_grid(by_panel, width, extra=0.1)
    for (model, stream), ax in axes.items():
        plot_spectrum(by_panel[model, stream], colors=colors, ax=ax)
        retitle(ax, panel_title(model, stream_title(stream), several=several))
    share_labels(fig, axes.values())
    label_panels(axes.values())
    layer_bar(fig, list(axes.values()), colors)
    return finish(fig)
