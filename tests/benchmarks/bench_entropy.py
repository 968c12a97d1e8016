"""Matrix entropy on the smaller Gram side against the d x d route, one thread, over tokens N and width d.

The d x d route is written here as a plain baseline: center, normalize, covariance over the hidden axis, all its d
eigenvalues, in float64. One layer of it is timed and scaled up, and of ours where a layer takes seconds.
"""

from __future__ import annotations

import resource

import random_llava as llava
import torch
from timing import cpu_seconds, heading, interleave, verdict

import vlm_horizon as vh

LAYERS = 33
SHAPES = ((144, 1024), (144, 4096), (576, 512), (576, 1024), (576, 2048), (576, 4096), (2880, 4096))
LONG = 1000  # tokens from which on one layer is timed
HEADLINE = (576, 4096)
HEADS = 32
ORDERS = (2, 3, 4)  # by products
ROUNDS = 3


def wide_entropy(states: torch.Tensor) -> torch.Tensor:
    """Entropy of one layer, (token, hidden) -> () in nats, through the (hidden, hidden) covariance."""
    rows = states.double() - states.double().mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True)
    covariance = rows.T @ rows
    values = torch.linalg.eigvalsh(covariance / covariance.trace()).clamp(min=0)
    return torch.special.entr(values).sum()


def measure(tokens: int, width: int) -> dict[str, float]:
    """Median seconds of processor time for `LAYERS` layers, by route; both routes are checked to agree."""
    decay = torch.arange(1, width + 1) ** -0.5  # a spectrum that falls, as those of models do
    layers = LAYERS if tokens < LONG else 1
    states = torch.randn(layers, tokens, width, generator=torch.Generator().manual_seed(0)) * decay
    routes = {"wide": lambda: wide_entropy(states[0]), "ours": lambda: vh.matrix_entropy(states)}
    for order in ORDERS:
        routes[f"order {order}"] = lambda order=order: vh.matrix_entropy(states, alpha=order)
    timings, found = interleave(routes, rounds=ROUNDS, warmup=0)
    apart = (found["wide"] - found["ours"][0]).abs().item()
    assert apart < 1e-5
    seconds = {name: timing.cpu * LAYERS / layers for name, timing in timings.items()}
    return {**seconds, "wide": timings["wide"].cpu * LAYERS, "apart": apart}


def forward_operations(tokens: int, width: int, layers: int) -> float:
    """Of a decoder whose feed-forward is 2.7 times as wide as its stream, `tokens` tokens."""
    return layers * (2 * (4 + 3 * 2.7) * width**2 * tokens + 2 * width * tokens**2)


def gram_operations(tokens: int, width: int, layers: int) -> float:
    """Half of the Gram matrices on the smaller side n, and eigenvalues of a symmetric n x n matrix, 4/3 n^3."""
    small, large = sorted((tokens, width))
    return layers * (small**2 * large + 4 / 3 * small**3)


def token_entropies(tokens: int, width: int) -> None:
    """Print what the token entropies of all layers take in one call, and the memory beside the states."""
    states = torch.randn(LAYERS, tokens, width, generator=torch.Generator().manual_seed(0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = cpu_seconds(lambda: vh.token_entropy(states, HEADS))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"token entropies of {LAYERS} x {tokens} tokens, {HEADS} heads: {seconds:.2f} s, "
        f"peak memory {grown:.0f} MB above the states' {states.nbytes / 2**20:.0f} MB (Linux)"
    )


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading(f"Matrix entropy of {LAYERS} layers: smaller Gram side against the d x d route")
    vh.matrix_entropy(torch.randn(2, 64, 64))
    tokens, width = HEADLINE
    token_entropies(tokens, width)  # first, so that the peak is its own
    orders = " | ".join(f"order {order}" for order in ORDERS)
    print(f"\n| N | d | d x d route | `matrix_entropy` | ratio | predicted | {orders} | apart, nats |")
    print("|---" * (7 + len(ORDERS)) + "|")
    ratios = {}
    for shape in SHAPES:
        seconds = measure(*shape)
        ratios[shape] = seconds["wide"] / seconds["ours"]
        wide_operations = LAYERS * (2 * shape[0] * shape[1] ** 2 + 4 / 3 * shape[1] ** 3)
        by_order = " | ".join(f"{seconds[f'order {order}']:.2f} s" for order in ORDERS)
        print(
            f"| {shape[0]} | {shape[1]} | {seconds['wide']:.2f} s | {seconds['ours']:.2f} s | {ratios[shape]:.1f} "
            f"| {wide_operations / gram_operations(*shape, LAYERS):.1f} | {by_order} | {seconds['apart']:.1g} |"
        )
    print(f"\n{tokens} x {width}, ratio {ratios[HEADLINE]:.1f}: {verdict(ratios[HEADLINE], 50, at_least=True)}")
    text = llava.BEFORE + llava.AFTER
    share = gram_operations(tokens, width, LAYERS) / forward_operations(tokens + text, width, LAYERS - 1)
    print(f"operations of {LAYERS} x {tokens} x {width} against a 32-layer forward of that width: {share:.1%}")


if __name__ == "__main__":
    main()
