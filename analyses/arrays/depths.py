"""Depths read off mean effect curves: pure functions of arrays, for one curve or all resamples of it at once."""

from __future__ import annotations

import numpy as np


def settled_layer(curves: np.ndarray, threshold: np.ndarray | float, layers: np.ndarray) -> np.ndarray:
    """Smallest measured layer from which on |curve| stays below the threshold, at every later layer.

    Args:
        curves: (..., layer) mean effects.
        threshold: (...) in the unit of the curves.
        layers: (layer,) int, L last.

    Returns:
        (...) layer; L, "not before the end", where only nothing removed is below.

    >>> int(settled_layer(np.array([0.8, 0.01, 0.3, 0.02, 0.0]), 0.04, np.arange(5)))
    3
    """
    above = np.abs(curves) >= np.asarray(threshold)[..., None]
    last = above.shape[-1] - 1 - above[..., ::-1].argmax(axis=-1)
    index = np.where(above.any(axis=-1), np.minimum(last + 1, above.shape[-1] - 1), 0)
    return layers[index]


def skipped_before(layer: int, layers: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Layers between a measured layer and the measured one before it, where the curve was not measured.

    Args:
        layer: one of `layers`.
        layers: (layer,) int, the measured ones.
        skipped: (skipped,) int, those that could have been measured and were not.

    >>> skipped_before(20, np.array([0, 17, 20, 32]), np.array([16, 18, 19, 21])).tolist()
    [18, 19]
    """
    before = layers[layers < layer].max(initial=-1)
    return skipped[(skipped > before) & (skipped < layer)]


def layer_words(layers: np.ndarray) -> str:
    """Ascending layers in words, runs of them by their ends.

    >>> layer_words(np.array([1, 2, 3, 7, 9, 10])), layer_words(np.array([4]))
    ('layers 1-3, 7, 9-10', 'layer 4')
    """
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    ranges = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {ranges}"


def half_depths(curves: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Depth at which half of the effect at layer 0 is gone for good, interpolated linearly.

    Args:
        curves: (..., layer) mean effects R_k, 0 at L.
        layers: (layer,) int, 0 first and L last.

    Returns:
        (...) depth in layers: after the last k with R_k >= R_0 / 2; NaN where R_0 is not positive.

    >>> float(half_depths(np.array([0.8, 0.6, 0.2, 0.0]), np.arange(4)))
    1.5
    """
    half = curves[..., :1] / 2
    last = curves.shape[-1] - 1 - (curves >= half)[..., ::-1].argmax(axis=-1)
    last = np.minimum(last, curves.shape[-1] - 2)[..., None]
    here = np.take_along_axis(curves, last, axis=-1)
    there = np.take_along_axis(curves, last + 1, axis=-1)
    positive = half > 0
    share = np.divide(here - half, here - there, out=np.full(here.shape, np.nan), where=positive)
    return (layers[last] + share * (layers[last + 1] - layers[last]))[..., 0]
