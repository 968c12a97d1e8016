"""A tiny random model of every family, built from its configuration alone, with effects large enough to be tested.

Each has a decoder of four layers, width 32, four heads and (where the family allows it) two key heads. How a prompt of
each is encoded, and where its visual tokens truly lie, stands in `family_encodings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import nn

VOCABULARY = 48
PAD, BEGIN, STOP, IMAGE, VIDEO, START, END, MARK = range(8)  # MARK: text around crops and frames
PATCH = 4
WIDTH, LAYERS = 32, 4
SHARP = ("q_proj", "k_proj", "v_proj", "o_proj", "lm_head", "qkv_proj")  # twice the gain of the other matrices


@dataclass(frozen=True)
class FamilyCase:
    """One family's tiny model and one prompt of it, with the truth about the prompt written by hand.

    Attributes:
        name: the family's `config.model_type`, and what is special about the prompt.
        make: () -> (model class, configuration).
        inputs: what the model's forward takes, batch of one, float64 pixels.
        visual: (n_visual,) long, ascending: positions in the prompt; with cross-attention, rows of its states.
        grids: (rows, columns) int each, the place of every image's, crop's or frame's tokens in the prompt.
        placeless: positions of the visual tokens that have no place on a grid.
        cells: (grid, row, column) -> (input, index) of the pixels under that cell; None where nothing is said.
        required: inputs without which the model refuses or, worse, computes something else.
        cross_attention: visual tokens are no rows of the decoder, but states that some layers attend to.
        enters_again: layers behind which the model adds visual features to the visual rows once more.
        attention: implementations that the model class allows.
        seed: of weights on which ablations have a large effect at every layer.
        notes: what to know about the family.
    """

    name: str
    make: Callable[[], tuple[type[nn.Module], Any]]
    inputs: Mapping[str, torch.Tensor]
    visual: torch.Tensor
    grids: tuple[np.ndarray, ...] = ()
    placeless: tuple[int, ...] = ()
    cells: Callable[[int, int, int], tuple[str, Any]] | None = None
    required: tuple[str, ...] = ()
    cross_attention: bool = False
    enters_again: tuple[int, ...] = ()
    attention: tuple[str, ...] = ("sdpa", "eager")
    seed: int = 0
    notes: str = field(default="", repr=False)

    def build(self, seed: int | None = None, attn: str = "sdpa", dtype: torch.dtype = torch.float64) -> nn.Module:
        """The model, with weights of its own."""
        return build(*self.make(), self.seed if seed is None else seed, attn, dtype)

    @property
    def n_tokens(self) -> int:
        """Length of the prompt."""
        return self.inputs["input_ids"].shape[1]


def build(kind: type[nn.Module], config: Any, seed: int, attn: str, dtype: torch.dtype) -> nn.Module:
    """A model whose weights are drawn anew, in evaluation mode."""
    config._attn_implementation = attn
    config._experts_implementation = "eager"  # grouped products know no float64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        draw_weights(model)
    return model._apply(lambda t: t.to(dtype) if t.is_floating_point() else t).eval()  # complex tables stay complex


@torch.no_grad()
def draw_weights(model: nn.Module) -> None:
    """Give every matrix gain 1, those of attention 2; move norms away from the identity; open every gate.

    Transformers' initial weights are so small that removing a token changes nothing, and its norms, gates and biases
    start where forgetting them would not be seen.
    """
    embeddings = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, weight in model.named_parameters():
        if id(weight) in embeddings:
            nn.init.normal_(weight, std=1 / float(getattr(embeddings[id(weight)], "scalar_embed_scale", 1)))
        elif weight.ndim > 1 and not name.endswith(("embedding", "embeddings", "newline")):
            gain = 2.0 if name.removesuffix(".weight").endswith(SHARP) else 1.0
            nn.init.normal_(weight, std=gain / weight[0].numel() ** 0.5)
        elif name.endswith("gate"):
            weight.fill_(1.0)
        elif name.endswith(("lambda_1", "lambda_2")):  # layer scales of InternVL's tower
            weight.fill_(0.5)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.1)
        elif "norm" in name and name.endswith("weight"):
            weight.add_(0.2 * torch.randn_like(weight))
        else:
            nn.init.normal_(weight)


def text_config(kind: type, **changes: Any) -> Any:
    """A decoder of four layers in which two query heads share one key head."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": PAD,
        "bos_token_id": BEGIN,
        "eos_token_id": STOP,
    }
    return kind(**{**common, **changes})


def tower_config(kind: type, side: int, **changes: Any) -> Any:
    """A vision tower of two layers over side x side patches."""
    common: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": side * PATCH,
        "patch_size": PATCH,
    }
    return kind(**{**common, **changes})


def llava(side: int) -> tuple[type[nn.Module], Any]:
    """LLaVA-1.5: CLIP and Llama."""
    return tf.LlavaForConditionalGeneration, tf.LlavaConfig(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.CLIPVisionConfig, side),
        image_token_index=IMAGE,
        image_seq_length=side**2,
        vision_feature_layer=-1,
    )


def llava_next(side: int) -> tuple[type[nn.Module], Any]:
    """LLaVA-NeXT: one wide or one high pair of tiles, or four."""
    pixels = side * PATCH
    return tf.LlavaNextForConditionalGeneration, tf.LlavaNextConfig(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.CLIPVisionConfig, side),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[pixels, 2 * pixels], [2 * pixels, pixels], [2 * pixels, 2 * pixels]],
        image_seq_length=side**2,
    )


def llava_onevision(side: int) -> tuple[type[nn.Module], Any]:
    """LLaVA-OneVision: SigLIP and Qwen2."""
    pixels = side * PATCH
    return tf.LlavaOnevisionForConditionalGeneration, tf.LlavaOnevisionConfig(
        text_config=text_config(tf.Qwen2Config),
        vision_config=tower_config(tf.SiglipVisionConfig, side, vision_use_head=False),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[pixels, pixels], [pixels, 2 * pixels], [2 * pixels, pixels]],
    )


def qwen2_vl() -> tuple[type[nn.Module], Any]:
    """Qwen2-VL: blocks of 2 x 2 patches make one token; rotary positions have three axes."""
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH}
    return tf.Qwen2VLForConditionalGeneration, tf.Qwen2VLConfig(
        text_config=_multi_rope_text(tf.Qwen2VLTextConfig), vision_config=vision, **multi_ids()
    )


def qwen2_5_vl() -> tuple[type[nn.Module], Any]:
    """Qwen2.5-VL: a tower with windows."""
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    return tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLConfig(
        text_config=_multi_rope_text(tf.Qwen2_5_VLTextConfig), vision_config=vision, **multi_ids()
    )


def qwen3_vl() -> tuple[type[nn.Module], Any]:
    """Qwen3-VL: visual features enter again after layers 0 and 1."""
    return tf.Qwen3VLForConditionalGeneration, tf.Qwen3VLConfig(
        text_config=_multi_rope_text(tf.Qwen3VLTextConfig, head_dim=8, **_interleaved()),
        vision_config=deepstack_tower(),
        **multi_ids(),
    )


def deepstack_tower() -> dict[str, Any]:
    """A tower whose first two layers' features enter the decoder between its layers."""
    return {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }


def _multi_rope_text(kind: type, **changes: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    return text_config(kind, **{"rope_parameters": rope, **changes})


def _interleaved() -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return {"rope_parameters": rope}


def multi_ids() -> dict[str, int]:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def internvl(side: int) -> tuple[type[nn.Module], Any]:
    """InternVL: blocks of 2 x 2 patches of a tile make one token."""
    return tf.InternVLForConditionalGeneration, tf.InternVLConfig(
        text_config=text_config(tf.Qwen2Config),
        vision_config=tower_config(tf.InternVLVisionConfig, 2 * side),
        image_token_id=IMAGE,
        image_seq_length=side**2,
        tie_word_embeddings=False,
    )


def idefics3(side: int) -> tuple[type[nn.Module], Any]:
    """Idefics3: blocks of 2 x 2 patches of a crop make one token."""
    return tf.Idefics3ForConditionalGeneration, tf.Idefics3Config(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.models.idefics3.configuration_idefics3.Idefics3VisionConfig, 2 * side),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


def smolvlm(side: int) -> tuple[type[nn.Module], Any]:
    """SmolVLM: as Idefics3."""
    return tf.SmolVLMForConditionalGeneration, tf.SmolVLMConfig(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.models.smolvlm.configuration_smolvlm.SmolVLMVisionConfig, 2 * side),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )


def paligemma(side: int) -> tuple[type[nn.Module], Any]:
    """PaliGemma: SigLIP and Gemma, the prompt attends in both directions."""
    return _paligemma(side, text_config(tf.GemmaConfig, head_dim=8))


def paligemma2(side: int) -> tuple[type[nn.Module], Any]:
    """PaliGemma 2: SigLIP and Gemma 2, whose logits are capped after the output embedding."""
    capped = text_config(
        tf.Gemma2Config, head_dim=8, query_pre_attn_scalar=8, sliding_window=8, final_logit_softcapping=2.0
    )
    return _paligemma(side, capped)


def _paligemma(side: int, text: Any) -> tuple[type[nn.Module], Any]:
    return tf.PaliGemmaForConditionalGeneration, tf.PaliGemmaConfig(
        text_config=text,
        vision_config=tower_config(tf.SiglipVisionConfig, side, vision_use_head=False),
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        vocab_size=VOCABULARY,
    )


def gemma3(side: int, window: int = 8) -> tuple[type[nn.Module], Any]:
    """Gemma 3: 2 x 2 patches are averaged to one token; a full layer among sliding ones of a small window."""
    text = text_config(
        tf.Gemma3TextConfig,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    )
    return tf.Gemma3ForConditionalGeneration, tf.Gemma3Config(
        text_config=text,
        vision_config=tower_config(tf.SiglipVisionConfig, 2 * side, vision_use_head=False),
        mm_tokens_per_image=side**2,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )


def video_llava(side: int) -> tuple[type[nn.Module], Any]:
    """Video-LLaVA: frames keep the class token of their tower, images do not."""
    return tf.VideoLlavaForConditionalGeneration, tf.VideoLlavaConfig(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.CLIPVisionConfig, side),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        image_seq_length=side**2,
    )


def mllama(side: int) -> tuple[type[nn.Module], Any]:
    """Mllama: layers 1 and 3 attend to the states of up to two tiles, through gates."""
    vision = tf.models.mllama.configuration_mllama.MllamaVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=side * PATCH,
        patch_size=PATCH,
        max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        intermediate_layers_indices=[0],
        vision_output_dim=32,
    )
    text = text_config(
        tf.models.mllama.configuration_mllama.MllamaTextConfig,
        cross_attention_layers=[1, 3],
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return tf.MllamaForConditionalGeneration, tf.MllamaConfig(
        text_config=text, vision_config=vision, image_token_index=IMAGE
    )
