"""Mean eigenvalue spectra: how much of the trace of the Gram matrix lies at each rank, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.runs import Run


@dataclass(frozen=True)
class MeanSpectrum:
    """Eigenvalues of one stream, averaged over samples within each task and then over tasks.

    Attributes:
        model: short name of the model.
        stream: "query", "key", "hidden", ...
        n_layers: L.
        n_samples: samples that kept their spectra.
        layers: (layer,) int.
        values: (layer, rank) mean eigenvalue of the trace-one Gram matrix, descending in rank.
    """

    model: str
    stream: str
    n_layers: int
    n_samples: int
    layers: np.ndarray
    values: np.ndarray


def mean_spectra(run: Run) -> list[MeanSpectrum]:
    """Mean spectrum of every stream that kept any; empty if none did.

    A sample with fewer tokens has fewer ranks: its missing eigenvalues are the zeros that they are.

    Args:
        run: measured with `spectra` above 0.
    """
    spectra = []
    for stream in run.config.streams:
        by_row = run.spectra(stream)
        if not by_row:
            continue
        n_ranks = max(values.shape[1] for values in by_row.values())
        by_task: dict[str, list[np.ndarray]] = {}
        for row, values in by_row.items():
            padded = np.pad(values.astype(float), ((0, 0), (0, n_ranks - values.shape[1])))
            by_task.setdefault(str(run.samples.loc[row, "task"]), []).append(padded)
        mean = np.mean([np.mean(padded, axis=0) for padded in by_task.values()], axis=0)
        spectra.append(
            MeanSpectrum(run.model, stream, run.config.n_layers, len(by_row), np.arange(len(mean)), mean),
        )
    return spectra
