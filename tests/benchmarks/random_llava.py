"""The random LLaVA of the speed benchmarks, its one sample, and the operations that a forward of it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaProcessor

import vlm_horizon as vh

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from random_models import ENDS, SPECIAL, drawn_llava, word_processor

LAYERS, WIDTH, FEED_FORWARD, HEADS = 8, 512, 1376, 8
TOWER_LAYERS, TOWER_WIDTH, TOWER_FEED_FORWARD = 4, 256, 512
GRID, PATCH = 24, 14
VISUAL, BEFORE, AFTER = GRID**2, 35, 30
LENGTH = BEFORE + VISUAL + AFTER
VOCABULARY = 1000
WORDS = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]


def load(grid: int = GRID, layers: int = LAYERS) -> vh.ProbedModel:
    """The model in float32, weights large enough that removals change the answer."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        **ENDS,
    )
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=TOWER_FEED_FORWARD,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=grid * PATCH,
        patch_size=PATCH,
    )
    return vh.load_model(drawn_llava(text, vision, _gain), processor=processor(grid))


def sample(grid: int = GRID) -> vh.Sample:
    """Noise as the image, `AFTER` words as the question."""
    pixels = np.random.default_rng(0).integers(0, 256, (grid * PATCH, grid * PATCH, 3), dtype=np.uint8)
    question = " ".join(f"w{i}" for i in range(BEFORE, BEFORE + AFTER))
    return vh.Sample("noise", Image.fromarray(pixels), question, ("w7",), task="noise")


def layer_operations(rows: int, pairs: float) -> float:
    """Floating-point operations of one decoder layer: `rows` tokens run, `pairs` (query, key) pairs attended."""
    weights = 4 * WIDTH**2 + 3 * WIDTH * FEED_FORWARD
    return 2 * weights * rows + 4 * WIDTH * pairs


def last_layer_operations(rows: int, columns: int) -> float:
    """The last layer of a replay: one row is read, the `rows` - 1 others give queries, keys and values alone."""
    return layer_operations(1, columns) + 2 * 3 * WIDTH**2 * (rows - 1)


def tower_operations() -> float:
    """The vision tower, class token included, and the projector."""
    rows = VISUAL + 1
    weights = 4 * TOWER_WIDTH**2 + 2 * TOWER_WIDTH * TOWER_FEED_FORWARD
    layers = TOWER_LAYERS * (2 * weights * rows + 4 * TOWER_WIDTH * rows**2)
    patches = 2 * VISUAL * 3 * PATCH**2 * TOWER_WIDTH
    projector = 2 * VISUAL * (TOWER_WIDTH * WIDTH + WIDTH**2)
    return layers + patches + projector


def head_operations() -> float:
    """The output embedding at one position."""
    return 2.0 * WIDTH * VOCABULARY


def causal_pairs(rows: int, context: int = 0) -> float:
    """(query, key) pairs of `rows` tokens that see `context` others, those before them, and themselves."""
    return rows * context + rows * (rows + 1) / 2


def _gain(name: str) -> float:
    """Sharp attention, and an output that prefers some words: then what a window adds shows in the probability."""
    if name.endswith("lm_head"):
        return 4.0
    return 2.0 if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj")) else 1.0


def processor(grid: int = GRID) -> LlavaProcessor:
    """`BEFORE` words, the image, and the question."""
    question = "{% for c in messages[0]['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    return word_processor(WORDS, grid, PATCH, f"{' '.join(WORDS[:BEFORE])} <image> {question}")
