"""One prompt with one image for each family that nobody has described, encoded by hand, for a verdict only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import other_models as om
import torch
from family_encodings import TEXT, images, lay_out, pixels, positions, qwen_patches, token_kinds
from family_models import IMAGE, PATCH, FamilyCase, text_config
from other_models import Parts
from transformers import LlamaConfig


def prompt_of(n: int, **inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One image of n tokens between words, and where they lie."""
    encoded, runs = lay_out([(TEXT, 2), (IMAGE, n), (TEXT, 4)])
    return {**encoded, **inputs}, positions(runs)


def case_of(
    name: str, make: Callable[[], Parts], n: int, inputs: dict[str, torch.Tensor], **changes: Any
) -> FamilyCase:
    """A case without grids."""
    encoded, visual = prompt_of(n, **inputs)
    if changes.pop("kinds", None):
        encoded["mm_token_type_ids"] = token_kinds(encoded["input_ids"])
    return FamilyCase(name, make, encoded, visual, **changes)


def others() -> tuple[FamilyCase, ...]:
    """All of them."""
    three, six = {"pixel_values": images(1, side=3)}, {"pixel_values": images(1, side=6)}
    merged = {"pixel_values": qwen_patches(24), "image_grid_thw": torch.tensor([[1, 4, 6]])}
    wide = {"pixel_values": pixels(1, 3, 4 * PATCH, 6 * PATCH), "image_sizes": torch.tensor([[4 * PATCH, 6 * PATCH]])}
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(6)).flip(-1)[None]  # x, y of every patch
    patches = {"pixel_values": pixels(1, 24, 3 * PATCH * PATCH).sigmoid(), "image_position_ids": grid}
    llava_like = partial(om.clip_like, text=text_config(LlamaConfig))
    return (
        case_of("llava-pixtral", om.pixtral, 24, wide),
        case_of("mistral3", om.mistral3, 6, wide),
        case_of("glm4v", om.glm4v, 6, merged, kinds=True),
        case_of("qwen3_vl_moe", om.qwen3_vl_moe, 6, merged, kinds=True, enters_again=(0, 1)),
        case_of("qwen3_5", om.qwen3_5, 6, merged, kinds=True),
        case_of("llama4", om.llama4, 9, six),
        case_of("gemma4", om.gemma4, 6, patches, kinds=True),
        case_of("gemma4-shared", partial(om.gemma4, shared=1), 6, patches, kinds=True),
        case_of("aria", om.aria, 4, three),
        case_of("cohere2_vision", om.cohere2_vision, 9, six),
        case_of("aya_vision", om.aya_vision, 9, six),
        case_of(
            "vipllava",
            partial(llava_like, "VipLlavaForConditionalGeneration", "VipLlavaConfig", vision_feature_layer=[-1, -2]),
            9,
            three,
        ),
        case_of("idefics2", om.idefics2, 4, {"pixel_values": images(1, 1, side=3)}),
        case_of("ovis2", om.ovis2, 9, six),
        case_of(
            "lfm2_vl",
            om.lfm2_vl,
            9,
            {
                "pixel_values": pixels(1, 36, 3 * PATCH * PATCH),
                "spatial_shapes": torch.tensor([[6, 6]]),
                "pixel_attention_mask": torch.ones(1, 36, dtype=torch.long),
            },
        ),
        case_of("janus", om.janus, 9, three),
        case_of("deepseek_vl", om.deepseek_vl, 9, three),
        case_of(
            "granite4_vision",
            om.granite4_vision,
            4 + 2 * (4 + 1),
            {"pixel_values": images(1, 3, side=4), "image_sizes": torch.tensor([[16, 32]])},
        ),
        case_of("got_ocr2", om.got_ocr2, 4, {"pixel_values": images(1, side=8)}, attention=("eager",)),
    )


OTHERS = others()
