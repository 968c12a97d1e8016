"""Capture against a plain forward, one thread: what it costs to keep layer inputs, and queries, keys and values."""

from __future__ import annotations

from typing import Any

import random_llava as llava
import torch
from timing import heading, interleave, paired_ratio, verdict

from probes.models.prompts import encode
from probes.replay.capture import capture_prompt

ROUNDS = 21


@torch.no_grad()
def plain_forward(model: Any, inputs: dict[str, Any], *, use_cache: bool) -> torch.Tensor:
    """Logits of the transformers model at the last position."""
    return model(**inputs, use_cache=use_cache, logits_to_keep=1).logits


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("Capture against a plain forward")
    model, sample = llava.load(), llava.sample()
    prompt = encode(model, sample)
    timings, _ = interleave(
        {
            "plain forward": lambda: plain_forward(model.model, prompt.inputs, use_cache=False),
            "plain forward, keeping its cache": lambda: plain_forward(model.model, prompt.inputs, use_cache=True),
            "capture of layer inputs": lambda: capture_prompt(model, prompt, ()),
            "capture with query, key, value": lambda: capture_prompt(model, prompt, ("query", "key", "value")),
        },
        rounds=ROUNDS,
        warmup=2,
    )
    plain = timings["plain forward"]
    limits = {"capture of layer inputs": 1.10, "capture with query, key, value": 1.20}
    print(f"medians of {ROUNDS} interleaved rounds; ratios to the plain forward")
    for name, timing in timings.items():
        ratio = paired_ratio(timing, plain)
        asked = f"  {verdict(ratio, limits[name], at_least=False)}" if name in limits else ""
        print(
            f"{name:<33} processor {timing.cpu * 1e3:6.0f} ms, ratio {ratio:.3f}; "
            f"clock {timing.wall * 1e3:6.0f} ms, ratio {timing.wall / plain.wall:.3f}{asked}"
        )


if __name__ == "__main__":
    main()
