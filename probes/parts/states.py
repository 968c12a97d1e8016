"""The parts that read captured states: entropies of the streams, and the eigenvalues behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from probes.directory.columns import entropy_rows
from probes.directory.writer import Record
from probes.measures.calls import Calls, EntropyCall
from probes.measures.case import Case
from probes.parts.part import Outline, Part, Results


@dataclass(frozen=True)
class _StatesPart(Part):
    """A part that reads every stream at every layer, once the model's work on the sample is done.

    Attributes:
        streams: the names of the streams.
        alpha: the Renyi order of the entropies; None for the eigenvalues themselves.
        center: whether the mean over tokens is subtracted before the Gram matrix.
        normalize_rows: whether tokens are scaled to length 1 before it.
    """

    streams: tuple[str, ...]
    alpha: float | None
    center: bool
    normalize_rows: bool

    def calls(self, case: Case) -> Calls:
        return tuple(self._by_stream(case).values())

    def _by_stream(self, case: Case) -> dict[str, EntropyCall]:
        states, how = case.captured.visual.states, (self.alpha, self.center, self.normalize_rows)
        return {stream: EntropyCall(states[stream], *how) for stream in self.streams}


@dataclass(frozen=True)
class Entropies(_StatesPart):
    """Entropies of every stream at every layer."""

    name = "entropies"
    probe = "entropy"

    def run(self, case: Case, results: Results) -> Results:
        return results.and_later(partial(_with_entropies, self._by_stream(case)))

    def outline(self, case: Case) -> Outline:
        states = case.captured.visual.states
        places = ((stream, layer) for stream in self.streams for layer in range(len(states[stream])))
        return Outline(curves=tuple(("", "", layer, stream, "entropy", float) for stream, layer in places))


def _with_entropies(calls: Mapping[str, EntropyCall], record: Record) -> Record:
    entropies = {stream: call.run() for stream, call in calls.items()}
    return replace(record, curves=[*entropy_rows(entropies), *record.curves])


@dataclass(frozen=True)
class Spectra(_StatesPart):
    """Eigenvalues of the Gram matrix of every stream at every layer, which are stored."""

    name = "spectra"
    probe = "spectra"

    def run(self, case: Case, results: Results) -> Results:
        return results.and_later(partial(_with_spectra, self._by_stream(case)))

    def outline(self, case: Case) -> Outline:
        shapes = {stream: case.captured.visual.states[stream].shape for stream in self.streams}
        return Outline(spectra={stream: (layers, min(rest)) for stream, (layers, *rest) in shapes.items()})


def _with_spectra(calls: Mapping[str, EntropyCall], record: Record) -> Record:
    return replace(record, spectra={stream: call.run() for stream, call in calls.items()})
