"""Matrix entropy on the smaller Gram side against the d x d route, one thread, over tokens N and width d.

The d x d route is written here as a plain baseline: center, normalize, covariance over the hidden axis, all its d
eigenvalues, in float64. One layer of it is timed and scaled up.
"""

from __future__ import annotations

import random_llava as llava
import torch
from timing import heading, interleave

import vlm_horizon as vh

LAYERS = 33
SHAPES = ((144, 1024), (144, 4096), (576, 512), (576, 1024), (576, 2048), (576, 4096))
HEADLINE = (576, 4096)
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
    states = torch.randn(LAYERS, tokens, width, generator=torch.Generator().manual_seed(0)) * decay
    timings, found = interleave(
        {
            "wide": lambda: wide_entropy(states[0]),
            "ours": lambda: vh.matrix_entropy(states),
            "renyi": lambda: vh.matrix_entropy(states, alpha=2.0),
        },
        rounds=ROUNDS,
        warmup=0,
    )
    torch.testing.assert_close(found["wide"], found["ours"][0], rtol=0, atol=1e-5)
    seconds = {name: timing.cpu for name, timing in timings.items()}
    return {**seconds, "wide": seconds["wide"] * LAYERS}


def forward_operations(tokens: int, width: int, layers: int) -> float:
    """Of a decoder whose feed-forward is 2.7 times as wide as its stream, `tokens` tokens."""
    return layers * (2 * (4 + 3 * 2.7) * width**2 * tokens + 2 * width * tokens**2)


def gram_operations(tokens: int, width: int, layers: int) -> float:
    """Gram matrices on the smaller side n, and eigenvalues of a symmetric n x n matrix, 4/3 n^3."""
    small, large = sorted((tokens, width))
    return layers * (2 * small**2 * large + 4 / 3 * small**3)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading(f"Matrix entropy of {LAYERS} layers: smaller Gram side against the d x d route")
    vh.matrix_entropy(torch.randn(2, 64, 64))
    print("| N | d | d x d route | matrix_entropy | ratio | predicted | Renyi 2 | von Neumann / Renyi 2 |")
    print("|---|---|---|---|---|---|---|---|")
    for tokens, width in SHAPES:
        seconds = measure(tokens, width)
        wide_operations = LAYERS * (2 * tokens * width**2 + 4 / 3 * width**3)
        print(
            f"| {tokens} | {width} | {seconds['wide']:.2f} s | {seconds['ours']:.2f} s "
            f"| {seconds['wide'] / seconds['ours']:.1f} "
            f"| {wide_operations / gram_operations(tokens, width, LAYERS):.1f} "
            f"| {seconds['renyi']:.2f} s | {seconds['ours'] / seconds['renyi']:.1f} |"
        )
    tokens, width = HEADLINE
    text = llava.BEFORE + llava.AFTER
    share = gram_operations(tokens, width, LAYERS) / forward_operations(tokens + text, width, LAYERS - 1)
    print(f"\noperations of {LAYERS} x {tokens} x {width} against a 32-layer forward of that width: {share:.1%}")


if __name__ == "__main__":
    main()
