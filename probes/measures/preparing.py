"""Preparing one sample: encode it, capture the forward pass, resolve what counts as its answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from analyses.runs import check_choice
from probes.data.samples import Sample, SampleError
from probes.measures.case import Case
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, encode
from probes.models.targets import TARGET_TABLE, Target, fixed_targets, forced_ids, resolve_targets
from probes.replay.capture import capture_prompt


def prepare(
    model: ProbedModel, sample: Sample, targets: Sequence[str], streams: Sequence[str] = (), tokens: str = "visual"
) -> Case:
    """Return one sample captured, with its targets resolved; there may be none.

    The tokens after which a target is read are appended to the prompt.

    Raises:
        HorizonError: a stream is unknown. SampleError: the sample cannot be measured.
    """
    prompt, fixed = encode_targets(model, sample, targets, tokens)
    return capture_targets(model, sample, prompt, targets, fixed, streams)


def encode_targets(
    model: ProbedModel, sample: Sample, targets: Sequence[str], tokens: str = "visual"
) -> tuple[Prompt, dict[str, Target]]:
    """Return the prompt, and the targets that need no forward pass, by name: the first half of `prepare`.

    Raises:
        SampleError: the sample cannot be encoded, or an answer is needed and missing.
    """
    if sample.error:
        raise SampleError(sample.error)
    prompt = encode(model, sample, forced_ids(targets, model.tokenizer, sample), tokens=tokens)
    return prompt, fixed_targets(targets, model.tokenizer, sample)


def capture_targets(
    model: ProbedModel,
    sample: Sample,
    prompt: Prompt,
    targets: Sequence[str],
    fixed: dict[str, Target],
    streams: Sequence[str] = (),
) -> Case:
    """Return the captured prompt with all its targets, including those that follow from the model's answer.

    This is the second half of `prepare`.

    Raises:
        HorizonError: a stream is unknown. SampleError: the model's output is not finite.
    """
    captured = capture_prompt(model, prompt, streams)
    if not torch.isfinite(captured.log_probs).all():
        raise SampleError(f"sample {sample.id!r}: the model's own output is not finite in {model.dtype}")
    return Case(model, captured, resolve_targets(targets, model.tokenizer, sample, captured.log_probs, fixed))


def prepare_target(model: ProbedModel, sample: Sample, name: str, tokens: str = "visual") -> Case:
    """Return what `prepare` returns for the single target that a caller names.

    Raises:
        HorizonError: the target is unknown. SampleError: the sample cannot be measured, or has no such target.
    """
    check_choice("target", name, TARGET_TABLE)
    case = prepare(model, sample, (name,), tokens=tokens)
    if name not in case.targets:
        raise SampleError(f"sample {sample.id!r}: the model answers wrong, so it has no {name!r} target")
    return case
