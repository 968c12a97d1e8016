"""The demo model as a checkpoint: its architecture, its processor, and the directory that both are saved in."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from pictures import SIDE
from questions import SPECIAL_TOKENS, VOCABULARY
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

PATCH = 8  # pixels
GRID = SIDE // PATCH
N_VISUAL = GRID**2
HIDDEN, FEED_FORWARD, HEADS, TOWER_LAYERS = 128, 352, 4, 3
PAD, START, END, _, IMAGE = range(len(SPECIAL_TOKENS))

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if m['content'] is string %}{{ m['content'] }} "
    "{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image> {% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_model(layers: int) -> LlavaForConditionalGeneration:
    """A LLaVA with that many decoder layers and random weights from torch's global generator."""
    text_config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.05,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=HIDDEN,
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=IMAGE,
        image_seq_length=N_VISUAL,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = START, END, PAD
    model = LlavaForConditionalGeneration(config)
    _rescale(model)
    return model


@torch.no_grad()
def _rescale(model: LlavaForConditionalGeneration) -> None:
    """Replace initial scales that are meant for large models: at width 128 they are too small to learn from."""
    decoder, tower = model.model.language_model, model.model.vision_tower
    for layer in decoder.layers:
        # keeps the residual stream at one scale however deep the decoder is
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.mul_(1.5 / math.sqrt(2 * len(decoder.layers)))
    for name, weight in tower.named_parameters():
        if "patch_embedding" in name:
            weight.normal_(std=0.08)
        elif weight.ndim == 2 and "embed" not in name:
            weight.normal_(std=0.05)
    for weight in model.model.multi_modal_projector.parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.07)
    decoder.embed_tokens.weight.normal_(std=0.3)


def build_processor() -> LlavaProcessor:
    """A processor with one token a word of the vocabulary; a capital or a digit is a word by itself."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words = Regex(r"USER:|ASSISTANT:|[a-z]+|[A-Z0-9]|[^A-Za-z0-9\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(words, "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", START)]
    )
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=256,
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"height": SIDE, "width": SIDE}
    image_processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=fast_tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy "default" drops again
        chat_template=CHAT_TEMPLATE,
    )


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Save the model in float16 with its processor, so that the Auto classes load both."""
    shipped = LlavaForConditionalGeneration(copy.deepcopy(model.config))
    shipped.load_state_dict(model.state_dict())
    shipped = shipped.half()
    shipped.config.dtype = torch.float16
    generation = shipped.generation_config
    generation.max_new_tokens, generation.do_sample = 8, False
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = START, END, PAD
    shipped.save_pretrained(directory)
    build_processor().save_pretrained(directory)
