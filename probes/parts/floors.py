"""The parts that measure the noise floor: before the grids where it decides about them, and after all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probes.directory.columns import FLOORS, floor_columns
from probes.measures.calls import Calls, ReplayCall
from probes.measures.case import Case
from probes.measures.information import GridRequest, window_call
from probes.measures.noise import (
    Witness,
    grid_witness,
    noise_floor,
    null_ablations,
    nulls_at_once,
    removal_witness,
)
from probes.measures.refinement import batch_rows, calls_before_grids, floor_before_grids
from probes.parts.part import Outline, Part, Results
from probes.parts.removals import Removals
from probes.replay.ablations import Ablations, removal_ablations, window_ablations


@dataclass(frozen=True)
class _FloorPart(Part):
    """A measurement of the noise floor.

    Attributes:
        removals: the removals of the sample, in whose batches rounding is measured.
    """

    removals: Removals

    name = "noise floor"
    reads_targets = True


@dataclass(frozen=True)
class FloorBefore(_FloorPart):
    """The noise floor that decides which windows of one context are refined.

    Attributes:
        request: the fine grids.
    """

    request: GridRequest

    def calls(self, case: Case) -> Calls:
        rows = batch_rows(case, calls_before_grids(case, self.request))
        return floor_calls(case, rows, [_middle_removal(case, self.removals)])

    def run(self, case: Case, results: Results) -> Results:
        return results.with_floor(floor_before_grids(case, self.request, results.removals))


@dataclass(frozen=True)
class Floor(_FloorPart):
    """The noise floor of the first target, in the batches that removals and exact grids came in.

    Attributes:
        requests: the exact token grids.
    """

    requests: tuple[GridRequest, ...] = ()

    def _rows(self, case: Case) -> int:
        grids = (window_call(case, request) for request in self.requests)
        return batch_rows(case, [self.removals.call(case), *grids])

    def calls(self, case: Case) -> Calls:
        windows = [_middle_window(case, request) for request in self.requests]
        return floor_calls(case, self._rows(case), [_middle_removal(case, self.removals), *windows])

    def run(self, case: Case, results: Results) -> Results:
        name, target = case.first_target
        witnesses: list[Witness | None] = [removal_witness(case.captured, results.removals[name])]
        for request in self.requests:
            grid, side = results.grids[name, request.context], request.side(case.captured.prompt)
            witnesses.append(grid_witness(case.captured, grid, side, request.kind))
        given = [witness for witness in witnesses if witness]
        floor = noise_floor(case.model, case.captured, target, given, batch_rows=self._rows(case))
        results = results.with_floor(floor)
        return results.with_columns(floor_columns(results.floor or floor))

    def outline(self, case: Case) -> Outline:
        return Outline(dict.fromkeys(FLOORS, float))


def floor_calls(case: Case, rows: int, witnesses: Sequence[Ablations]) -> list[ReplayCall]:
    """The replays of `noise_floor`: nothing removed, in batches of so many rows, then every witness alone."""
    null, recompute = null_ablations(case.model, case.captured, rows)
    at_once = nulls_at_once(null, recompute, rows)
    alone = [ReplayCall(witness, batch_size=1) for witness in witnesses]
    return [ReplayCall(null, at_once, recompute, whole=True), *alone]


def _middle_removal(case: Case, removals: Removals) -> Ablations:
    """A removal in the place of the one that is measured again: which that is lies in the data."""
    cuts = removals.call(case).ablations.layers.tolist()
    return removal_ablations(case.captured, [cuts[len(cuts) // 2]], removals.kind)


def _middle_window(case: Case, request: GridRequest) -> Ablations:
    """A window's ablation in the place of the one that is measured again."""
    windows, cuts = request.windows(case.captured.prompt), request.cuts(case.model)
    middle = windows[len(windows) // 2 :][:1]
    return window_ablations(case.captured, middle, request.context, [cuts[len(cuts) // 2]], request.kind)
