"""Families: where an architecture lays its visual tokens, and what else a right measurement needs to know of it.

Adding a family means one rule, if none here fits, and one entry in `FAMILIES`, keyed by `config.model_type`. The table
in the README is made from these entries: `python -m vlm_horizon.readme README.md` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from analyses.runs import HorizonError
from probes.models.grids import TokenGrid
from probes.models.layouts import (
    WHOLE,
    GridBlock,
    VisualLayout,
    anyres_block,
    idefics_tiling,
    padded_square_box,
    place_blocks,
    square_side,
    tile_boxes,
)

GridRule = Callable[[VisualLayout], list[GridBlock]]


@dataclass(frozen=True)
class Family:
    """How one architecture lays its visual tokens out.

    Attributes:
        name: `config.model_type`.
        blocks: the rule that explains all visual tokens of a prompt, in order, as grids and placeless tokens. None for
            a family that nobody has described: all its visual tokens are placeless, and token grids are refused.
        title: the name that people use.
        grid: the rule in words.
        placeless: the placeless tokens in words.
        video: whether the rule covers a video's frames.
        inputs: encoded inputs without which the model runs wrongly, whatever the prompt shows.
        image_inputs, video_inputs: the encoded inputs needed besides for images, and for a video.
        answer_types: by name of a type row, the type of a forced answer's tokens, where it is not 0.
        bidirectional: the tokens that also see those after them: "prefix", "image" or "".
        deepstack: whether visual features are added again behind the first layers, one layer for each level of the
            vision tower.
        plain_prompt: the prompt where the processor has no chat template; `{images}` stands for the image tokens.
        refused: why the family cannot be measured, with the remedy; "" if it can.
    """

    name: str
    blocks: GridRule | None
    title: str = ""
    grid: str = ""
    placeless: str = ""
    video: bool = False
    inputs: tuple[str, ...] = ()
    image_inputs: tuple[str, ...] = ()
    video_inputs: tuple[str, ...] = ()
    answer_types: tuple[tuple[str, int], ...] = ()
    bidirectional: str = ""
    deepstack: bool = False
    plain_prompt: str = ""
    refused: str = ""

    def required(self, video: bool) -> tuple[str, ...]:
        """Return the names that the encoded inputs must hold, for a video or for images."""
        return self.inputs + (self.video_inputs if video else self.image_inputs)

    def grids(self, layout: VisualLayout) -> list[TokenGrid]:
        """Return the patch grids of a prompt; the rule counts every visual token outside of them as placeless.

        Raises:
            HorizonError: the rule explains more or fewer tokens than the prompt holds.
        """
        return [] if self.blocks is None else place_blocks(self.blocks(layout), layout.positions)


def square_grid(layout: VisualLayout) -> list[GridBlock]:
    """Return one square grid for each image, over what resizing and cropping leave; a CLS token may precede it."""
    n_tokens = layout.share()
    keeps_cls = getattr(layout.config, "vision_feature_select_strategy", "default") == "full"
    n_cls = int(keeps_cls and math.isqrt(n_tokens) ** 2 != n_tokens)
    side = square_side(n_tokens - n_cls, layout.config.model_type)
    return [GridBlock(side, side, layout.box(i), i, before=n_cls) for i in range(len(layout.sizes))]


def llava_grid(layout: VisualLayout) -> list[GridBlock]:
    """Return LLaVA's grids: a square for each image, or with a Pixtral tower the image's own shape."""
    pixtral = getattr(layout.config.vision_config, "model_type", "") == "pixtral"
    return pixtral_grid(layout) if pixtral else square_grid(layout)


def pixtral_grid(layout: VisualLayout) -> list[GridBlock]:
    """Return Pixtral's grids: the resized image in merged patches, row by row; the row markers are text."""
    step = layout.config.vision_config.patch_size * getattr(layout.config, "spatial_merge_size", 1)
    sizes = layout.counts("image_sizes")
    return [GridBlock(height // step, width // step, WHOLE, i) for i, (height, width) in enumerate(sizes)]


def anyres_grids(layout: VisualLayout) -> list[GridBlock]:
    """Return LLaVA-NeXT's grids: the whole image on a square, then its tiles as one grid with newline tokens."""
    return _base_and_tiles(layout, shrink=False)


def onevision_grids(layout: VisualLayout) -> list[GridBlock]:
    """Return LLaVA-OneVision's grids.

    One image has those of LLaVA-NeXT, pooled where too large; several images have one square each, and so has each
    frame of a video, pooled.
    """
    side = _tower_side(layout.config)
    n = len(layout.sizes)
    if layout.video:
        pooled = math.ceil(side / 2)
        return [GridBlock(pooled, pooled, WHOLE, i, after=int(i == n - 1)) for i in range(n)]
    counts = layout.inputs.get("batch_num_images")
    if counts is not None and int(counts[0]) > 1:
        return [GridBlock(side, side, padded_square_box(size), i, after=1) for i, size in enumerate(layout.sizes)]
    return _base_and_tiles(layout, shrink=True)


def _base_and_tiles(layout: VisualLayout, *, shrink: bool) -> list[GridBlock]:
    """Return for each image a square base grid, then its tiles as one grid, pooled where `shrink` allows it."""
    side = _tower_side(layout.config)
    return [
        block
        for i, size in enumerate(layout.sizes)
        for block in (GridBlock(side, side, WHOLE, i), anyres_block(layout.config, size, i, shrink=shrink))
    ]


def _tower_side(config: Any) -> int:
    """Return the patches along one side of the vision tower's input."""
    return config.vision_config.image_size // config.vision_config.patch_size


def merged_grids(layout: VisualLayout) -> list[GridBlock]:
    """Return Qwen-VL's grids: merged patches, row by row; in a video one grid for each group of frames."""
    vision = layout.config.vision_config
    sizes = layout.counts("video_grid_thw" if layout.video else "image_grid_thw")
    group_size = vision.temporal_patch_size if layout.video else 1
    return [
        GridBlock(
            rows // vision.spatial_merge_size, columns // vision.spatial_merge_size, WHOLE, i + group * group_size
        )
        for i, (groups, rows, columns) in enumerate(sizes)
        for group in range(groups)
    ]


def internvl_tiles(layout: VisualLayout) -> list[GridBlock]:
    """Return InternVL's grids: square tiles, row by row, then a thumbnail of the image if it has several tiles."""
    # imported here, since only this family needs it
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    tile_tokens, processor = layout.config.image_seq_length, layout.image_processor
    side = square_side(tile_tokens, layout.config.model_type)
    runs = layout.runs()
    blocks = []
    for i, (width, height) in enumerate(layout.sizes):
        if i >= len(runs) or runs[i] <= tile_tokens:
            blocks.append(GridBlock(side, side, layout.box(i), i))
            continue
        tile = processor.size["height"], processor.size["width"]
        columns, rows = get_optimal_tiled_canvas((height, width), tile, processor.min_patches, processor.max_patches)
        blocks += [GridBlock(side, side, box, i) for box in [*tile_boxes(rows, columns), WHOLE]]
    return blocks


def idefics_tiles(layout: VisualLayout) -> list[GridBlock]:
    """Return the grids of Idefics3 and SmolVLM: square tiles, row by row, each after a text marker, then the image."""
    vision = layout.config.vision_config
    side = vision.image_size // vision.patch_size // layout.config.scale_factor
    blocks = []
    for i, size in enumerate(layout.sizes):
        rows, columns = (1, 1) if layout.video else idefics_tiling(layout.image_processor, size)
        tiles = tile_boxes(rows, columns) if rows * columns > 1 else []
        blocks += [GridBlock(side, side, box, i) for box in [*tiles, WHOLE]]
    return blocks


def gemma3_grids(layout: VisualLayout) -> list[GridBlock]:
    """Return Gemma 3's grids: a square for each image; with pan and scan, one more for each crop."""
    n_tokens = layout.config.mm_tokens_per_image
    side = square_side(n_tokens, layout.config.model_type)
    blocks = [GridBlock(side, side, layout.box(i), i) for i in range(len(layout.sizes))]
    crops = len(layout.positions) // n_tokens - 1
    if len(layout.sizes) > 1 or crops < 1:
        return blocks
    (width, height), wide = layout.sizes[0], layout.sizes[0][0] >= layout.sizes[0][1]
    length = width if wide else height
    step = math.ceil(length / crops)
    ends = [(i * step / length, min((i + 1) * step, length) / length) for i in range(crops)]
    boxes = [(first, 0.0, last, 1.0) if wide else (0.0, first, 1.0, last) for first, last in ends]
    return [*blocks, *(GridBlock(side, side, box) for box in boxes)]


def video_llava_grids(layout: VisualLayout) -> list[GridBlock]:
    """Return Video-LLaVA's grids: a square for each image, or for each frame of a video, after its CLS token."""
    if not layout.video:
        return square_grid(layout)
    side = square_side(layout.share() - 1, layout.config.model_type)
    return [GridBlock(side, side, layout.box(i), i, before=1) for i in range(len(layout.sizes))]


_QWEN = Family(
    "qwen2_vl",
    merged_grids,
    "Qwen2-VL",
    grid="merged patches of the image; one grid for two frames",
    video=True,
    inputs=("mm_token_type_ids",),
    image_inputs=("image_grid_thw",),
    video_inputs=("video_grid_thw",),
)

_QWEN3 = replace(_QWEN, name="qwen3_vl", title="Qwen3-VL", deepstack=True)
_IDEFICS3 = Family("idefics3", idefics_tiles, "Idefics3", grid="square tiles, then the whole image")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "llava",
            llava_grid,
            "LLaVA-1.5, Pixtral",
            grid="one square; with a Pixtral tower the image's own shape",
            placeless="CLS, where kept",
        ),
        Family(
            "llava_next",
            anyres_grids,
            "LLaVA-NeXT",
            grid="square base, then all tiles as one grid without padding",
            placeless="newline after each row of the tiles",
            image_inputs=("image_sizes",),
        ),
        Family(
            "llava_onevision",
            onevision_grids,
            "LLaVA-OneVision",
            grid="as NeXT, pooled above 9 tiles; several images one square each; frames pooled 2 x 2",
            placeless="newline after each row of the tiles, each of several images, a video",
            video=True,
            image_inputs=("image_sizes", "batch_num_images"),
        ),
        _QWEN,
        replace(_QWEN, name="qwen2_5_vl", title="Qwen2.5-VL"),
        _QWEN3,
        replace(_QWEN3, name="qwen3_vl_moe", title="Qwen3-VL MoE"),
        Family(
            "internvl",
            internvl_tiles,
            "InternVL",
            grid="square tiles, then the whole image; frames one square each",
            video=True,
        ),
        _IDEFICS3,
        replace(
            _IDEFICS3, name="smolvlm", title="SmolVLM", grid=f"{_IDEFICS3.grid}; frames one square each", video=True
        ),
        Family(
            "paligemma",
            square_grid,
            "PaliGemma",
            grid="one square",
            inputs=("token_type_ids",),
            answer_types=(("token_type_ids", 1),),
            bidirectional="prefix",
            plain_prompt="{images}{question}",
        ),
        Family(
            "gemma3",
            gemma3_grids,
            "Gemma 3",
            grid="one square; with pan and scan one more a crop",
            inputs=("token_type_ids",),
            bidirectional="image",
        ),
        Family(
            "video_llava",
            video_llava_grids,
            "Video-LLaVA",
            grid="one square an image or frame",
            placeless="CLS before each frame",
            video=True,
        ),
        Family(
            "mistral3",
            pixtral_grid,
            "Mistral 3",
            grid="merged patches of the image",
            image_inputs=("image_sizes",),
        ),
        Family(
            "mllama",
            None,
            "Llama 3.2 Vision",
            refused="its visual tokens never enter the sequence: cross-attention layers read them, the same states at "
            "every depth, so that a layer's removal and entropy mean something else; take a model whose decoder reads "
            "image tokens",
        ),
    )
}


def find_family(config: Any) -> Family:
    """Return the family of a model's configuration; a family without a grid if nobody has described its model type."""
    return FAMILIES.get(config.model_type) or Family(config.model_type, None)


def sliding_window(config: Any) -> int | None:
    """Return how many tokens back the decoder's sliding layers see; None if every layer sees all."""
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return window if window and slides else None


def check_grids(name: str, family: Family, tokens: str = "visual") -> None:
    """Refuse token grids of a family without a grid rule; entropies, removals and text need no grid.

    Raises:
        HorizonError: the family has no grid rule.
    """
    if family.blocks is None and tokens != "text":
        raise HorizonError(
            f"token grids need a description of the family {family.name!r} ({name}): add one to "
            "probes/models/families.py, as CONTRIBUTING.md shows, or measure entropy and removal only"
        )
