"""What one sample of a run gets: a plan, the list of parts that follows from it, and what a committed row carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from analyses.runs import METHOD_TABLE, PROBES, RunConfig
from probes.directory.writer import Record
from probes.measures.calls import ForwardCall
from probes.measures.information import GridRequest
from probes.parts.floors import Floor, FloorBefore
from probes.parts.forward import Columns, Forward, Kept, RightAnswers
from probes.parts.grids import CoarseGrids, FineGrids, GateChecks, GateGrids, TokenGrids
from probes.parts.part import Part
from probes.parts.removals import Removals
from probes.parts.states import Entropies, Spectra

Parts = tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """What one sample gets, besides what the configuration fixes for all.

    Attributes:
        tokens: whether it gets token grids.
        spectra: whether its eigenvalues are kept.
        gate_check: whether token grids of the method "gate" are held against exact ones.
        layers: cuts of its token grids.
        extends: cuts of the token grids that are there, if only others are to be added to what is on disk.
        held: what is on disk, in that case, once it is read.
    """

    tokens: bool
    spectra: bool
    gate_check: bool = False
    layers: tuple[int, ...] = ()
    extends: tuple[int, ...] | None = None
    held: Record | None = None


def parts_of(config: RunConfig, plan: Plan) -> Parts:
    """All that a planned sample gets, in the order in which it is run: each part may use what those before it gave."""
    if plan.extends is not None:
        return _added_parts(config, plan, plan.extends)
    parts: list[Part] = [_forward(config), Columns(config.targets[0])]
    if config.only_correct:
        parts.append(RightAnswers())
    if config.streams:
        parts.append(Entropies(config.streams, config.alpha, config.center, config.normalize_rows))
    if config.streams and plan.spectra:
        parts.append(Spectra(config.streams, config.center, config.normalize_rows))
    if replayed(config):
        requests = _requests(config, plan, plan.layers)
        parts += [_removals(config), *_grid_parts(config, requests)]
        estimates = [request for request in requests if METHOD_TABLE[request.method].first_order]
        parts += [GateChecks(request) for request in estimates if plan.gate_check]
        parts.append(_floor(config, requests))
    return tuple(parts)


def _added_parts(config: RunConfig, plan: Plan, there: tuple[int, ...]) -> Parts:
    """Token grids at the layers that a row on disk lacks, and their noise floor unless it has one of such grids."""
    requests = _requests(config, plan, tuple(layer for layer in plan.layers if layer not in there))
    kept = Kept(parts_of(config, replace(plan, extends=None, held=None)), config.kind)
    grids = [part for part in _grid_parts(config, requests) if not (there and isinstance(part, FloorBefore))]
    floor = [_floor(config, requests)] if requests and not there else []
    return (_forward(config, streams=()), kept, *grids, *floor)


def _forward(config: RunConfig, streams: tuple[str, ...] | None = None) -> Forward:
    lacking = config.targets == ("greedy-correct",) and replayed(config) and not config.only_correct
    return Forward(
        ForwardCall(wanted_targets(config), config.streams if streams is None else streams, config.tokens),
        less="for samples that the model answers wrong, which have no target" if lacking else "",
    )


def _removals(config: RunConfig) -> Removals:
    return Removals(None if config.layers is None else tuple(config.layers), config.kind, config.batch_size)


def _requests(config: RunConfig, plan: Plan, layers: tuple[int, ...]) -> list[GridRequest]:
    """The token grids of a sample, one a context."""
    if not plan.tokens or not layers:
        return []
    sizes = config.window, config.max_windows, layers
    return [GridRequest(context, *sizes, config.kind, config.method, config.batch_size) for context in config.contexts]


def _grid_parts(config: RunConfig, requests: list[GridRequest]) -> list[Part]:
    """What measures these token grids, and the floor before them where it decides about them."""
    if METHOD_TABLE[config.method].first_order:
        return [GateGrids(request) for request in requests]
    if config.coarse is None:
        return [TokenGrids(request) for request in requests]
    before = [FloorBefore(_removals(config), request) for request in requests]
    coarse = [CoarseGrids(request, config.coarse) for request in requests]
    return [*before, *coarse, *(FineGrids(request, config.coarse) for request in requests)]


def _floor(config: RunConfig, requests: list[GridRequest]) -> Floor:
    """Of the removals, and of token grids that are exact: an estimate is off by more than rounding."""
    return Floor(_removals(config), tuple(request for request in requests if METHOD_TABLE[request.method].has_floor))


def replayed(config: RunConfig) -> bool:
    """Whether a run replays anything."""
    return bool({"removal", "information"} & set(config.probes))


def wanted_targets(config: RunConfig) -> tuple[str, ...]:
    """Names of the targets that a run reads, or judges samples by."""
    return config.targets if replayed(config) or config.only_correct else ()


def wanted_probes(config: RunConfig, plan: Plan) -> list[str]:
    """What a committed row of this plan carries."""
    carried = {part.probe: None for part in parts_of(config, replace(plan, extends=None)) if part.probe}
    first = [probe for probe in config.probes if probe in carried]
    return [*first, *sorted(probe for probe in carried if probe not in PROBES)]
