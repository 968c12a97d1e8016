"""The whole answer a model gives: greedy decoding by the model's own `generate`, which no measurement depends on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from analyses.runs import HorizonError
from probes.data.samples import Sample
from probes.models.probed import ProbedModel
from probes.models.prompts import encode

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # what is kept of a model's own generation settings


@dataclass(frozen=True)
class Generation:
    """One generated answer.

    Attributes:
        text: the answer without special tokens.
        ids: all generated tokens, the one that ends the answer included.
        finished: the model ended the answer itself; else it was cut at the limit.
    """

    text: str
    ids: tuple[int, ...]
    finished: bool


def generate_answer(model: ProbedModel, sample: Sample, *, max_new_tokens: int = 16) -> Generation:
    """Let the model answer a sample, by the most probable token at every step.

    Sampling, penalties and suppressed tokens that a checkpoint's generation settings ask for are left out, so that
    the first token is the one whose probability a run measures.

    Args:
        model: as loaded.
        sample: one question about its pictures.
        max_new_tokens: after which the answer is cut.

    Raises:
        HorizonError: the limit is below 1. SampleError: the sample cannot be encoded.
    """
    check_limit(max_new_tokens)
    inputs = encode(model, sample).inputs
    start = inputs["input_ids"].shape[1]
    with _plain_settings(model) as ends, torch.no_grad():
        found = model.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)  # type: ignore[operator]
    ids = found[0, start:].tolist()
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    return Generation(text.strip(), tuple(ids), bool(ids) and ids[-1] in ends)


def generation_row(model: ProbedModel, row: int, sample: Sample, max_new_tokens: int) -> dict[str, Any]:
    """A row of `GENERATIONS`; whatever goes wrong with the sample becomes its reason."""
    entry: dict[str, Any] = {"row": row, "max_new_tokens": max_new_tokens}
    try:
        found = generate_answer(model, sample, max_new_tokens=max_new_tokens)
    except Exception as error:  # one bad sample never ends a run
        reason = str(error) if isinstance(error, HorizonError) else f"{type(error).__name__}: {error}"
        return {**entry, "error": reason}
    return {**entry, "text": found.text, "n_tokens": len(found.ids), "finished": found.finished, "error": ""}


def wants_answer(there: dict[str, Any] | None, max_new_tokens: int, retry_failed: bool) -> bool:
    """Whether a sample still needs its answer written out, given what is on disk, or one that was cut written on."""
    if there is None:
        return True
    if there["error"]:
        return retry_failed
    return not there["finished"] and there["max_new_tokens"] < max_new_tokens


def check_limit(max_new_tokens: int) -> None:
    """Raise HorizonError unless at least one token may be generated."""
    if max_new_tokens < 1:
        raise HorizonError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")


@contextmanager
def _plain_settings(model: ProbedModel) -> Iterator[frozenset[int]]:
    """The model with nothing of its generation settings but the tokens that begin and end a text; yields the latter."""
    own: Any = model.model.generation_config
    kept = {name: getattr(own, name, None) for name in ENDS}
    if kept["eos_token_id"] is None:
        kept["eos_token_id"] = model.tokenizer.eos_token_id
    ends = kept["eos_token_id"] if isinstance(kept["eos_token_id"], list) else [kept["eos_token_id"]]
    if kept["pad_token_id"] is None:
        kept["pad_token_id"] = ends[0]
    model.model.generation_config = GenerationConfig(**kept)
    try:
        yield frozenset(end for end in ends if end is not None)
    finally:
        model.model.generation_config = own
