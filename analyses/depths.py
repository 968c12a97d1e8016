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
