"""The line that a run says before it measures: what is left to do, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from probes.cost.amounts import Amount
from probes.cost.cost import TRIED, announcement
from probes.data.samples import Sample
from probes.directory.writer import RunWriter
from probes.models.probed import ProbedModel
from probes.plans.jobs import SamplePlanner, jobs_of
from probes.plans.progress import RunProgress


def announce(
    model: ProbedModel, samples: Iterable[Sample], writer: RunWriter, bar: RunProgress, planner: SamplePlanner
) -> Iterable[Sample]:
    """Say what is left to do and what it takes.

    A list is looked through to its end; of a stream the first few samples speak for the others.

    Returns:
        The samples, all of them: a stream loses none of those that were looked at.
    """
    stream, limit = iter(samples), planner.options.limit
    head = list(stream if isinstance(samples, Sequence) else islice(stream, TRIED))
    complete = isinstance(samples, Sequence) or len(head) < TRIED or (limit is not None and limit <= TRIED)
    jobs = list(jobs_of(iter(head[:limit]), writer, None, planner, read=False))
    sample_jobs = [job for job in jobs if job.plan is not None and not job.sample.error]
    if complete and jobs and all(job.plan is None for job in jobs):
        bar.say(f"{len(jobs)} answers to write out; everything else is there")
        return chain(head, stream)
    if not complete and not sample_jobs:
        bar.say(f"as many samples as there come; of the first {len(head)} none is to be measured here")
        return chain(head, stream)
    amount = Amount.of(jobs if complete else sample_jobs[-1:], writer.config)
    bar.say(announcement(model, writer.config, [job.sample for job in sample_jobs], amount, per_sample=not complete))
    return chain(head, stream)
