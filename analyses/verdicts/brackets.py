"""Where to measure token grids to find a horizon with few layers: look where others point, then close brackets.

Token grids are dear and removal curves are cheap. So the removal curves of all layers, and the grids of a few pilot
samples at all layers, say where the horizon by single windows' information is likely to lie. Grids of all samples at
a few layers bracket it, and each next layer narrows the bracket, until its two ends are neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analyses.verdicts.horizon import Horizon

LEAST_BUDGET = 8  # layers: a quarter of 32; with 6, a fifth of simulated models of 24 layers stayed open
PILOT_SHARE = 1 / 8  # of all that may be measured
PILOT_MOST, PILOT_LEAST_SAMPLES = 8, 16  # samples that a pilot never exceeds, and without which there is none
# A horizon follows the last effect above a share of the largest one. If that last effect is less than this times the
# share, a somewhat larger effect at a skipped layer would move it.
PEAK_MARGIN = 1.25


@dataclass(frozen=True)
class Guide:
    """A curve over all layers that tells where another one, known at a few layers only, is likely to fall.

    Attributes:
        layers: (layer,) int, every cut and L.
        effect: (layer,) mean effect, in any unit.
        horizon: from which layer on it is gone.
    """

    layers: np.ndarray
    effect: np.ndarray
    horizon: int


def default_budget(n_layers: int) -> int:
    """How many layers' worth of token grids to measure at most: a quarter of all, but 8 where that is fewer.

    >>> [default_budget(n) for n in (4, 12, 24, 32, 80)]
    [4, 8, 8, 8, 20]
    """
    return min(n_layers, max(n_layers // 4, LEAST_BUDGET))


def pilot_size(n_samples: int, n_layers: int, budget: int) -> int:
    """How many samples of a group get every layer: an eighth of the budget, at least one, at most eight; none of few.

    >>> [pilot_size(n, 32, 8) for n in (10, 24, 100, 1000)]
    [0, 1, 3, 8]
    """
    if n_samples < PILOT_LEAST_SAMPLES or budget >= n_layers:
        return 0
    return int(np.clip(n_samples * budget * PILOT_SHARE // n_layers, 1, PILOT_MOST))


def layers_left(n_samples: int, n_pilot: int, n_layers: int, budget: int) -> int:
    """Layers that samples outside the pilot may get, so that all together cost no more than the budget for each.

    >>> [layers_left(n, pilot_size(n, 32, 8), 32, 8) for n in (10, 24, 100, 1000)]
    [8, 6, 7, 7]
    """
    return (n_samples * budget - n_pilot * n_layers) // max(1, n_samples - n_pilot)


def first_layers(removal: Horizon, pilot: Guide | None, most: int) -> list[int]:
    """Layers to begin with in one group: layer 0, and those that a pilot names, or without one the removal curve.

    A pilot names where its effect is largest and from where on it is gone; a removal curve its horizon and half
    depth. Without a removal effect there is no horizon to look for, and layer 0 has to do.

    Args:
        removal: the horizon of the group by the criterion "removal".
        pilot: mean magnitude of single windows' information over the group's pilot samples.
        most: layers.

    Returns:
        Ascending cuts in 0..L-1; a horizon that is not reached stands at L - 1.
    """
    if removal.layer is None:
        return [0]
    if pilot is None:
        return sorted(list(dict.fromkeys([0, *named_layers(removal)]))[:most])
    peak = pilot.layers[np.abs(pilot.effect).argmax()]
    last = removal.n_layers - 1
    return sorted(list(dict.fromkeys([0, min(pilot.horizon, last), min(int(peak), last)]))[:most])


def named_layers(removal: Horizon) -> list[int]:
    """Horizon and half depth of a removal curve as cuts in 0..L-1; empty where there are none."""
    depths = [depth for depth in (removal.layer, removal.half_depth) if depth is not None]
    return [min(round(depth), removal.n_layers - 1) for depth in depths]


def next_layer(information: Horizon, guide: Guide) -> int | None:
    """The layer that narrows most what is still open about a horizon; None when nothing is.

    A horizon that lies somewhere between two measured layers gets one between them: the first where the effect would
    be gone if it fell between the two as the guide does, but not in the outer quarters of a wide bracket, unless an
    end of it is where the guide itself is just gone, or just not. A horizon whose neighbor is measured, but so close
    to the threshold that a larger effect elsewhere would move it, gets the middle of the wider gap beside the largest
    effect.

    Args:
        information: by a criterion of the token grids.
        guide: a curve over all layers that the effect is likely to follow.
    """
    if information.bracket is not None:
        return _crossing(information, guide, information.bracket)
    return _beside_the_peak(information) if information.layer else None


def _crossing(horizon: Horizon, guide: Guide, bracket: tuple[int, int]) -> int:
    """A skipped layer in the bracket."""
    before, at = bracket
    inside = horizon.skipped[(horizon.skipped > before) & (horizon.skipped < at)]
    if guide.horizon in (at, before + 1):
        return int(inside[-1 if guide.horizon == at else 0])
    start, end = (abs(float(horizon.effect[horizon.layers == layer][0])) for layer in bracket)
    remaining = np.maximum.accumulate(np.abs(guide.effect)[::-1])[::-1]  # the most that is still to come at each layer
    first, last = (float(remaining[guide.layers == layer][0]) for layer in bracket)
    if first <= last:
        return int(inside[len(inside) // 2])
    expected = end + (start - end) * (remaining[np.isin(guide.layers, inside)] - last) / (first - last)
    guess = int((expected < horizon.threshold).argmax()) if (expected < horizon.threshold).any() else len(inside) - 1
    outer = len(inside) // 4
    return int(inside[np.clip(guess, outer, len(inside) - 1 - outer)])


def _beside_the_peak(horizon: Horizon) -> int | None:
    size = np.abs(horizon.effect)
    if size[horizon.layers < horizon.layer][-1] >= PEAK_MARGIN * horizon.threshold:
        return None
    peak = int(size.argmax())
    ends = [(horizon.layers[i], horizon.layers[i + 1]) for i in (peak - 1, peak) if i >= 0]
    gaps = [horizon.skipped[(horizon.skipped > low) & (horizon.skipped < high)] for low, high in ends]
    widest = max(gaps, key=len)
    return int(widest[len(widest) // 2]) if len(widest) else None
