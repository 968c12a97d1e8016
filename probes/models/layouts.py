"""The words in which a family says where its visual tokens lie: what a rule may look at, the blocks it answers with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analyses.runs import HorizonError
from probes.models.grids import TokenGrid

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class VisualLayout:
    """What a grid rule may look at.

    Attributes:
        config: the model's configuration.
        inputs: the encoded inputs.
        positions: (n_visual,) int, positions of the visual tokens in the prompt, ascending.
        sizes: width and height in pixels of each original image, or of each frame of a video.
        image_processor: what resized and cropped them; a video's own processor for frames.
        video: the sizes are those of one video's frames.
    """

    config: Any
    inputs: Mapping[str, Any]
    positions: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    image_processor: Any
    video: bool = False

    def box(self, image: int) -> Box:
        """What padding to a square, or resizing and center cropping, leave of one image or frame."""
        processor = self.image_processor
        if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
            return padded_square_box(self.sizes[image])
        return center_crop_box(processor, self.sizes[image])

    def counts(self, name: str) -> list[list[int]]:
        """An input that counts pixels or patches, one row an image.

        Raises:
            HorizonError: it is not there.
        """
        if name not in self.inputs:
            raise HorizonError(f"the encoding lacks {name}, which says how the visual tokens lie")
        return self.inputs[name].tolist()

    def runs(self) -> list[int]:
        """Lengths of the stretches of visual tokens that no other token interrupts."""
        breaks = np.flatnonzero(np.diff(self.positions) > 1) + 1
        return [len(part) for part in np.split(self.positions, breaks)]

    def share(self) -> int:
        """Visual tokens of each image or frame, where all have the same number.

        Raises:
            HorizonError: they cannot have.
        """
        each, rest = divmod(len(self.positions), len(self.sizes))
        if rest:
            what = "frames" if self.video else "images"
            raise HorizonError(
                f"{len(self.positions)} visual tokens cannot be shared evenly among {len(self.sizes)} {what}, "
                f"as {self.config.model_type} promises"
            )
        return each


@dataclass(frozen=True)
class GridBlock:
    """A stretch of visual tokens in the order of the prompt: one grid, row by row, and the placeless tokens around it.

    Attributes:
        rows: rows of the grid; 0 for placeless tokens alone.
        columns: its columns.
        box: left, top, right, bottom of what it covers, as fractions of the original image.
        image: which image or frame it shows.
        before: placeless tokens before it (a CLS token).
        row_end: placeless tokens after each of its rows (a newline token).
        after: placeless tokens after it.
    """

    rows: int = 0
    columns: int = 0
    box: Box = WHOLE
    image: int = 0
    before: int = 0
    row_end: int = 0
    after: int = 0

    @property
    def placeless(self) -> int:
        """Its tokens without a place."""
        return self.before + self.rows * self.row_end + self.after

    @property
    def n_tokens(self) -> int:
        """All its tokens."""
        return self.rows * self.columns + self.placeless


def place_blocks(blocks: Sequence[GridBlock], positions: np.ndarray) -> list[TokenGrid]:
    """Lay blocks over the visual tokens, in order.

    Args:
        blocks: as a rule gives them.
        positions: (n_visual,) int, positions of the visual tokens in the prompt, ascending.

    Raises:
        HorizonError: the blocks hold more or fewer tokens than the prompt.

    >>> [grid.positions.tolist() for grid in place_blocks([GridBlock(2, 2, row_end=1)], np.arange(5, 11))]
    [[[5, 6], [8, 9]]]
    """
    told = sum(block.n_tokens for block in blocks)
    if told != len(positions):
        places = ", ".join(f"{block.rows} x {block.columns}" for block in blocks if block.rows) or "none"
        placeless = sum(block.placeless for block in blocks)
        raise HorizonError(
            f"the prompt holds {len(positions)} visual tokens and the rule explains {told} "
            f"(grids: {places}; {placeless} placeless)"
        )
    grids, start = [], 0
    for block in blocks:
        if block.rows:
            first = start + block.before
            width = block.columns + block.row_end
            rows = positions[first : first + block.rows * width].reshape(block.rows, width)
            grids.append(TokenGrid(rows[:, : block.columns], block.box, block.image))
        start += block.n_tokens
    return grids


def square_side(n_tokens: int, model_type: str) -> int:
    """Rows and columns of a square grid of so many tokens.

    Raises:
        HorizonError: there is none.
    """
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise HorizonError(f"{n_tokens} visual tokens form no square grid, as {model_type} promises for an image")
    return side


def tile_boxes(rows: int, columns: int) -> list[Box]:
    """Boxes of rows x columns equal tiles, row-major."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def center_crop_box(image_processor: Any, image_size: tuple[int, int]) -> Box:
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
        return WHOLE
    across, down = crop["width"] / width / 2, crop["height"] / height / 2
    return 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down


def padded_square_box(image_size: tuple[int, int]) -> Box:
    """The square around an image that was padded to one: it reaches beyond 0 and 1 on the shorter side."""
    width, height = image_size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return -left / width, -top / height, (side - left) / width, (side - top) / height


def anyres_block(config: Any, image_size: tuple[int, int], image: int, *, shrink: bool) -> GridBlock:
    """The tiles of one image as one grid, cut back to the image, with a newline token after every row (LLaVA-NeXT).

    The image is scaled into the best of the configured resolutions and padded; rows or columns of patches that hold
    only padding are dropped, and the box says what remains, to the pixel.

    Args:
        config: the model's configuration.
        image_size: width and height of the original image in pixels.
        image: its number.
        shrink: pool the grid where it exceeds `config.vision_aspect_ratio`, "anyres_max_9" for 9 tiles (OneVision).
    """
    # here, since importing a modeling module takes seconds and only these families need one
    import torch
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    width, height = image_size
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    side = tile // patch
    tiles = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, tile)
    canvas = tiles[0] * side, tiles[1] * side
    rows, columns = unpad_image(torch.empty(1, *canvas), (height, width)).shape[1:]
    down = _covered(height, width, tiles[0] * tile, tiles[1] * tile, (canvas[0] - rows) // 2 * patch)
    across = _covered(width, height, tiles[1] * tile, tiles[0] * tile, (canvas[1] - columns) // 2 * patch)
    if shrink:
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return GridBlock(rows, columns, (across[0], down[0], across[1], down[1]), image, row_end=1)


def _covered(length: int, other: int, canvas: int, other_canvas: int, dropped: int) -> tuple[float, float]:
    """Fractions of an image's side where the kept part of its padded canvas begins and ends.

    The image is scaled until it touches the canvas on one side, which fixes its length on the other.
    """
    scale = min(canvas / length, other_canvas / other)
    scaled = canvas if scale == canvas / length else min(math.ceil(length * scale), canvas)
    start = (canvas - scaled) // 2
    return (dropped - start) / scaled, (canvas - dropped - start) / scaled


def idefics_tiling(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tiles, as Idefics3's image processor resizes, step by step; its own count skips a step.

    Args:
        processor: the image processor.
        size: width and height of the original image in pixels.
    """
    if not processor.do_image_splitting:
        return 1, 1
    width, height = size
    tile = processor.max_image_size["longest_edge"]
    if processor.do_resize:
        width, height = _to_longest_edge(width, height, processor.size["longest_edge"])
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return height // tile, width // tile


def _to_longest_edge(width: int, height: int, longest: int) -> tuple[int, int]:
    """Scale to a longest edge; the other is made even."""
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return longest, max(1, other + other % 2)
    other = int(longest * ratio)
    return max(1, other + other % 2), longest
