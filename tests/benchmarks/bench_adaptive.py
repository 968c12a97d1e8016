"""Adaptive modes: replays and time of chosen layers against all layers, and what coarse windows spare."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from timing import heading, verdict
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_horizon as vh

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
from planted_models import cut_from
from random_models import QUESTION, random_image, random_llava, random_processor

PER_TASK = 24
PLANTED_LAYERS, PLANTED = 32, 13
PROBES = {"probes": ("removal", "information"), "progress": False}


def timed(measure: Callable[[], vh.Run]) -> tuple[vh.Run, float, float]:
    """A run, and the processor and clock time that it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    run = measure()
    return run, time.process_time() - cpu, time.perf_counter() - wall


def layers_of(run: vh.Run, criterion: str) -> str:
    """Horizons by task type."""
    return ", ".join(str(found.layer) for found in vh.find_horizon(run, criterion=criterion))


def compare_layers(name: str, model: vh.ProbedModel, samples: list[vh.Sample], **options: object) -> float:
    """Print a row on all layers against chosen ones; the ratio of their replays."""
    with TemporaryDirectory() as folder:
        full, full_cpu, full_wall = timed(lambda: vh.run(model, samples, Path(folder, "full"), **PROBES, **options))
        auto, cpu, wall = timed(lambda: vh.run_adaptive(model, samples, Path(folder, "auto"), **PROBES, **options))
        replays = vh.count_replays(auto)
        same = [
            (one.layer, other.layer)
            for criterion in ("removal", "information")
            for one, other in zip(*(vh.find_horizon(run, criterion=criterion) for run in (full, auto)), strict=True)
        ]
        half = [
            abs(one.half_depth - other.half_depth)
            for one, other in zip(*(vh.find_horizon(run, criterion="removal") for run in (full, auto)), strict=True)
            if one.half_depth is not None and other.half_depth is not None
        ]
        horizons = [layers_of(run, "information") for run in (full, auto)]
        times = [f"{seconds:.1f} s" for seconds in (full_cpu, cpu, full_wall, wall)]
        counts = [replays.all, replays.run, f"{replays.all / replays.run:.1f}"]
        print(
            f"| {' | '.join(map(str, [name, *counts, *times, *horizons, f'{max(half, default=0):.0e}']))} |", flush=True
        )
        if any(one != other for one, other in same):
            print(f"DIFFERENT: {same}")
        return replays.all / replays.run


def demo_samples(n: int) -> list[vh.Sample]:
    """The first n samples of each shipped set."""
    files = [vh.data_path("demo-samples", f"{name}.jsonl") for name in ("ocr", "vqa")]
    return [sample for file in files for sample in vh.read_samples(file, limit=n)]


def planted_model() -> vh.ProbedModel:
    """A random model of 32 layers whose text no longer looks at the image from layer 13 on."""
    model = cut_from(random_llava(34, layers=PLANTED_LAYERS), PLANTED, range(2, 27))
    return vh.load_model(model, processor=random_processor(), dtype="float64")


def narrow_model() -> vh.ProbedModel:
    """The demo model tiny-8 in float64, blind to all visual tokens but the block at row 2, column 4."""
    path = vh.data_path("demo-models", "tiny-8")
    places = np.arange(2, 66).reshape(8, 8)
    hidden = np.setdiff1d(places, places[2:4, 4:6]).tolist()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    return vh.load_model(cut_from(model, 0, hidden), processor=AutoProcessor.from_pretrained(path), dtype="float64")


def compare_windows(name: str, model: vh.ProbedModel, samples: list[vh.Sample], window: int, coarse: int) -> None:
    """Print a row on every fine window against those inside coarse windows with an effect."""
    grids = [vh.token_information(model, sample, window=window, coarse=coarse) for sample in samples]
    done, everything = sum(grid.replays for grid in grids), sum(grid.log_p.size for grid in grids)
    print(f"| {name} | {coarse} to {window} | {everything} | {done} | {1 - done / everything:+.0%} |", flush=True)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("Adaptive modes")
    sides = [f"{what}, {side}" for what in ("CPU", "clock", "horizon by information") for side in ("all", "chosen")]
    columns = ["model, windows", "replays, all layers", "chosen layers", "ratio", *sides, "half depths apart"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    noise = [vh.Sample(f"s{i}", random_image(i), QUESTION, ("apple",), "noise", "noise") for i in range(PER_TASK)]
    ratio = compare_layers("planted, 32 layers, 2x2", planted_model(), noise, window=2, targets=("greedy",))
    for name, window in (("tiny-8", 2), ("tiny-12", 2), ("tiny-12", 1)):
        model = vh.load_model(vh.data_path("demo-models", name))
        compare_layers(f"{name}, {window}x{window}", model, demo_samples(PER_TASK), window=window)
    print(f"\n32 layers: {ratio:.1f} times fewer replays, {verdict(ratio, 4, at_least=True)}\n")
    print("| model | windows | replays, exact | coarse to fine | spared |\n|" + "---|" * 5)
    for name in ("tiny-8", "tiny-12"):
        model = vh.load_model(vh.data_path("demo-models", name))
        for coarse, window in ((4, 2), (4, 1)):
            compare_windows(name, model, demo_samples(4), window, coarse)
    for coarse, window in ((4, 2), (4, 1)):
        compare_windows("tiny-8, made to see one 2x2 block", narrow_model(), demo_samples(4), window, coarse)


if __name__ == "__main__":
    main()
