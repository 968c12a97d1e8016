"""Share of a run's time outside the model, and samples a second, with and without threads beside it.

The demo run (tiny-8, all streams, shipped OCR and VQA samples, token grids on as large a share of them), shortened.
Outside the model is the wall time of the measuring thread, from the call of `vh.run` to its return, that goes neither
into the capture nor into replays. Both ways alternate in one process; each writes a run of its own, and the last two
are checked to be equal.

On a busy machine a thread that wakes up stands in line for a processor, which a machine of one's own would spare it.
Linux counts that time; "served at once" leaves out what the measuring thread spent so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
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
    "probes.measures.preparing.capture_prompt",
    "probes.parts.removals.removal_curves",
    "probes.parts.grids.information_grids",
    "probes.parts.floors.noise_floor",
)
RUNS: dict[str, dict[str, Any]] = {
    "all probes": {"token_samples": TOKEN_SAMPLES, "spectra": SPECTRA, "streams": STREAMS},
    "entropy only": {"probes": ("entropy",), "streams": STREAMS},
}


@dataclass(frozen=True)
class Reading:
    """Seconds of the calling thread since some moment: on the clock, and those it stood in line for a processor."""

    wall: float
    queued: float

    def __sub__(self, earlier: Reading) -> Reading:
        return Reading(self.wall - earlier.wall, self.queued - earlier.queued)

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.wall + other.wall, self.queued + other.queued)

    @property
    def served(self) -> float:
        """Time on the clock if a processor had been free at every moment."""
        return self.wall - self.queued


def read_clocks() -> Reading:
    """Now. Linux only for `queued`, which is 0 elsewhere."""
    file = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    return Reading(time.perf_counter(), int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0)


class Stopwatch:
    """Time spent in functions that do not call each other."""

    def __init__(self) -> None:
        self.total = Reading(0.0, 0.0)

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, on the watch."""

        def call(*args: Any, **kwargs: Any) -> Any:
            started = read_clocks()
            try:
                return function(*args, **kwargs)
            finally:
                self.total += read_clocks() - started

        return call


def measure(model: vh.ProbedModel, samples: list[vh.Sample], out: Path, **options: Any) -> dict[str, float]:
    """One run: shares of time outside the model, samples a second, processor seconds a sample."""
    watch = Stopwatch()
    with ExitStack() as patches:
        for place in MODEL_WORK:
            module, name = place.rsplit(".", 1)
            function = getattr(__import__(module, fromlist=[name]), name)
            patches.enter_context(patch(place, watch.timed(function)))
        started, cpu = read_clocks(), time.process_time()
        run = vh.run(model, samples, out, progress=False, **options)
        taken, cpu = read_clocks() - started, time.process_time() - cpu
    assert len(run.ok) == len(samples)
    return {
        "outside": 1 - watch.total.wall / taken.wall,
        "outside, served": 1 - watch.total.served / taken.served,
        "rate": len(samples) / taken.wall,
        "rate, served": len(samples) / taken.served,
        "cpu": cpu / len(samples),
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading(f"Throughput of {2 * SAMPLES} samples, tiny-8, medians of {ROUNDS} rounds")
    model = vh.load_model(vh.data_path("demo-models", "tiny-8"))
    files = [vh.data_path("demo-samples", f"{name}.jsonl") for name in ("ocr", "vqa")]
    samples = [sample for file in files for sample in vh.read_samples(file, limit=SAMPLES)]
    titles = ("run", "threads beside", "outside the model", "each round", "served at once", "samples/s")
    print(f"| {' | '.join((*titles, 'served at once', 'gain', 'served at once', 'processor time a sample'))} |")
    print("|---" * 10 + "|")
    for name, options in RUNS.items():
        found = _alternate(model, samples, options)
        for overlap in found:
            print(f"| {name} | {'yes' if overlap else 'no'} | {_cells(found[overlap], found[False])} |", flush=True)
        if name == "all probes":
            wall, served = (100 * median(one[key] for one in found[True]) for key in ("outside", "outside, served"))
    print(f"\noutside the model on the demo run: {wall:.1f} %: {verdict(wall, 5, at_least=False)}")
    print(f"served at once: {served:.1f} %: {verdict(served, 5, at_least=False)}")


def _cells(rounds: list[dict[str, float]], plain: list[dict[str, float]]) -> str:
    """Medians of one way, with its gain over the plain one round by round."""
    middle = {key: median(one[key] for one in rounds) for key in rounds[0]}
    gains = {
        key: median(one[key] / other[key] for one, other in zip(rounds, plain, strict=True))
        for key in ("rate", "rate, served")
    }
    cells = [f"{middle['outside']:.1%}", ", ".join(f"{one['outside']:.1%}" for one in rounds)]
    cells += [f"{middle['outside, served']:.1%}", f"{middle['rate']:.2f}", f"{middle['rate, served']:.2f}"]
    cells += [f"{gains['rate']:.2f}", f"{gains['rate, served']:.2f}", f"{middle['cpu'] * 1000:.0f} ms"]
    return " | ".join(cells)


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
