"""The parts that make token grids: exact ones, coarse ones refined, and first-order ones with their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from probes.measures.calls import Calls, GateCall
from probes.measures.case import Case
from probes.measures.gate_checks import CHECK_MEASURES, check_rows, exact_request
from probes.measures.information import GridRequest, information_grids, window_call
from probes.measures.refinement import coarse_grids, coarse_request, refine
from probes.parts.part import Outline, Part, Results
from probes.replay.ablations import window_table


@dataclass(frozen=True)
class _GridPart(Part):
    """A part that measures one context.

    Attributes:
        request: the request for its token grids.
    """

    request: GridRequest

    @property
    def name(self) -> str:
        return self.request.context

    reads_targets = True

    def calls(self, case: Case) -> Calls:
        return (window_call(case, self.request),)


@dataclass(frozen=True)
class TokenGrids(_GridPart):
    """Exact token grids of every target: every window at every cut."""

    probe = "information"

    def run(self, case: Case, results: Results) -> Results:
        grids = information_grids(case, self.request, results.removals)
        return results.with_grids(self.request.context, grids)

    def outline(self, case: Case) -> Outline:
        cuts, windows = self.request.cuts(case.model), self.request.windows(case.captured.prompt)
        tokens: dict[str, tuple[int, ...]] = {}
        for key in (f"{name}/{self.request.context}" for name in case.targets):
            tokens |= {key: (len(cuts), len(windows)), f"{key}/removed": (len(cuts),), f"{key}/all": (1,)}
        entry = {"windows": window_table(windows).to_dict("records")}
        return Outline(entry, tokens=tokens, token_layers=tuple(cuts))


@dataclass(frozen=True)
class GateGrids(TokenGrids):
    """First-order token grids of every target, by derivatives along gates."""

    @property
    def name(self) -> str:
        return f"gate {self.request.context}"

    def calls(self, case: Case) -> Calls:
        return (GateCall(self.request.context, tuple(self.request.cuts(case.model))),)


@dataclass(frozen=True)
class CoarseGrids(_GridPart):
    """Exact grids of the coarse windows, which decide where fine ones are measured.

    Attributes:
        request: the request for the fine grids.
        coarse: the side of the coarse windows in tokens.
    """

    coarse: int

    @property
    def large(self) -> GridRequest:
        """The request for the coarse grids."""
        return coarse_request(self.request, self.coarse)

    @property
    def name(self) -> str:
        return f"{self.request.context}, coarse"

    def calls(self, case: Case) -> Calls:
        return (window_call(case, self.large),)

    def run(self, case: Case, results: Results) -> Results:
        grids = coarse_grids(case, self.large, results.removals)
        keyed_grids = {(name, self.request.context): grid for name, grid in grids.items()}
        return replace(results, coarse=results.coarse | keyed_grids)

    def outline(self, case: Case) -> Outline:
        shape = len(self.large.cuts(case.model)), len(self.large.windows(case.captured.prompt))
        keys = (f"{name}/{self.request.context}/coarse" for name in case.targets)
        return Outline(tokens=dict.fromkeys(keys, shape))


@dataclass(frozen=True)
class FineGrids(TokenGrids):
    """Exact token grids inside the coarse windows that show an effect; its calls count every window, the most possible.

    Attributes:
        coarse: the side of the coarse windows in tokens.
    """

    coarse: int

    less = "where coarse windows show nothing"

    def run(self, case: Case, results: Results) -> Results:
        context = self.request.context
        coarse = {name: results.coarse[name, context] for name in case.targets}
        if results.floor is None:
            raise ValueError("a floor decides which coarse windows are refined: its part comes before this one")
        grids = refine(case, self.request, coarse, coarse_request(self.request, self.coarse), results.floor.p)
        return results.with_grids(context, grids)


@dataclass(frozen=True)
class GateChecks(_GridPart):
    """The agreement of first-order token grids with exact ones at a few layers.

    Attributes:
        request: the request for the first-order grids.
    """

    @property
    def name(self) -> str:
        return f"{self.request.context} check"

    probe = "gate_check"

    def calls(self, case: Case) -> Calls:
        return (window_call(case, exact_request(case.model, self.request)),)

    def run(self, case: Case, results: Results) -> Results:
        estimates = {name: results.grids[name, self.request.context] for name in case.targets}
        exact = exact_request(case.model, self.request)
        return results.with_curves(check_rows(case, exact, estimates, results.removals))

    def outline(self, case: Case) -> Outline:
        layers = exact_request(case.model, self.request).cuts(case.model)
        rows = (
            (name, self.request.context, layer, "", measure, float)
            for name in case.targets
            for layer in layers
            for measure in CHECK_MEASURES
        )
        return Outline(curves=tuple(rows))
