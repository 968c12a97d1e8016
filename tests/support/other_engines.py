"""Engines that the toolkit knows nothing of, and a kind of job that has nothing to do with samples."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import get_context
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Squares:
    """Stages of a job that is a number; its result is the number with its square."""

    def prepare(self, number: int) -> tuple[int, str]:
        return number, str(number)

    def compute(self, prepared: tuple[int, str]) -> tuple[int, int]:
        number, digits = prepared
        return number, number * int(digits)

    def finish(self, computed: tuple[int, int]) -> dict[int, int]:
        return dict([computed])


class Batches:
    """Gives batches of jobs each to a thread of its own; within one, the last job ends first."""

    def __init__(self, size: int = 3) -> None:
        self.size = size
        self.calls = 0

    def run(self, jobs: Iterable[Any], stages: Any, keep: Callable[[Any], object]) -> None:
        self.calls += 1
        source = iter(jobs)
        while batch := list(islice(source, self.size)):
            errors: list[BaseException] = []
            worker = Thread(target=self._work, args=(batch, stages, keep, errors))
            worker.start()
            worker.join()
            if errors:
                raise errors[0]

    @staticmethod
    def _work(batch: list[Any], stages: Any, keep: Callable[[Any], object], errors: list[BaseException]) -> None:
        try:
            for job in reversed(batch):
                keep(stages.finish(stages.compute(stages.prepare(job))))
        except BaseException as error:
            errors.append(error)


class TwoWorkers:
    """Two workers in turn, that stay for as many calls as come; the second is always ahead of the first by a job."""

    def run(self, jobs: Iterable[Any], stages: Any, keep: Callable[[Any], object]) -> None:
        waiting: Any = None
        for number, job in enumerate(jobs):
            computed = stages.compute(stages.prepare(job))
            if number % 2:
                keep(stages.finish(computed))
                keep(stages.finish(waiting))
                waiting = None
            else:
                waiting = computed
        if waiting is not None:
            keep(stages.finish(waiting))


class WorkerError(RuntimeError):
    """A worker died."""


class Breaking:
    """Breaks down after so many results, while the next job is under way."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, jobs: Iterable[Any], stages: Any, keep: Callable[[Any], object]) -> None:
        for number, job in enumerate(jobs):
            computed = stages.compute(stages.prepare(job))
            if number == self.after:
                raise WorkerError(f"a worker died after {number} results")
            keep(stages.finish(computed))


class Forgetful:
    """Loses every second job without a word."""

    def run(self, jobs: Iterable[Any], stages: Any, keep: Callable[[Any], object]) -> None:
        for job in islice(jobs, 0, None, 2):
            keep(stages.finish(stages.compute(stages.prepare(job))))


class InProcesses:
    """Worker processes that live as long as the engine; stages, jobs and results go there and back by pickle."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self._pool.submit(int).result()  # the pool's threads are there from now on

    def run(self, jobs: Iterable[Any], stages: Any, keep: Callable[[Any], object]) -> None:
        pending: deque[Any] = deque()
        sent = pickle.dumps(stages)
        source: Iterator[Any] = iter(jobs)
        for job in islice(source, self.workers):
            pending.append(self._pool.submit(_through, sent, job))
        while pending:
            result = pending.popleft().result()
            for job in islice(source, 1):
                pending.append(self._pool.submit(_through, sent, job))
            keep(result)

    def close(self) -> None:
        self._pool.shutdown()


def _through(sent: bytes, job: Any) -> Any:
    stages = _received(sent)
    return stages.finish(stages.compute(stages.prepare(job)))


@cache
def _received(sent: bytes) -> Any:
    """The stages, with whatever they hold loaded once in a process."""
    return pickle.loads(sent)
