"""Long inputs: time and peak memory of what a run does with 3,000 to 12,000 visual tokens, beside the formulas.

Linux only, where /proc tells the size of a process. Random models of three layers, width 256: a LLaVA, which is causal
without a mask, and a Gemma 3, whose images see themselves in both directions under masks of the model's own, one of
them sliding. Every size is measured in a process of its own. Predicted is what the formulas of `cost` say a stage takes
beyond what is held before it; measured is the growth of the largest resident size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))

import family_models as fm
import torch
from bench_memory import largest_megabytes, resident_megabytes
from family_bench import bench_of
from family_encodings import TEXT, FamilyCase, images, lay_out, positions, token_kinds
from timing import cpu_seconds, heading

import vlm_horizon as vh
from probes.cost.memory import capture_bytes, entropy_bytes, forward_bytes
from probes.cost.operations import decoder_weights, make_batches
from probes.cost.passes import gate_passes, pass_bytes
from probes.cost.workload import Subject
from probes.gates.gate import gate_effects
from probes.measures.calls import ReplayCall
from probes.measures.case import Case
from probes.measures.entropy import matrix_entropy
from probes.measures.information import target_log_p
from probes.models.grids import choose_window, tile_windows
from probes.models.targets import Target
from probes.replay.ablations import Ablations, removal_ablations, window_ablations
from probes.replay.batching import batch_bytes
from probes.replay.capture import Capture, capture_prompt
from probes.replay.replay import shape_of

SIDES = {"LLaVA": (55, 77, 110), "Gemma 3": (27, 39, 55)}  # of one image; Gemma 3 gets four of them
LAYERS, CUT = 3, 1
MOST_WINDOWS = {"keep-one": 64, "leave-one-out": 16}
STREAMS = ("query", "key", "hidden")
GOLD = {"gold": Target("gold", "", (20,))}
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # memory that is freed goes back to the system, so that growth tells


def long_llava(side: int) -> FamilyCase:
    """One image."""
    inputs, (run,) = lay_out([(TEXT, 30), (fm.IMAGE, side**2), (TEXT, 30)])
    inputs["pixel_values"] = images(1, side=side)
    make = partial(_larger, partial(fm.llava, side))
    return FamilyCase("llava", make, inputs, positions([run]), (run.reshape(side, side),))


def long_gemma3(side: int) -> FamilyCase:
    """Four images."""
    layout = [(TEXT, 30), *4 * [(fm.START, 1), (fm.IMAGE, side**2), (fm.END, 1)], (TEXT, 30)]
    inputs, runs = lay_out(layout)
    inputs |= {"token_type_ids": token_kinds(inputs["input_ids"]), "pixel_values": images(4, side=2 * side)}
    make = partial(_larger, partial(fm.gemma3, side, window=2048))
    return FamilyCase("gemma3", make, inputs, positions(runs), tuple(run.reshape(side, side) for run in runs))


def _larger(make: Callable[[], tuple[type, Any]]) -> tuple[type, Any]:
    """Three layers of width 256, eight heads of which two share keys."""
    kind, config = make()
    changes = {"num_hidden_layers": LAYERS, "hidden_size": 256, "intermediate_size": 688, "head_dim": 32}
    changes |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    if getattr(config.text_config, "layer_types", None):
        changes["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    return kind, config


CASES = {"LLaVA": long_llava, "Gemma 3": long_gemma3}


def stages(name: str, side: int) -> list[dict[str, Any]]:
    """Every stage: its name, what ran, seconds, and predicted and measured MB."""
    small = bench_of(CASES[name](6), "sdpa", torch.float32)
    gate_effects(small.probed, small.capture(*STREAMS), GOLD, "keep-one", [0])  # libraries and caches
    bench = bench_of(CASES[name](side), "sdpa", torch.float32)
    model, prompt = bench.probed, bench.prompt
    captured, row = _measured("capture", lambda: capture_prompt(model, prompt, STREAMS))
    subject = Subject(vh.Sample("noise", None, "", ()), Case(model, captured, {}), decoder_weights(model), 0.0, 0, 0.0)
    rows = [row | {"predicted": capture_bytes(subject)[0] + forward_bytes(subject)[0]}]
    entropies = max(entropy_bytes(states)[0] for states in captured.visual.states.values())
    rows.append(_entropies(captured) | {"predicted": entropies})
    rows.append(_replays(model, captured, "removal, every cut", removal_ablations(captured, range(LAYERS))))
    for context, most in MOST_WINDOWS.items():
        windows = tile_windows(prompt.grids, choose_window(None, most, prompt.grids))
        cuts = range(LAYERS) if context == "keep-one" else [CUT]
        ablations = window_ablations(captured, windows, context, cuts)
        rows.append(_replays(model, captured, f"{context}, {len(windows)} windows x {len(cuts)}", ablations))
    for context in MOST_WINDOWS:
        (one,) = gate_passes(captured, context, [CUT])
        _, row = _measured(f"gate {context}", partial(gate_effects, model, captured, GOLD, context, [CUT]))
        rows.append(row | {"predicted": pass_bytes(model, captured, one, 1)[0]})
    return rows


def _entropies(captured: Capture) -> dict[str, Any]:
    states = captured.visual.states.values()
    return _measured("entropies of three streams", lambda: [matrix_entropy(one) for one in states])[1]


def _replays(model: vh.ProbedModel, captured: Capture, label: str, ablations: Ablations) -> dict[str, Any]:
    _, row = _measured(label, lambda: target_log_p(Case(model, captured, GOLD), ReplayCall(ablations)))
    batches = make_batches(model, captured, ablations)
    sizes = [batch_bytes(model, shape_of(captured, b.rows, b.columns), len(b.layers)) for b in batches]
    return row | {"predicted": max(sizes)}


def _measured(label: str, function: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a stage returns, its processor time, and by how many bytes the process grew at most."""
    before = resident_megabytes()
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    seconds, found = cpu_seconds(function)
    return found, {"stage": label, "seconds": seconds, "measured": 2**20 * (largest_megabytes() - before)}


def report(name: str, side: int, rows: Sequence[dict[str, Any]]) -> None:
    """Print one size."""
    tokens = side**2 * (4 if name == "Gemma 3" else 1)
    for row in rows:
        predicted, measured = row["predicted"] / 2**20, row["measured"] / 2**20
        print(
            f"| {name} | {tokens:,} | {row['stage']} | {row['seconds']:.1f} s | {predicted:.0f} MB | {measured:.0f} MB "
            f"| {measured / predicted:.2f} |",
            flush=True,
        )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(json.dumps(stages(sys.argv[1], int(sys.argv[2]))))
        return
    heading("Long inputs: processor time, and memory beyond what is held before")
    columns = ("model", "visual tokens", "stage", "time", "predicted", "measured", "measured / predicted")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, sides in SIDES.items():
        for side in sides:
            command = [sys.executable, __file__, name, str(side)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | AT_ONCE)
            report(name, side, json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
