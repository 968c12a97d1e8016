"""Peak memory of a run against the formula that `cost` prints, and resident memory over a long run: flat.

Linux only, where /proc tells the size of a process. Peaks are taken in a fresh process each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import random_llava as llava
import torch
from timing import heading, verdict

import vlm_horizon as vh

SAMPLES = 1000
PEAKS: dict[str, dict[str, Any]] = {
    "random LLaVA": {"contexts": ("keep-one",)},
    "random LLaVA, leave-one-out": {"contexts": ("leave-one-out",)},
    "random LLaVA, gate keep-one": {"contexts": ("keep-one",), "method": "gate"},
    "random LLaVA, gate leave-one-out": {"contexts": ("leave-one-out",), "method": "gate"},
    "random LLaVA, coarse": {"contexts": ("leave-one-out",), "coarse": 8},
    "tiny-8": {"contexts": ("keep-one",)},
}
WARMUP = 100  # samples until caches, allocators and imports have settled


def resident_megabytes() -> float:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def largest_megabytes() -> float:
    """Largest resident size since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def peak_of_run(name: str) -> dict[str, float]:
    """Load, predict, measure: sizes of this process in MB (2^20 bytes)."""
    options = PEAKS[name]
    if name == "tiny-8":
        model, samples = vh.load_model(vh.data_path("demo-models", name)), list(islice(demo_samples(), 40))
    else:
        model, samples = llava.load(), [replace(llava.sample(), id=str(n)) for n in range(2)]
        options = options | {"targets": ("greedy",), "layers": (6, 7), "window": 4}
    loaded = resident_megabytes()
    cost = vh.estimate_cost(model, samples, gate_checks=1, **options)
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    with TemporaryDirectory() as folder:
        run = vh.run(model, samples, Path(folder, "run"), progress=False, gate_checks=1, **options)
        assert len(run.failed) == 0
    parts = {part: held / 2**20 for part, held in cost.memory.items()}
    return {"loaded": loaded, "predicted": cost.peak_bytes / 2**20, "measured": largest_megabytes(), **parts}


def peaks() -> None:
    """Print the peaks of runs, each of a process of its own."""
    columns = ("run", "loaded", "resident", "predicted peak", "measured peak", "measured / predicted", "beyond loaded")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in PEAKS:
        command = [sys.executable, __file__, name]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        ratio = found["measured"] / found["predicted"]
        beyond = (found["measured"] - found["loaded"]) / (found["predicted"] - found["loaded"])
        print(
            f"| {name} | {found['loaded']:.0f} MB | {found['resident']:.0f} MB | {found['predicted']:.0f} MB "
            f"| {found['measured']:.0f} MB | {ratio:.2f}, {verdict(abs(ratio - 1), 0.2, at_least=False)} "
            f"| {beyond:.2f} |"
        )
    print()


def watched(samples: Iterator[vh.Sample], sizes: list[float]) -> Iterator[vh.Sample]:
    """The samples; notes the size before each is measured."""
    for sample in samples:
        sizes.append(resident_megabytes())
        yield sample
    sizes.append(resident_megabytes())


def demo_samples() -> Iterator[vh.Sample]:
    """The shipped sets over and over, under new ids."""
    files = [vh.data_path("demo-samples", f"{name}.jsonl") for name in ("ocr", "vqa")]
    shipped = [sample for file in files for sample in vh.read_samples(file)]
    for number, sample in enumerate(cycle(shipped)):
        yield replace(sample, id=f"{sample.id}-{number}")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(json.dumps(peak_of_run(sys.argv[1])))
        return
    heading("Peak memory of runs against the formula")
    peaks()
    heading(f"Resident memory over a run of {SAMPLES} samples (entropy and removal, demo model tiny-8)")
    model = vh.load_model(vh.data_path("demo-models", "tiny-8"))
    sizes: list[float] = []
    with TemporaryDirectory() as folder:
        samples = watched(islice(demo_samples(), SAMPLES), sizes)
        run = vh.run(model, samples, Path(folder, "run"), probes=("entropy", "removal"), progress=False)
        assert len(run.samples) == SAMPLES
        assert (run.samples["status"] == "ok").all()
    marks = [0, WARMUP, *(SAMPLES * quarter // 4 for quarter in (1, 2, 3, 4))]
    for mark in marks:
        print(f"before sample {mark:4d}: {sizes[mark]:7.1f} MB")
    after = np.arange(WARMUP, SAMPLES + 1)
    slope = np.polyfit(after, sizes[WARMUP:], 1)[0]
    print(f"slope after sample {WARMUP}: {slope * 1000:+.1f} MB a thousand samples")
    print(f"largest minus smallest after sample {WARMUP}: {np.ptp(sizes[WARMUP:]):.1f} MB")


if __name__ == "__main__":
    main()
