"""Share of a run's time outside the model, and samples a second, with and without threads beside it.

The demo run (tiny-8, all streams, shipped OCR and VQA samples, token grids on as large a share of them), shortened.
Outside the model is the wall time of the measuring thread, from the call of `vh.run` to its return, that goes neither
into the capture nor into replays. Both ways alternate in one process; each writes a run of its own, and the last two
are checked to be equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from timing import heading, verdict

import vlm_horizon as vh
from analyses.runs import STREAMS

SAMPLES, TOKEN_SAMPLES, SPECTRA = 60, 22, 5  # of each task
ROUNDS = 3
# what runs the model: the capture, the replays and the noise floor's replays
MODEL_WORK = (
    "probes.information.capture_prompt",
    "probes.measure.removal_curves",
    "probes.measure.information_grids",
    "probes.measure.noise_floor",
)
RUNS: dict[str, dict[str, Any]] = {
    "all probes": {"token_samples": TOKEN_SAMPLES, "spectra": SPECTRA, "streams": STREAMS},
    "entropy only": {"probes": ("entropy",), "streams": STREAMS},
}


class Stopwatch:
    """Time spent in functions that do not call each other: on the clock, and on the processor in this thread."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, on the watch."""

        def call(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.thread_time() - cpu

        return call


def measure(model: vh.ProbedModel, samples: list[vh.Sample], out: Path, **options: Any) -> dict[str, float]:
    """One run: samples a second on the clock, processor seconds a sample, and the shares of time outside the model."""
    watch = Stopwatch()
    with ExitStack() as patches:
        for place in MODEL_WORK:
            module, name = place.rsplit(".", 1)
            function = getattr(__import__(module, fromlist=[name]), name)
            patches.enter_context(patch(place, watch.timed(function)))
        wall, cpu, own = time.perf_counter(), time.process_time(), time.thread_time()
        run = vh.run(model, samples, out, progress=False, **options)
        wall, cpu, own = time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - own
    assert len(run.ok) == len(samples)
    return {
        "rate": len(samples) / wall,
        "cpu": cpu / len(samples),
        "outside": 1 - watch.wall / wall,
        "processor": 1 - watch.cpu / own,
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading(f"Throughput of {2 * SAMPLES} samples, tiny-8, medians of {ROUNDS} rounds")
    model = vh.load_model(vh.data_path("demo-models", "tiny-8"))
    files = [vh.data_path("demo-samples", f"{name}.jsonl") for name in ("ocr", "vqa")]
    samples = [sample for file in files for sample in vh.read_samples(file, limit=SAMPLES)]
    titles = ("run", "threads beside", "outside the model", "each round", "the same in processor time")
    print(f"| {' | '.join((*titles, 'samples/s', 'processor time a sample', 'gain'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for name, options in RUNS.items():
        found = _alternate(model, samples, options)
        gain = median(on["rate"] / off["rate"] for on, off in zip(found[True], found[False], strict=True))
        for overlap, rounds in found.items():
            middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
            each = ", ".join(f"{one['outside']:.1%}" for one in rounds)
            kind = f"{name} | {'yes' if overlap else 'no'}"
            shares = f"{middle['outside']:.1%} | {each} | {middle['processor']:.1%}"
            speed = f"{middle['rate']:.2f} | {middle['cpu'] * 1000:.0f} ms | {gain if overlap else 1:.2f}"
            print(f"| {kind} | {shares} | {speed} |", flush=True)
        if name == "all probes":
            share = median(one["outside"] for one in found[True])
            asked = verdict(100 * share, 5.0, at_least=False)
    print(f"\noutside the model on the demo run: {100 * share:.1f} %: {asked}")


def _alternate(
    model: vh.ProbedModel, samples: list[vh.Sample], options: dict[str, Any]
) -> dict[bool, list[dict[str, float]]]:
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with TemporaryDirectory() as folder:
        measure(model, samples[:4], Path(folder, "warm"), **options)
        for turn in range(ROUNDS):
            for overlap in (False, True) if turn % 2 == 0 else (True, False):
                out = Path(folder, f"{turn}-{overlap}")
                found[overlap].append(measure(model, samples, out, overlap=overlap, **options))
        one, other = (vh.load_run(Path(folder, f"{ROUNDS - 1}-{overlap}")).curves for overlap in (False, True))
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    return found


if __name__ == "__main__":
    main()
