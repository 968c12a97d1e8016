"""What one sample of a run gets, and what a committed row of it carries."""

from __future__ import annotations

from dataclasses import dataclass

from analyses.runs import RunConfig
from probes.directory.writer import Record


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


def wanted_probes(config: RunConfig, plan: Plan) -> list[str]:
    """What a committed row of this plan carries."""
    probes = [probe for probe in config.probes if probe != "information" or plan.tokens]
    if checks_gates(config, plan):
        probes.append("gate_check")
    return [*probes, "spectra"] if plan.spectra and config.streams else probes


def checks_gates(config: RunConfig, plan: Plan) -> bool:
    """Whether first-order token grids of this plan are held against exact ones."""
    return plan.gate_check and plan.tokens and config.method == "gate" and "information" in config.probes
