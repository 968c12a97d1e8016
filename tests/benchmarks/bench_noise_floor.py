"""What share of windows the noise floor covers, and what it takes: the shipped models and a random one, in each dtype.

Every window is measured in batches and again alone; covered is a window that moves by no more than the floor of its
model's samples (as in a run, the 99th percentile over them). `ATEN_CPU_CAPABILITY=default` (or avx2) takes the kernels
of other processors, `OMP_NUM_THREADS` their threads: `--all` runs itself under each of them, half precision, which is
slow on a CPU, under the last alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))

import numpy as np
import torch
from large_subject import large_forward, large_work
from random_models import QUESTION, random_image, random_llava, random_processor
from timing import heading

import probes.replay.batching
import vlm_horizon as vh
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.noise import grid_witnesses, noise_floor, removal_witnesses
from probes.measures.preparing import prepare
from probes.models.prompts import removable_windows
from probes.replay.ablations import window_ablations
from probes.replay.replay import most_rows

CONTEXTS = ("keep-one", "leave-one-out")
DTYPES = ("float32", "bfloat16", "float16")
CAPABILITIES, THREADS = ("default", "avx2"), (2, 1)


def models(dtype: str, layers: int) -> Iterator[tuple[str, vh.ProbedModel, list[vh.Sample], list[int]]]:
    """Name, model, samples and cuts."""
    for name in ("tiny-8", "tiny-12"):
        files = [vh.data_path("demo-samples", f"{task}.jsonl") for task in ("ocr", "vqa")]
        samples = [sample for file in files for sample in vh.read_samples(file, limit=1)]
        model = vh.load_model(vh.data_path("demo-models", name), dtype=dtype, check=False)
        yield name, model, samples, sorted({round(k) for k in np.linspace(0, model.n_layers - 1, layers)})
    model = vh.load_model(random_llava(34), processor=random_processor(), dtype=dtype, check=False)
    yield (
        "random",
        model,
        [vh.Sample("noise", random_image(seed), QUESTION, ("apple",)) for seed in range(3)],
        [0, 1, 3],
    )


def coverage(model: vh.ProbedModel, samples: list[vh.Sample], cuts: list[int], context: str) -> str:
    """One row of the table, but for its first columns."""
    floors, moved = [], []
    for sample in samples:
        case = prepare(model, sample, ("gold",))
        captured, curves = case.captured, removal_curves(case)
        requests = (GridRequest(context, layers=tuple(cuts), batch_size=size) for size in (None, 1))
        batched, alone = (information_grids(case, request, curves)["gold"] for request in requests)
        witnesses = [*removal_witnesses(captured, curves["gold"]), *grid_witnesses(captured, batched, 2, "delete")]
        ablations = window_ablations(captured, removable_windows(captured.prompt, 2), context, cuts)
        floor = noise_floor(model, captured, case.targets["gold"], witnesses, rows=most_rows(captured, ablations))
        floors.append((floor.p, floor.log_p))
        moved.append((np.abs(batched.values - alone.values), np.abs(batched.log_p - alone.log_p)))
    parts = []
    for of_samples, values in zip(np.transpose(floors), np.moveaxis(np.array(moved), 1, 0), strict=True):
        run = float(np.quantile(of_samples, 0.99))
        own = (values <= of_samples[:, None, None]).mean()
        parts.append(f"{run:.1e} | {values.max():.1e} | {(values <= run).mean():.3f} | {own:.3f}")
    return " | ".join([f"{(np.array(moved)[:, 1] > 0).mean():.2f}", *parts])


def measure(dtypes: list[str], layers: int) -> None:
    """The table of one processor and number of threads."""
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    for dtype in dtypes:
        for name, model, samples, cuts in models(dtype, layers):
            for context in CONTEXTS:
                row = coverage(model, samples, cuts, context)
                print(f"| {capability}, {threads} | {dtype} | {name} | {context} | {row} |", flush=True)


def budget() -> None:
    """What the floor takes with the dimensions of LLaVA-1.5-7B, counted."""
    print("\n| measured | batches of rows | floor / operations of the grid or sweep |\n|---|---|---|")
    probes.replay.batching.free_memory = lambda device: 2**40
    rows = probes.replay.batching.BATCH_ROWS
    for most in (rows["cpu"], rows["cuda"]):
        rows["cpu"] = most
        grids: dict[str, dict[str, Any]] = {
            "keep-one, 2x2, all 32 layers": {"contexts": CONTEXTS[:1], "window": 2},
            "keep-one, 2x2, 4 layers": {"contexts": CONTEXTS[:1], "window": 2, "layers": (0, 8, 16, 24)},
            "leave-one-out, 2x2, all 32 layers": {"contexts": CONTEXTS[1:], "window": 2},
        }
        for words, options in grids.items():
            work = large_work(**options)
            share = work["noise floor"].operations / sum(work[context].operations for context in options["contexts"])
            print(f"| {words} | {most:,} | {share:.2%} |")
        work = large_work(probes=("removal",), contexts=())
        floor, sweep = work["noise floor"].operations, work["removal"].operations
        shares = f"{floor / sweep:.1%}; {floor / (sweep + large_forward()):.1%} with the forward before it"
        print(f"| removals, all 32 layers | {most:,} | {shares} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="under every capability and number of threads")
    parser.add_argument("--rows", action="store_true", help="rows of the table alone")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--layers", type=int, default=3, help="cuts of the shipped models")
    given = parser.parse_args()
    if not given.rows:
        heading("What the noise floor covers, and what it takes")
        columns: tuple[str, ...] = ("kernels, threads", "dtype", "model", "context", "windows moved")
        for unit in ("p", "log p"):
            columns += (f"floor, {unit}", "largest move", "within it", "within the sample's own")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    if given.all:
        for capability, threads in product(CAPABILITIES, THREADS):
            environment = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": str(threads)}
            fast = (capability, threads) == (CAPABILITIES[-1], THREADS[-1])
            dtypes = given.dtypes if fast else "float32"
            command = [sys.executable, __file__, "--rows", "--dtypes", dtypes, "--layers", str(given.layers)]
            sys.stdout.flush()
            subprocess.run(command, env={**os.environ, **environment}, check=True)
    else:
        measure(given.dtypes.split(","), given.layers)
    if not given.rows:
        budget()


if __name__ == "__main__":
    main()
