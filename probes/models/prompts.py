"""Prompts: a sample as the model's own processor and chat template encode it, and where its visual tokens lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers.video_utils import VideoMetadata

from analyses.runs import TOKENS, HorizonError, check_choice
from probes.data.samples import Sample, SampleError
from probes.models.grids import TokenGrid, Window, text_stretches, tile_windows
from probes.models.layouts import VisualLayout
from probes.models.probed import ProbedModel

NO_INPUT = ("labels",)  # entries that a processor adds for training
RENAMED = {"pixel_values_images": "pixel_values"}  # processors that lag behind their models (Video-LLaVA)


@dataclass(frozen=True)
class Prompt:
    """One sample as its model reads it.

    Attributes:
        inputs: the arguments of the model's forward, a batch of one on the model's device.
        text: the prompt's exact text, with image placeholders as the template writes them.
        visual: (n_visual,) long, positions of the visual tokens in the prompt, ascending.
        grids: the patch grids; their tokens are a subset of `visual`.
        readout: (place,) long, positions whose next-token distribution is measured: the last prompt token, then
            the tokens of a teacher-forced answer except its last.
        image: the decoded image, or the first of several.
        images: all decoded images or frames where there are several, else ().
        tokens: the tokens that replays take away: "visual", "text" or "all".
    """

    inputs: dict[str, Any]
    text: str
    visual: torch.Tensor
    grids: tuple[TokenGrid, ...]
    readout: torch.Tensor
    image: Image.Image
    images: tuple[Image.Image, ...] = ()
    tokens: str = "visual"

    @property
    def removable(self) -> torch.Tensor:
        """The positions of `tokens`, (token,) long, ascending.

        Text is every token that is not visual and comes before the first readout position, with the
        beginning-of-sequence token and the chat markup. Readout positions cannot be taken away.
        """
        if self.tokens == "visual":
            return self.visual
        positions = torch.arange(int(self.readout[0]), device=self.visual.device)
        return positions if self.tokens == "all" else positions[~torch.isin(positions, self.visual)]

    @property
    def removable_grids(self) -> tuple[TokenGrid, ...]:
        """The patch grids, the stretches of text, or both, as `tokens` says."""
        if self.tokens == "visual":
            return self.grids
        text = replace(self, tokens="text").removable
        stretches = text_stretches(text.cpu().numpy())
        return (*(self.grids if self.tokens == "all" else ()), *stretches)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the encoded sequence, a teacher-forced answer included."""
        return self.inputs["input_ids"].shape[1]

    @property
    def placeless(self) -> int:
        """Number of visual tokens without a place on a grid (newline, CLS, separators)."""
        return len(self.visual) - sum(grid.positions.size for grid in self.grids)


def removable_windows(prompt: Prompt, size: int) -> list[Window]:
    """Return the windows of the removable tokens: of each grid, then of each stretch of text between pictures.

    `Window.crop` counts the grids first, whether or not they belong to these tokens.
    """
    return tile_windows(prompt.removable_grids, size, first=len(prompt.grids) if prompt.tokens == "text" else 0)


def encode(model: ProbedModel, sample: Sample, answer_ids: tuple[int, ...] = (), *, tokens: str = "visual") -> Prompt:
    """Return the prompt of pictures and question by the model's chat template, with the tokens of a forced answer.

    Args:
        model: the model whose processor encodes.
        sample: one question about one image, several, or the frames of a video.
        answer_ids: tokens appended after the prompt for the `answer` target.
        tokens: the tokens that replays take away: visual, text or all.

    Raises:
        SampleError: the row or an image cannot be read, or the processor refuses the prompt; or the prompt lacks an
            input that the family needs, has no visual token, other visual tokens than the family's rule explains, or
            no text to take away.
        HorizonError: `tokens` is unknown.
    """
    check_choice("tokens", tokens, TOKENS)
    if sample.error:
        raise SampleError(sample.error)
    images, video = sample.load_images(), bool(sample.frames)
    if video:
        _check_video(model, sample, images)
    text = chat_text(model, sample.question, n_images=len(images), video=video)
    inputs = _without_padding(sample, _process(model, sample, images, text))
    _check_inputs(model, sample, inputs, video)
    visual = _visual_positions(model, sample, inputs["input_ids"][0])
    grids = _grids(model, sample, inputs, visual, images)
    last = inputs["input_ids"].shape[1] - 1
    inputs = _append(model, inputs, answer_ids)
    readout = torch.arange(last, last + max(1, len(answer_ids)), device=model.device)
    several = tuple(images) if len(images) > 1 else ()
    prompt = Prompt(inputs, text, visual, tuple(grids), readout, images[0], several, tokens)
    if not len(prompt.removable):
        raise SampleError(
            f"sample {sample.id!r}: the prompt of {model.name!r} has no {tokens} token before the one read"
        )
    return prompt


def chat_text(model: ProbedModel, question: str, *, n_images: int = 1, video: bool = False) -> str:
    """Return the prompt's text by the model's own chat template, up to where the answer begins.

    Args:
        model: the model whose template is used.
        question: the question without chat markup.
        n_images: number of images before the question.
        video: whether the images are the frames of one video.

    Raises:
        SampleError: the processor has no chat template, and the family declares no plain prompt.
    """
    plain = model.family.plain_prompt
    if plain and getattr(model.processor, "chat_template", None) is None:
        return plain.format(images=model.processor.image_token * n_images, question=question)
    pictures = [{"type": "video"}] if video else [{"type": "image"}] * n_images
    turn = {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
    try:
        return model.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    except (ValueError, TemplateError) as error:
        raise SampleError(
            f"the processor of {model.name!r} has no chat template that renders an image and a question: {error}"
        ) from error


def _check_video(model: ProbedModel, sample: Sample, frames: list[Image.Image]) -> None:
    """Raise SampleError where family or processor cannot take video frames, or the frames differ in size."""
    if not model.family.video:
        raise SampleError(
            f"sample {sample.id!r} has video frames, for which the family {model.family.name!r} has no rule: give them "
            "as images"
        )
    if getattr(model.processor, "video_processor", None) is None:
        raise SampleError(
            f"sample {sample.id!r} has video frames, and the processor of {model.name!r} was loaded without its video "
            "processor, which needs torchvision: install the build that belongs to your torch"
        )
    if len({frame.size for frame in frames}) > 1:
        raise SampleError(f"sample {sample.id!r}: its video frames differ in size")


def _process(model: ProbedModel, sample: Sample, images: list[Image.Image], text: str) -> dict[str, Any]:
    """Return the processor's encoding as tensors on the model's device, pixels in the model's dtype."""
    # nested, as the processors' own chat method passes pictures: some treat several images otherwise than one
    pictures: dict[str, Any] = {"images": [images]}
    if sample.frames:
        metadata = VideoMetadata(len(images), fps=sample.fps, frames_indices=list(range(len(images))))
        pictures = {
            "videos": [np.stack([np.asarray(image) for image in images])],
            "video_metadata": [metadata],
            "do_sample_frames": False,
        }
    try:
        encoding = model.processor(text=[text], return_tensors="pt", **pictures, **_special_tokens(model, text))
    except (ValueError, IndexError, StopIteration) as error:
        raise SampleError(
            f"sample {sample.id!r}: the processor of {model.name!r} refuses its image with the prompt {text!r}: {error}"
        ) from error
    renamed = {RENAMED.get(key, key): value for key, value in encoding.items() if key not in NO_INPUT}
    inputs = {key: torch.as_tensor(value).to(model.device) for key, value in renamed.items()}
    pixels = [key for key, value in inputs.items() if key.startswith("pixel_values") and value.is_floating_point()]
    return inputs | {key: inputs[key].to(model.dtype) for key in pixels}


def _special_tokens(model: ProbedModel, text: str) -> dict[str, bool]:
    """Return the argument that keeps the tokenizer from a second beginning-of-sequence token, if the text has one."""
    begin = model.tokenizer.bos_token
    return {"add_special_tokens": False} if begin and text.startswith(begin) else {}


def _visual_positions(model: ProbedModel, sample: Sample, ids: torch.Tensor) -> torch.Tensor:
    """Return the positions of the visual tokens among the ids, (n_visual,) long; raise SampleError without any."""
    visual_ids = torch.tensor(model.visual_token_ids, device=ids.device)
    positions = torch.isin(ids, visual_ids).nonzero()[:, 0]
    if len(positions) == 0:
        raise SampleError(f"sample {sample.id!r}: the prompt of {model.name!r} holds no visual token")
    return positions


def _without_padding(sample: Sample, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs, a batch of one, without padding at its ends.

    Raises:
        SampleError: the inputs have several rows, or tokens in the middle are masked.
    """
    shape = tuple(inputs["input_ids"].shape)
    if shape[0] != 1:
        raise SampleError(f"sample {sample.id!r}: its input_ids have shape {shape}; one row is expected")
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()):
        return inputs
    tokens = mask[0].nonzero()[:, 0]
    if len(tokens) == 0 or int(tokens[-1] - tokens[0]) + 1 != len(tokens):
        raise SampleError(f"sample {sample.id!r}: its attention mask hides tokens inside the prompt; mask only padding")
    rows = {key for key, value in inputs.items() if value.shape == mask.shape}
    return {key: value[:, tokens] if key in rows else value for key, value in inputs.items()}


def _check_inputs(model: ProbedModel, sample: Sample, inputs: dict[str, Any], video: bool) -> None:
    """Raise SampleError where the encoding lacks an input that the family needs, or has ids unknown to the model."""
    absent = [name for name in model.family.required(video) if name not in inputs]
    if absent:
        raise SampleError(
            f"sample {sample.id!r}: the processor of {model.name!r} gives no {' and no '.join(absent)}, without which "
            f"the family {model.family.name!r} is silently wrong: take the processor of the installed transformers"
        )
    ids, n_rows = inputs["input_ids"][0], model.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    outside = [token for token in ids.unique().tolist() if token >= n_rows and token not in model.visual_token_ids]
    if outside:
        raise SampleError(
            f"sample {sample.id!r}: token id {outside[0]} lies beyond the {n_rows} embeddings of {model.name!r}: its "
            "processor belongs to another model"
        )


def _grids(
    model: ProbedModel, sample: Sample, inputs: dict[str, Any], visual: torch.Tensor, images: list[Image.Image]
) -> list[TokenGrid]:
    """Return the family's grids over the visual tokens; its rule must explain all of them."""
    video = bool(sample.frames)
    layout = VisualLayout(
        config=model.model.config,
        inputs=inputs,
        positions=visual.cpu().numpy(),
        sizes=tuple(image.size for image in images),
        image_processor=model.processor.video_processor if video else model.processor.image_processor,
        video=video,
    )
    try:
        return model.family.grids(layout)
    except HorizonError as error:
        raise SampleError(f"sample {sample.id!r}: {model.name!r} ({model.family.name}): {error}") from error


def _append(model: ProbedModel, inputs: dict[str, Any], answer_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return the inputs with the answer appended, except its last token, after which nothing is read."""
    forced = answer_ids[:-1]
    if not forced:
        return inputs
    ids = inputs["input_ids"]
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([ids, ids.new_tensor([forced])], dim=1)
    fills = {"attention_mask": 1, "token_type_ids": 0, "mm_token_type_ids": 0, **dict(model.family.answer_types)}
    for key, fill in fills.items():
        if key in inputs:
            row = inputs[key]
            extended[key] = torch.cat([row, row.new_full((1, len(forced)), fill)], dim=1)
    return extended
