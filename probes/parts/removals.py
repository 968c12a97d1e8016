"""The part that takes all tokens away, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from probes.directory.columns import removal_rows
from probes.measures.calls import Calls, ReplayCall
from probes.measures.case import Case
from probes.measures.information import removal_call, removal_curves
from probes.parts.part import Outline, Part, Results
from probes.replay.ablations import check_layers


@dataclass(frozen=True)
class Removals(Part):
    """Removal curves of every target.

    Attributes:
        layers: the cuts in 0..L-1; None for all.
        kind: the kind of removal: "delete", "zero" or "mean".
        batch_size: the number of ablations in one batch; None for as many as fit.
    """

    layers: tuple[int, ...] | None
    kind: str
    batch_size: int | None

    name = "removal"
    probe = "removal"
    reads_targets = True

    def call(self, case: Case) -> ReplayCall:
        """Return the only call of this part."""
        return removal_call(case, self.layers, self.kind, self.batch_size)

    def calls(self, case: Case) -> Calls:
        return (self.call(case),)

    def run(self, case: Case, results: Results) -> Results:
        curves = removal_curves(case, layers=self.layers, kind=self.kind, batch_size=self.batch_size)
        return replace(results, removals=curves).with_curves(removal_rows(curves))

    def outline(self, case: Case) -> Outline:
        kinds = {"log_p": np.float32, "kl": np.float32, "correct": bool, "same": bool}
        cuts = (*check_layers(case.model, self.layers), case.model.n_layers)
        rows = (
            (name, "removal", layer, "", measure, kind)
            for name in case.targets
            for layer in cuts
            for measure, kind in kinds.items()
        )
        return Outline(curves=tuple(rows))
