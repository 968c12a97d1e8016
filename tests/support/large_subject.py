"""A captured prompt with the dimensions of LLaVA-1.5-7B, without its values: enough to count what a run takes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from random_models import QUESTION, random_image, random_llava, random_processor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from analyses.runs import RunOptions
from probes.cost.meters import part_work
from probes.cost.operations import Work, decoder_weights, forward_operations
from probes.cost.workload import Subject
from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.measures.case import Case
from probes.measures.preparing import prepare
from probes.models.grids import TokenGrid
from probes.models.probed import ProbedModel
from probes.parts.part import Part
from probes.plans.options import run_config
from probes.plans.plans import Plan, parts_of

WIDTH, INNER, HEADS, VOCABULARY = 4096, 11008, 32, 32064
SIDE, BEFORE, AFTER = 24, 35, 30  # patches a side, text tokens before and behind the image


@cache
def large_model(depth: int = 32) -> ProbedModel:
    """Decoder layers on the meta device in a small model: they have widths, but no values."""
    config = LlamaConfig(hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=HEADS)
    with torch.device("meta"):
        made = torch.nn.ModuleList(LlamaDecoderLayer(config, layer) for layer in range(depth))
    small = load_model(random_llava(34), processor=random_processor(), dtype="float32", check=False)
    sizes = {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "n_layers": depth, "head_dim": WIDTH // HEADS}
    return replace(small, layers=made, n_heads=HEADS, n_key_value_heads=HEADS, **sizes)


def large_subject(model: ProbedModel) -> Subject:
    """One image of 24 x 24 tokens between two stretches of text, causal; nothing of it can be run."""
    small = load_model(random_llava(34), processor=random_processor(), dtype="float32", check=False)
    sample = Sample("large", random_image(), QUESTION, ("apple",))
    case = prepare(small, sample, ("gold",))
    captured = case.captured
    n = BEFORE + SIDE**2 + AFTER
    prompt = replace(
        captured.prompt,
        inputs={"input_ids": torch.zeros(1, n, dtype=torch.long)},
        visual=torch.arange(BEFORE, BEFORE + SIDE**2),
        grids=(TokenGrid(np.arange(BEFORE, BEFORE + SIDE**2).reshape(SIDE, SIDE)),),
        readout=torch.tensor([n - 1]),
    )
    captured = replace(captured, prompt=prompt, arguments=[{"attention_mask": None}] * model.n_layers)
    return Subject(sample, Case(model, captured, case.targets), decoder_weights(model), 0.0, 0, 0.0)


def large_parts(**options: Any) -> tuple[Part, ...]:
    """What one sample of that model gets; `options` of `run`."""
    asked = RunOptions(**{"probes": ("removal", "information"), "streams": ()} | options)
    config, _ = run_config(asked, large_model(), [])
    return parts_of(config, Plan(tokens="information" in config.probes, spectra=False, layers=config.grid_layers()))


def large_work(**options: Any) -> dict[str, Work]:
    """What one sample of that model takes, by name of its parts; `options` of `run`."""
    subject = large_subject(large_model())
    return {part.name: part_work(subject, part) for part in large_parts(**options) if part.name}


def large_forward() -> float:
    """Operations of the decoder's own forward on that prompt."""
    return forward_operations(decoder_weights(large_model()), BEFORE + SIDE**2 + AFTER, 1)
