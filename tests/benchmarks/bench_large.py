"""The engine on a random model with the dimensions of LLaVA-1.5-7B: time, rate and memory beside what is counted.

On the first GPU, or the CPU where there is none, in each of `--dtypes`. `--small` takes a model of 4 narrow layers, to
try the script itself. Operations are those that `estimate_cost` counts; a rate is theirs over the time on the clock,
its share is of the best rate that plain products of two large matrices reach in the same run and dtype.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import random_llava as llava
import torch
from timing import heading
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlm_horizon as vh
from analyses.runs import RunOptions
from probes.cost.memory import resident_bytes
from probes.cost.meters import memory_parts, part_work
from probes.cost.workload import meet
from probes.loading.check import check_model
from probes.measures.entropy import matrix_entropy
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.preparing import prepare
from probes.parts.grids import TokenGrids
from probes.plans.options import run_config
from probes.plans.plans import Plan, parts_of

ROUNDS = 3
CONTEXTS = ("keep-one", "leave-one-out")


@dataclass(frozen=True)
class Dimensions:
    """Of decoder and vision tower."""

    layers: int
    width: int
    inner: int
    heads: int
    tower_layers: int
    tower_width: int
    vocabulary: int


LARGE = Dimensions(32, 4096, 11008, 32, 24, 1024, 32064)
SMALL = Dimensions(4, 256, 688, 4, 2, 64, 1000)


@torch.no_grad()
def load(size: Dimensions, dtype: torch.dtype, device: torch.device) -> vh.ProbedModel:
    """Random weights of the variance that keeps states at their size."""
    text = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = CLIPVisionConfig(
        hidden_size=size.tower_width,
        intermediate_size=4 * size.tower_width,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.tower_width // 64,
        image_size=llava.GRID * llava.PATCH,
        patch_size=llava.PATCH,
    )
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=4, image_seq_length=llava.VISUAL)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
    return vh.load_model(model.eval(), processor=llava.processor(), name="random", check=False)


def seconds(device: torch.device, function: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median of a few calls after a first one; a GPU is waited for."""
    taken = []
    for _ in range(rounds + 1):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return median(taken[1:])


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of plain products, the best of a few sizes."""
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024)
    rates = []
    for n in sizes:
        left, right = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates.append(2.0 * n**3 / seconds(device, lambda left=left, right=right: left @ right, rounds=10))
    return max(rates)


def measure(size: Dimensions, dtype: torch.dtype, device: torch.device) -> None:
    """One table."""
    model, sample = load(size, dtype, device), llava.sample()
    check = check_model(model)
    print(f"\n### {dtype}, self-test {'passed' if check.passed else 'FAILED: ' + check.refusal}\n")
    cuts = (size.layers // 2,)
    asked = RunOptions(targets=("greedy",), contexts=CONTEXTS, streams=("query", "key", "hidden"))
    config, _ = run_config(asked, model, [sample])
    subject = meet(model, sample, config)
    case = prepare(model, sample, ("greedy",), config.streams)
    every = parts_of(config, Plan(tokens=True, spectra=False, layers=config.grid_layers()))
    work = {part.name: part_work(subject, part).operations for part in every}
    few = TokenGrids(GridRequest(CONTEXTS[1], window=1, layers=cuts))
    inputs, product = case.captured.prompt.inputs, product_rate(dtype, device)

    def forward() -> object:
        with torch.no_grad():
            return model.model(**inputs, use_cache=False, logits_to_keep=1)

    def grids(context: str, **how: Any) -> object:
        return information_grids(case, GridRequest(context, **how), curves)

    curves = removal_curves(case)
    states = case.captured.visual.states
    parts: dict[str, tuple[Callable[[], object], float | None, int]] = {
        "the model's own forward": (forward, work["forward"], ROUNDS),
        "capture": (lambda: prepare(model, sample, ("greedy",), config.streams), work["forward"], ROUNDS),
        "removal, all layers": (
            lambda: removal_curves(case),
            work["removal"],
            ROUNDS,
        ),
        "keep-one, 2 x 2, all layers": (lambda: grids("keep-one"), work["keep-one"], 1),
        f"leave-one-out, single tokens, layer {cuts[0]}": (
            lambda: grids("leave-one-out", window=1, layers=cuts),
            part_work(subject, few).operations,
            1,
        ),
        f"gate keep-one, layer {cuts[0]}": (
            lambda: grids("keep-one", window=1, layers=cuts, method="gate"),
            None,
            1,
        ),
        "gate leave-one-out, all layers": (lambda: grids("leave-one-out", window=1, method="gate"), None, 1),
        "entropies, three streams": (
            lambda: [matrix_entropy(one).cpu() for one in states.values()],
            work["entropies"],
            ROUNDS,
        ),
    }
    print("| part | seconds | GFLOP | GFLOP/s | share of a plain product |\n|---|---|---|---|---|")
    print(f"| a plain product | | | {product / 1e9:,.0f} | 1 |")
    for name, (function, operations, rounds) in parts.items():
        taken = seconds(device, function, rounds)
        rate = 0.0 if operations is None else operations / taken
        counted = f"{operations / 1e9:,.1f} | {rate / 1e9:,.0f} | {rate / product:.2f}" if operations else " | | "
        print(f"| {name} | {taken:.3f} | {counted} |", flush=True)
    memory, _ = memory_parts(subject, every)
    said = memory["capture"] + max(memory["forward"], memory["entropies"], memory["replays"])
    if device.type == "cuda":
        del subject
        held = resident_bytes(device)
        torch.cuda.reset_peak_memory_stats()
        grids("keep-one")
        print(
            f"\npeak above what is held, keep-one: {(torch.cuda.max_memory_allocated() - held) / 1e9:.2f} GB; ", end=""
        )
    print(f"by the formula: replays {memory['replays'] / 1e9:.2f} GB, with the capture {said / 1e9:.2f} GB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not given.small:
        print("no GPU: trying the script on a small model; a 7B model would take hours here")
    heading(f"A random model of LLaVA-1.5-7B's dimensions on {device}")
    size = SMALL if given.small or device.type == "cpu" else LARGE
    for dtype in given.dtypes.split(","):
        measure(size, getattr(torch, dtype), device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
