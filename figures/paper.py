"""The figures by their names in the literature, written to files: the one module that does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analyses.runs import HorizonError, as_runs, check_choices
from figures.comparison import figure_horizon_comparison
from figures.entropy import figure_entropy_curves, figure_spectrum
from figures.horizon import figure_removal_curves
from figures.information import figure_token_information
from figures.overlay import figure_token_heatmap
from figures.panels import Runs
from figures.style import figure_width, paper_style

FIGURES: dict[str, Callable[..., Figure]] = {
    "entropy-curves": figure_entropy_curves,
    "spectrum": figure_spectrum,
    "token-information": figure_token_information,
    "removal-curves": figure_removal_curves,
    "horizon-comparison": figure_horizon_comparison,
    "token-heatmap": figure_token_heatmap,
}

# no dates: the same run gives the same bytes
METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}


@dataclass(frozen=True)
class SavedFigures:
    """What `save_figures` did.

    Attributes:
        written: files, in the order of the names, widths and formats.
        skipped: name -> why the runs cannot carry that figure.
    """

    written: list[Path]
    skipped: dict[str, str]


def save_figures(
    runs: Runs,
    out: str | Path,
    names: Iterable[str] | None = None,
    *,
    formats: Sequence[str] = ("pdf", "svg", "png"),
    widths: Sequence[str] = ("column", "page"),
) -> SavedFigures:
    """Draw figures and write each as `<name>_<width>.<format>`.

    Args:
        runs: one run or several.
        out: directory; made if it is not there.
        names: names of the figures to draw, of `FIGURES`; all by default.
        formats: file formats, of "pdf", "svg" and "png" (300 dpi).
        widths: widths to draw at, of "column" and "page".

    Raises:
        HorizonError: a name, format or width that does not exist.
    """
    figure_names = list(FIGURES) if names is None else list(names)
    check_choices("figure", figure_names, FIGURES)
    check_choices("figure format", formats, METADATA)
    for width in widths:
        figure_width(width)
    opened = as_runs(runs)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    skipped: dict[str, str] = {}
    for name in figure_names:
        try:
            by_width = {width: FIGURES[name](opened, width=width) for width in widths}
        except HorizonError as error:
            skipped[name] = str(error)
            continue
        for width, figure in by_width.items():
            written += _write(figure, directory / f"{name}_{width}", formats)
    return SavedFigures(written, skipped)


@paper_style()
def _write(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
    for kind, path in zip(formats, paths, strict=True):
        figure.savefig(path, format=kind, metadata=METADATA[kind])
    return paths
