"""Who runs the jobs of a run: the one interface that engines have, and the two that need no more than this process.

An engine knows nothing of samples, models or files. It is given jobs, the three stages that each of them goes through,
and a function that takes the results. So the same engine runs whatever can be written as stages, and a new engine
(worker processes, a cluster) is one class with one method that no caller has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from analyses.runs import HorizonError
from probes.sweeps.pipeline import Ahead, Behind

Job = TypeVar("Job")
Prepared = TypeVar("Prepared")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
Job_in = TypeVar("Job_in", contravariant=True)
Result_out = TypeVar("Result_out", covariant=True)


class Stages(Protocol[Job_in, Prepared, Computed, Result_out]):
    """What becomes of a job, in three stages that have no effect but what they return.

    An engine may therefore begin a job again that was lost. An engine that leaves this process sends jobs, stages and
    results by pickle; what stands between two stages of a job stays where it was made.
    """

    def prepare(self, job: Job_in, /) -> Prepared:
        """First stage, which does not touch the model; it may run while other jobs are computed."""
        ...

    def compute(self, prepared: Prepared, /) -> Computed:
        """Second stage, which alone uses the model: in one process, one job at a time."""
        ...

    def finish(self, computed: Computed, /) -> Result_out:
        """Third stage, which does not touch the model and returns something small; it may run beside the others."""
        ...


class Engine(Protocol):
    """Runs jobs. One object may serve several calls of `run`, one after another."""

    def run(
        self,
        jobs: Iterable[Job],
        stages: Stages[Job, Prepared, Computed, Result],
        keep: Callable[[Result], object],
    ) -> None:
        """Take every job through its stages and hand its result to `keep`; return when all are kept.

        What an engine promises: jobs are drawn in their order, one at a time, only as many ahead as it works on, so
        that memory does not grow with their number. Every result is kept once, by one call at a time in this process;
        in the order of the jobs, or as they end. What jobs, a stage or `keep` raise ends the work and is raised here,
        after the jobs that were computed before it are kept. No thread or process works on these jobs afterwards.

        Args:
            jobs: anything; drawing one may take time.
            stages: what becomes of a job.
            keep: takes the result of a job; it may be called from another thread than this one.
        """
        ...


def check_engine(engine: object) -> None:
    """Raise HorizonError unless this is an object with a method `run`."""
    if isinstance(engine, type) or not callable(getattr(engine, "run", None)):
        what = f"the class {engine.__name__}" if isinstance(engine, type) else repr(engine)
        raise HorizonError(
            f"engine is {what}; give an object with the method run(jobs, stages, keep), such as vh.engines.InThreads()"
        )


@dataclass(frozen=True)
class InTurn:
    """Runs job after job in the calling thread, each through all its stages."""

    def run(
        self,
        jobs: Iterable[Job],
        stages: Stages[Job, Prepared, Computed, Result],
        keep: Callable[[Result], object],
    ) -> None:
        """Run the jobs as `Engine.run` says; results come in the order of the jobs."""
        for job in jobs:
            # no name for what stands between two stages: it would be held until the next job is through with them
            keep(stages.finish(stages.compute(stages.prepare(job))))


@dataclass(frozen=True)
class InThreads:
    """Computes in the calling thread, with one thread beside it that prepares jobs and one that finishes them.

    Attributes:
        ahead: jobs that are prepared before their turn, at most; at least 1.
        behind: jobs that are computed and not yet kept when the next one is computed, at most; at least 1.
    """

    ahead: int = 2
    behind: int = 1

    def run(
        self,
        jobs: Iterable[Job],
        stages: Stages[Job, Prepared, Computed, Result],
        keep: Callable[[Result], object],
    ) -> None:
        """Run the jobs as `Engine.run` says; results come in the order of the jobs."""
        prepared = (stages.prepare(job) for job in jobs)
        hand_on = partial(_finish, stages.finish, keep)
        with Behind(depth=self.behind) as behind, Ahead(prepared, depth=self.ahead) as ahead:
            for item in ahead:
                # no name for what was computed: it would be held until the next job is computed
                behind.submit(partial(hand_on, stages.compute(item)))


def _finish(finish: Callable[[Computed], Result], keep: Callable[[Result], object], computed: Computed) -> None:
    keep(finish(computed))
