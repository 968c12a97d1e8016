"""A tiny model of a family as the project sees it beside the plain one, without a processor: prompts built by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from family_models import FamilyCase
from PIL import Image

from probes.loading.loading import _probed
from probes.models.families import Family
from probes.models.grids import TokenGrid
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt
from probes.replay.ablations import Ablations
from probes.replay.capture import Capture, capture_prompt
from probes.replay.replay import replay

# Transformers' eager attention takes its softmax in float32, whatever the model's precision.
TOLERANCE = {"sdpa": 1e-9, "eager": 2e-5}


@dataclass(frozen=True)
class Bench:
    """One case; `model` is the plain model and shares no object with `probed`."""

    case: FamilyCase
    attn: str
    model: torch.nn.Module
    probed: ProbedModel
    prompt: Prompt

    @property
    def tolerance(self) -> float:
        """Largest difference that rounding explains."""
        return TOLERANCE[self.attn]

    def capture(self, *streams: str) -> Capture:
        """One forward pass by the project."""
        return capture_prompt(self.probed, self.prompt, streams)

    def replay(self, ablations: Ablations, **options: torch.Tensor) -> torch.Tensor:
        """(ablation, vocabulary) log p by the project."""
        found = torch.full((len(ablations), self.probed.vocab_size), math.nan, dtype=torch.float64)
        for indices, log_probs in replay(self.probed, self.capture(), ablations, **options):
            found[indices] = log_probs[:, 0]
        return found


def bench_of(case: FamilyCase, attn: str, dtype: torch.dtype = torch.float64) -> Bench:
    """The model built twice from one seed, and the prompt with the grids of its truth."""
    model = case.build(attn=attn, dtype=dtype)
    probed = _probed(model, None, case.name, None, Family(case.name, lambda _: []), attn, None)
    prompt = Prompt(
        inputs={name: one.to(dtype) if one.is_floating_point() else one for name, one in case.inputs.items()},
        text="",
        visual=case.visual,
        grids=tuple(TokenGrid(grid) for grid in case.grids),
        readout=torch.tensor([case.n_tokens - 1]),
        image=Image.new("RGB", (1, 1)),
    )
    return Bench(case, attn, case.build(attn=attn, dtype=dtype), probed, prompt)


def mask_of(case: FamilyCase, positions: torch.Tensor) -> torch.Tensor:
    """(token,) bool, true at the positions."""
    mask = torch.zeros(case.n_tokens, dtype=torch.bool)
    mask[positions] = True
    return mask
