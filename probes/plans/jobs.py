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
from probes.measures.generation import wants_answer
from probes.parts.forward import Answer
from probes.plans.options import RunOptions
from probes.plans.plans import Parts, Plan, parts_of, wanted_probes
from probes.plans.progress import RunProgress


@dataclass(frozen=True)
class Chosen:
    """Which samples are measured, how many of each task get more than the others, and what is done again."""

    options: RunOptions
    retry_failed: bool = False

    def plan(self, place: int, layers: tuple[int, ...]) -> Plan:
        """Of the sample at a place (from 0) among those of its task, with token grids at these layers."""
        most = self.options.token_samples
        return Plan(
            tokens=bool(layers) and (most is None or place < most),
            spectra=place < self.options.spectra,
            gate_check=place < self.options.gate_checks,
            layers=layers,
        )

    def wants_answer(self, row: int, writer: RunWriter) -> bool:
        """Whether a row's whole answer is asked for, and not on disk yet."""
        there = writer.generations.get(row)
        return self.options.generate is not None and wants_answer(there, self.options.generate, self.retry_failed)


@dataclass(frozen=True)
class Job:
    """A sample that is to be measured, or has only its answer to be written out.

    Attributes:
        row: its number.
        sample: what is asked.
        plan: None where everything measured is on disk.
        answer: tokens of the whole answer at most; None where none is wanted.
    """

    row: int
    sample: Sample
    plan: Plan | None
    answer: int | None


def job_parts(job: Job, config: RunConfig) -> Parts:
    """All that a job takes: the parts of its plan, and the answer that is written out."""
    measured = () if job.plan is None else parts_of(config, job.plan)
    return measured if job.answer is None else (*measured, Answer(job.answer))


def jobs_of(
    samples: Iterator[Sample], writer: RunWriter, bar: RunProgress | None, chosen: Chosen, *, read: bool = True
) -> Iterator[Job]:
    """The samples of a shard that are not on disk with everything that they should carry; a bar counts the others.

    Without `read` nothing is taken from disk that such a sample keeps: enough to count, and light.
    """
    index, count = chosen.options.shard
    for row, place, sample in placed(samples):
        sample = _prompted(sample, writer.config)
        if row % count != index:
            if bar:
                bar.pass_over()
            continue
        there = _committed(writer, row, sample)
        plan = chosen.plan(place, writer.config.grid_layers(row, sample.task_type))
        answer = chosen.options.generate if chosen.wants_answer(row, writer) else None
        if there is None or not _suffices(there, writer.config, plan, chosen.retry_failed):
            yield Job(row, sample, _with_what_is_there(plan, row, there, writer, read), answer)
        elif answer is not None and there["status"] == "ok":
            yield Job(row, sample, None, answer)
        elif bar:
            bar.skip()


def placed(samples: Iterable[Sample]) -> Iterator[tuple[int, int, Sample]]:
    """Every sample with its row, and its place (from 0) among those of its task: the first ones may get more."""
    seen: Counter[str] = Counter()
    for row, sample in enumerate(samples):
        yield row, seen[sample.task], sample
        seen[sample.task] += 1


def _prompted(sample: Sample, config: RunConfig) -> Sample:
    """A sample with the run's prompt.

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
    """What is on disk for a row.

    Raises:
        HorizonError: it is another sample's, or another question to it.
    """
    there = writer.committed.get(row)
    if there is None:
        return None
    for name in ("id", "task", "task_type", "question", "answers"):
        held, now = there[name], getattr(sample, name)
        if (list(held) != list(now)) if name == "answers" else held != now:
            raise HorizonError(
                f"{writer.path} was made from other samples: the {name} of row {row} is {held!r} there and {now!r} "
                "now; give the same samples in the same order, or choose another output directory"
            )
    return there


def _suffices(there: dict[str, Any], config: RunConfig, plan: Plan, retry_failed: bool) -> bool:
    """Whether a committed row carries everything that it should."""
    if there["status"] != "ok":
        return there["status"] == "excluded" or not retry_failed
    # a row that was through with its token grids and has none lacks the target
    lacks_layers = plan.tokens and there["token_layers"] and set(plan.layers) - set(there["token_layers"])
    return set(wanted_probes(config, plan)) <= set(there["probes"]) and not lacks_layers


def _with_what_is_there(plan: Plan, row: int, there: dict[str, Any] | None, writer: RunWriter, read: bool) -> Plan:
    """A row that is measured again keeps what it had: its newest commit is the one that holds.

    If it lacks nothing but token grids, those are added to what is on disk, which is read if the row is to be measured.
    """
    if there is None or there["status"] != "ok":
        return plan
    done = set(there["probes"])
    plan = replace(
        plan,
        tokens=plan.tokens or "information" in done,
        spectra=plan.spectra or "spectra" in done,
        gate_check=plan.gate_check or "gate_check" in done,
    )
    wanted = set(wanted_probes(writer.config, plan))
    if not wanted - done <= {"information"} or "gate_check" in wanted:
        return plan
    layers = there["token_layers"]
    held = read_record(writer.path, there["part"], row, layers) if read else None
    return replace(plan, extends=tuple(layers), held=held)
