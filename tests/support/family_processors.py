"""Real processors for the tiny models of all families, around a tokenizer of a few words and without torchvision.

Six processors insist on a video processor, which is made of torchvision. Here each gets a stand-in that cuts frames up
as the real one does. SmolVLM's also insists on num2words, which it needs for videos only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import family_models as fm
import numpy as np
import torch
import transformers as tf
from family_models import PATCH, VOCABULARY
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers.models.smolvlm import processing_smolvlm

SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<video>", "<start>", "<end>", "<mark>")  # ids as in family_models
WORDS = ("<unk>", "what", "is", "shown", "?", "answer", "apple", "bridge", "candle")
TEMPLATE = (
    "{% for m in messages %}what {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE {% elif c['type'] == 'video' %}VIDEO {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}"
)


class Frames:
    """Stands in for a video processor: square frames, of (frame, row, column, color) pixels."""

    merge_size, temporal_patch_size = 2, 2

    def __init__(self, side: int, patches: bool = False, key: str = "pixel_values_videos") -> None:
        self.size, self.patches, self.key = {"height": side, "width": side}, patches, key

    def to_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    def __call__(self, videos: list[np.ndarray], **kwargs: Any) -> dict[str, Any]:
        assert kwargs["do_sample_frames"] is False
        (metadata,) = kwargs["video_metadata"]
        assert metadata.frames_indices == list(range(len(videos[0])))
        sides = self.size["width"], self.size["height"]
        frames = np.stack([np.asarray(Image.fromarray(frame).resize(sides)) for frame in videos[0]])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255 - 0.5
        metadata.fps = metadata.fps or 24
        if not self.patches:
            return {self.key: pixels, "video_metadata": [metadata]}
        steps, rows = len(frames) // self.temporal_patch_size, sides[1] // PATCH
        cut = pixels[0].reshape(steps, 2, 3, rows // 2, 2, PATCH, rows // 2, 2, PATCH)
        flat = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(steps * rows * rows, -1)
        return {self.key: flat, "video_grid_thw": torch.tensor([[steps, rows, rows]]), "video_metadata": [metadata]}


def with_frames(kind: type) -> type:
    """The processor class, taking a stand-in for its video processor."""

    class Accepting(kind):
        def check_argument_for_proper_class(self, argument_name, argument):
            return (
                None
                if argument_name == "video_processor"
                else super().check_argument_for_proper_class(argument_name, argument)
            )

    Accepting.__name__ = kind.__name__
    return Accepting


def tokenizer(mark: str = "<mark>", **named: str) -> tf.PreTrainedTokenizerFast:
    """One id a word, ids as in `family_models`; `named` are the tokens that a processor asks its tokenizer for."""
    special = (*SPECIAL[:-1], mark)
    filler = [f"word{i}" for i in range(VOCABULARY - len(SPECIAL) - len(WORDS))]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate((*special, *WORDS, *filler))}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"} | named,
    )
    made.add_special_tokens({"additional_special_tokens": [s for s in special[5:] if s not in named.values()]})
    return made


def template(image: str = "<image>", video: str = "<video>") -> str:
    """A chat template with a family's own placeholders."""
    return TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def square(side: int) -> dict[str, int]:
    return {"height": side * PATCH, "width": side * PATCH}


def clip(side: int, **changes: Any) -> tf.CLIPImageProcessorPil:
    """Shortest edge to length, then the center."""
    return tf.CLIPImageProcessorPil(**{"size": {"shortest_edge": side * PATCH}, "crop_size": square(side)} | changes)


def llava(side: int, image_processor: Any = None) -> tf.LlavaProcessor:
    return tf.LlavaProcessor(
        image_processor=image_processor or clip(side),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )


def llava_next(side: int, pinpoints: list[list[int]]) -> tf.LlavaNextProcessor:
    size = {"shortest_edge": side * PATCH}
    return tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessorPil(
            size=size, crop_size=square(side), image_grid_pinpoints=pinpoints
        ),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )


def llava_onevision(side: int, pinpoints: list[list[int]], aspect: str) -> tf.LlavaOnevisionProcessor:
    return with_frames(tf.LlavaOnevisionProcessor)(
        image_processor=tf.LlavaOnevisionImageProcessorPil(size=square(side), image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer(),
        video_processor=Frames(side * PATCH),
        num_image_tokens=side**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        chat_template=template(),
    )


def qwen(kind: type) -> Any:
    """Images of 4 to 30 tokens."""
    pixels = (2 * PATCH) ** 2
    return with_frames(kind)(
        image_processor=tf.Qwen2VLImageProcessorPil(
            patch_size=PATCH, merge_size=2, size={"shortest_edge": 4 * pixels, "longest_edge": 30 * pixels}
        ),
        tokenizer=tokenizer(vision_start_token="<start>", vision_end_token="<end>"),
        video_processor=Frames(6 * PATCH, patches=True),
        chat_template=template("<start><image><end>", "<video>"),
    )


def internvl(side: int) -> tf.InternVLProcessor:
    """Up to six tiles of 2 side x 2 side patches, side x side tokens."""
    names = {"start_image_token": "<start>", "end_image_token": "<end>", "context_image_token": "<image>"}
    return with_frames(tf.InternVLProcessor)(
        image_processor=tf.GotOcr2ImageProcessorPil(size=square(2 * side), max_patches=6),
        tokenizer=tokenizer(**names),
        video_processor=Frames(2 * side * PATCH),
        image_seq_length=side**2,
        chat_template=template(),
    )


def idefics3(side: int, longest: int) -> tf.Idefics3Processor:
    return tf.Idefics3Processor(
        tf.Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": 2 * side * PATCH}),
        tokenizer(mark="<fake_token_around_image>"),
        image_seq_len=side**2,
        chat_template=template(),
    )


def smolvlm(side: int, longest: int) -> tf.SmolVLMProcessor:
    """Its own constructor, with a word for num2words, which writes out the number of frames."""
    held = processing_smolvlm.num2words
    processing_smolvlm.num2words = held or str
    frames = Frames(2 * side * PATCH, key="pixel_values")
    frames.num_frames, frames.fps = 8, 1
    return with_frames(tf.SmolVLMProcessor)(
        tf.SmolVLMImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": 2 * side * PATCH}),
        tokenizer(mark="<fake_token_around_image>"),
        frames,
        image_seq_len=side**2,
        chat_template=template(),
    )


def paligemma(side: int) -> tf.PaliGemmaProcessor:
    """Without a chat template, as on the hub."""
    images = tf.SiglipImageProcessorPil(size=square(side))
    images.image_seq_length = side**2
    return tf.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer())


def gemma3(side: int, **images: Any) -> tf.Gemma3Processor:
    return tf.Gemma3Processor(
        tf.Gemma3ImageProcessorPil(size=square(2 * side), **images),
        tokenizer(boi_token="<start>", eoi_token="<end>"),
        image_seq_length=side**2,
        chat_template=template("<start>"),
    )


def video_llava(side: int) -> tf.VideoLlavaProcessor:
    return with_frames(tf.VideoLlavaProcessor)(
        image_processor=tf.VideoLlavaImageProcessor(size={"shortest_edge": side * PATCH}, crop_size=square(side)),
        video_processor=Frames(side * PATCH),
        tokenizer=tokenizer(),
        patch_size=PATCH,
        chat_template=template(),
    )


@dataclass(frozen=True)
class Pair:
    """A tiny model and the processor that belongs to it.

    Attributes:
        name: of the family, and what is special about this pair.
        make: () -> (model class, configuration).
        processor: () -> processor.
        video: it takes frames.
    """

    name: str
    make: Callable[[], tuple[type[nn.Module], Any]]
    processor: Callable[[], Any]
    video: bool = False

    def build(self) -> tuple[nn.Module, Any]:
        """Float64 model with weights of its own, and processor."""
        return fm.build(*self.make(), 0, "sdpa", torch.float64), self.processor()


def _changed(make: Callable[[], tuple[type[nn.Module], Any]], **changes: Any) -> tuple[type[nn.Module], Any]:
    kind, config = make()
    for name, value in changes.items():
        setattr(config, name, value)
    return kind, config


NEXT_PINPOINTS = [[20, 40], [40, 20], [40, 40]]
ONE_PINPOINTS = [[20, 20], [20, 40], [40, 20], [40, 40], [20, 60], [60, 20]]
_ONE = partial(_changed, partial(fm.llava_onevision, 5), image_grid_pinpoints=ONE_PINPOINTS)
_POOLED = partial(_ONE, vision_aspect_ratio="anyres_max_1")

PAIRS = (
    Pair("llava", partial(fm.llava, 5), partial(llava, 5)),
    Pair("llava_next", partial(fm.llava_next, 5), partial(llava_next, 5, NEXT_PINPOINTS)),
    Pair("llava_onevision", _ONE, partial(llava_onevision, 5, ONE_PINPOINTS, "anyres_max_9"), video=True),
    Pair("llava_onevision-pooled", _POOLED, partial(llava_onevision, 5, ONE_PINPOINTS, "anyres_max_1"), video=True),
    Pair("qwen2_vl", fm.qwen2_vl, partial(qwen, tf.Qwen2VLProcessor), video=True),
    Pair("qwen2_5_vl", fm.qwen2_5_vl, partial(qwen, tf.Qwen2_5_VLProcessor), video=True),
    Pair("qwen3_vl", fm.qwen3_vl, partial(qwen, tf.Qwen3VLProcessor), video=True),
    Pair("internvl", partial(fm.internvl, 3), partial(internvl, 3), video=True),
    Pair("idefics3", partial(fm.idefics3, 3), partial(idefics3, 3, 72)),
    Pair("smolvlm", partial(fm.smolvlm, 3), partial(smolvlm, 3, 72), video=True),
    Pair("paligemma", partial(fm.paligemma, 5), partial(paligemma, 5)),
    Pair("gemma3", partial(fm.gemma3, 3), partial(gemma3, 3)),
    Pair("video_llava", partial(fm.video_llava, 5), partial(video_llava, 5), video=True),
)
