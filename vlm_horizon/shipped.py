"""What ships with the package: demo models, demo samples, published numbers."""

from __future__ import annotations

from pathlib import Path

from analyses.runs import HorizonError


def data_path(*parts: str) -> Path:
    """Return the path of a file or directory of the shipped data, for example `data_path("demo-models", "tiny-8")`.

    Args:
        parts: the parts of the path below the data directory.

    Raises:
        HorizonError: the shipped data hold no such path.
    """
    here = Path(__file__).resolve().parent
    for root in (here / "data", here.parent / "data"):  # in a wheel, in a checkout
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise HorizonError(f"no {'/'.join(parts)} among the shipped data")
