"""What cannot be derived from a model: where the visual tokens of its family lie on the image.

Adding a family means adding one entry to `FAMILIES`, keyed by `config.model_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.runs import HorizonError
from probes.grids import TokenGrid

# (config, encoded inputs, positions of the visual tokens in the prompt) -> grids
GridRule = Callable[[Any, Mapping[str, Any], np.ndarray], list[TokenGrid]]


@dataclass(frozen=True)
class Family:
    """How one architecture lays its visual tokens out.

    Attributes:
        name: `config.model_type`.
        grids: the rule that finds each image's patch grid; what it leaves out is placeless.
    """

    name: str
    grids: GridRule


def square_grid(config: Any, inputs: Mapping[str, Any], positions: np.ndarray) -> list[TokenGrid]:
    """One square grid, row-major: the encoder sees the whole image resized (LLaVA-1.5).

    Raises:
        HorizonError: the number of visual tokens is no square.
    """
    side = math.isqrt(len(positions))
    if side * side != len(positions):
        raise HorizonError(
            f"{len(positions)} visual tokens form no square grid, which {config.model_type} promises for one image"
        )
    return [TokenGrid(positions.reshape(side, side))]


FAMILIES: dict[str, Family] = {family.name: family for family in (Family("llava", square_grid),)}


def find_family(config: Any) -> Family:
    """The family of a model's configuration.

    Raises:
        HorizonError: its grid is not known.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise HorizonError(
            f"model type {config.model_type!r} has no family description yet (known: {', '.join(sorted(FAMILIES))}); "
            "add one to probes/families.py, as CONTRIBUTING.md shows"
        )
    return family
