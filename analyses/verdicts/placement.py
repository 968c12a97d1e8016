"""Where a mean effect curve settles, and with which interval: what a criterion makes of a curve and its band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.arrays.depths import layer_words, skipped_before
from analyses.verdicts.criteria import CRITERIA, Criterion, Limits, settle


@dataclass(frozen=True)
class MeanCurve:
    """The mean effect of one group with its band, and what counts as gone.

    Attributes:
        criterion: a key of `CRITERIA`.
        layers: (layer,) int, the measured ones, L last.
        skipped: (skipped,) int, those that could have been measured and were not.
        effect: (layer,) mean effect in the unit of the measure.
        low: (layer,) lower end of its simultaneous band. high: (layer,) its upper end.
        threshold: |effect| below it counts as gone.
        noise_floor: in the same unit; NaN for a measure that has none.
    """

    criterion: str
    layers: np.ndarray
    skipped: np.ndarray
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    threshold: float
    noise_floor: float

    @property
    def rule(self) -> Criterion:
        """The criterion itself."""
        return CRITERIA[self.criterion]


@dataclass(frozen=True)
class Placement:
    """A horizon, or why none is named.

    Attributes:
        layer: the horizon, or None. interval: by inverting the band, or None.
        bracket: measured layers that the horizon lies between, where those between them were skipped.
        reason: why `layer` is None; "" when it is given.
        warning: what the skipped layers could change; "" where nothing was skipped.
    """

    layer: int | None = None
    interval: tuple[int, int] | None = None
    bracket: tuple[int, int] | None = None
    reason: str = ""
    warning: str = ""


def place(curve: MeanCurve, limits: Limits) -> Placement:
    """Name the horizon of a curve, unless its band is too wide, or layers were skipped just before it."""
    reason = _objection(curve, limits)
    if reason:
        return Placement(reason=reason)
    rule = curve.rule
    layer = int(settle(rule, curve.effect, curve.threshold, curve.layers))
    between = skipped_before(layer, curve.layers, curve.skipped)
    if len(between):
        before = int(curve.layers[curve.layers < layer].max())
        reason = (
            f"it lies after layer {before} and not after layer {layer}: "
            f"the {rule.looks_at} was not measured at {layer_words(between)}"
        )
        return Placement(reason=reason, bracket=(before, layer))
    interval = _inverted_band(curve, limits) if rule.settles else None
    return Placement(layer=layer, interval=interval, warning=_taken_on_trust(curve, layer))


def _objection(curve: MeanCurve, limits: Limits) -> str:
    """Why an effect that is there has no horizon by this criterion, or ""."""
    if curve.threshold <= curve.noise_floor:
        return (
            f"the {curve.rule.looks_at} would count as gone below {curve.threshold:.3g}, "
            f"which the noise floor of {curve.noise_floor:.3g} hides"
        )
    return _undecided(curve, limits) if curve.rule.flips else ""


def _undecided(curve: MeanCurve, limits: Limits) -> str:
    """Which layer the claim hangs on is not known precisely enough, or "".

    Layers up to the last one whose whole interval lies above the threshold are settled: the horizon is later.
    """
    clearly_above = curve.low > curve.threshold
    after_the_last = np.cumsum(clearly_above[::-1])[::-1] == 0
    widths = np.where(after_the_last, (curve.high - curve.low) / 2, 0.0)
    if widths.max() <= limits.precision:
        return ""
    return (
        f"undecided: the {curve.rule.looks_at} at layer {curve.layers[widths.argmax()]} "
        f"is known to within {100 * widths.max():.2g} points only, needed {100 * limits.precision:.2g}"
    )


def _inverted_band(curve: MeanCurve, limits: Limits) -> tuple[int, int]:
    """(lowest, highest) layer of the horizon by inverting the simultaneous band.

    The threshold depends on the effect itself (a share of R_0), so it has a band as well. Thresholds grow with
    the curve, so the ends of the band give those of the threshold: the lower end of |effect| is held against
    the largest threshold and the upper end against the smallest. When the band holds the true curve, the
    interval then holds the true horizon: at least the promised coverage, whatever the correlation of R_0 with
    the rest.
    """
    rule = curve.rule
    least, most = curve.low, curve.high
    if not rule.signed:
        least = np.maximum(0.0, np.maximum(curve.low, -curve.high))
        most = np.maximum(np.abs(curve.low), np.abs(curve.high))
    largest, smallest = (rule.threshold(end, curve.noise_floor, limits) for end in (curve.high, curve.low))
    first = int(settle(rule, least, largest, curve.layers))
    last = int(settle(rule, most, smallest, curve.layers))
    return int(skipped_before(first, curve.layers, curve.skipped).min(initial=first)), last


def _taken_on_trust(curve: MeanCurve, layer: int) -> str:
    """What the skipped layers could change about a horizon that its measured neighbors bracket, or ""."""
    if not len(curve.skipped):
        return ""
    earlier, later = curve.skipped[curve.skipped < layer], curve.skipped[curve.skipped > layer]
    assumptions = [f"no larger at {layer_words(earlier)}"] if len(earlier) else []
    assumptions += [f"gone at {layer_words(later)} as well"] if len(later) else []
    return f"not measured at every layer, the {curve.rule.looks_at} is taken to be {' and '.join(assumptions)}"
