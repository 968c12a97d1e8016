"""A small random LLaVA and its processor, built from configurations alone, with effects large enough to be tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH = 4
GRID = 5  # patches a side: windows of 2 and 3 leave smaller ones at the edge
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
NOUNS = ("apple", "bridge", "candle", "dragon", "engine", "forest", "guitar", "hammer", "island", "jacket")
WORDS = ("look", "here", "what", "is", "shown", "?", "answer", *NOUNS, *(noun.capitalize() for noun in NOUNS))
CHAT_TEMPLATE = (
    "{% for m in messages %}look here {% for c in m['content'] if c['type'] == 'image' %}<image> {% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}answer{% endif %}"
)
SHARP = ("q_proj", "k_proj", "v_proj", "o_proj", "lm_head")  # twice the gain of the other matrices
QUESTION = "what is shown ?"


def random_processor() -> LlavaProcessor:
    """Text before and after the image, one id a word; pixels as they are."""
    return word_processor(WORDS, GRID, PATCH, CHAT_TEMPLATE)


def word_processor(words: Sequence[str], grid: int, patch: int, chat_template: str) -> LlavaProcessor:
    """The processor of a LLaVA with these words behind `SPECIAL` in its vocabulary, and a square grid of patches."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    splitter = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    splitter.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    side = {"height": grid * patch, "width": grid * patch}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=chat_template,
    )


def random_llava(
    seed: int = 0, *, attn: str = "sdpa", dtype: torch.dtype = torch.float64, layers: int = 4
) -> LlavaForConditionalGeneration:
    """Grouped-query LLaVA (4 heads, 2 key heads) over 5x5 patches.

    Transformers' initial weights are so small that removing a token changes nothing; here every matrix has gain 1,
    and those of attention 2, so that it picks single tokens and what it picks counts.
    """
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **ENDS,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )
    return drawn_llava(text, vision, lambda name: 2.0 if name.endswith(SHARP) else 1.0, seed, attn).to(dtype)


def drawn_llava(
    text: LlamaConfig, vision: CLIPVisionConfig, gain: Callable[[str], float], seed: int = 0, attn: str = "sdpa"
) -> LlavaForConditionalGeneration:
    """A LLaVA whose weights are drawn anew, in evaluation mode; `gain` is that of a matrix by its module's name."""
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight)
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=gain(name) / module.weight[0].numel() ** 0.5)
    return model.eval()


def random_image(seed: int = 0) -> Image.Image:
    """Noise that differs from patch to patch, (20, 20) RGB pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (GRID * PATCH, GRID * PATCH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(processor: LlavaProcessor, image: Image.Image, question: str = QUESTION) -> BatchFeature:
    """The model inputs of one image and question, through the processor's own chat template."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=image, text=text, return_tensors="pt")
