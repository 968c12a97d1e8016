"""Tiny random models of families that nobody has described, built from their configurations alone."""

from __future__ import annotations

from typing import Any

import family_models as fm
import transformers as tf
from family_models import END, IMAGE, PATCH, START, VIDEO, WIDTH, text_config, tower_config
from torch import nn

Parts = tuple[type[nn.Module], Any]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}


def clip_like(kind: str, config: str, text: Any, **changes: Any) -> Parts:
    """A CLIP tower before a decoder."""
    common = {
        "text_config": text,
        "vision_config": tower_config(tf.CLIPVisionConfig, 3),
        "image_token_index": IMAGE,
    }
    return getattr(tf, kind), getattr(tf, config)(**{**common, **changes})


def pixtral_tower() -> Any:
    return tower_config(tf.PixtralVisionConfig, 6, head_dim=8)


def pixtral() -> Parts:
    """LLaVA with a Pixtral tower."""
    return tf.LlavaForConditionalGeneration, tf.LlavaConfig(
        text_config=text_config(tf.MistralConfig, head_dim=8, sliding_window=None),
        vision_config=pixtral_tower(),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def mistral3() -> Parts:
    """Mistral 3: patches merged 2 x 2."""
    return tf.Mistral3ForConditionalGeneration, tf.Mistral3Config(
        text_config=text_config(tf.MistralConfig, head_dim=8, sliding_window=None),
        vision_config=pixtral_tower(),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        spatial_merge_size=2,
    )


def glm4v() -> Parts:
    """GLM-4V."""
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "patch_size": PATCH,
        "image_size": 6 * PATCH,
        "out_hidden_size": WIDTH,
    }
    rope = {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    return tf.Glm4vForConditionalGeneration, tf.Glm4vConfig(
        text_config=text_config(tf.models.glm4v.configuration_glm4v.Glm4vTextConfig, rope_parameters=rope),
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=START,
        video_end_token_id=END,
    )


def qwen3_vl_moe() -> Parts:
    """Qwen3-VL with experts."""
    text = text_config(
        tf.models.qwen3_vl_moe.configuration_qwen3_vl_moe.Qwen3VLMoeTextConfig,
        head_dim=8,
        rope_parameters={**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return tf.Qwen3VLMoeForConditionalGeneration, tf.Qwen3VLMoeConfig(
        text_config=text,
        vision_config=fm.deepstack_tower(),
        **fm.multi_ids(),
    )


def qwen3_5() -> Parts:
    """Qwen3.5: three layers of four are recurrent."""
    text = text_config(
        tf.models.qwen3_5.configuration_qwen3_5.Qwen3_5TextConfig,
        head_dim=8,
        rope_parameters={**ROPE, "mrope_section": [1, 1, 0], "mrope_interleaved": True, "partial_rotary_factor": 0.5},
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
    )
    tower = fm.deepstack_tower()
    del tower["deepstack_visual_indexes"]
    return tf.Qwen3_5ForConditionalGeneration, tf.Qwen3_5Config(
        text_config=text,
        vision_config=tower,
        **fm.multi_ids(),
    )


def llama4() -> Parts:
    """Llama 4: chunked attention, layers without positions, experts."""
    text = text_config(
        tf.models.llama4.configuration_llama4.Llama4TextConfig,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=2,
        attention_chunk_size=8,
        rope_parameters=ROPE,
    )
    vision = tf.models.llama4.configuration_llama4.Llama4VisionConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=6 * PATCH,
        patch_size=PATCH,
        vision_output_dim=16,
        projector_input_dim=16,
        projector_output_dim=16,
        rope_parameters=ROPE,
    )
    return tf.Llama4ForConditionalGeneration, tf.Llama4Config(
        text_config=text, vision_config=vision, image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END
    )


def gemma4(shared: int = 0, per_layer: int = 8) -> Parts:
    """Gemma 4: sliding and full layers, embeddings of a token's own for every layer, capped logits, shared keys."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    text = text_config(
        tf.models.gemma4.configuration_gemma4.Gemma4TextConfig,
        head_dim=8,
        sliding_window=8,
        layer_types=kinds,
        vocab_size_per_layer_input=fm.VOCABULARY,
        hidden_size_per_layer_input=per_layer,
        num_kv_shared_layers=shared,
        final_logit_softcapping=2.0,
        use_bidirectional_attention="vision",
    )
    vision = tf.models.gemma4.configuration_gemma4.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        patch_size=PATCH,
        pooling_kernel_size=2,
        position_embedding_size=16,
    )
    return tf.Gemma4ForConditionalGeneration, tf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        boi_token_id=START,
        eoi_token_id=END,
        audio_token_id=7,
    )


def aria() -> Parts:
    """Aria: experts; a fixed number of queries an image."""
    text = text_config(tf.AriaTextConfig, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, rope_parameters=ROPE)
    return tf.AriaForConditionalGeneration, tf.AriaConfig(
        text_config=text,
        vision_config=tower_config(tf.models.idefics3.configuration_idefics3.Idefics3VisionConfig, 3),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={9: 4},
    )


def cohere2_vision() -> Parts:
    """Command A Vision: sliding layers, and full ones without positions."""
    return tf.Cohere2VisionForConditionalGeneration, tf.Cohere2VisionConfig(
        text_config=text_config(tf.Cohere2Config, sliding_window=8),
        vision_config=tower_config(tf.SiglipVisionConfig, 6, vision_use_head=False),
        image_token_id=IMAGE,
        alignment_intermediate_size=48,
    )


def aya_vision() -> Parts:
    """Aya Vision: as Command A Vision, another projector."""
    return tf.AyaVisionForConditionalGeneration, tf.AyaVisionConfig(
        text_config=text_config(tf.Cohere2Config, sliding_window=8),
        vision_config=tower_config(tf.SiglipVisionConfig, 6, vision_use_head=False),
        image_token_index=IMAGE,
    )


def idefics2() -> Parts:
    """Idefics2: a perceiver turns an image into four tokens."""
    perceiver = tf.models.idefics2.configuration_idefics2.Idefics2PerceiverConfig(
        hidden_size=WIDTH,
        resampler_n_latents=4,
        resampler_depth=1,
        resampler_n_heads=2,
        resampler_head_dim=8,
        num_key_value_heads=1,
    )
    return tf.Idefics2ForConditionalGeneration, tf.Idefics2Config(
        text_config=text_config(tf.MistralConfig, head_dim=8, sliding_window=None),
        vision_config=tower_config(tf.models.idefics2.configuration_idefics2.Idefics2VisionConfig, 3),
        perceiver_config=perceiver,
        image_token_id=IMAGE,
    )


def ovis2() -> Parts:
    """Ovis2: visual tokens are mixtures of a visual vocabulary."""
    vision = tower_config(tf.models.ovis2.configuration_ovis2.Ovis2VisionConfig, 6, vocab_size=20, hidden_stride=2)
    return tf.Ovis2ForConditionalGeneration, tf.Ovis2Config(
        text_config=text_config(tf.Qwen2Config),
        vision_config=vision,
        image_token_id=IMAGE,
        visual_indicator_token_ids=[40, 41, 42, 43, 44],
        vocab_size=fm.VOCABULARY,
        hidden_size=WIDTH,
        tie_word_embeddings=False,
    )


def lfm2_vl() -> Parts:
    """LFM2-VL: convolutions among attention layers."""
    text = text_config(
        tf.Lfm2Config,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        rope_parameters=ROPE,
        block_auto_adjust_ff_dim=False,
    )
    vision = tf.Siglip2VisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=36,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return tf.Lfm2VlForConditionalGeneration, tf.Lfm2VlConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, projector_hidden_size=48
    )


def janus() -> Parts:
    """Janus: understanding only."""
    vision = tower_config(
        tf.models.janus.configuration_janus.JanusVisionConfig,
        3,
        mlp_ratio=2.0,
        projection_dim=WIDTH,
        num_image_tokens=9,
    )
    vq = tf.models.janus.configuration_janus.JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=8,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=3,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
    )
    return tf.JanusForConditionalGeneration, tf.JanusConfig(
        text_config=text_config(tf.LlamaConfig), vision_config=vision, vq_config=vq, image_token_id=IMAGE
    )


def deepseek_vl() -> Parts:
    """DeepSeek-VL."""
    return tf.DeepseekVLForConditionalGeneration, tf.DeepseekVLConfig(
        text_config=text_config(tf.LlamaConfig),
        vision_config=tower_config(tf.SiglipVisionConfig, 3, vision_use_head=False),
        image_token_id=IMAGE,
    )


def got_ocr2() -> Parts:
    """GOT-OCR 2: a tower with relative positions, reduced four times a side."""
    vision = tf.models.got_ocr2.configuration_got_ocr2.GotOcr2VisionConfig(
        hidden_size=16,
        output_channels=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8 * PATCH,
        patch_size=PATCH,
        window_size=4,
        global_attn_indexes=[1],
        mlp_dim=24,
    )
    return tf.GotOcr2ForConditionalGeneration, tf.GotOcr2Config(
        text_config=text_config(tf.Qwen2Config), vision_config=vision, image_token_index=IMAGE, image_seq_length=4
    )


def granite4_vision() -> Parts:
    """Granite 4 Vision: features enter before layers 0 to 2; logits are divided after the output embedding."""
    pixels = 4 * PATCH
    return tf.Granite4VisionForConditionalGeneration, tf.Granite4VisionConfig(
        text_config=text_config(
            tf.models.granite4_vision.configuration_granite4_vision.Granite4VisionTextConfig, logits_scaling=2.0
        ),
        vision_config=tower_config(tf.CLIPVisionConfig, 4, hidden_size=64),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[pixels, 2 * pixels], [2 * pixels, pixels]],
        image_seq_length=4,
        downsample_rate="1/2",
        deepstack_layer_map=[[1, 0], [2, 1]],
        spatial_target_layers=[2],
    )
