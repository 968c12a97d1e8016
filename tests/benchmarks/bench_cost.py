"""Time of a run against the prediction made before it, over layers, windows, tokens and samples; one thread.

Both sides in processor time: predictions come from parts of one sample, measured for at most a few seconds. With a
path as its argument the script also draws both.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import random_llava as llava
import torch
from timing import cpu_seconds, heading

import vlm_horizon as vh
from analyses.runs import STREAMS

GRID, LAYERS, WINDOW = 12, 4, 2  # of the random LLaVA where none of them varies
DEMO_SAMPLES, DEMO_GRIDS = 30, 10  # of each set


@dataclass(frozen=True)
class Point:
    """One run: what was varied, and its times in seconds."""

    x: float
    measured: float
    predicted: float
    calibration: float
    operations: float


def run_point(x: float, model: vh.ProbedModel, samples: Sequence[vh.Sample], **options: Any) -> Point:
    """Predict, then measure."""
    calibration, cost = cpu_seconds(lambda: vh.estimate_cost(model, samples, clock=time.process_time, **options))
    with TemporaryDirectory() as folder:
        out = Path(folder, "run")
        measured, run = cpu_seconds(lambda: vh.run(model, samples, out, progress=False, **options))
        assert len(run.failed) == 0
    return Point(x, measured, cost.total_seconds, calibration, cost.total_operations)


def noise_samples(count: int = 1, grid: int = GRID) -> list[vh.Sample]:
    """The benchmark's sample under several ids."""
    return [replace(llava.sample(grid), id=f"noise-{n}") for n in range(count)]


def sweeps() -> dict[str, list[Point]]:
    """Every series, by what varies."""
    greedy: dict[str, Any] = {"targets": ("greedy",), "window": WINDOW}
    plain = llava.load(GRID, LAYERS)
    run_point(0, plain, noise_samples(), **greedy)  # libraries, caches
    found: dict[str, list[Point]] = {name: [] for name in ("decoder layers", "windows", "visual tokens", "samples")}
    for layers in (2, 4, 8, 16):
        found["decoder layers"].append(run_point(layers, llava.load(GRID, layers), noise_samples(), **greedy))
    for side in (6, 4, 3, 2, 1):
        options = greedy | {"window": side}
        found["windows"].append(run_point((GRID // side) ** 2, plain, noise_samples(), **options))
    for grid in (6, 9, 12, 18, 24):
        model = llava.load(grid, LAYERS)
        found["visual tokens"].append(run_point(grid**2, model, noise_samples(1, grid), **greedy))
    for count in (1, 2, 4, 8):
        found["samples"].append(run_point(count, plain, noise_samples(count), **greedy))
    return found


def demo_points() -> dict[str, Point]:
    """The demonstration, shortened: both models, both sets."""
    sets = [vh.data_path("demo-samples", f"{name}.jsonl") for name in ("ocr", "vqa")]
    samples = [sample for file in sets for sample in vh.read_samples(file, limit=DEMO_SAMPLES)]
    options = {"streams": STREAMS, "token_samples": DEMO_GRIDS, "spectra": 5}
    found = {}
    for name in ("tiny-8", "tiny-12"):
        model = vh.load_model(vh.data_path("demo-models", name))
        found[name] = run_point(len(samples), model, samples, **options)
    return found


def method_points() -> dict[str, Point]:
    """Token grids by backward passes, with exact checks of one sample, and by coarse windows: at most, if all show."""
    both = {"contexts": ("keep-one", "leave-one-out")}
    options: dict[str, dict[str, Any]] = {"gate": both | {"method": "gate"}, "coarse 6": both | {"coarse": 6}}
    found = {}
    for name, chosen in options.items():
        fixed = {"targets": ("greedy",), "window": WINDOW, **chosen}
        found[f"random LLaVA, {name}"] = checked_point(llava.load(GRID, LAYERS), noise_samples(2), **fixed)
        demo = vh.load_model(vh.data_path("demo-models", "tiny-8"))
        files = [vh.data_path("demo-samples", f"{task}.jsonl") for task in ("ocr", "vqa")]
        samples = [sample for file in files for sample in vh.read_samples(file, limit=DEMO_GRIDS)]
        coarse = {"coarse": 4} if "coarse" in chosen else {}
        found[f"tiny-8, {name.split()[0]}"] = checked_point(demo, samples, window=WINDOW, **chosen | coarse)
    return found


def checked_point(model: vh.ProbedModel, samples: Sequence[vh.Sample], **options: Any) -> Point:
    """As `run_point`; one sample of each task has its estimates held against exact values."""
    how = {"gate_checks": 1, **options}
    predict = partial(vh.estimate_cost, model, samples, clock=time.process_time, **how)
    calibration, cost = cpu_seconds(predict)
    with TemporaryDirectory() as folder:
        measured, run = cpu_seconds(lambda: vh.run(model, samples, Path(folder, "run"), progress=False, **how))
        assert len(run.failed) == 0
    return Point(len(samples), measured, cost.total_seconds, calibration, cost.total_operations)


def slope(points: Sequence[Point], name: str) -> float:
    """Exponent of a power law through a series."""
    x, y = (np.log([getattr(point, field) for point in points]) for field in ("x", name))
    return float(np.polyfit(x, y, 1)[0])


def report(series: dict[str, list[Point]]) -> None:
    """Print tables and exponents."""
    for varied, points in series.items():
        print(f"| {varied} | operations | predicted | measured | measured / predicted | calibration |")
        print("|---|---|---|---|---|---|")
        for point in points:
            print(
                f"| {point.x:g} | {point.operations / 1e9:.0f} G | {point.predicted:.2f} s | {point.measured:.2f} s "
                f"| {point.measured / point.predicted:.2f} | {point.calibration:.2f} s |"
            )
        named = ", ".join(f"{name} {slope(points, name):.2f}" for name in ("operations", "predicted", "measured"))
        print(f"\nexponents over {varied}: {named}\n")


def draw(series: dict[str, list[Point]], path: Path) -> None:
    """Measured times as dots over predicted lines, one panel a series."""
    figure, panels = plt.subplots(1, len(series), figsize=(3 * len(series), 3), layout="constrained")
    for panel, (varied, points) in zip(panels, series.items(), strict=True):
        x = [point.x for point in points]
        panel.loglog(x, [point.predicted for point in points], label="predicted")
        panel.loglog(x, [point.measured for point in points], "o", label="measured")
        panel.set(xlabel=varied, ylabel="processor time (s)")
    panels[0].legend()
    figure.savefig(path)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("Time of runs against the prediction made before them")
    series = sweeps()
    report(series)
    for name, point in demo_points().items():
        print(
            f"{name}, {point.x:g} shipped samples: predicted {point.predicted:.1f} s, measured {point.measured:.1f} s "
            f"(ratio {point.measured / point.predicted:.2f}), calibration {point.calibration:.2f} s"
        )
    for name, point in method_points().items():
        print(
            f"{name}, {point.x:g} samples: {point.operations / 1e9:.0f} G operations, predicted {point.predicted:.1f} s"
            f", measured {point.measured:.1f} s (ratio {point.measured / point.predicted:.2f}), calibration "
            f"{point.calibration:.2f} s"
        )
    if len(sys.argv) > 1:
        draw(series, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
