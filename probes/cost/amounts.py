"""How much of what is left to do: lists of parts, and how many samples get each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analyses.runs import RunConfig
from probes.data.samples import Sample
from probes.parts.forward import Forward
from probes.parts.part import Part
from probes.plans.jobs import Job, SamplePlanner, job_parts, placed
from probes.plans.options import RunOptions
from probes.plans.plans import Parts


@dataclass(frozen=True)
class Amount:
    """The amount of work of a run.

    Attributes:
        lists: the number of samples that get each list of parts.
    """

    lists: Mapping[Parts, int]

    @classmethod
    def of(cls, jobs: Sequence[Job], config: RunConfig) -> Amount:
        """Return the amount of work of these jobs; samples that cannot be read take none."""
        return cls(Counter(job_parts(job, config) for job in jobs if not job.sample.error))

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts that some sample gets, once each."""
        return tuple(dict.fromkeys(part for parts in self.lists for part in parts))

    @property
    def samples(self) -> int:
        """The number of samples that are measured."""
        return self._count(lambda part: isinstance(part, Forward))

    @property
    def grids(self) -> int:
        """The number of samples that get token grids."""
        return self._count(lambda part: part.probe == "information")

    def _count(self, has: Callable[[Part], bool]) -> int:
        return sum(count for parts, count in self.lists.items() if any(map(has, parts)))

    def total(self, values: Mapping[Part, float]) -> dict[str, float]:
        """Return the sum over all samples by the names of parts, given one sample's value for each part."""
        sums: dict[str, float] = {}
        for parts, count in self.lists.items():
            for part in parts:
                if values[part]:
                    sums[part.name] = sums.get(part.name, 0.0) + count * values[part]
        return sums


def planned_amount(samples: Sequence[Sample], options: RunOptions, config: RunConfig) -> Amount:
    """Return the amount of work of a run on these samples that has not begun."""
    planner, (index, count) = SamplePlanner(options), options.shard
    jobs = [
        Job(row, sample, planner.plan(place, config.grid_layers(row, sample.task_type)), options.generate)
        for row, place, sample in placed(samples)
        if row % count == index
    ]
    return Amount.of(jobs, config)


def scaled_amount(samples: Sequence[Sample], options: RunOptions, config: RunConfig, n_samples: int) -> Amount:
    """Return the amount of work of a run on `n_samples` samples, with tasks in the proportions of those given.

    The first samples of each task may get more than the others.
    """
    tasks = Counter(sample.task for sample in samples)
    counts = [count * n_samples / tasks.total() for count in tasks.values()]
    index, shards = options.shard
    shard_samples = len(range(index, n_samples, shards))

    def first(bound: float) -> int:
        return round(shard_samples / n_samples * sum(min(bound, count) for count in counts))

    planner, layers = SamplePlanner(options), config.grid_layers()
    bounds = sorted({0, *(bound for bound in (options.token_samples, options.gate_checks, options.spectra) if bound)})
    lists: Counter[Parts] = Counter()
    for start, end in zip(bounds, [*bounds[1:], float("inf")], strict=True):
        job = Job(index, samples[0], planner.plan(start, layers), options.generate)
        lists[job_parts(job, config)] += first(end) - first(start)
    return Amount(+lists or lists)
