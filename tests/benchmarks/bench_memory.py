"""Resident memory over a long run of the demo model: flat. Linux only, where /proc tells the size of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from timing import heading

import vlm_horizon as vh

SAMPLES = 1000
WARMUP = 100  # samples until caches, allocators and imports have settled


def resident_megabytes() -> float:
    """Resident size of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


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
