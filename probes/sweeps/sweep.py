"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Unpack

from analyses.runs import HorizonError, Run, SweepOptions, load_run
from analyses.runs.keywords import SweepKeywords
from analyses.runs.signatures import takes_options
from probes.data.samples import Sample
from probes.directory.writer import RunWriter
from probes.models.probed import ProbedModel
from probes.plans.jobs import Job, SamplePlanner, jobs_of
from probes.plans.options import run_config
from probes.plans.progress import RunProgress
from probes.sweeps.commits import Commits
from probes.sweeps.engines import Engine, InThreads, InTurn, check_engine
from probes.sweeps.forecast import announce
from probes.sweeps.stages import SampleStages


@takes_options(SweepOptions)
def run(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    engine: Engine | None = None,
    **options: Unpack[SweepKeywords],
) -> Run:
    """Measure every sample and write `out`; samples already there are skipped, so the same call resumes.

    Args:
        model: the model, as `load_model` returns it.
        samples: the samples, whose order fixes the row numbers; give the same ones to resume.
        out: the run directory, new or of the same configuration.
        engine: what runs the jobs; by default this thread with two beside it, or alone where `overlap` is False. The
            results do not depend on it.
        options: by name.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    request = SweepOptions(**options)
    engine = (InThreads() if request.overlap else InTurn()) if engine is None else engine
    check_engine(engine)
    config, samples = run_config(request, model, samples)
    total = len(samples) if isinstance(samples, Sequence) else None
    if request.limit is not None:
        total = request.limit if total is None else min(total, request.limit)
    planner = SamplePlanner(request, request.retry_failed)
    with RunWriter(out, config, shard=request.shard) as writer, RunProgress(total, enabled=request.progress) as bar:
        if request.progress:
            samples = announce(model, samples, writer, bar, planner)
            if not writer.committed:
                bar.say(f"first prompt: {config.prompt_example!r}")
        jobs = jobs_of(islice(samples, request.limit), writer, bar, planner)
        stages = SampleStages(model, writer.config)
        _sweep(jobs, stages, Commits(writer, bar), engine)
    return load_run(out)


def _sweep(jobs: Iterator[Job], stages: SampleStages, commits: Commits, engine: Engine) -> None:
    """Have the engine run all jobs.

    Raises:
        HorizonError: the engine returned without an outcome of every job.
    """
    n_jobs = 0

    def counted_jobs() -> Iterator[Job]:
        nonlocal n_jobs
        for job in jobs:
            n_jobs += 1
            yield job

    engine.run(counted_jobs(), stages, commits.keep)
    name = type(engine).__name__
    if commits.n_outcomes > n_jobs:
        raise HorizonError(
            f"the engine {name} gave {commits.n_outcomes} outcomes of {n_jobs} jobs: some were kept more than once, "
            "of which the newest holds; take another engine, or mend this one"
        )
    undrawn = next(jobs, None) is not None
    if commits.n_outcomes < n_jobs or undrawn:
        raise HorizonError(
            f"the engine {name} gave {commits.n_outcomes} outcomes of {n_jobs} jobs{' and drew no more' * undrawn}: "
            "what it gave is kept; give the same call again for the rest, with another engine if this one stays short"
        )
