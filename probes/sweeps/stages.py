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


@dataclass(frozen=True)
class Prepared:
    """A job whose sample is encoded.

    Attributes:
        job: the job.
        encoded: the sample before its forward pass; None where its measurement is on disk already.
    """

    job: Job
    encoded: Encoded | None


@dataclass(frozen=True)
class Computed:
    """A job that is through with the model.

    Attributes:
        measured: the sample's results, states included; None where its measurement is on disk already.
        answer: a row of `GENERATIONS`; None where no answer is to be generated, or the sample could not be measured.
    """

    measured: Measured | None
    answer: dict[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """What a job leaves to be written.

    Attributes:
        record: the sample's record; None where its measurement is on disk already.
        answer: a row of `GENERATIONS`; None where no answer was generated.
    """

    record: Record | None
    answer: dict[str, Any] | None


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
        if job.plan is None:
            return Prepared(job, None)
        return Prepared(job, encode_sample(self.model, job.row, job.sample, self.config, job.plan))

    def compute(self, prepared: Prepared) -> Computed:
        """Measure what the plan says, then let the model write out the answer."""
        job, encoded = prepared.job, prepared.encoded
        measured = None if encoded is None else measure(self.model, encoded, self.config, self.batches)
        unmeasured = measured is not None and (measured.error or measured.record.excluded)
        if job.answer is None or unmeasured:
            return Computed(measured, None)
        return Computed(measured, generation_row(self.model, job.row, job.sample, job.answer))

    def finish(self, computed: Computed) -> Outcome:
        """Take the entropies of the states, and complete the record."""
        measured = computed.measured
        return Outcome(None if measured is None else finish(measured, self.config), computed.answer)
