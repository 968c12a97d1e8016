"""The information of each patch, drawn over the image that it was cut from."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from analyses.curves.effects import MEASURES, removal_effects
from analyses.runs import CONTEXT_TABLE, METHOD_TABLE, HorizonError, Run, TokenGrids, as_runs, tokens_text
from figures.horizon import NO_BREAK
from figures.panels import Runs, finish, new_axes, new_figure, retitle
from figures.style import GRAY, WIDTHS, figure_width, paper_style

COLORS = "RdBu_r"  # symmetric about white; readable with every common color deficiency
OPACITY = 0.62
# (width, several blocks) -> most layers shown in a block, panels side by side
SMALL_MULTIPLES = {
    ("page", False): (8, 4),
    ("page", True): (5, 5),
    ("column", False): (6, 3),
    ("column", True): (3, 3),
}


def window_boxes(windows: pd.DataFrame, crops: Sequence[dict[str, Any]]) -> np.ndarray:
    """Place of every window on the original image.

    Args:
        windows: one row a window: crop, row, column, height, width (in tokens); none of text, which has no place.
        crops: of the sample: rows, columns of its grid; left, top, right, bottom as fractions of the image.

    Returns:
        (window, 4) left, top, width, height as fractions of the image.
    """
    boxes = []
    for at, row, column, height, width in windows[["crop", "row", "column", "height", "width"]].to_numpy(int):
        crop = crops[at]
        across = (crop["right"] - crop["left"]) / crop["columns"]
        down = (crop["bottom"] - crop["top"]) / crop["rows"]
        boxes.append((crop["left"] + column * across, crop["top"] + row * down, width * across, height * down))
    return np.array(boxes, dtype=float).reshape(-1, 4)


def split_views(crops: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Sort crops into views whose members do not overlap: the tiles of an image, and the image as a whole.

    >>> whole = {"left": 0.0, "top": 0.0, "right": 1.0, "bottom": 1.0}
    >>> split_views([whole, whole | {"right": 0.5}, whole | {"left": 0.5}])
    [[0], [1, 2]]
    """
    views: list[list[int]] = []
    for i, crop in enumerate(crops):
        free = (view for view in views if not any(_overlap(crop, crops[j]) for j in view))
        view = next(free, None)
        if view is None:
            views.append([i])
        else:
            view.append(i)
    return views


def _overlap(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-3) -> bool:
    wide = min(a["right"], b["right"]) - max(a["left"], b["left"])
    high = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
    return wide > tolerance and high > tolerance


@paper_style()
def plot_token_heatmap(
    values: np.ndarray,
    boxes: np.ndarray,
    *,
    image: np.ndarray | None = None,
    limit: float | None = None,
    label: str = "Token information",
    ax: Axes | None = None,
) -> Axes:
    """Information of each window as a colored cell over the image, in gray beneath it.

    Args:
        values: (window,) information at one layer; where it is NaN, not measured, the cell stays blank.
        boxes: (window, 4) left, top, width, height as fractions of the image, as `window_boxes` gives them.
        image: (height, width) gray or (height, width, 3) RGB thumbnail of the whole image, 0..255.
        limit: end of the color scale, symmetric about 0; the largest magnitude if not given.
        label: text of the color bar, with the unit.
        ax: where to draw; a new figure of column width, with a color bar, if not given.
    """
    alone, ax = ax is None, new_axes(ax)
    aspect = 1.0
    if image is not None:
        gray = np.asarray(Image.fromarray(image).convert("L"))
        ax.imshow(gray, cmap="gray", vmin=-60, vmax=255, extent=(0, 1, 1, 0), interpolation="bilinear")
        aspect = image.shape[0] / image.shape[1]
    scale = color_scale(values if limit is None else np.array([limit]))
    cells = PatchCollection(
        [Rectangle((left, top), wide, high) for left, top, wide, high in boxes],
        cmap=COLORS,
        norm=scale,
        alpha=OPACITY,
        linewidth=0,
    )
    cells.set_array(values)
    ax.add_collection(cells, autolim=False)
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    ax.set_aspect(aspect)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(GRAY)
    if alone:
        _color_bar(ax.figure.get_figure(root=True), [ax], scale, label)
    return ax


def color_scale(values: np.ndarray) -> Normalize:
    """A scale symmetric about 0 that reaches the largest magnitude."""
    known = np.abs(values[~np.isnan(values)])
    limit = float(known.max(initial=0.0)) or 1.0  # all zero, or none known: any scale shows it
    return Normalize(-limit, limit)


def _color_bar(fig: Figure, axes: Sequence[Axes], scale: Normalize, label: str) -> None:
    thin = 10 * fig.get_figheight()
    bar = fig.colorbar(ScalarMappable(scale, COLORS), ax=list(axes), label=label, aspect=thin, pad=0.02, alpha=OPACITY)
    bar.outline.set_visible(False)


def read_thumbnail(run: Run, row: int) -> np.ndarray | None:
    """(height, width, 3) uint8 pixels of a sample's thumbnail; None if the run kept none."""
    stored = run.thumbnail(row)
    return np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")) if stored else None


def _record(run: Run, row: int) -> dict[str, Any]:
    """The columns of one sample."""
    return {str(name): value for name, value in run.samples.loc[row].items()}


def choose_sample(run: Run, rows: Sequence[int]) -> int:
    """The one of these rows whose removal effect on p at the first layer is largest."""
    effects = removal_effects(run)
    first = dict(zip(effects.rows.tolist(), effects.values[:, 0], strict=True))
    return max(rows, key=lambda row: first.get(row, -np.inf))


def choose_layers(measured: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the measured layers, evenly spaced, with the first and the last."""
    at = np.linspace(0, len(measured) - 1, min(most, len(measured))).round().astype(int)
    return measured[at]


@dataclass(frozen=True)
class _Block:
    """One row, or more, of small multiples: one view of one sample in one run."""

    label: str
    layers: np.ndarray
    values: np.ndarray  # (layer, window)
    boxes: np.ndarray
    image: np.ndarray | None


@paper_style()
def figure_token_heatmap(
    runs: Runs,
    *,
    width: str = "page",
    sample: str | int | None = None,
    context: str = "keep-one",
    measure: str = "p",
    layers: Sequence[int] | None = None,
) -> Figure:
    """Information of each patch over the image, small multiples over layers, one color scale for all.

    All panels show one sample, of several images or frames the first; a run that carries no token grids of it is left
    out. Crops that overlap, such as the tiles of an image and the image as a whole, are drawn apart. Text has no place
    in the image: windows of text are left out, and so are runs that take away text only.

    Args:
        runs: one run or several.
        width: "page" or "column".
        sample: id, or row number in the first run; by default the one with the largest removal effect
            in the first run, of those that all runs share.
        context: "keep-one" or "leave-one-out".
        measure: "p" or "log_p".
        layers: cuts to show; by default evenly spaced ones, as many as fit.

    Raises:
        HorizonError: the sample is unknown, a layer was not measured, or nothing carries token grids.
    """
    figure_width(width)
    rows = _rows_of_sample(as_runs(runs), sample, context)
    n_views = sum(len(_views(run, row)) for run, row in rows)
    most, n_columns = SMALL_MULTIPLES[width, n_views > 1]
    blocks = []
    for run, row in rows:
        grids = run.tokens(row, context=context)
        cuts = choose_layers(grids.layers, most) if layers is None else _measured(grids, layers)
        blocks += _blocks_of(run, row, grids, cuts, measure, several=len(rows) > 1)
    title = _question_words([_record(run, row) for run, row in rows], width)
    method = max((METHOD_TABLE[run.config.method] for run, _ in rows), key=lambda method: method.first_order)
    symbol = CONTEXT_TABLE[context].symbol
    label = f"{method.quantity}\n${symbol}$ ({MEASURES[measure]})"  # in two lines: the bar may be short
    return finish(_draw_blocks(blocks, width, n_columns, label, title))


def _rows_of_sample(runs: Sequence[Run], sample: str | int | None, context: str) -> list[tuple[Run, int]]:
    """The runs that carry token grids of one sample, with its row in each."""
    in_image = [(run, {str(run.samples.loc[row, "id"]): row for row in run.token_rows(context)}) for run in runs]
    with_grids = [(run, rows) for run, rows in in_image if rows]
    in_image = [(run, rows) for run, rows in with_grids if run.config.tokens != "text"]
    if with_grids and not in_image:
        names = ", ".join(run.name for run, _ in with_grids)
        raise HorizonError(f"the token grids of {names} are of text, which has no place in the image")
    if not in_image:
        raise HorizonError(f"the runs hold no {context} token grids; measure them with the probe 'information'")
    first, rows = in_image[0]
    if sample is None:
        shared = [rows[name] for name in rows if all(name in others for _, others in in_image)]
        sample = choose_sample(first, shared or list(rows.values()))
    name = sample if isinstance(sample, str) else str(first.samples.loc[sample, "id"])
    pairs = [(run, rows[name]) for run, rows in in_image if name in rows]
    if not pairs:
        raise HorizonError(f"no run carries {context} token grids of sample {name!r}")
    return pairs


def _measured(grids: TokenGrids, layers: Sequence[int]) -> np.ndarray:
    missing = sorted(set(layers) - set(grids.layers.tolist()))
    if missing:
        raise HorizonError(f"no token grids at layers {missing}; measured are {grids.layers.tolist()}")
    return np.asarray(layers, dtype=int)


def _views(run: Run, row: int) -> list[list[int]]:
    """`split_views` of a sample's first image or frame, as indices into all its crops."""
    crops = list(_record(run, row)["crops"])
    first = [i for i, crop in enumerate(crops) if not crop.get("image")]
    return [[first[i] for i in view] for view in split_views([crops[i] for i in first])]


def _blocks_of(
    run: Run, row: int, grids: TokenGrids, layers: np.ndarray, measure: str, *, several: bool
) -> list[_Block]:
    """One block for each view of a sample's first image, the one that the run keeps a thumbnail of."""
    crops = list(_record(run, row)["crops"])
    information = grids.information(measure)[np.searchsorted(grids.layers, layers)]
    in_image = (grids.windows["crop"] < len(crops)).to_numpy()  # the others are of text
    windows, information = grids.windows[in_image], information[:, in_image]
    boxes = window_boxes(windows, crops)
    views = _views(run, row)
    names_model = several or run.config.tokens != "visual"
    blocks = []
    for i, view in enumerate(views):
        inside = windows["crop"].isin(view).to_numpy()
        words = [tokens_text(run.model, run.config.tokens)] * names_model + [f"view {i + 1}"] * (len(views) > 1)
        image = read_thumbnail(run, row)
        blocks.append(_Block(", ".join(words), layers, information[:, inside], boxes[inside], image))
    return blocks


def _draw_blocks(blocks: Sequence[_Block], width: str, n_columns: int, label: str, title: str) -> Figure:
    """All panels with one color scale and its bar."""
    rows_of = [-(-len(block.layers) // n_columns) for block in blocks]
    n_columns = min(n_columns, max(len(block.layers) for block in blocks))
    side = (WIDTHS[width] - 0.75) / n_columns - 0.05  # beside the color bar
    shapes = [block.image.shape[0] / block.image.shape[1] if block.image is not None else 1.0 for block in blocks]
    heights = [shape * side + 0.17 for shape, n in zip(shapes, rows_of, strict=True) for _ in range(n)]
    fig = new_figure(width, sum(heights) + 0.15 * (1 + len(title.split("\n"))))
    fig.suptitle(title)
    grid = fig.add_gridspec(sum(rows_of), n_columns, height_ratios=heights)
    scale = color_scale(np.concatenate([block.values.ravel() for block in blocks]))
    axes: list[Axes] = []
    for block, start in zip(blocks, np.cumsum([0, *rows_of]), strict=False):
        for i, layer in enumerate(block.layers):
            ax = fig.add_subplot(grid[start + i // n_columns, i % n_columns])
            plot_token_heatmap(block.values[i], block.boxes, image=block.image, limit=scale.vmax, ax=ax)
            retitle(ax, f"layer {layer}")
            if i == 0:
                ax.set_ylabel(block.label)
            axes.append(ax)
    _color_bar(fig, axes, scale, label)
    return fig


def _question_words(records: Sequence[dict[str, Any]], width: str) -> str:
    """Question, answer, and what each model says instead or with which probability it says that; wrapped."""
    answers = list(records[0]["answers"])
    predictions = [
        f"{record['prediction'].strip()}, p(target) = {record['p']:.2f}".replace(" ", NO_BREAK) for record in records
    ]
    known = f" answer: {answers[0]};" if answers else ""
    words = f"“{records[0]['question']}”{known} the model says {'; '.join(predictions)}"
    return textwrap.fill(words, int(WIDTHS[width] * 17)).replace("$", r"\$")
