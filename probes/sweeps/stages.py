"""What becomes of a job of a run, in the three stages of an engine: a sample measured, its answer written out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from analyses.runs import RunConfig
from probes.directory.writer import Record
from probes.measures.generation import generation_row
from probes.models.probed import ProbedModel
from probes.plans.jobs import Job
from probes.replay.batching import BatchPolicy
from probes.sweeps.measure import Encoded, Measured, encode_sample, finish, measure

# What stands between the stages; None where the sample's measurement is on disk already, or no answer is written out.
Prepared = tuple[Job, Encoded | None]
Computed = tuple[Measured | None, dict[str, Any] | None]  # an answer is a row of `GENERATIONS`
Outcome = tuple[Record | None, dict[str, Any] | None]


@dataclass(frozen=True)
class SampleStages:
    """The stages of a run's jobs; an engine sees no more of them than their three methods.

    A sample that cannot be measured ends as a record with the reason, so no sample ends a run.

    Attributes:
        model: the model that is measured.
        config: the configuration of the run.
        batches: the policy for the size of replay batches. A batch that did not fit in memory bounds all later ones.
    """

    model: ProbedModel
    config: RunConfig
    batches: BatchPolicy = field(default_factory=BatchPolicy)

    def prepare(self, job: Job) -> Prepared:
        """Decode the picture, and encode the prompt and the answers."""
        return job, encode_sample(self.model, job.row, job.sample, self.config, job.plan) if job.plan else None

    def compute(self, prepared: Prepared) -> Computed:
        """Measure what the plan says, then let the model write out the answer."""
        job, encoded = prepared
        measured = measure(self.model, encoded, self.config, self.batches) if encoded else None
        if job.answer is None or (measured and (measured.error or measured.record.excluded)):
            return measured, None
        return measured, generation_row(self.model, job.row, job.sample, job.answer)

    def finish(self, computed: Computed) -> Outcome:
        """Take the entropies of the states, and complete the record."""
        measured, answer = computed
        return finish(measured, self.config) if measured else None, answer
