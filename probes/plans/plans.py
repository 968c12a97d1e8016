"""What one sample of a run gets: a plan, the list of parts that follows from it, and what a committed row carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from analyses.runs import METHOD_TABLE, PROBES, RunConfig
from probes.directory.writer import Record
from probes.measures.calls import ForwardCall
from probes.measures.information import GridRequest
from probes.parts.floors import Floor, FloorBefore
from probes.parts.forward import Columns, CommittedSample, Forward, RightAnswers
from probes.parts.grids import CoarseGrids, FineGrids, GateChecks, GateGrids, TokenGrids
from probes.parts.part import Part
from probes.parts.removals import Removals
from probes.parts.states import Entropies, Spectra

Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """What one sample gets, besides what the configuration fixes for all.

    Attributes:
        tokens: whether the sample gets token grids.
        spectra: whether its eigenvalues are stored.
        gate_check: whether its token grids of the method "gate" are compared with exact ones.
        layers: the cuts of its token grids.
        committed_layers: the cuts of the token grids on disk, where more grids are all that is to be added to the
            committed record; None where the sample is measured as a whole.
        committed_record: that record, once it is read.
    """

    tokens: bool
    spectra: bool
    gate_check: bool = False
    layers: tuple[int, ...] = ()
    committed_layers: tuple[int, ...] | None = None
    committed_record: Record | None = None


def parts_of(config: RunConfig, plan: Plan) -> Parts:
    """Return the parts of a planned sample in the order in which they run: each may use the results of those before."""
    if plan.committed_layers is not None:
        return _added_parts(config, plan, plan.committed_layers)
    parts: list[Part] = [_forward(config), Columns(config.targets[0])]
    if config.only_correct:
        parts.append(RightAnswers())
    if config.streams:
        parts.append(Entropies(config.streams, config.alpha, config.center, config.normalize_rows))
    if config.streams and plan.spectra:
        parts.append(Spectra(config.streams, None, config.center, config.normalize_rows))
    if replayed(config):
        requests = _requests(config, plan, plan.layers)
        parts += [_removals(config), *_grid_parts(config, requests)]
        estimates = [request for request in requests if METHOD_TABLE[request.method].first_order]
        parts += [GateChecks(request) for request in estimates if plan.gate_check]
        parts.append(_floor(config, requests))
    return tuple(parts)


def _added_parts(config: RunConfig, plan: Plan, committed_layers: tuple[int, ...]) -> Parts:
    """Return the parts that add token grids at the layers that a row on disk lacks.

    The noise floor is measured too, unless the row has token grids already, and with them a floor that covers grids.
    """
    requests = _requests(config, plan, tuple(layer for layer in plan.layers if layer not in committed_layers))
    committed = CommittedSample(
        parts_of(config, replace(plan, committed_layers=None, committed_record=None)), config.kind
    )
    grids = [part for part in _grid_parts(config, requests) if not (committed_layers and isinstance(part, FloorBefore))]
    floor = [_floor(config, requests)] if requests and not committed_layers else []
    return (_forward(config, streams=()), committed, *grids, *floor)


def _forward(config: RunConfig, streams: tuple[str, ...] | None = None) -> Forward:
    may_lack_targets = config.targets == ("greedy-correct",) and replayed(config) and not config.only_correct
    return Forward(
        ForwardCall(wanted_targets(config), config.streams if streams is None else streams, config.tokens),
        less="for samples that the model answers wrong, which have no target" if may_lack_targets else "",
    )


def _removals(config: RunConfig) -> Removals:
    return Removals(None if config.layers is None else tuple(config.layers), config.kind, config.batch_size)


def _requests(config: RunConfig, plan: Plan, layers: tuple[int, ...]) -> list[GridRequest]:
    """Return the requests for the token grids of a sample, one per context."""
    if not plan.tokens or not layers:
        return []
    sizes = config.window, config.max_windows, layers
    return [GridRequest(context, *sizes, config.kind, config.method, config.batch_size) for context in config.contexts]


def _grid_parts(config: RunConfig, requests: list[GridRequest]) -> list[Part]:
    """Return the parts that measure these token grids, after the noise floor where it decides which are refined."""
    if METHOD_TABLE[config.method].first_order:
        return [GateGrids(request) for request in requests]
    if config.coarse is None:
        return [TokenGrids(request) for request in requests]
    before = [FloorBefore(_removals(config), request) for request in requests]
    coarse = [CoarseGrids(request, config.coarse) for request in requests]
    return [*before, *coarse, *(FineGrids(request, config.coarse) for request in requests)]


def _floor(config: RunConfig, requests: list[GridRequest]) -> Floor:
    """Return the noise floor of removals and exact token grids; the error of estimates is not one of rounding."""
    return Floor(_removals(config), tuple(request for request in requests if METHOD_TABLE[request.method].has_floor))


def replayed(config: RunConfig) -> bool:
    """Whether a run replays anything."""
    return bool({"removal", "information"} & set(config.probes))


def wanted_targets(config: RunConfig) -> tuple[str, ...]:
    """Return the names of the targets that a run reads, or judges samples by."""
    return config.targets if replayed(config) or config.only_correct else ()


def wanted_probes(config: RunConfig, plan: Plan) -> list[str]:
    """Return the names of the probes that a committed row of this plan carries."""
    probes = {part.probe: None for part in parts_of(config, replace(plan, committed_layers=None)) if part.probe}
    first = [probe for probe in config.probes if probe in probes]
    return [*first, *sorted(probe for probe in probes if probe not in PROBES)]
