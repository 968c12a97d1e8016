"""Time things side by side in one run, and say on what machine."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Timing:
    """Medians over rounds, in seconds, and all rounds.

    Attributes:
        cpu: processor time of this process, all its threads together.
        wall: time on the clock; on a busy machine it holds other people's work too.
        cpu_rounds: (round,) processor times, in the order taken.
    """

    cpu: float
    wall: float
    cpu_rounds: tuple[float, ...]


def interleave(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Call every function in turn, `rounds` times over, so that all meet the same load.

    Returns:
        Timings by name, and what each function returned last.
    """
    found: dict[str, Any] = {}
    for _ in range(warmup):
        for name, function in functions.items():
            found[name] = function()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for turn in range(rounds):
        names = list(functions) if turn % 2 == 0 else list(functions)[::-1]  # neither always follows the other
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = functions[name]()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    timings = {}
    for name, pairs in taken.items():
        cpus, walls = zip(*pairs, strict=True)
        timings[name] = Timing(median(cpus), median(walls), cpus)
    return timings, found


def cpu_seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of one call, in seconds, and what it returned."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def paired_ratio(numerator: Timing, denominator: Timing) -> float:
    """Median over rounds of the ratio of processor times taken in the same round."""
    return median(a / b for a, b in zip(numerator.cpu_rounds, denominator.cpu_rounds, strict=True))


def machine() -> str:
    """Processor, cores, load, threads, versions and date, in one line."""
    load = f"load {os.getloadavg()[0]:.1f}, " if hasattr(os, "getloadavg") else ""
    return (
        f"{_processor_name()}, {os.cpu_count()} cores, {load}{torch.get_num_threads()} torch thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{datetime.date.today().isoformat()}"
    )


def heading(title: str) -> None:
    """Print what is measured, and where and when."""
    print(f"## {title}\n{machine()}\n")


def verdict(value: float, limit: float, *, at_least: bool) -> str:
    """`met` or `MISSED`, with the limit."""
    met = value >= limit if at_least else value <= limit
    return f"{'met' if met else 'MISSED'} (asked: {'at least' if at_least else 'at most'} {limit:g})"


def _processor_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"
