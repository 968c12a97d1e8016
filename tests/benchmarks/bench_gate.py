"""First-order information (method gate): its time against exact leave-one-out of single tokens, and what it is worth.

Times are of the random LLaVA with 576 visual tokens, k = 1..7, one thread. Exact leave-one-out has 7 x 576 ablations;
a random block of consecutive tokens from every third of the image is timed at each cut and scaled up. Agreement with
exact values is of the shipped models, on the first samples of each task.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, median

import numpy as np
import random_llava as llava
import torch
from timing import cpu_seconds, heading, verdict

import vlm_horizon as vh
from probes.gates.gate import gate_effects, sum_windows
from probes.measures.gate_checks import rank_agreement, top_overlap
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.preparing import prepare
from probes.models.grids import tile_windows
from probes.models.targets import Target
from probes.replay.ablations import window_ablations
from probes.replay.capture import Capture
from probes.replay.replay import replay

CUTS = range(1, llava.LAYERS)
CONTEXTS = ("keep-one", "leave-one-out")
ROUNDS = 3
BLOCK = 12  # consecutive tokens, so that their batches are those of the whole schedule
SAMPLES = 20  # of each task
MODELS = ("tiny-8", "tiny-12")


def exact_operations(k: int) -> float:
    """Leave-one-out of every token at cut k: rows behind the token, in the layers from k on."""
    behind = llava.LENGTH - llava.BEFORE - 1 - np.arange(llava.VISUAL)
    layer = sum(llava.layer_operations(int(rows), float(rows * (llava.LENGTH - 1))) for rows in behind)
    return (llava.LAYERS - k) * layer + llava.VISUAL * llava.head_operations()


def gate_operations(context: str, k: int) -> float:
    """One cut: layers run and run back; a derivative costs a layer its weights again, and its attention twice."""
    rows = llava.VISUAL + llava.AFTER
    if context == "leave-one-out":
        return (llava.LAYERS - k) * _with_derivative(rows, rows * llava.LENGTH)
    text = llava.BEFORE + llava.AFTER
    forward = llava.layer_operations(rows, llava.VISUAL * (text + llava.VISUAL) + llava.AFTER * text)
    back = 2 * _with_derivative(llava.AFTER, llava.AFTER * llava.LENGTH)  # at both of its gates
    return (llava.LAYERS - k) * (forward + back)


def _with_derivative(rows: int, pairs: float) -> float:
    attention = llava.layer_operations(0, pairs)
    return 2 * llava.layer_operations(rows, pairs) + attention


def exact_seconds(model: vh.ProbedModel, captured: Capture, k: int, turn: int, random: np.random.Generator) -> float:
    """Processor time of one ablation of leave-one-out at cut k, from a block of tokens."""
    windows = tile_windows(captured.prompt.grids, 1)
    third = len(windows) // ROUNDS
    start = turn * third + int(random.integers(third - BLOCK))
    ablations = window_ablations(captured, windows[start : start + BLOCK], "leave-one-out", [k])
    seconds, _ = cpu_seconds(lambda: list(replay(model, captured, ablations)))
    return seconds / BLOCK


def report_times() -> None:
    """Interleaved rounds of exact ablations and of gates."""
    model, sample = llava.load(), llava.sample()
    case = prepare(model, sample, ("greedy",))
    captured, targets = case.captured, case.targets
    random = np.random.default_rng(0)
    gate_effects(model, captured, targets, "keep-one", [llava.LAYERS - 1])  # fills the caches
    exact = {k: [] for k in CUTS}
    gate: dict[tuple[str, int], list[float]] = {(context, k): [] for context in CONTEXTS for k in CUTS}
    whole: dict[str, list[float]] = {context: [] for context in CONTEXTS}
    shared = []
    for turn in range(ROUNDS):
        shared.append(cpu_seconds(lambda: _shared(model, sample))[0])
        for context in CONTEXTS:
            whole[context].append(_gate_seconds(model, captured, targets, context, list(CUTS)))
        for k in CUTS:
            exact[k].append(exact_seconds(model, captured, k, turn, random))
            for context in CONTEXTS:
                gate[context, k].append(_gate_seconds(model, captured, targets, context, [k]))
    _print_times(exact, gate, whole, shared)


def _shared(model: vh.ProbedModel, sample: vh.Sample) -> None:
    """What both methods need besides: capture and baselines."""
    removal_curves(prepare(model, sample, ("greedy",)), layers=list(CUTS))


def _gate_seconds(
    model: vh.ProbedModel, captured: Capture, targets: Mapping[str, Target], context: str, cuts: list[int]
) -> float:
    return cpu_seconds(lambda: gate_effects(model, captured, targets, context, cuts))[0]


def _print_times(
    exact: dict[int, list[float]],
    gate: dict[tuple[str, int], list[float]],
    whole: dict[str, list[float]],
    shared: list[float],
) -> None:
    seconds = {k: mean(taken) * llava.VISUAL for k, taken in exact.items()}  # thirds differ in how much lies behind
    print("| cut | exact leave-one-out | gate leave-one-out | ratio (predicted) | gate keep-one | ratio (predicted) |")
    print("|---|---|---|---|---|---|")
    for k in CUTS:
        cells = [f"{k}", f"{seconds[k]:.0f} s"]
        for context in reversed(CONTEXTS):
            taken = median(gate[context, k])
            predicted = exact_operations(k) / gate_operations(context, k)
            cells += [f"{taken:.2f} s", f"{seconds[k] / taken:.0f} ({predicted:.0f})"]
        print(f"| {' | '.join(cells)} |")
    total, operations = sum(seconds.values()), sum(exact_operations(k) for k in CUTS)
    one, alone = median(whole["leave-one-out"]), median(whole["keep-one"])
    needed = {"leave-one-out": gate_operations("leave-one-out", CUTS[0])}  # one pass gives every cut
    needed["keep-one"] = sum(gate_operations("keep-one", k) for k in CUTS)
    print(f"\nall cuts, exact leave-one-out: {total:.0f} s, {operations / 1e12:.2f} T operations")
    for context, taken in (("leave-one-out", one), ("keep-one", alone)):
        print(
            f"all cuts, gate {context}: {taken:.2f} s, {needed[context] / 1e12:.3f} T operations; "
            f"ratio {total / taken:.0f}, predicted {operations / needed[context]:.0f}"
        )
    both, base = one + alone, median(shared)
    ratio = (total + base) / (both + base)
    print(f"capture and baselines, for either method: {base:.2f} s")
    print(f"gate leave-one-out against exact: {total / one:.0f}, {verdict(total / one, 50, at_least=True)}")
    print(f"both contexts of gate, capture and baselines included: {ratio:.0f}, {verdict(ratio, 50, at_least=True)}")


def report_agreement(name: str) -> None:
    """Rank correlation and top-10 % overlap with exact values of one shipped model, by context, window and layer."""
    model = vh.load_model(vh.data_path("demo-models", name))
    cuts = list(range(model.n_layers))
    found: dict[tuple[str, int, int], list[tuple[float, float, float]]] = {}
    for sample in _samples():
        case = prepare(model, sample, ("gold",))
        captured = case.captured
        for context in CONTEXTS:
            effects = gate_effects(model, captured, case.targets, context, cuts)["gold"]
            for side in (1, 2):
                estimate = sum_windows(effects, captured.prompt.visual, tile_windows(captured.prompt.grids, side))
                grid = information_grids(case, GridRequest(context, side))["gold"]
                for k, one, other, p in zip(cuts, estimate, grid.effects("log_p"), grid.values, strict=True):
                    row = rank_agreement(one, other), top_overlap(one, other), float(np.abs(p).max())
                    found.setdefault((context, side, k), []).append(row)
    print(f"\n{name}, {2 * SAMPLES} samples: rank correlation / top-10 % overlap, by cut; largest exact effect in p")
    print(f"| | {' | '.join(map(str, cuts))} |\n|---|{'---|' * len(cuts)}")
    for context in CONTEXTS:
        for side in (1, 2):
            means = [np.nanmean(np.array(found[context, side, k]), axis=0) for k in cuts]
            cells = [f"{rank:.2f} / {overlap:.2f}" for rank, overlap, _ in means]
            print(f"| {context}, {side}x{side} | {' | '.join(cells)} |")
            print(f"| its largest effect | {' | '.join(f'{size:.0e}' for *_, size in means)} |")


def _samples() -> list[vh.Sample]:
    files = [vh.data_path("demo-samples", f"{task}.jsonl") for task in ("ocr", "vqa")]
    return [sample for file in files for sample in vh.read_samples(file, limit=SAMPLES)]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("First-order information: gates against exact leave-one-out")
    report_times()
    for name in MODELS:
        report_agreement(name)


if __name__ == "__main__":
    main()
