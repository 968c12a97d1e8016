"""The parts that measure the noise floor: before the grids where it decides about them, and after all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from probes.directory.columns import FLOORS, floor_columns
from probes.measures.calls import Calls, ReplayCall
from probes.measures.case import Case
from probes.measures.information import GridRequest, window_call
from probes.measures.noise import (
    grid_witness_layers,
    grid_witnesses,
    noise_floor,
    null_ablations,
    removal_witness_layers,
    removal_witnesses,
)
from probes.measures.refinement import calls_before_grids, floor_before_grids, longest_rows
from probes.parts.part import Outline, Part, Results
from probes.parts.removals import Removals
from probes.replay.ablations import Ablations, removal_ablations, window_ablations


@dataclass(frozen=True)
class _FloorPart(Part):
    """A measurement of the noise floor.

    Attributes:
        removals: the sample's part of removals, in whose batches rounding is measured.
    """

    removals: Removals

    name = "noise floor"
    reads_targets = True


@dataclass(frozen=True)
class FloorBefore(_FloorPart):
    """The noise floor that decides which windows of one context are refined.

    Attributes:
        request: the request for the fine grids.
    """

    request: GridRequest

    def calls(self, case: Case) -> Calls:
        rows = longest_rows(case, calls_before_grids(case, self.request))
        return floor_calls(case, rows, _likely_removals(case, self.removals))

    def run(self, case: Case, results: Results) -> Results:
        return results.with_floor(floor_before_grids(case, self.request, results.removals))


@dataclass(frozen=True)
class Floor(_FloorPart):
    """The noise floor of the first target, in the batches that removals and exact grids came in.

    Attributes:
        requests: the requests for the exact token grids, one per context.
    """

    requests: tuple[GridRequest, ...] = ()

    def _rows(self, case: Case) -> int:
        grids = (window_call(case, request) for request in self.requests)
        return longest_rows(case, [self.removals.call(case), *grids])

    def calls(self, case: Case) -> Calls:
        windows = [witness for request in self.requests for witness in _likely_windows(case, request)]
        return floor_calls(case, self._rows(case), [*_likely_removals(case, self.removals), *windows])

    def run(self, case: Case, results: Results) -> Results:
        name, target = case.first_target
        witnesses = removal_witnesses(case.captured, results.removals[name])
        for request in self.requests:
            grid, side = results.grids[name, request.context], request.side(case.captured.prompt)
            witnesses += grid_witnesses(case.captured, grid, side, request.kind)
        floor = noise_floor(case.model, case.captured, target, witnesses, rows=self._rows(case))
        results = results.with_floor(floor)
        return results.with_columns(floor_columns(results.floor or floor))

    def outline(self, case: Case) -> Outline:
        return Outline(dict.fromkeys(FLOORS, float))


def floor_calls(case: Case, rows: int, witnesses: Sequence[Ablations]) -> list[ReplayCall]:
    """Return the replays of `noise_floor`: nothing removed, over `rows` tokens, then every witness alone."""
    null, recompute = null_ablations(case.model, case.captured, rows)
    witness_calls = [ReplayCall(witness, batch_size=1) for witness in witnesses]
    return [ReplayCall(null, recompute=recompute, whole=True), *witness_calls]


def _likely_removals(case: Case, removals: Removals) -> list[Ablations]:
    """Return as many removals as will be measured again, evenly spread: the actual ones depend on the data."""
    cuts = removals.call(case).ablations.layers.tolist()
    return [removal_ablations(case.captured, [cut], removals.kind) for cut in removal_witness_layers(cuts)]


def _likely_windows(case: Case, request: GridRequest) -> list[Ablations]:
    """Return as many ablations of a grid as will be measured again; the actual windows depend on the data."""
    windows, cuts = request.windows(case.captured.prompt), request.cuts(case.model)
    middle = windows[len(windows) // 2 :][:1]
    return [
        window_ablations(case.captured, middle, request.context, [cut], request.kind)
        for cut in grid_witness_layers(cuts, len(windows))
    ]
