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
    """What the parts of one sample have measured so far.

    Attributes:
        record: the record to be written, without token grids.
        removals: the removal curves, by target.
        coarse: the grids of coarse windows, by target and context.
        grids: the token grids, by target and context.
        floor: the noise floor so far; None before it is measured.
        later: functions that complete the record after the model's work; they must not hold the capture.
    """

    record: Record
    removals: Mapping[str, RemovalCurve] = field(default_factory=dict)
    coarse: Grids = field(default_factory=dict)
    grids: Grids = field(default_factory=dict)
    floor: NoiseFloor | None = None
    later: tuple[Callable[[Record], Record], ...] = ()

    def with_columns(self, columns: Mapping[str, Any]) -> Results:
        """Return the results with more values of the `SAMPLES` columns."""
        return replace(self, record=replace(self.record, sample={**self.record.sample, **columns}))

    def with_curves(self, rows: Iterable[CurveRow]) -> Results:
        """Return the results with more rows of `CURVES`."""
        return replace(self, record=replace(self.record, curves=[*self.record.curves, *rows]))

    def with_grids(self, context: str, grids: Mapping[str, InformationGrid]) -> Results:
        """Return the results with the token grids of one context, which are given by target."""
        return replace(self, grids=self.grids | {(name, context): grid for name, grid in grids.items()})

    def with_floor(self, floor: NoiseFloor) -> Results:
        """Return the results with a noise floor: the larger one in each measure, where there is one already."""
        return replace(self, floor=floor if self.floor is None else floor.or_larger(self.floor))

    def and_later(self, function: Callable[[Record], Record]) -> Results:
        """Return the results with one more function that completes the record."""
        return replace(self, later=(*self.later, function))

    @property
    def whole_record(self) -> Record:
        """The record with the new token grids merged into those that it had."""
        if not self.grids:
            return self.record
        first = next(iter(self.grids.values()))
        entry = {**self.record.sample, "windows": first.windows.to_dict("records")}
        return merge_grids(replace(self.record, sample=entry), token_arrays(self.grids), first.layers.tolist())


@dataclass(frozen=True)
class Outline:
    """The shape of what a part leaves on disk, without the values.

    Attributes:
        columns: the columns of the samples table, with a type in the place of each measured number.
        curves: the rows of the curves, each with the type of its value.
        tokens: the shapes of the arrays of `Record.tokens`, by name.
        spectra: the shapes of the arrays of `Record.spectra`, by name.
        token_layers: the layers of `tokens`.
    """

    columns: Mapping[str, Any] = field(default_factory=dict)
    curves: tuple[tuple[str, str, int, str, str, type], ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spectra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    token_layers: tuple[int, ...] = ()

    def __or__(self, other: Outline) -> Outline:
        """Return the union of two outlines; where they share a name, this one's value is taken."""
        return Outline(
            columns={**other.columns, **self.columns},
            curves=self.curves + other.curves,
            tokens={**other.tokens, **self.tokens},
            spectra={**other.spectra, **self.spectra},
            token_layers=self.token_layers or other.token_layers,
        )


@dataclass(frozen=True)
class Part:
    """One part of a sample's measurement; this base class runs nothing and leaves nothing.

    A part says what it will run before it runs it. So the cost of a run is counted, timed and sized from its parts, by
    rules that know the kinds of calls and no part by name.
    """

    @property
    def name(self) -> str:
        """The part's name in a cost; the costs of parts with one name are added up."""
        return ""

    @property
    def probe(self) -> str:
        """The probe that a committed row with this part says it carries; "" where there is none."""
        return ""

    @property
    def reads_targets(self) -> bool:
        """Whether the part is left out where a sample has no target."""
        return False

    @property
    def less(self) -> str:
        """When this part, or those after it, take less than their calls, in words; "" where the calls are exact."""
        return ""

    def calls(self, case: Case) -> Calls:
        """Return the calls that the part will run on a sample.

        Where these depend on what other parts measure, they are the most possible, or calls of the same size.
        """
        return ()

    def run(self, case: Case, results: Results) -> Results:
        """Run the part and return the results of the parts before it with its own."""
        return results

    def outline(self, case: Case) -> Outline:
        """Return the shape of what the part leaves on disk."""
        return Outline()


def outline_of(parts: Iterable[Part], case: Case) -> Outline:
    """Return the shape of what these parts leave on disk together."""
    return reduce(or_, (part.outline(case) for part in parts), Outline())
