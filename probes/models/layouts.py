"""Layouts: what a family's rule reads of a prompt, and the blocks in which it says where visual tokens lie."""

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
    """The facts about a prompt that a grid rule may use.

    Attributes:
        config: the model's configuration.
        inputs: the encoded inputs.
        positions: (n_visual,) int, positions of the visual tokens in the prompt, ascending.
        sizes: width and height in pixels of each original image, or of each frame of a video.
        image_processor: the processor that resized and cropped them; the video processor for frames.
        video: whether the sizes are those of one video's frames.
    """

    config: Any
    inputs: Mapping[str, Any]
    positions: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    image_processor: Any
    video: bool = False

    def box(self, image: int) -> Box:
        """Return the box that the encoder sees of one image or frame, after padding or resizing and cropping."""
        processor = self.image_processor
        if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
            return padded_square_box(self.sizes[image])
        return center_crop_box(processor, self.sizes[image])

    def counts(self, name: str) -> list[list[int]]:
        """Return an input that counts pixels or patches, with one row for each image.

        Raises:
            HorizonError: the encoding lacks this input.
        """
        if name not in self.inputs:
            raise HorizonError(f"the encoding lacks {name}, which says how the visual tokens lie")
        return self.inputs[name].tolist()

    def runs(self) -> list[int]:
        """Return the lengths, in tokens, of the runs of visual tokens that no other token interrupts."""
        breaks = np.flatnonzero(np.diff(self.positions) > 1) + 1
        return [len(part) for part in np.split(self.positions, breaks)]

    def share(self) -> int:
        """Return the number of visual tokens of each image or frame, which all have the same.

        Raises:
            HorizonError: the visual tokens cannot be divided evenly.
        """
        n_tokens, rest = divmod(len(self.positions), len(self.sizes))
        if rest:
            noun = "frames" if self.video else "images"
            raise HorizonError(
                f"{len(self.positions)} visual tokens cannot be shared evenly among {len(self.sizes)} {noun}, "
                f"as {self.config.model_type} promises"
            )
        return n_tokens


@dataclass(frozen=True)
class GridBlock:
    """A stretch of visual tokens in the order of the prompt: one grid, row by row, and the placeless tokens around it.

    Attributes:
        rows: number of rows of the grid; 0 for placeless tokens alone.
        columns: number of columns of the grid.
        box: left, top, right, bottom of the part it covers, as fractions of the original image.
        image: number, from 0, of the image or frame that the grid shows.
        before: number of placeless tokens before the grid (a CLS token).
        row_end: number of placeless tokens after each row (a newline token).
        after: number of placeless tokens after the grid.
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
        """Number of tokens of the block without a place on the grid."""
        return self.before + self.rows * self.row_end + self.after

    @property
    def n_tokens(self) -> int:
        """Number of all tokens of the block."""
        return self.rows * self.columns + self.placeless


def place_blocks(blocks: Sequence[GridBlock], positions: np.ndarray) -> list[TokenGrid]:
    """Return the token grids of blocks that are laid over the visual tokens in order.

    Args:
        blocks: the blocks that a family's rule returns.
        positions: (n_visual,) int, positions of the visual tokens in the prompt, ascending.

    Raises:
        HorizonError: the blocks hold more or fewer tokens than the prompt.

    >>> [grid.positions.tolist() for grid in place_blocks([GridBlock(2, 2, row_end=1)], np.arange(5, 11))]
    [[[5, 6], [8, 9]]]
    """
    explained = sum(block.n_tokens for block in blocks)
    if explained != len(positions):
        places = ", ".join(f"{block.rows} x {block.columns}" for block in blocks if block.rows) or "none"
        placeless = sum(block.placeless for block in blocks)
        raise HorizonError(
            f"the prompt holds {len(positions)} visual tokens and the rule explains {explained} "
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
    """Return the number of rows, and of columns, of a square grid with so many tokens.

    Raises:
        HorizonError: the number of tokens is no square.
    """
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise HorizonError(f"{n_tokens} visual tokens form no square grid, as {model_type} promises for an image")
    return side


def tile_boxes(rows: int, columns: int) -> list[Box]:
    """Return the boxes of rows x columns equal tiles, row by row."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def center_crop_box(image_processor: Any, image_size: tuple[int, int]) -> Box:
    """Return left, top, right, bottom of the part that the encoder sees, as fractions of the original image.

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
    """Return the box of the square to which an image was padded; it reaches beyond 0 and 1 on the shorter side."""
    width, height = image_size
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return -left / width, -top / height, (side - left) / width, (side - top) / height


def anyres_block(config: Any, image_size: tuple[int, int], image: int, *, shrink: bool) -> GridBlock:
    """Return the tiles of one image as one grid without padding, a newline token after every row (LLaVA-NeXT).

    The image is scaled into the best of the configured resolutions and padded; rows or columns of patches that hold
    only padding are dropped, and the box says what remains, to the pixel.

    Args:
        config: the model's configuration.
        image_size: width and height of the original image in pixels.
        image: number of the image, from 0.
        shrink: whether to pool the grid where it exceeds `config.vision_aspect_ratio`: "anyres_max_9" means 9 tiles.
    """
    # imported here, since importing a modeling module takes seconds and only these families need one
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
        max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (max_tiles * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return GridBlock(rows, columns, (across[0], down[0], across[1], down[1]), image, row_end=1)


def _covered(length: int, other_length: int, canvas: int, other_canvas: int, dropped: int) -> tuple[float, float]:
    """Return the fractions of an image's side at which the remaining part of its padded canvas begins and ends.

    The image is scaled until it touches the canvas on one side, which fixes its length on the other.

    Args:
        length: length of the side in pixels.
        other_length: length of the other side in pixels.
        canvas: length of the canvas along the side in pixels.
        other_canvas: length of the canvas along the other side in pixels.
        dropped: pixels of padding that are dropped at each end.
    """
    scale = min(canvas / length, other_canvas / other_length)
    scaled = canvas if scale == canvas / length else min(math.ceil(length * scale), canvas)
    start = (canvas - scaled) // 2
    return (dropped - start) / scaled, (canvas - dropped - start) / scaled


def idefics_tiling(processor: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of tiles, by the steps in which Idefics3's image processor resizes.

    The processor has a count of its own, which skips a step and can differ.

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
    """Return width and height in pixels, scaled to a longest edge, the shorter one made even."""
    ratio = width / height
    if width >= height:
        shorter = int(longest / ratio)
        return longest, max(1, shorter + shorter % 2)
    shorter = int(longest * ratio)
    return max(1, shorter + shorter % 2), longest
