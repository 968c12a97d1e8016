"""Keep-one information of all 2x2 windows, k = 1..7: exact replays against the released schedule, one thread.

The released schedule is written here as a plain baseline on the transformers model: for every layer and window one
full forward, vision tower included, whose tokens are gathered at the input of layer k (positions kept), and one more
a layer without any visual token. Of these 7 x 145 forwards a random sample is timed, the same number for every layer,
and scaled up layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
import random_llava as llava
import torch
from timing import cpu_seconds, heading, verdict

import vlm_horizon as vh
from probes.models.grids import Window, tile_windows
from probes.models.prompts import Prompt, encode

CUTS = range(1, llava.LAYERS)
WINDOWS = (llava.GRID // 2) ** 2
ROUNDS, PER_ROUND = 3, 3  # of the released schedule's forwards, so many are timed for every layer in each round
PRODUCT = (2048, llava.WIDTH, llava.FEED_FORWARD)  # rows, inner, columns


@contextmanager
def gathered_from(model: Any, k: int, kept: torch.Tensor) -> Iterator[None]:
    """Only the tokens `kept` from the input of decoder layer k on, at their own positions."""

    def gather(states: bool) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cos, sin = kwargs["position_embeddings"]
            changed = {**kwargs, "position_embeddings": (cos[:, kept], sin[:, kept]), "position_ids": None}
            return (args[0][:, kept],) if states else args, changed

        return hook

    layers = model.get_decoder().layers
    handles = [layers[at].register_forward_pre_hook(gather(at == k), with_kwargs=True) for at in range(k, len(layers))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def plain_probabilities(model: vh.ProbedModel, prompt: Prompt) -> torch.Tensor:
    """(vocabulary,) next-token probabilities of one full forward of the plain model."""
    return model.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits[0, -1].softmax(-1)


def cut_probabilities(model: vh.ProbedModel, prompt: Prompt, k: int, window: Window) -> torch.Tensor:
    """(vocabulary,) the same with one window as the only visual tokens from layer k on."""
    with gathered_from(model.model, k, kept_tokens(prompt, window)):
        return plain_probabilities(model, prompt)


def kept_tokens(prompt: Prompt, window: Window) -> torch.Tensor:
    """(row,) long: all text, and one window's tokens."""
    kept = torch.ones(prompt.n_tokens, dtype=torch.bool)
    kept[prompt.visual] = False
    kept[list(window.positions)] = True
    return kept.nonzero()[:, 0]


def predicted_operations() -> tuple[float, float]:
    """Operations of the released schedule and of ours: (full forwards, capture and replays)."""
    whole = llava.layer_operations(llava.LENGTH, llava.causal_pairs(llava.LENGTH))
    plain = replays = 0.0
    for visual, count in ((4, WINDOWS), (0, 1)):  # one window kept, or none: the baseline of the difference
        rows = llava.BEFORE + visual + llava.AFTER
        cut = llava.layer_operations(rows, llava.causal_pairs(rows))
        for k in CUTS:
            below, above = k * whole, (llava.LAYERS - k) * cut
            plain += count * (llava.tower_operations() + below + above + llava.head_operations())
        replays += count * replay_operations(visual + llava.AFTER)
    return plain, forward_operations() + replays


def replay_operations(rows: int) -> float:
    """One ablation at every cut: `rows` tokens behind the untouched text before the image."""
    layer = llava.layer_operations(rows, rows * (llava.BEFORE + rows))  # a mask saves no product
    ends = llava.last_layer_operations(rows, llava.BEFORE + rows) + llava.head_operations()
    return sum((llava.LAYERS - 1 - k) * layer + ends for k in CUTS)


def forward_operations() -> float:
    """One plain forward."""
    layers = llava.LAYERS * llava.layer_operations(llava.LENGTH, llava.causal_pairs(llava.LENGTH))
    return llava.tower_operations() + layers + llava.head_operations()


def product_seconds() -> float:
    """Median time of a plain float32 product of a replay batch's shape, `PRODUCT`."""
    rows, inner, columns = PRODUCT
    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    return median(cpu_seconds(lambda: torch.mm(a, b, out=out))[0] for _ in range(11))


def measure() -> dict[str, Any]:
    """`ROUNDS` rounds of everything in turn; processor times in seconds by name."""
    model, sample = llava.load(), llava.sample()
    prompt = encode(model, sample)
    assert (prompt.n_tokens, len(prompt.visual)) == (llava.LENGTH, llava.VISUAL)
    windows = tile_windows(prompt.grids, 2)
    picks = np.random.default_rng(0).permuted(np.tile(np.arange(WINDOWS), (len(CUTS), 1)), axis=1)
    vh.token_information(model, sample, layers=[llava.LAYERS - 1])  # wraps the model, fills the caches
    answer = int(plain_probabilities(model, prompt).argmax())
    found: dict[str, Any] = {"ours": [], "forward": [], "plain": [], "product": [], "apart": []}
    for turn in range(ROUNDS):
        seconds, grid = cpu_seconds(lambda: vh.token_information(model, sample, layers=list(CUTS), target="greedy"))
        found["ours"].append(seconds)
        found["product"].append(product_seconds())
        found["forward"].append(median(cpu_seconds(lambda: plain_probabilities(model, prompt))[0] for _ in range(5)))
        by_cut = []
        for row, k in enumerate(CUTS):
            taken = []
            for pick in picks[row, turn * PER_ROUND : (turn + 1) * PER_ROUND]:
                seconds, p = cpu_seconds(partial(cut_probabilities, model, prompt, k, windows[pick]))
                taken.append(seconds)
                found["apart"].append(abs(float(p[answer]) - float(np.exp(grid.log_p[row, pick]))))
            by_cut.append(mean(taken))
        found["plain"].append(by_cut)
    return {**found, "information": np.abs(grid.values)}


def report(found: dict[str, Any]) -> None:
    """Print times, ratios and rates."""
    plain_operations, our_operations = predicted_operations()
    by_cut = np.median(found["plain"], axis=0)
    plain = [sum(seconds) * (WINDOWS + 1) for seconds in found["plain"]]
    ratio = median(theirs / ours for theirs, ours in zip(plain, found["ours"], strict=True))
    ours, forward, product = (median(found[name]) for name in ("ours", "forward", "product"))
    rates = forward_operations() / forward, our_operations / ours, 2 * math.prod(PRODUCT) / product
    print("one full forward of the released schedule, by cut k:")
    print("  " + ", ".join(f"{k}: {seconds:.3f} s" for k, seconds in zip(CUTS, by_cut, strict=True)))
    print(
        f"  all of them, scaled up from {ROUNDS * PER_ROUND} of {WINDOWS + 1} a cut: {median(plain):.0f} s of "
        f"processor time, {plain_operations / 1e12:.2f} T operations"
    )
    print(f"token_information, capture included: {ours:.2f} s, {our_operations / 1e12:.3f} T operations")
    print(f"ratio of times: {ratio:.1f}, {verdict(ratio, 20, at_least=True)}")
    print(f"ratio of operations, the prediction: {plain_operations / our_operations:.1f}")
    forward_rate, our_rate, product_rate = (rate / 1e9 for rate in rates)
    print(
        f"G operations a second: model's own forward {forward_rate:.1f}, ours {our_rate:.1f}, "
        f"plain product {product_rate:.1f}; ours / forward {our_rate / forward_rate:.2f}, "
        f"ours / plain product {our_rate / product_rate:.2f}"
    )
    print(f"ours / forward: {verdict(our_rate / forward_rate, 0.8, at_least=True)}")
    information = found["information"]
    print(
        f"largest difference in p over {len(found['apart'])} pairs: {max(found['apart']):.1e} "
        f"(|I|: median {np.median(information):.1e}, largest {information.max():.1e})"
    )
    assert max(found["apart"]) <= 1e-5


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("Keep-one information: exact replays against the released schedule")
    report(measure())


if __name__ == "__main__":
    main()
