"""What ships with the package: demo models, demo samples, published numbers."""

from __future__ import annotations

from pathlib import Path

from analyses.runs import HorizonError


def data_path(*parts: str) -> Path:
    """A file or directory of the shipped data: `data_path("demo-models", "tiny-8")`, `data_path("demo-samples")`.

    Args:
        parts: its path below the data directory.

    Raises:
        HorizonError: there is no such thing.
    """
    here = Path(__file__).resolve().parent
    for root in (here / "data", here.parent / "data"):  # in a wheel, in a checkout
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise HorizonError(f"no {'/'.join(parts)} among the shipped data")
