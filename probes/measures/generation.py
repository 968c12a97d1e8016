"""The whole answer a model gives: greedy decoding by the model's own `generate`, which no measurement depends on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from analyses.runs import HorizonError
from probes.data.samples import Sample, failure_reason
from probes.models.probed import ProbedModel
from probes.models.prompts import encode

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # the generation settings of a checkpoint that stay in force


@dataclass(frozen=True)
class Generation:
    """One generated answer.

    Attributes:
        text: the answer without special tokens.
        ids: the ids of all generated tokens, including the token that ends the answer.
        finished: whether the model ended the answer itself; otherwise it was cut at the limit.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


def generate_answer(model: ProbedModel, sample: Sample, *, max_new_tokens: int = 16) -> Generation:
    """Return the model's answer to a sample, generated with the most probable token at every step.

    Sampling, penalties and suppressed tokens that a checkpoint's generation settings ask for are left out, so that
    the first token is the one whose probability a run measures.

    Args:
        model: the model, as `load_model` returns it.
        sample: one question about its pictures.
        max_new_tokens: the number of tokens after which the answer is cut.

    Raises:
        HorizonError: the limit is below 1. SampleError: the sample cannot be encoded.
    """
    if max_new_tokens < 1:
        raise HorizonError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    inputs = encode(model, sample).inputs
    start = inputs["input_ids"].shape[1]
    with _plain_settings(model) as ends, torch.no_grad():
        sequences = model.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)  # type: ignore[operator]
    ids = sequences[0, start:].tolist()
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    return Generation(text.strip(), tuple(ids), bool(ids) and ids[-1] in ends)


def generation_row(model: ProbedModel, row: int, sample: Sample, max_new_tokens: int) -> dict[str, Any]:
    """Return a sample's row of `GENERATIONS`; an error becomes the row's reason and is not raised."""
    entry: dict[str, Any] = {"row": row, "max_new_tokens": max_new_tokens}
    try:
        generation = generate_answer(model, sample, max_new_tokens=max_new_tokens)
    except Exception as error:  # one bad sample never ends a run
        return {**entry, "error": failure_reason(error)}
    return {
        **entry,
        "text": generation.text,
        "n_tokens": len(generation.ids),
        "finished": generation.finished,
        "error": "",
    }


@contextmanager
def _plain_settings(model: ProbedModel) -> Iterator[frozenset[int]]:
    """Keep of the model's generation settings only the special tokens, and yield the ids that end a text."""
    settings: Any = model.model.generation_config
    special_ids = {name: getattr(settings, name, None) for name in ENDS}
    if special_ids["eos_token_id"] is None:
        special_ids["eos_token_id"] = model.tokenizer.eos_token_id
    ends = (
        special_ids["eos_token_id"] if isinstance(special_ids["eos_token_id"], list) else [special_ids["eos_token_id"]]
    )
    if special_ids["pad_token_id"] is None:
        special_ids["pad_token_id"] = ends[0]
    model.model.generation_config = GenerationConfig(**special_ids)
    try:
        yield frozenset(end for end in ends if end is not None)
    finally:
        model.model.generation_config = settings
