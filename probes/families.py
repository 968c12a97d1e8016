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


@dataclass(frozen=True)
class Layout:
    """What a grid rule may look at.

    Attributes:
        config: the model's configuration.
        inputs: the encoded inputs.
        positions: (n_visual,) int, positions of the visual tokens in the prompt.
        image_size: width and height of the original image in pixels.
        image_processor: what resized and cropped it.
    """

    config: Any
    inputs: Mapping[str, Any]
    positions: np.ndarray
    image_size: tuple[int, int]
    image_processor: Any


GridRule = Callable[[Layout], list[TokenGrid]]


@dataclass(frozen=True)
class Family:
    """How one architecture lays its visual tokens out.

    Attributes:
        name: `config.model_type`.
        grids: the rule that finds each image's patch grid; what it leaves out is placeless.
    """

    name: str
    grids: GridRule


def square_grid(layout: Layout) -> list[TokenGrid]:
    """One square grid, row-major, over what resizing and center cropping leave of the image (LLaVA-1.5).

    Raises:
        HorizonError: the number of visual tokens is no square.
    """
    positions = layout.positions
    side = math.isqrt(len(positions))
    if side * side != len(positions):
        raise HorizonError(
            f"{len(positions)} visual tokens form no square grid, as {layout.config.model_type} promises for an image"
        )
    return [TokenGrid(positions.reshape(side, side), center_crop_box(layout.image_processor, layout.image_size))]


def center_crop_box(image_processor: Any, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what the encoder sees, as fractions of the original image.

    A processor resizes to a height and width, or the shortest edge to a length, and may then cut out the center;
    where the crop is larger than the resized image it pads, and the box reaches beyond 0 and 1.
    """
    width, height = image_size
    size = getattr(image_processor, "size", None) or {}
    if getattr(image_processor, "do_resize", True):
        if size.get("shortest_edge"):
            scale = size["shortest_edge"] / min(width, height)
            width, height = width * scale, height * scale
        elif size.get("height") and size.get("width"):
            width, height = size["width"], size["height"]
    crop = getattr(image_processor, "crop_size", None) or {}
    if not getattr(image_processor, "do_center_crop", False) or not crop.get("width"):
        return 0.0, 0.0, 1.0, 1.0
    across, down = crop["width"] / width / 2, crop["height"] / height / 2
    return 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down


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
