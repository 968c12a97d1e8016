"""Measure one sample: every part of its plan on one captured forward pass, as a record to write.

In three stages, so that a run can encode the next sample and finish the last one while the model is at work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from analyses.runs import RunConfig
from probes.data.samples import Sample, failure_reason
from probes.directory.columns import question_entry
from probes.directory.writer import Record
from probes.measures.preparing import capture_targets, encode_targets
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt
from probes.models.targets import Target, answer_length
from probes.parts.part import Results
from probes.plans.plans import Plan, parts_of, wanted_probes, wanted_targets
from probes.replay.batching import BatchPolicy


@dataclass(frozen=True)
class Encoded:
    """A sample before its forward pass: the prompt, or the reason why there is none.

    Attributes:
        entry: the `SAMPLES` columns that the sample itself gives.
        sample: the sample, with the run's prompt.
        plan: the sample's plan.
        prompt: the encoded prompt; None where the sample cannot be encoded.
        fixed: the targets that need no forward pass, by name.
        answer_tokens: the number of tokens of the answer, as in the `SAMPLES` column; None where it is unknown.
        error: why the sample cannot be encoded, or "".
        seconds: the time spent on the sample so far, without waiting.
    """

    entry: dict[str, Any]
    sample: Sample
    plan: Plan
    prompt: Prompt | None
    fixed: dict[str, Target]
    answer_tokens: int | None
    error: str
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A sample after all that needs the model.

    Attributes:
        entry: the `SAMPLES` columns that the sample itself gives.
        results: the results of its parts; empty where it could not be measured.
        plan: the sample's plan.
        error: why it could not be measured, or "".
        seconds: the time spent on the sample so far, without waiting.
    """

    entry: dict[str, Any]
    results: Results
    plan: Plan
    error: str
    seconds: float

    @property
    def record(self) -> Record:
        """The record so far, without what needs no model."""
        return self.results.record


def encode_sample(model: ProbedModel, row: int, sample: Sample, config: RunConfig, plan: Plan) -> Encoded:
    """First stage: decode the image, encode the prompt and the answers. Runs nothing of the model."""
    started = time.monotonic()
    entry = question_entry(row, sample)
    prompt, answer_tokens, error = None, None, ""
    fixed: dict[str, Target] = {}
    try:
        prompt, fixed = encode_targets(model, sample, wanted_targets(config), config.tokens)
        answer_tokens = answer_length(model.tokenizer, sample)
    except Exception as caught:  # one bad sample never ends a run
        error = failure_reason(caught)
    return Encoded(entry, sample, plan, prompt, fixed, answer_tokens, error, time.monotonic() - started)


def measure(model: ProbedModel, encoded: Encoded, config: RunConfig, batches: BatchPolicy | None = None) -> Measured:
    """Second stage: the capture and every part of the plan. Only this one traces, so it belongs to one thread.

    What memory did not hold under `batches` bounds the later batches of this sample, and of all that share the policy.
    """
    started = time.monotonic()
    results, error = Results(Record({})), encoded.error
    if encoded.prompt is not None and not error:
        try:
            results = _part_results(model, encoded, encoded.prompt, config, batches or BatchPolicy())
        except Exception as caught:  # one bad sample never ends a run
            error = failure_reason(caught)
    seconds = encoded.seconds + time.monotonic() - started
    return Measured(encoded.entry, results, encoded.plan, error, seconds)


def _part_results(
    model: ProbedModel, encoded: Encoded, prompt: Prompt, config: RunConfig, batches: BatchPolicy
) -> Results:
    """Return the results of the plan's parts, run in order on one capture, of which only states are held afterwards."""
    plan = encoded.plan
    streams = config.streams if plan.committed_record is None else ()
    case = capture_targets(model, encoded.sample, prompt, wanted_targets(config), encoded.fixed, streams)
    case = replace(case, batches=batches)
    results = Results(plan.committed_record or Record({"answer_tokens": encoded.answer_tokens}))
    for part in parts_of(config, plan):
        if results.record.excluded:
            break
        if case.targets or not part.reads_targets:
            results = part.run(case, results)
    return results


def finish(measured: Measured, config: RunConfig) -> Record:
    """Third stage: entropies of the captured states, and hash and thumbnail of the image. It needs no model."""
    started = time.monotonic()
    error = measured.error
    if not error:
        try:
            record = finished(measured.results)
        except Exception as caught:  # one bad sample never ends a run
            error = failure_reason(caught)
    seconds = measured.seconds + time.monotonic() - started
    if error:
        return Record({**measured.entry, "status": "failed", "error": error, "seconds": seconds})
    if record.excluded:
        return replace(record, sample={**measured.entry, **record.sample, "seconds": seconds})
    columns = {
        "status": "ok",
        "error": "",
        "probes": wanted_probes(config, measured.plan),
        "batch_size": config.batch_size,
        "seconds": seconds
        + (measured.plan.committed_record.sample["seconds"] if measured.plan.committed_record else 0.0),
    }
    return replace(record, sample={**measured.entry, **record.sample, **columns})


def finished(results: Results) -> Record:
    """Return the record, completed by the functions that were put off until after the model's work."""
    record = results.whole_record
    for function in results.later:
        record = function(record)
    return record
