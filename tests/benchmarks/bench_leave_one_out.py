"""Leave-one-out of single tokens: exact replays against masked replays of the full length, one thread.

The baseline is written here: from the captured input of layer k every token runs again through layers k..L-1, with a
mask that hides the token left out, as many ablations at once as ours runs on average. Tokens come in runs of
neighbors spread evenly over the image, since ours shares what lies before the first token of a batch.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import random_llava as llava
import torch
from timing import cpu_seconds, heading, verdict

import vlm_horizon as vh
from probes.models.prompts import encode
from probes.replay.ablations import Ablations
from probes.replay.capture import Capture, capture_prompt
from probes.replay.replay import replay

CUTS = (1, 3, 5, 7)
BLOCKS, NEIGHBORS, AT_ONCE, ROUNDS = 6, 4, 4, 3


def ablations(captured: Capture) -> Ablations:
    """`BLOCKS` runs of `NEIGHBORS` tokens, each token left out at every cut."""
    visual = captured.prompt.visual
    starts = np.linspace(0, len(visual) - NEIGHBORS, 2 * BLOCKS + 1).astype(int)[1::2]  # the middles of equal parts
    tokens = visual[torch.from_numpy(np.concatenate([np.arange(NEIGHBORS) + start for start in starts]))]
    masks = torch.zeros(len(tokens), captured.prompt.n_tokens, dtype=torch.bool)
    masks[torch.arange(len(tokens)), tokens] = True
    return Ablations.at_every(CUTS, masks)


@torch.no_grad()
def masked(model: vh.ProbedModel, captured: Capture, chosen: Ablations) -> torch.Tensor:
    """(ablation, vocabulary) log-softmax: all rows run, none but the token itself sees what is left out."""
    n = captured.prompt.n_tokens
    causal, diagonal = torch.ones(n, n, dtype=torch.bool).tril(), torch.eye(n, dtype=torch.bool)
    found = []
    for k in CUTS:
        for removed in chosen.removed[chosen.layers == k].split(AT_ONCE):
            mask = causal & (~removed[:, None, :] | diagonal)
            states = captured.inputs[k].expand(len(removed), -1, -1)
            for layer in range(k, model.n_layers):
                arguments = dict(captured.arguments[layer])
                arguments.update(attention_mask=mask[:, None], past_key_values=None, position_ids=None)
                states = model.layers[layer](states, **arguments)
            found.append(model.head(model.norm(states[:, -1])).log_softmax(-1))
    return torch.cat(found)


@torch.no_grad()
def shared(model: vh.ProbedModel, captured: Capture, chosen: Ablations) -> torch.Tensor:
    """The same by `replay`."""
    found = torch.empty(len(chosen), model.vocab_size)
    for indices, log_probs in replay(model, captured, chosen):
        found[indices] = log_probs[:, 0]
    return found


def predicted_ratio(captured: Capture, chosen: Ablations) -> float:
    """Operations of the baseline over ours."""
    n = captured.prompt.n_tokens
    full = llava.layer_operations(n, n * n)
    plain = ours = 0.0
    for k, removed in zip(chosen.layers.tolist(), chosen.removed, strict=True):
        first = int(removed.int().argmax())
        rows = n - first - 1
        plain += (llava.LAYERS - k) * full + llava.head_operations()
        middle = (llava.LAYERS - 1 - k) * llava.layer_operations(rows, rows * (n - 1))
        ours += middle + llava.last_layer_operations(rows, n - 1) + llava.head_operations()
    return plain / ours


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    heading("Leave-one-out of single tokens: exact replays against masked replays of the full length")
    model, sample = llava.load(), llava.sample()
    captured = capture_prompt(model, encode(model, sample), ())
    chosen = ablations(captured)
    taken: dict[str, list[float]] = {"masked": [], "shared": []}
    results: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, function in (("masked", masked), ("shared", shared)):
            seconds, results[name] = cpu_seconds(lambda function=function: function(model, captured, chosen))
            taken[name].append(seconds)
    ratio = median(theirs / ours for theirs, ours in zip(taken["masked"], taken["shared"], strict=True))
    apart = (results["masked"].exp() - results["shared"].exp()).abs().max().item()
    effect = (results["shared"].exp() - captured.log_probs[0].exp()).abs().amax(1)
    print(f"{len(chosen)} ablations: masked {median(taken['masked']):.1f} s, ours {median(taken['shared']):.1f} s")
    print(f"ratio of times: {ratio:.2f}, {verdict(ratio, 1.5, at_least=True)}")
    print(f"ratio of operations, the prediction: {predicted_ratio(captured, chosen):.2f}")
    print(f"largest difference in p {apart:.1e}; largest effect a token: median {effect.median().item():.1e}")
    assert apart <= 1e-5


if __name__ == "__main__":
    main()
