"""Operation counts: what a forward, any set of replays, and an entropy take, from the model's own modules.

A multiplication and an addition are two operations. Only products of matrices are counted, every linear layer by its
size; norms, activations and the softmax are not. Attention counts every (query, key) pair, masked or not. A mixture of
experts is counted by its linear layers, as if every expert saw every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from probes.models.probed import ProbedModel
from probes.replay.ablations import Ablations, first_removed, removed_counts
from probes.replay.batching import BatchPolicy, rows_at_once
from probes.replay.capture import Capture
from probes.replay.kinds import KIND_TABLE
from probes.replay.replay import batches_of, shape_of
from probes.replay.visibility import affected_rows

QUERIES = {"q_proj": 1, "query": 1, "qkv": 3, "qkv_proj": 3}  # a linear layer's name -> its width in query widths
INNER = ("q_proj", "k_proj", "v_proj", "qkv_proj")  # what every row pays that others attend to


@dataclass(frozen=True)
class DecoderWeights:
    """Multiplications that one row takes in each decoder layer.

    Attributes:
        inner: (layer,) multiplications in the projections to query, key and value.
        outer: (layer,) multiplications in the output projection and the feed-forward.
        pair: multiplications in attention, for one (query, key) pair.
        head: multiplications in the output embedding.
    """

    inner: np.ndarray
    outer: np.ndarray
    pair: int
    head: int


@dataclass(frozen=True)
class Batch:
    """Replays that run together.

    Attributes:
        layers: (ablation,) the layer at which each ablation begins.
        rows: the number of tokens that each ablation recomputes.
        columns: the number of tokens that these attend to, including themselves.
        pairs: the number of (query, key) pairs of each ablation in a layer; fewer than rows x columns where rows run
            in parts, of which none sees what comes after it.
        repeated_rows: tokens of each ablation whose keys and values are computed twice, since parts see later ones.
    """

    layers: np.ndarray
    rows: int
    columns: int
    pairs: int
    repeated_rows: int = 0


@dataclass(frozen=True)
class Work:
    """The work of a set of replays.

    Attributes:
        replays: the number of ablations.
        rows: the number of tokens recomputed, summed over ablations and layers.
        operations: the number of multiplications and additions.
    """

    replays: int = 0
    rows: int = 0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.replays + other.replays,
            self.rows + other.rows,
            self.operations + other.operations,
        )


def decoder_weights(model: ProbedModel) -> DecoderWeights:
    """Count the linear layers of a decoder."""
    inner, outer = [], []
    for layer in model.layers:
        linear = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        inner.append(sum(_weights(module) for name, module in linear if name.endswith(INNER)))
        outer.append(sum(_weights(module) for name, module in linear if not name.endswith(INNER)))
    pair = 2 * model.n_heads * model.head_dim
    return DecoderWeights(np.array(inner), np.array(outer), pair, model.hidden_size * model.vocab_size)


def _weights(module: nn.Linear) -> int:
    """Return the number of weights, by the layer's widths: a quantized matrix is stored in another shape."""
    return module.in_features * module.out_features


def forward_operations(weights: DecoderWeights, n_tokens: int, n_places: int) -> float:
    """Return the operations of one forward pass of the decoder and its head, with logits at the readout places only."""
    layers = n_tokens * (weights.inner + weights.outer) + n_tokens**2 * weights.pair
    return 2.0 * (layers.sum() + n_places * weights.head)


def replay_work(weights: DecoderWeights, batches: Sequence[Batch], n_places: int) -> Work:
    """Count the work of batches of replays."""
    return sum((_batch_work(weights, batch, n_places) for batch in batches), start=Work())


def _batch_work(weights: DecoderWeights, batch: Batch, n_places: int) -> Work:
    n_layers = len(weights.inner)
    per_layer = (
        (batch.rows + batch.repeated_rows) * weights.inner + batch.rows * weights.outer + batch.pairs * weights.pair
    )
    per_layer[-1] = last_layer(weights, batch.rows, batch.columns, n_places)
    from_layer = per_layer[::-1].cumsum()[::-1]  # (layer,) what an ablation takes that begins there
    operations = 2.0 * (from_layer[batch.layers].sum() + len(batch.layers) * n_places * weights.head)
    return Work(
        replays=len(batch.layers),
        rows=int((n_layers - batch.layers).sum()) * batch.rows,
        operations=float(operations),
    )


def last_layer(weights: DecoderWeights, rows: int, columns: int, n_places: int) -> int:
    """Multiplications of one replay in the last layer: only what the readout rows attend to counts there.

    Every recomputed row pays its projections; attention and what follows it are for the readout rows alone.
    """
    return rows * weights.inner[-1] + n_places * (weights.outer[-1] + columns * weights.pair)


def make_batches(
    model: ProbedModel,
    captured: Capture,
    ablations: Ablations,
    *,
    batch_size: BatchPolicy | int | None = None,
    recompute: torch.Tensor | None = None,
) -> list[Batch]:
    """Return the batches into which `replay` divides ablations.

    Args:
        model: the captured model.
        captured: the captured sample, which fixes where the image lies.
        ablations: the sets of tokens that are removed.
        batch_size: the number of ablations in one batch; by default that of `replay`.
        recompute: (token,) bool, rows that are computed again besides those that an ablation changes.
    """
    changed = ablations.masks if recompute is None else ablations.masks | recompute
    first = torch.where(changed.any(1), first_removed(changed), captured.prompt.n_tokens - 1)
    if not captured.in_order:  # rows before a change may see it: as many as see any of the changes
        first = torch.full_like(first, int((~affected_rows(captured.arguments, changed.any(0))).sum()))
    first, removed = ablations.of_each(first), ablations.of_each(removed_counts(ablations.masks))
    batches = []
    for indices, _ in batches_of(model, captured, ablations, batch_size):
        length = captured.prompt.n_tokens - (int(removed[indices[0]]) if KIND_TABLE[ablations.kind].deletes else 0)
        shared = int(first[indices].min())  # rows before the first change of any are those of the capture
        layers = ablations.layers[indices].cpu().numpy()
        batches.append(
            Batch(layers, length - shared, length, *_pairs(model, captured, length - shared, length, len(layers)))
        )
    return batches


def _pairs(model: ProbedModel, captured: Capture, rows: int, columns: int, ablations: int) -> tuple[int, int]:
    """Return the (query, key) pairs of one ablation in a layer, and its rows whose keys and values come twice."""
    part = rows_at_once(model, shape_of(captured, rows, columns), ablations)
    if part >= rows or not captured.in_order:
        return rows * columns, rows if part < rows else 0
    ends = [*range(part, rows, part), rows]
    sizes = np.diff([0, *ends])
    return int(sum(size * (columns - rows + end) for size, end in zip(sizes, ends, strict=True))), 0


def entropy_operations(n_tokens: int, dim: int, layers: int, *, eigenvalues: bool = True) -> float:
    """Return the operations of Gram matrices on the smaller side n, 2 n^2 N each, and of their eigenvalues, 4/3 n^3."""
    small, large = sorted((n_tokens, dim))
    return layers * (2.0 * small**2 * large + (4 / 3 * small**3 if eigenvalues else 0.0))


@dataclass
class VisionCount:
    """The cost of what runs outside the decoder and its head.

    Attributes:
        operations: operations of linear and convolution layers on all their rows, and of attention on all pairs.
        stored: bytes of the towers' states that may be alive together: every layer's, and three of the widest.
        widest: bytes of the widest state so far.
    """

    operations: float = 0.0
    stored: int = 0
    widest: int = 0

    def add(self, name: str, module: Any, output: torch.Tensor) -> None:
        """Count one call of a layer by its name and what it returned."""
        width = module.in_features if isinstance(module, nn.Linear) else module.weight[0].numel()
        self.operations += 2.0 * output.numel() * width
        size = output.numel() * output.element_size()
        if size > self.widest:
            self.stored += 3 * (size - self.widest)
            self.widest = size
        if name in QUERIES:
            self.operations += 4.0 * output.numel() / QUERIES[name] * output.shape[-2]
            self.stored += size // QUERIES[name]


@contextmanager
def counted_vision(model: ProbedModel) -> Iterator[VisionCount]:
    """Count the vision tower and the projector while the context is open."""
    count = VisionCount()
    inside = {id(module) for part in (model.decoder, model.head) for module in part.modules()}
    handles = [
        module.register_forward_hook(
            lambda module, _inputs, output, name=name: count.add(name.rsplit(".", 1)[-1], module, output)
        )
        for name, module in model.model.named_modules()
        if id(module) not in inside and isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
