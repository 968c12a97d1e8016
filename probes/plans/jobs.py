"""Which samples of a stream are still to be measured, and what each gets, given what is on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from analyses.runs import HorizonError, RunConfig
from probes.data.samples import Sample, with_template
from probes.data.video import frame_rule
from probes.directory.committed import read_record
from probes.directory.writer import RunWriter
from probes.parts.forward import Answer
from probes.plans.options import RunOptions
from probes.plans.plans import Parts, Plan, parts_of, wanted_probes
from probes.plans.progress import RunProgress


@dataclass(frozen=True)
class SamplePlanner:
    """Decides what each sample of a run gets.

    Attributes:
        options: the options of the run.
        retry_failed: whether samples and answers that failed before are measured again.
    """

    options: RunOptions
    retry_failed: bool = False

    def plan(self, place: int, layers: tuple[int, ...]) -> Plan:
        """Return the plan of the sample at a place (from 0) among those of its task, with grids at these layers."""
        bound = self.options.token_samples
        return Plan(
            tokens=bool(layers) and (bound is None or place < bound),
            spectra=place < self.options.spectra,
            gate_check=place < self.options.gate_checks,
            layers=layers,
        )

    def wants_answer(self, row: int, writer: RunWriter) -> bool:
        """Whether a row's whole answer is part of the run, and not on disk, or cut there at a lower limit."""
        limit, committed = self.options.generate, writer.generations.get(row)
        if limit is None or committed is None:
            return limit is not None
        if committed["error"]:
            return self.retry_failed
        return not committed["finished"] and committed["max_new_tokens"] < limit


@dataclass(frozen=True)
class Job:
    """A sample that is to be measured, or has only its answer to be written out.

    Attributes:
        row: the sample's row number.
        sample: the sample, with the run's prompt.
        plan: the sample's plan; None where its measurement is on disk already.
        answer: the largest number of tokens of the whole answer; None where no answer is to be generated.
    """

    row: int
    sample: Sample
    plan: Plan | None
    answer: int | None


def job_parts(job: Job, config: RunConfig) -> Parts:
    """Return the parts of a job: those of its plan, and the answer where it is to be generated."""
    parts = () if job.plan is None else parts_of(config, job.plan)
    return parts if job.answer is None else (*parts, Answer(job.answer))


def jobs_of(
    samples: Iterator[Sample], writer: RunWriter, bar: RunProgress | None, planner: SamplePlanner, *, read: bool = True
) -> Iterator[Job]:
    """Yield a job for each sample of a shard that is not complete on disk; the bar counts the other samples.

    Args:
        samples: all samples of the run, in the order of its rows.
        writer: the writer of the run directory, which knows the committed rows.
        bar: the progress bar; None for none.
        planner: decides what each sample gets.
        read: whether the committed records that will be extended are read; not needed where jobs are only counted.
    """
    index, count = planner.options.shard
    for row, place, sample in placed(samples):
        sample = _prompted(sample, writer.config)
        if row % count != index:
            if bar:
                bar.pass_over()
            continue
        committed = _committed(writer, row, sample)
        plan = planner.plan(place, writer.config.grid_layers(row, sample.task_type))
        answer = planner.options.generate if planner.wants_answer(row, writer) else None
        if committed is None or not _suffices(committed, writer.config, plan, planner.retry_failed):
            yield Job(row, sample, _plan_beside_committed(plan, row, committed, writer, read), answer)
        elif answer is not None and committed["status"] == "ok":
            yield Job(row, sample, None, answer)
        elif bar:
            bar.skip()


def placed(samples: Iterable[Sample]) -> Iterator[tuple[int, int, Sample]]:
    """Yield every sample as (row, place, sample), where the place (from 0) is that among the samples of its task.

    The first samples of a task may get more than the others.
    """
    counts: Counter[str] = Counter()
    for row, sample in enumerate(samples):
        yield row, counts[sample.task], sample
        counts[sample.task] += 1


def _prompted(sample: Sample, config: RunConfig) -> Sample:
    """Return a sample with the run's prompt.

    Raises:
        HorizonError: its prompt carries reference OCR tokens, or its frames were chosen by a rule, that the run's
            configuration does not say.
    """
    if sample.ocr_tokens and not config.with_ocr_tokens:
        raise HorizonError(
            f"the prompt of sample {sample.id!r} carries reference OCR tokens: give run() with_ocr_tokens=True, so "
            "that the run says so, or read the samples without them"
        )
    rule = frame_rule(sample.frames)
    if rule and rule != config.video:
        raise HorizonError(
            f"the video of sample {sample.id!r} gives {rule}, and the run says {config.video or 'nothing'!r}: choose "
            "frames by one rule, and give run() video= where images come before videos"
        )
    return with_template(sample, config.prompt)


def _committed(writer: RunWriter, row: int, sample: Sample) -> dict[str, Any] | None:
    """Return what the writer knows of a committed row, None where there is none.

    Raises:
        HorizonError: the row on disk is of another sample, or of another question.
    """
    committed = writer.committed.get(row)
    if committed is None:
        return None
    for name in ("id", "task", "task_type", "question", "answers"):
        stored, current = committed[name], getattr(sample, name)
        if (list(stored) != list(current)) if name == "answers" else stored != current:
            raise HorizonError(
                f"{writer.path} was made from other samples: the {name} of row {row} is {stored!r} there and "
                f"{current!r} now; give the same samples in the same order, or choose another output directory"
            )
    return committed


def _suffices(committed: dict[str, Any], config: RunConfig, plan: Plan, retry_failed: bool) -> bool:
    """Whether a committed row carries everything that it should."""
    if committed["status"] != "ok":
        return committed["status"] == "excluded" or not retry_failed
    # a row that was through with its token grids and has none lacks the target
    lacks_layers = plan.tokens and committed["token_layers"] and set(plan.layers) - set(committed["token_layers"])
    return set(wanted_probes(config, plan)) <= set(committed["probes"]) and not lacks_layers


def _plan_beside_committed(
    plan: Plan, row: int, committed: dict[str, Any] | None, writer: RunWriter, read: bool
) -> Plan:
    """Return a row's plan extended by what is on disk, since the newest commit of a row replaces the older ones.

    A row that lacks nothing but token grids gets only these, added to its committed record, which is loaded if `read`.
    """
    if committed is None or committed["status"] != "ok":
        return plan
    committed_probes = set(committed["probes"])
    plan = replace(
        plan,
        tokens=plan.tokens or "information" in committed_probes,
        spectra=plan.spectra or "spectra" in committed_probes,
        gate_check=plan.gate_check or "gate_check" in committed_probes,
    )
    planned_probes = set(wanted_probes(writer.config, plan))
    if not planned_probes - committed_probes <= {"information"} or "gate_check" in planned_probes:
        return plan
    layers = committed["token_layers"]
    record = read_record(writer.path, committed["part"], row, layers) if read else None
    return replace(plan, committed_layers=tuple(layers), committed_record=record)
