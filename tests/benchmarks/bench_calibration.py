"""Do intervals hold what they promise? Coverage, located layers and false alarms on curves of known truth.

    python tests/benchmarks/bench_calibration.py [REPETITIONS] [RESAMPLES]

1,000 repetitions by default, on two processes. Shares of 1,000 repetitions are known to about +-0.014 (two standard
errors at 0.95).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))

import simulated_curves as simulated
from timing import cpu_seconds, heading, verdict

from analyses.arrays.depths import half_depths, settled_layer
from analyses.arrays.permutation import half_depth_p_value
from analyses.arrays.resampling import draw_counts, interval_warning, percentile_interval, resampled_means
from analyses.verdicts.collapse import CollapseDetector
from analyses.verdicts.horizon import HorizonDetector

PROCESSES = 2
CHUNK = 50
IMAGES = (20, 50, 200)
MORE_IMAGES = (10, 30, 100)  # where intervals are no longer sure
DEPTHS = (8, 24, 32)
DESIGNS = [*simulated.bounded_designs(), simulated.heavy_tails(24, 1.0), simulated.heavy_tails(24, 1.5)]
CLOSER = [i for i, known in enumerate(DESIGNS) if not known.bounded or "24" in known.name]
NO_COLLAPSE = ("shared steps", "own steps", "flat", "drift")
SHALLOW, DEEP, DEEPER = (simulated.fade(24, at=0.45 + gap / 24) for gap in (0, 1, 2))
TWICE = simulated.fade(24, questions=2)  # the first question about an image in a, the second in b
PAIRS = {  # name: populations of a and b, images in a and b
    "same images, same depth": (TWICE, TWICE, 50, 50),
    "same images, same depth, few": (TWICE, TWICE, 20, 20),
    "other images, same depth": (SHALLOW, SHALLOW, 50, 50),
    "1 layer apart": (SHALLOW, DEEP, 50, 50),
    "2 layers apart": (SHALLOW, DEEPER, 50, 50),
    "2 layers apart, unequal": (SHALLOW, DEEPER, 50, 200),
    "2 layers apart, few": (SHALLOW, DEEPER, 20, 20),
}


def judge_effects(design: int, n_images: int, resamples: int, repetition: int) -> list[float]:
    """Half depth covered, its width, true value above and below the interval; band; horizon; warned."""
    known = DESIGNS[design]
    values, images = known.draw(np.random.default_rng([repetition, n_images, design]), n_images)
    found = HorizonDetector(resamples=resamples, seed=repetition)(values, images)
    band = bool((found.low - 1e-9 <= known.mean).all() and (known.mean <= found.high + 1e-9).all())
    warned = bool(interval_warning(values, images))
    if found.half_depth_interval is None or found.interval is None:
        return [np.nan] * 4 + [band] + [np.nan] * 3 + [warned]
    low, high = found.half_depth_interval
    above, below = known.half_depth > high, known.half_depth < low
    first, last = found.interval
    horizon = [first <= known.horizon <= last, last - first, found.layer == known.horizon]
    return [not (above or below), high - low, above, below, band, *horizon, warned]


def draw_pair(name: str, repetition: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two groups of samples, with their image codes in one numbering."""
    a, b, n_a, n_b = PAIRS[name]
    rng = np.random.default_rng([repetition, list(PAIRS).index(name)])
    values, images = a.draw(rng, n_a)
    if a is TWICE:
        return [(values[::2], images[::2]), (values[1::2], images[1::2])]
    others, other_images = b.draw(rng, n_b)
    return [(values, images), (others, other_images + n_a)]


def judge_differences(name: str, resamples: int, repetition: int) -> list[float]:
    """Intervals of differences, as `compare_horizons` forms them: covered and width, half depth and horizon."""
    a, b, n_a, n_b = PAIRS[name]
    groups = draw_pair(name, repetition)
    counts = draw_counts(max(images.max() for _, images in groups) + 1, resamples, repetition)
    draws = [resampled_means(values, images, counts) for values, images in groups]
    half = half_depths(draws[0], a.layers) - half_depths(draws[1], a.layers)
    settled = [settled_layer(d, np.maximum(0.05 * d[:, 0], 0.01), a.layers) for d in draws]
    n_clusters = min(n_a, n_b)
    low, high = percentile_interval(half, n_clusters=n_clusters)
    first, last = percentile_interval(1.0 * settled[0] - settled[1], n_clusters=n_clusters, method="inverted_cdf")
    covered = low <= a.half_depth - b.half_depth <= high, first <= a.horizon - b.horizon <= last
    return [covered[0], high - low, covered[1], last - first]


def judge_p_values(name: str, permutations: int, repetition: int) -> list[float]:
    """Permutation p-value of the difference between the half depths of a pair."""
    (a, images_a), (b, images_b) = draw_pair(name, repetition)
    p = half_depth_p_value(a, images_a, b, images_b, TWICE.layers, permutations=permutations, seed=repetition)
    return [p <= 0.01, p <= 0.05, p <= 0.1]


def judge_no_collapse(kind: str, n_layers: int, resamples: int, repetition: int) -> list[float]:
    """Whether an ECL is named where there is none."""
    rng = np.random.default_rng([repetition, n_layers, NO_COLLAPSE.index(kind)])
    values = simulated.exchangeable_entropies(rng, 30, n_layers, kind=kind)
    return [CollapseDetector(resamples=resamples)(values, np.arange(30)).layer is not None]


def judge_collapse(drop: float, n_images: int, n_layers: int, resamples: int, repetition: int) -> list[float]:
    """Whether the ECL is right, wrong, None; whether its interval covers, and how wide it is."""
    rng = np.random.default_rng([repetition, n_layers, n_images])
    layer = int(rng.integers(1, n_layers))
    values = simulated.collapse_entropies(rng, n_images, n_layers, layer, drop=drop)
    found = CollapseDetector(resamples=resamples, seed=repetition)(values, np.arange(n_images))
    if found.interval is None:
        return [False, False, True, np.nan, np.nan]
    first, last = found.interval
    return [found.layer == layer, found.layer != layer, False, first <= layer <= last, last - first]


def judge_grids(n_layers: int, n_images: int, resamples: int, repetition: int) -> list[float]:
    """Criterion `information` on token grids with a known last layer: right, interval covers, its width."""
    rng = np.random.default_rng([repetition, n_layers, n_images, 1])
    at = int(rng.integers(1, n_layers))
    grids = simulated.token_grids(rng, n_images, n_layers, at)
    magnitude = np.append(np.abs(grids).mean(axis=2), np.zeros((n_images, 1)), axis=1)
    detector = HorizonDetector(resamples=resamples, seed=repetition)
    found = detector(magnitude, np.arange(n_images), criterion="information", removal=np.full(n_images, 0.5))
    first, last = found.interval or (np.nan, np.nan)
    return [found.layer == at, first <= at <= last, last - first]


def repeat(judge: Callable[[int], list[float]], repetitions: Sequence[int]) -> list[list[float]]:
    """One chunk of work of a process."""
    return [judge(repetition) for repetition in repetitions]


def tabulate(title: str, columns: str, rows: dict[str, partial[list[float]]], repetitions: int, pool: Any) -> None:
    """Print the mean of every judgment over the repetitions, one row at a time, as a Markdown table."""
    print(f"\n### {title}\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)
    chunks = [range(start, min(start + CHUNK, repetitions)) for start in range(0, repetitions, CHUNK)]
    for name, judge in rows.items():
        judged = np.array([row for rows in pool.map(partial(repeat, judge), chunks) for row in rows], float)
        known = ~np.isnan(judged)
        means = np.where(known, judged, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |", flush=True)


def main(repetitions: int = 1000, resamples: int = 1000) -> None:
    """Run everything and print the tables."""
    started = time.perf_counter()
    heading(f"calibration: {repetitions} repetitions, {resamples} resamples each, 95 % intervals")
    sizes = {i: sorted((*IMAGES, *MORE_IMAGES)) if i in CLOSER else IMAGES for i in range(len(DESIGNS))}
    effects = {
        f"{DESIGNS[i].name} | {n}": partial(judge_effects, i, n, resamples) for i, row in sizes.items() for n in row
    }
    collapses = {
        f"{drop} | {n} | {n_layers}": partial(judge_collapse, drop, n, n_layers, resamples)
        for drop, n, n_layers in product((1.0, 0.3, 0.15), (10, 50), DEPTHS)
    }
    nothing = {
        f"{kind} | {n_layers}": partial(judge_no_collapse, kind, n_layers, 200)
        for kind, n_layers in product(NO_COLLAPSE, DEPTHS)
    }
    with Pool(PROCESSES) as pool:
        table = partial(tabulate, repetitions=repetitions, pool=pool)
        half = "half depth: covered | width | truth above | below"
        columns = f"design | images | {half} | band holds | horizon: covered | width | right | warned"
        table("Effect curves, half depths, horizons", columns, effects)
        rows = {
            f"{n_layers} | {n}": partial(judge_grids, n_layers, n, resamples)
            for n_layers, n in product(DEPTHS, (50, 100))
        }
        table("Token grids, criterion `information`", "L | images | right | interval covers | width", rows)
        rows = {name: partial(judge_differences, name, resamples) for name in PAIRS}
        columns = "pair | half depth: covered | width | horizon: covered | width"
        table("Differences", columns, rows)
        rows = {name: partial(judge_p_values, name, 400) for name in PAIRS}
        table("Permutation p-values", "pair | p <= 0.01 | p <= 0.05 | p <= 0.1", rows)
        columns = "drop in nats (other steps 0.05) | images | L | right | wrong | none | interval covers | width"
        table("Entropy collapse layer where there is one", columns, collapses)
        title = f"Entropy collapse layer where there is none, {4 * repetitions} repetitions"
        table(title, "entropies | L | named", nothing, repetitions=4 * repetitions)
    print(f"\nall tables: {time.perf_counter() - started:.0f} s")
    values, images = simulated.fade(32).draw(np.random.default_rng(0), 1000)
    taken, _ = cpu_seconds(lambda: HorizonDetector(resamples=2000)(values, images))
    print(
        f"one horizon, 2,000 resamples x 1,000 samples x 33 layers: {taken:.2f} s, {verdict(taken, 2, at_least=False)}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
