"""What every part of a measurement has in common, and what the parts of one sample hand on to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any

from probes.directory.columns import CurveRow, Grids, token_arrays
from probes.directory.committed import merge_grids
from probes.directory.writer import Record
from probes.measures.calls import Calls
from probes.measures.case import Case
from probes.measures.information import InformationGrid, RemovalCurve
from probes.measures.noise import NoiseFloor


@dataclass(frozen=True)
class Results:
    """What the parts of one sample have given so far.

    Attributes:
        record: what is to be written, token grids excepted.
        removals: by target.
        coarse: grids of the windows measured first, by target and context.
        grids: token grids, by target and context.
        floor: the noise floor as known so far.
        later: what is still to be made of the record when the model is through; it must not hold the capture.
    """

    record: Record
    removals: Mapping[str, RemovalCurve] = field(default_factory=dict)
    coarse: Grids = field(default_factory=dict)
    grids: Grids = field(default_factory=dict)
    floor: NoiseFloor | None = None
    later: tuple[Callable[[Record], Record], ...] = ()

    def with_columns(self, columns: Mapping[str, Any]) -> Results:
        """With values of the `SAMPLES` columns."""
        return replace(self, record=replace(self.record, sample={**self.record.sample, **columns}))

    def with_curves(self, rows: Iterable[CurveRow]) -> Results:
        """With rows of `CURVES`."""
        return replace(self, record=replace(self.record, curves=[*self.record.curves, *rows]))

    def with_grids(self, context: str, grids: Mapping[str, InformationGrid]) -> Results:
        """With the token grids of one context, by target."""
        return replace(self, grids=self.grids | {(name, context): grid for name, grid in grids.items()})

    def with_floor(self, floor: NoiseFloor) -> Results:
        """With a noise floor that is at least as large as this one."""
        return replace(self, floor=floor if self.floor is None else floor.or_larger(self.floor))

    def and_later(self, function: Callable[[Record], Record]) -> Results:
        """With one thing more to be made of the record."""
        return replace(self, later=(*self.later, function))

    @property
    def whole_record(self) -> Record:
        """The record with its token grids, among those that it had."""
        if not self.grids:
            return self.record
        first = next(iter(self.grids.values()))
        entry = {**self.record.sample, "windows": first.windows.to_dict("records")}
        return merge_grids(replace(self.record, sample=entry), token_arrays(self.grids), first.layers.tolist())


@dataclass(frozen=True)
class Outline:
    """What a part leaves on disk, without the values.

    Attributes:
        columns: of the samples table, with a type in the place of each measured number.
        curves: rows of the curves, each with the type of its value.
        tokens: shapes of arrays, as `Record.tokens`.
        spectra: shapes of arrays, as `Record.spectra`.
        token_layers: the layers of `tokens`.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    curves: tuple[tuple[str, str, int, str, str, type], ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spectra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    token_layers: tuple[int, ...] = ()

    def __or__(self, other: Outline) -> Outline:
        """Both together; where they share a name, it is this one's."""
        return Outline(
            columns={**other.columns, **self.columns},
            curves=self.curves + other.curves,
            tokens={**other.tokens, **self.tokens},
            spectra={**other.spectra, **self.spectra},
            token_layers=self.token_layers or other.token_layers,
        )


@dataclass(frozen=True)
class Part:
    """One part of what a sample gets; a base that runs nothing and leaves nothing.

    A part knows what it runs before it runs it. So what a run takes is counted, timed and sized from its parts, by
    rules that know the kinds of calls and no part by name.
    """

    @property
    def name(self) -> str:
        """Of what it takes, in a cost: parts of one name are added up."""
        return ""

    @property
    def probe(self) -> str:
        """What a committed row with this part says that it carries, if anything."""
        return ""

    @property
    def reads_targets(self) -> bool:
        """Whether it is left out where a sample has none of its targets."""
        return False

    @property
    def less(self) -> str:
        """When it, or what follows it, takes less than its calls, in words; nothing where they say all."""
        return ""

    def calls(self, case: Case) -> Calls:
        """What it will run on a sample; or at most, or the like of it, where that depends on what others find."""
        return ()

    def run(self, case: Case, results: Results) -> Results:
        """Run it, after the parts before it."""
        return results

    def outline(self, case: Case) -> Outline:
        """What it leaves on disk."""
        return Outline()


def outline_of(parts: Iterable[Part], case: Case) -> Outline:
    """What parts leave on disk together."""
    return reduce(or_, (part.outline(case) for part in parts), Outline())
