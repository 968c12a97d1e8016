"""Effect curves: what each sample loses when its tokens are removed, and how its entropy runs with depth.

Everything is a difference of stored raw numbers, one curve a sample; means, bands and layers are made from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analyses.arrays.resampling import cluster_codes, draw_counts
from analyses.runs import CONTEXTS, HorizonError, Run, TokenGrids, check_choice, check_target, split_stream

MEASURES = {"p": "probability", "log_p": "nats", "kl": "nats", "correct": "accuracy"}
INFORMATION_MEASURES = ("p", "log_p")
NOISE_MEASURES = ("p", "log_p", "kl")  # that a noise floor is measured for
REMOVED = {"visual": "all visual tokens", "text": "all text tokens", "all": "all tokens"}  # by what a run takes away


@dataclass(frozen=True)
class EffectCurves:
    """One curve over layers for each sample.

    Attributes:
        rows: (sample,) int row numbers, ascending.
        layers: (layer,) int, ascending.
        values: (sample, layer) float in `unit`.
        images: (sample,) int cluster codes of the images, shared by all curves of one run.
        groups: DataFrame of the samples' columns, indexed by row number, in the order of `rows`.
        measure: name of what the values measure, as "p" or "entropy".
        unit: "probability", "nats", "accuracy" or "1".
        skipped: (skipped,) int, layers that the run cut at, but not for these curves: between its neighbors among
            `layers`, such a layer is unknown.
        measured: (sample, layer) bool, where samples differ in the layers they were measured at; None if all were
            measured at all of `layers`. `of` gives the curves of some samples over the layers that these share.
    """

    rows: np.ndarray
    layers: np.ndarray
    values: np.ndarray
    images: np.ndarray
    groups: pd.DataFrame
    measure: str
    unit: str
    skipped: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    measured: np.ndarray | None = None

    @property
    def finite(self) -> np.ndarray:
        """(sample,) bool, whether a curve is a number wherever it was measured."""
        return (np.isfinite(self.values) | (False if self.measured is None else ~self.measured)).all(axis=1)

    def of(self, rows: Sequence[int] | np.ndarray) -> EffectCurves:
        """The curves of these rows, over the layers at which all of them were measured."""
        inside = np.isin(self.rows, rows)
        whole = np.ones(len(self.layers), bool) if self.measured is None else self.measured[inside].all(axis=0)
        return replace(
            self,
            rows=self.rows[inside],
            layers=self.layers[whole],
            values=self.values[inside][:, whole],
            images=self.images[inside],
            groups=self.groups[inside],
            skipped=np.union1d(self.skipped, self.layers[~whole]).astype(int),
            measured=None,
        )

    def alike(self) -> list[EffectCurves]:
        """The same curves, those that were measured at the same layers together."""
        if self.measured is None or not len(self.rows):
            return [self.of(self.rows)]
        patterns, which = np.unique(self.measured, axis=0, return_inverse=True)
        return [self.of(self.rows[which.ravel() == i]) for i in range(len(patterns))]


def removal_effects(run: Run, *, measure: str = "p", target: str | None = None) -> EffectCurves:
    """Removal effect R_k of every sample: m(all) - m(no visual token from k on), or none of the run's `tokens`.

    m is p or log p of the target, or whether the argmax lies in the target set ("correct": R_k is the drop in
    accuracy). "kl" is KL(removed || all) as stored. R_L = 0: at layer L nothing is removed.

    Returns:
        Curves over the measured layers, L last; samples without this target are absent.

    Raises:
        HorizonError: unknown measure or target, or the run holds no removal curves.
    """
    check_choice("measure", measure, MEASURES)
    target = check_target(run, target)
    stored = "log_p" if measure == "p" else measure
    rows, layers, values = run.matrix(stored, context="removal", target=target)
    if len(rows) == 0:
        if "removal" not in run.config.probes:
            raise HorizonError(f"run {run.name} holds no removal curves: run it again with the probe 'removal'")
        layers = np.append(run.config.removal_layers, run.config.n_layers).astype(int)
        values = np.empty((0, len(layers)))
    if layers[-1] != run.config.n_layers:
        raise HorizonError(f"the removal curves of run {run.name} end at layer {layers[-1]}, not at L: write it again")
    if measure == "p":
        values = np.exp(values)
    if measure != "kl":
        values = values[:, -1:] - values
    return _curves(run, rows, layers, values, measure)


def entropy_curves(run: Run, stream: str, *, normalized: bool = False) -> EffectCurves:
    """Matrix entropy of every sample's visual tokens in one stream.

    Args:
        run: a run with the probe "entropy".
        stream: one of its streams.
        normalized: divide by the largest value possible, ln min(N - 1, d) when centered, ln min(N, d) when not
            (N visual tokens of width d); NaN where that is 0.

    Returns:
        Curves in nats (or in units of 1) over layers 0..L-1; `hidden` also has L.

    Raises:
        HorizonError: the stream was not measured.
    """
    streams = run.config.streams if "entropy" in run.config.probes else ()
    check_choice("stream", stream, streams)
    rows, layers, values = run.matrix("entropy", stream=stream)
    if len(rows) == 0:
        layers = np.arange(run.config.n_layers)
        values = np.empty((0, len(layers)))
    if normalized:
        tokens = _token_counts(run, rows, split_stream(stream)[0]) - bool(run.config.center)
        largest = np.log(np.minimum(np.maximum(tokens, 1), run.config.stream_dim(stream)))
        values = values / np.where(largest > 0, largest, np.nan)[:, None]
    return _curves(run, rows, layers, values, "entropy", unit="1" if normalized else "nats")


def _token_counts(run: Run, rows: np.ndarray, tokens: str) -> np.ndarray:
    """(sample,) float, how many tokens an entropy is over."""
    visual, whole = (run.samples.loc[rows, name].to_numpy(float) for name in ("n_visual", "n_prompt"))
    return {"visual": visual, "text": whole - visual, "all": whole}[tokens]


def information_curves(
    run: Run,
    statistics: Sequence[str],
    *,
    context: str = "keep-one",
    measure: str = "p",
    target: str | None = None,
) -> list[EffectCurves]:
    """Per-sample statistics of the token grids, each as curves over layers; the grids are read once.

    Windows weigh by their size. "mean": of I_k (or D_k). "magnitude": mean of |I_k|, the absolute value taken of
    every window, so that effects of opposite sign do not cancel. "spread": within-sample standard deviation of I_k
    over windows. "removal": the removal effect of the same samples, since the grids carry their own baselines.
    A window that was not measured because its coarse window showed no effect counts as 0.

    Returns:
        One set of curves a statistic, over the measured layers and L, where each is 0 (nothing is removed there). At
        layers where others were measured and it was not, a sample's curve is NaN, and `measured` says so.

    Raises:
        HorizonError: unknown word, or the run holds no such token grids.
    """
    check_choice("measure", measure, INFORMATION_MEASURES)
    for statistic in statistics:
        check_choice("statistic of the token grids", statistic, tuple(GRID_STATISTICS))
    target = check_target(run, target)
    rows = _token_rows(run, context, target)
    grid_layers, grid_curves = [], []  # of each sample
    for row in rows:
        grids = run.tokens(row, context=context, target=target)
        grid_layers.append(grids.layers)
        grid_curves.append(np.array([GRID_STATISTICS[statistic](grids, measure) for statistic in statistics]))
    cuts = np.unique(np.concatenate(grid_layers)) if grid_layers else np.array(run.config.grid_layers(), dtype=int)
    layers = np.append(cuts, run.config.n_layers)
    values = np.full((len(rows), len(statistics), len(layers)), np.nan)
    values[..., -1] = 0.0
    measured = np.ones((len(rows), len(layers)), dtype=bool)
    for i, (sample_layers, sample_curves) in enumerate(zip(grid_layers, grid_curves, strict=True)):
        measured[i, :-1] = np.isin(cuts, sample_layers)
        values[i, :, np.flatnonzero(measured[i, :-1])] = sample_curves.T
    gaps = {
        "skipped": np.setdiff1d(run.config.removal_layers, cuts).astype(int),
        "measured": None if measured.all() else measured,
    }
    row_numbers = np.array(rows, int)
    return [_curves(run, row_numbers, layers, values[:, i], measure, **gaps) for i in range(len(statistics))]


def information_quantiles(
    run: Run,
    rows: Sequence[int] | None = None,
    *,
    context: str = "keep-one",
    measure: str = "p",
    target: str | None = None,
    quantiles: Sequence[float] = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of I_k over the windows of all samples together; a window counts with its number of tokens.

    Args:
        run: a run with the probe "information".
        rows: row numbers; all that carry a token grid by default.
        context: of the token grids, "keep-one" or "leave-one-out".
        measure: "p" or "log_p".
        target: one of the run's targets; the first by default.
        quantiles: in 0..1. The quantile q is the smallest value with at least the share q of the weight at or
            below it.

    Returns:
        layers: (layer,) int, the cuts that all these samples' grids share. values: (layer, quantile) in p or nats;
            NaN without samples. A window that was not measured, since its coarse window showed no effect, counts as 0.
    """
    check_choice("measure", measure, INFORMATION_MEASURES)
    target = check_target(run, target)
    members = _token_rows(run, context, target)
    members = members if rows is None else [row for row in members if row in set(rows)]
    sample_grids = [run.tokens(row, context=context, target=target) for row in members]
    layers = _common_layers(run, [grids.layers for grids in sample_grids])
    if not sample_grids:
        return layers, np.full((len(layers), len(quantiles)), np.nan)
    pooled = np.concatenate([_filled(grids, measure)[np.isin(grids.layers, layers)] for grids in sample_grids], axis=1)
    weights = np.concatenate([grids.weights for grids in sample_grids])
    values = [_weighted_quantiles(layer, weights, quantiles) for layer in pooled]
    return layers, np.array(values)


def noise_floor(run: Run, measure: str) -> float:
    """A run's noise floor: 99th percentile of its samples' floors, in the unit of the measure; NaN if unmeasured.

    It is that of all measured samples, also where a selection leaves some out.

    Raises:
        HorizonError: no noise floor is measured for that measure.
    """
    check_choice("measure", measure, NOISE_MEASURES)
    floors = run.samples[f"noise_floor_{measure}"].to_numpy(float)
    floors = floors[~np.isnan(floors)]
    return float(np.quantile(floors, 0.99)) if len(floors) else float("nan")


def with_caution(warning: str, run: Run) -> str:
    """A warning, and what the selection of the run's samples does to every result on the effect."""
    return "; ".join(filter(None, (warning, run.caution)))


def image_codes(run: Run) -> pd.Series:
    """Cluster code of the image of every measured sample, by row number; 0..n_images-1 over all groups of a run."""
    return pd.Series(cluster_codes(run.ok["image_sha256"].fillna("")), index=run.ok.index, dtype=int)


def resample_images(run: Run, resamples: int, seed: int) -> np.ndarray | None:
    """Draw the images of a run with replacement, for results that are to be resampled together.

    Returns:
        (resample, image) counts, images by their code in `image_codes`; None if no sample was measured.
    """
    return draw_counts(image_codes(run).max() + 1, resamples, seed) if len(run.ok) else None


def too_little(n_samples: int, n_measured: int, n_images: int) -> str:
    """Why so few whole curves cannot carry any claim, or "".

    Args:
        n_samples: whole curves.
        n_measured: curves measured, those with gaps among them.
        n_images: distinct images behind the whole ones.
    """
    if n_measured == 0:
        return "no sample was measured"
    if n_samples == 0:
        return f"none of the {n_measured} measured curves is whole: every one has values that are not numbers"
    return "all samples show one image, so nothing is known about others" if n_images < 2 else ""


def _curves(
    run: Run, rows: np.ndarray, layers: np.ndarray, values: np.ndarray, measure: str, **more: Any
) -> EffectCurves:
    """Curves of some rows of a run, with the images and columns of these samples, and what else `EffectCurves` says."""
    images = image_codes(run).loc[rows].to_numpy()
    more = {"unit": MEASURES.get(measure)} | more
    return EffectCurves(rows, layers, values, images, run.samples.loc[rows], measure, **more)


def _common_layers(run: Run, measured: Sequence[np.ndarray]) -> np.ndarray:
    """(layer,) int, the layers of every one of these token grids; those that the run asks for if there is none."""
    if not len(measured):
        return np.array(run.config.grid_layers(), dtype=int)
    common = set(measured[0].tolist()).intersection(*(layers.tolist() for layers in measured))
    if not common:
        raise HorizonError(f"the token grids of these samples of run {run.name} have no layer in common")
    return np.array(sorted(common), dtype=int)


def _filled(grids: TokenGrids, measure: str) -> np.ndarray:
    """(layer, window) information, 0 where a window was not measured since its coarse window showed no effect."""
    information = grids.information(measure)
    return information if grids.coarse is None else np.nan_to_num(information, nan=0.0)


def _token_rows(run: Run, context: str, target: str) -> list[int]:
    """Rows that carry a token grid for this target; not every sample has every target ("greedy-correct")."""
    check_choice("context", context, CONTEXTS)
    if "information" not in run.config.probes or context not in run.config.contexts:
        raise HorizonError(
            f"run {run.name} holds no {context} token grids: run it again with the probe 'information' in that context"
        )
    return run.token_rows(context, target)


def _mean(grids: TokenGrids, measure: str) -> np.ndarray:
    """(layer,) mean information over the windows of a sample."""
    return np.average(_filled(grids, measure), axis=1, weights=grids.weights)


def _mean_magnitude(grids: TokenGrids, measure: str) -> np.ndarray:
    """(layer,) mean of the windows' |information|."""
    return np.average(np.abs(_filled(grids, measure)), axis=1, weights=grids.weights)


def _spread(grids: TokenGrids, measure: str) -> np.ndarray:
    """(layer,) standard deviation of the information over the windows of a sample."""
    information = _filled(grids, measure)
    mean = np.average(information, axis=1, weights=grids.weights)[:, None]
    return np.sqrt(np.average((information - mean) ** 2, axis=1, weights=grids.weights))


def _removal(grids: TokenGrids, measure: str) -> np.ndarray:
    """(layer,) removal effect of the sample, from the baselines that its token grid carries."""
    removed = grids.removed.astype(float)
    return np.exp(grids.all) - np.exp(removed) if measure == "p" else grids.all - removed


GRID_STATISTICS: dict[str, Callable[[TokenGrids, str], np.ndarray]] = {
    "mean": _mean,
    "magnitude": _mean_magnitude,
    "spread": _spread,
    "removal": _removal,
}


def _weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    # rounding must not push the share of a quantile past the value that reaches it exactly
    at = np.searchsorted(share, np.asarray(quantiles) - 1e-12)
    return values[order][np.minimum(at, len(values) - 1)]
