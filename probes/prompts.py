"""Prompts: a sample as the model's own processor and chat template encode it, and where its visual tokens lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from probes.families import Layout
from probes.grids import TokenGrid
from probes.models import ProbedModel
from probes.samples import Sample, SampleError


@dataclass(frozen=True)
class Prompt:
    """One encoded sample.

    Attributes:
        inputs: what the model's forward takes, batch of one, on the model's device.
        text: the prompt's exact text, image placeholders not expanded.
        visual: (n_visual,) long, positions of the visual tokens in the prompt, ascending.
        grids: the patch grids; their tokens are a subset of `visual`.
        readout: (place,) long, positions whose next-token distribution is measured: the last prompt token, then
            the tokens of a teacher-forced answer except its last.
        image: the decoded image.
    """

    inputs: dict[str, Any]
    text: str
    visual: torch.Tensor
    grids: tuple[TokenGrid, ...]
    readout: torch.Tensor
    image: Image.Image

    @property
    def n_tokens(self) -> int:
        """Length of the encoded sequence, a teacher-forced answer included."""
        return self.inputs["input_ids"].shape[1]

    @property
    def placeless(self) -> int:
        """Visual tokens without a place on a grid (newline, CLS, separators)."""
        return len(self.visual) - sum(grid.positions.size for grid in self.grids)


def encode(model: ProbedModel, sample: Sample, answer_ids: tuple[int, ...] = ()) -> Prompt:
    """Encode image and question through the model's chat template, then the answer's tokens if they are forced.

    Args:
        model: as loaded.
        sample: one image, one question.
        answer_ids: tokens appended after the prompt for the `answer` target.

    Raises:
        SampleError: the row or image cannot be read, the processor refuses the prompt, or this holds no visual token
            or not those of the grid.
    """
    if sample.error:
        raise SampleError(sample.error)
    image = sample.load_image()
    text = chat_text(model, sample.question)
    inputs = _process(model, sample, image, text)
    if inputs.get("pixel_values") is not None:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    visual = _visual_positions(model, sample, inputs["input_ids"][0])
    layout = Layout(model.model.config, inputs, visual.cpu().numpy(), image.size, model.processor.image_processor)
    grids = model.family.grids(layout)
    last = inputs["input_ids"].shape[1] - 1
    _check_grids(model, sample, grids, visual)
    inputs = _append(inputs, answer_ids)
    readout = torch.arange(last, last + max(1, len(answer_ids)), device=model.device)
    return Prompt(inputs, text, visual, tuple(grids), readout, image)


def chat_text(model: ProbedModel, question: str) -> str:
    """The prompt's text by the model's own chat template, ending where the answer begins.

    Raises:
        SampleError: the processor has no chat template.
    """
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    try:
        return model.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    except ValueError as error:
        raise SampleError(
            f"the processor of {model.name!r} has no chat template that renders an image and a question: {error}"
        ) from error


def _process(model: ProbedModel, sample: Sample, image: Image.Image, text: str) -> dict[str, Any]:
    try:
        found = model.processor(images=[image], text=[text], return_tensors="pt", **_special_tokens(model, text))
    except ValueError as error:
        raise SampleError(
            f"sample {sample.id!r}: the processor of {model.name!r} refuses its image with the prompt {text!r}: {error}"
        ) from error
    return {key: value.to(model.device) for key, value in found.items() if isinstance(value, torch.Tensor)}


def _special_tokens(model: ProbedModel, text: str) -> dict[str, bool]:
    """A template that writes the beginning-of-sequence token itself must not get a second one."""
    begin = model.tokenizer.bos_token
    return {"add_special_tokens": False} if begin and text.startswith(begin) else {}


def _visual_positions(model: ProbedModel, sample: Sample, ids: torch.Tensor) -> torch.Tensor:
    kinds = torch.tensor(model.visual_token_ids, device=ids.device)
    positions = torch.isin(ids, kinds).nonzero()[:, 0]
    if len(positions) == 0:
        raise SampleError(f"sample {sample.id!r}: the prompt of {model.name!r} holds no visual token")
    return positions


def _check_grids(model: ProbedModel, sample: Sample, grids: list[TokenGrid], visual: torch.Tensor) -> None:
    placed = np.concatenate([grid.positions.ravel() for grid in grids])
    if len(np.unique(placed)) != len(placed) or not np.isin(placed, visual.cpu().numpy()).all():
        raise SampleError(
            f"sample {sample.id!r}: the grids of {model.family.name} place {len(placed)} tokens, "
            f"not distinct visual tokens among the {len(visual)} in the prompt"
        )


def _append(inputs: dict[str, Any], answer_ids: tuple[int, ...]) -> dict[str, Any]:
    """Teacher forcing: the last answer token is never read from, so it is not appended."""
    forced = answer_ids[:-1]
    if not forced:
        return inputs
    ids = inputs["input_ids"]
    extended = dict(inputs)
    extended["input_ids"] = torch.cat([ids, ids.new_tensor([forced])], dim=1)
    for key, fill in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if key in inputs:
            row = inputs[key]
            extended[key] = torch.cat([row, row.new_full((1, len(forced)), fill)], dim=1)
    return extended
