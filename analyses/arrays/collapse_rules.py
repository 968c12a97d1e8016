"""Rules that read a collapse off entropy curves, each with the strength that chance alone would reach.

Every rule turns curves into the layer that a collapse would be at, the fall there and how far it stands out; what a
rule needs to believe it comes from its own null, curves whose steps are exchangeable and so have no collapse.
To add one, write its reading and its null, and register both in `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

RESOLUTION = 1e-5  # relative to the entropy: what float32 states leave uncertain


@dataclass(frozen=True)
class Reading:
    """What a rule sees in curves.

    Attributes:
        layers: (...) int, where the collapse would be, in 1..L-1.
        falls: (...) nats by which the entropy falls there; not positive where it does not.
        strengths: (...) how far that fall stands out, on the rule's own scale.
    """

    layers: np.ndarray
    falls: np.ndarray
    strengths: np.ndarray


@dataclass(frozen=True)
class CollapseRule:
    """One way of reading curves.

    Attributes:
        read: (..., layer) curves in nats -> their reading.
        null: (n_layers, level, draws, seed) -> strength that exchangeable steps exceed with probability 1 - level.
        flat: the reason where the entropy does not fall.
        weak: the reason where the fall does not stand out, to be filled with `fall`, `layer`, `strength`, `needed`.
    """

    read: Callable[[np.ndarray], Reading]
    null: Callable[[int, float, int, int], float]
    flat: str
    weak: str


def read_drop(curves: np.ndarray) -> Reading:
    """Read the largest one-step drop S_{k-1} - S_k; it stands out by its sharpness among all steps.

    >>> reading = read_drop(np.array([4.0, 3.9, 2.1, 2.0, 1.7, 1.5]))
    >>> int(reading.layers), round(float(reading.falls), 3)
    (2, 1.8)
    """
    steps = -np.diff(curves, axis=-1)
    return Reading(
        layers=steps.argmax(axis=-1) + 1,
        falls=steps.max(axis=-1),
        strengths=sharpness(steps, RESOLUTION * np.abs(curves).max(axis=-1)),
    )


def read_relative_drop(curves: np.ndarray) -> Reading:
    """Read the largest relative drop (S_{k-1} - S_k) / S_{k-1}, 0 after an entropy of 0; by its sharpness likewise.

    A collapse that removes most of an already low entropy counts more than a larger drop from a high one.

    >>> reading = read_relative_drop(np.array([4.0, 3.0, 2.9, 2.8, 1.9, 1.8]))
    >>> int(reading.layers), round(float(reading.falls), 3)
    (4, 0.9)
    """
    drops, before = -np.diff(curves, axis=-1), curves[..., :-1]
    steps = np.divide(drops, before, out=np.zeros_like(drops), where=before > 0)
    largest = steps.argmax(axis=-1)
    return Reading(
        layers=largest + 1,
        falls=np.take_along_axis(drops, largest[..., None], axis=-1)[..., 0],
        strengths=sharpness(steps, RESOLUTION),
    )


def read_two_segments(curves: np.ndarray) -> Reading:
    """Read the break that splits the curve best: one straight drift whose level shifts at layer k, by least squares.

    Every k in 1..L-1 is tried. The two segments share their slope, so that a steady drift is one segment, a
    piecewise constant curve is two, and a segment may be a single layer. The strength is the gain in BIC over one
    segment, L ln(RSS_1 / RSS_2) - 2 ln L: a shift and its place are two more parameters. The ECL is the first layer
    of the second segment, the fall is the shift.

    >>> reading = read_two_segments(np.array([4.0, 3.9, 2.1, 2.0, 1.9, 1.8]))
    >>> int(reading.layers), round(float(reading.falls), 3)
    (2, 1.7)
    """
    n_layers = curves.shape[-1]
    line, shifts, lengths = _regressors(n_layers)
    residuals = curves - (curves @ line) @ line.T
    projections = residuals @ shifts.T
    best = np.abs(projections).argmax(axis=-1)
    explained = np.take_along_axis(projections, best[..., None], axis=-1)[..., 0]
    least = n_layers * (RESOLUTION * np.abs(curves).max(axis=-1)) ** 2 + np.finfo(float).tiny
    rss_one = (residuals**2).sum(axis=-1)
    ratio = np.maximum(rss_one, least) / np.maximum(rss_one - explained**2, least)
    return Reading(
        layers=best + 1,
        falls=-explained / lengths[best],
        strengths=n_layers * np.log(ratio) - 2 * np.log(n_layers),
    )


def sharpness(steps: np.ndarray, resolution: float | np.ndarray = 0.0) -> np.ndarray:
    """How far the largest step stands out: (largest - median of the others) / (1.4826 MAD of the others).

    Args:
        steps: (..., step) drops; at least two.
        resolution: the robust standard deviation is not taken below it, so that a curve that is flat apart from
            one drop has a finite sharpness, and rounding of a constant curve has none.

    Returns:
        (...) sharpness; 0 where all steps are equal, infinite where only the largest differs and resolution is 0.

    >>> round(float(sharpness(np.array([0.0, 1.0, 10.0, 3.0, 4.0]))), 3)  # the others: median 2, MAD 1.5
    3.597
    """
    ordered = np.sort(steps, axis=-1)
    others = ordered[..., :-1]
    median = np.median(others, axis=-1, keepdims=True)
    deviation = 1.4826 * np.median(np.abs(others - median), axis=-1)
    gap = ordered[..., -1] - median[..., 0]
    deviation = np.maximum(deviation, resolution)
    return np.divide(gap, deviation, out=np.where(gap > 0, np.inf, 0.0), where=deviation > 0)


@cache
def sharpness_null(n_steps: int, level: float = 0.95, draws: int = 20_000, seed: int = 0) -> float:
    """Sharpness that the largest of `n_steps` exchangeable Gaussian steps exceeds with probability 1 - level."""
    steps = np.random.default_rng(seed).standard_normal((draws, n_steps))
    return float(np.quantile(sharpness(steps), level))


@cache
def two_segment_null(n_layers: int, level: float = 0.95, draws: int = 20_000, seed: int = 0) -> float:
    """Gain in BIC that a fall reaches with probability 1 - level in sums of exchangeable Gaussian steps; at least 0.

    A random walk wanders, so a shift of level nearly always beats a line by BIC alone, which takes layers for
    independent; a collapse has to gain more than that.
    """
    steps = np.random.default_rng(seed).standard_normal((draws, n_layers - 1))
    walks = np.concatenate([np.zeros((draws, 1)), steps.cumsum(axis=1)], axis=1)
    reading = read_two_segments(walks)
    gains = np.where(reading.falls > 0, reading.strengths, -np.inf)
    return max(0.0, float(np.quantile(gains, level, method="higher")))


def _drop_null(n_layers: int, level: float, draws: int, seed: int) -> float:
    return sharpness_null(n_layers - 1, level, draws, seed)


@cache
def _regressors(n_layers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orthonormal (layer, 2) basis of straight lines; unit (break, layer) shifts orthogonal to it; their lengths."""
    layers = np.arange(n_layers)
    line, _ = np.linalg.qr(np.stack([np.ones(n_layers), layers], axis=1))
    shifts = (layers >= layers[1:, None]).astype(float)
    shifts -= (shifts @ line) @ line.T
    lengths = np.linalg.norm(shifts, axis=1)
    return line, shifts / lengths[:, None], lengths


RULES = {
    "drop": CollapseRule(
        read=read_drop,
        null=_drop_null,
        flat="the entropy drops nowhere",
        weak="the largest drop ({fall:.3g} nats, into layer {layer}) does not stand out from the other steps: "
        "sharpness {strength:.2g}, needed {needed:.2g}",
    ),
    "relative-drop": CollapseRule(
        read=read_relative_drop,
        null=_drop_null,
        flat="the entropy drops nowhere",
        weak="the largest relative drop (of {fall:.3g} nats, into layer {layer}) does not stand out from the other "
        "relative steps: sharpness {strength:.2g}, needed {needed:.2g}",
    ),
    "two-segment": CollapseRule(
        read=read_two_segments,
        null=two_segment_null,
        flat="the level of the entropy falls nowhere: where two segments fit best, the second is not lower",
        weak="a level that falls at layer {layer} (by {fall:.3g} nats) does not stand out from one straight drift: "
        "gain in BIC {strength:.3g}, needed {needed:.3g}",
    ),
}
