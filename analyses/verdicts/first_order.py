"""What a run's first-order token grids are worth: how well they agree with exact ones where both were measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.runs import Run, check_target

MEASURES = ("gate_rank_correlation", "gate_top_overlap", "gate_largest_effect")


@dataclass(frozen=True)
class GateAgreement:
    """First-order estimates of windows against their exact effects, at one layer, averaged over samples.

    Attributes:
        model: short name of the model.
        context: "keep-one" or "leave-one-out".
        target: name of the target.
        window: side of the windows in tokens; None where it was chosen sample by sample.
        layer: the cut.
        n_samples: samples checked.
        rank_correlation: mean of Spearman's correlation over a sample's windows; samples whose effects are all the
            same have none.
        top_overlap: mean share of the tenth of the windows with the largest exact effects that is also the tenth
            with the largest estimates; by chance it is about 0.1.
        largest_effect: mean of a sample's largest exact effect in p: where it is next to nothing, so is what the
            agreement says.
    """

    model: str
    context: str
    target: str
    window: int | None
    layer: int
    n_samples: int
    rank_correlation: float
    top_overlap: float
    largest_effect: float


def gate_agreement(run: Run, *, target: str | None = None) -> list[GateAgreement]:
    """How well a run's first-order token grids agree with exact ones, by context and layer.

    Args:
        run: measured with the method "gate"; any other has nothing to compare.
        target: one of the run's targets; the first by default.

    Returns:
        One result a context and checked layer; none if the run checked no sample.

    Raises:
        HorizonError: the run has no such target.
    """
    target = check_target(run, target)
    results = []
    for context in run.config.contexts:
        (_, layers, correlations), (_, _, overlaps), (_, _, sizes) = (
            run.matrix(measure, context=context, target=target) for measure in MEASURES
        )
        for at, layer in enumerate(layers.tolist()):
            checked = np.isfinite(overlaps[:, at])  # layers of token grids may differ from sample to sample
            known = correlations[checked, at][np.isfinite(correlations[checked, at])]
            agreement = GateAgreement(
                model=run.model,
                context=context,
                target=target,
                window=run.config.window,
                layer=layer,
                n_samples=int(checked.sum()),
                rank_correlation=float(known.mean()) if len(known) else float("nan"),
                top_overlap=float(overlaps[checked, at].mean()),
                largest_effect=float(sizes[checked, at].mean()),
            )
            results.append(agreement)
    return results
