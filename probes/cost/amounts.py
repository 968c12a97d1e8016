"""How much of what is left to do: samples that take the same, and how many there are of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from analyses.runs import RunConfig
from probes.cost.workload import CHECKS, FLOORS, GRID_PARTS, SampleWork
from probes.data.samples import Sample
from probes.plans.jobs import Chosen, Job, placed
from probes.plans.options import RunOptions
from probes.plans.plans import Plan, checks_gates


@dataclass(frozen=True)
class Group:
    """What a sample takes.

    Attributes:
        layers: cuts of the token grids that are measured; none without.
        checked: first-order token grids are held against exact ones.
        added: the grids are added to what is on disk, where the rest is.
        floor: the noise floor is measured; not where grids are added to grids.
    """

    layers: tuple[int, ...] = ()
    checked: bool = False
    added: bool = False
    floor: bool = True

    @classmethod
    def of(cls, plan: Plan, config: RunConfig) -> Group:
        """The one that a planned sample belongs to."""
        layers = plan.layers if plan.tokens and config.contexts else ()
        if plan.extends is None:
            return cls(layers, checks_gates(config, plan))
        missing = tuple(layer for layer in layers if layer not in plan.extends)
        return cls(missing, added=True, floor=not plan.extends)

    def takes(self, part: str) -> bool:
        """Whether a part of a measurement belongs to it; spectra are counted apart."""
        if part == "spectra":
            return False
        if part in FLOORS.values():
            return self.floor and part == FLOORS[bool(self.layers)]
        if part in ("entropies", "removal", "record"):
            return not self.added
        if part in GRID_PARTS:
            return bool(self.layers)
        return self.checked if part in CHECKS.values() else True


@dataclass(frozen=True)
class Amount:
    """How many samples are measured, and what they take.

    Attributes:
        groups: how many samples there are of each.
        spectra: samples whose eigenvalues are kept.
        answers: samples whose whole answer is written out.
        generate: in at most so many tokens.
    """

    groups: Mapping[Group, int]
    spectra: int = 0
    answers: int = 0
    generate: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job], config: RunConfig) -> Amount:
        """Of what is left to do."""
        plans = [job.plan for job in jobs if job.plan is not None and not job.sample.error]
        answers = [job.answer for job in jobs if job.answer is not None]
        return cls(
            groups=Counter(Group.of(plan, config) for plan in plans),
            spectra=sum(plan.spectra and plan.extends is None for plan in plans) if config.streams else 0,
            answers=len(answers),
            generate=max(answers, default=0),
        )

    @property
    def samples(self) -> int:
        """Measured."""
        return sum(self.groups.values())

    @property
    def grids(self) -> int:
        """With token grids."""
        return sum(count for group, count in self.groups.items() if group.layers)

    @property
    def checked(self) -> bool:
        """Whether some estimates are held against exact values."""
        return any(group.checked for group in self.groups)

    @property
    def layers(self) -> tuple[int, ...]:
        """All cuts at which some sample gets token grids, ascending."""
        return tuple(sorted({layer for group in self.groups for layer in group.layers}))

    def total(
        self, works: Mapping[Group, SampleWork], each: Callable[[SampleWork], dict[str, float]]
    ) -> dict[str, float]:
        """One sample's parts for all samples; the noise floors of samples with and without grids together.

        Args:
            works: what a sample of each group takes.
            each: a quantity of it, by part.
        """
        found: dict[str, float] = {}
        for group, count in self.groups.items():
            parts = each(works[group])
            for part in filter(group.takes, parts):
                name = FLOORS[False] if part == FLOORS[True] else part
                found[name] = found.get(name, 0.0) + count * parts[part]
            if self.spectra and "spectra" in parts:
                found["spectra"] = self.spectra * parts["spectra"]
        return found


def planned_amount(samples: Sequence[Sample], asked: RunOptions, config: RunConfig) -> Amount:
    """Of a run that is not begun."""
    chosen, (index, count) = Chosen(asked), asked.shard
    jobs = [
        Job(row, sample, chosen.plan(place, config.grid_layers(row, sample.task_type)), asked.generate)
        for row, place, sample in placed(samples)
        if row % count == index
    ]
    return Amount.of(jobs, config)


def scaled_amount(tasks: Counter[str], asked: RunOptions, config: RunConfig, n_samples: int) -> Amount:
    """Of a run on more samples than are given, tasks in the same proportions; the first of each may get more."""
    counts = [count * n_samples / tasks.total() for count in tasks.values()]
    index, shards = asked.shard
    own = len(range(index, n_samples, shards))

    def first(most: int | None) -> int:
        return round(own / n_samples * sum(counts if most is None else (min(most, count) for count in counts)))

    layers = config.grid_layers() if config.contexts else ()
    grids = first(asked.token_samples) if layers else 0
    checked = min(grids, first(asked.gate_checks)) if config.method == "gate" else 0
    groups = ((Group(), own - grids), (Group(layers), grids - checked), (Group(layers, checked=True), checked))
    return Amount(
        groups={group: count for group, count in groups if count},
        spectra=first(asked.spectra) if config.streams else 0,
        answers=own if asked.generate else 0,
        generate=asked.generate or 0,
    )
