"""The command `figures`: the figures of the literature, drawn from run directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlm_horizon.commands.arguments import completion, with_groups, words
from vlm_horizon.commands.conclude import RunPaths
from vlm_horizon.commands.groups import Samples, say_exclusions

FORMATS, WIDTHS = ("pdf", "svg", "png"), ("column", "page")  # of figures; a test holds them to those of `figures`


def _figure_names(incomplete: str) -> list[str]:
    from figures.paper import FIGURES

    return completion(tuple(FIGURES), several=True)(incomplete)


@with_groups
def figures(
    runs: RunPaths,
    choice: Samples,
    out: Annotated[Path | None, typer.Option(help="Directory; RUN/figures of the first run by default.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Comma-separated figures; all by default.", autocompletion=_figure_names)
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Comma-separated: pdf, svg, png.", autocompletion=completion(FORMATS, several=True))
    ] = ",".join(FORMATS),
    widths: Annotated[
        str, typer.Option(help="Comma-separated: column, page.", autocompletion=completion(WIDTHS, several=True))
    ] = ",".join(WIDTHS),
) -> None:
    """Draw the figures of the literature from one RUN or several."""
    from figures.paper import save_figures

    out = out or runs[0] / "figures"
    opened = choice.open(runs)
    say_exclusions(opened)
    saved = save_figures(opened, out, words(names) if names else None, formats=words(formats), widths=words(widths))
    for name, reason in saved.skipped.items():
        print(f"figure {name} was not drawn: {reason}", file=sys.stderr)
    for path in saved.written:
        print(path)
