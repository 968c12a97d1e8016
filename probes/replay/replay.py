"""Replays: any set of ablations of one captured forward, from the captured layer inputs, exactly.

Only rows that can see a removed token, directly or through other rows, are run again; the keys and values of all
other rows are those of the capture. Ablations that start at different layers share one sweep over the layers: each
joins the batch at its own layer, so nothing below its cut is computed. In the last layer only the rows that are read
run in full: of the others it needs keys and values alone. Where the attention masks of a batch would take too much
memory, a layer runs its rows part by part.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from analyses.runs import HorizonError
from probes.models.probed import ProbedModel
from probes.replay.ablations import Ablations, first_removed, removed_counts
from probes.replay.batching import BatchPolicy, Shape, is_out_of_memory, rows_at_once
from probes.replay.caches import FrozenContext, GrowingContext, KnownContext, Recorded, Recorder
from probes.replay.capture import Capture
from probes.replay.kinds import KIND_TABLE
from probes.replay.readout import read_out
from probes.replay.visibility import Rows, additive, affected_rows, attention_mask, rows_to_run


@torch.no_grad()
def replay(
    model: ProbedModel,
    capture: Capture,
    ablations: Ablations,
    *,
    batch_size: BatchPolicy | int | None = None,
    recompute: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Run every ablation and yield its log-probabilities, batch by batch.

    Args:
        model: the captured model.
        capture: its forward pass on one prompt.
        ablations: the tokens to take away, and the layers from which on.
        batch_size: number of ablations at once, or the policy that decides; by default a new policy, under which as
            many run as free memory and `BATCH_ROWS` allow. Where memory runs out, a batch is halved, with a line in
            the log, and so are all later ones under the same policy.
        recompute: (token,) bool, rows to run again, with those that see them, besides the rows that the ablations
            affect (an ablation that removes nothing affects none).

    Yields:
        (indices, log_probs): the (batch,) long indices of the ablations, and their (batch, place, vocabulary)
        log-softmax in nats at the prompt's readout positions.

    Raises:
        HorizonError: memory does not hold a single ablation.
    """
    policy = BatchPolicy.of(batch_size)
    for indices, rows in batches_of(model, capture, ablations, policy):
        queue = [indices]
        while queue:
            batch = queue.pop(0)
            log_probs = _replay_if_it_fits(model, capture, ablations[batch], recompute)
            if log_probs is not None:
                yield batch, log_probs
                continue
            if len(batch) == 1:
                raise HorizonError(
                    f"{model.name!r} runs out of memory in a single replay of {capture.prompt.n_tokens} tokens on "
                    f"{model.device}: take a smaller dtype, shorter prompts or a larger device"
                )
            at_once = policy.shrink(model, len(batch), rows)
            queue = [part for indices in (batch, *queue) for part in indices.split(at_once)]


def batches_of(
    model: ProbedModel, capture: Capture, ablations: Ablations, batch_size: BatchPolicy | int | None
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield for each batch the (batch,) long indices of its ablations and the number of tokens that each of them runs.

    The ablations of a batch remove the same number of tokens, and their first removed tokens lie close together, so
    that they share what comes before. They are in the order of their layers, so that each joins at the batch's end.
    """
    policy = BatchPolicy.of(batch_size)
    counts = ablations.of_each(removed_counts(ablations.masks))
    first = ablations.of_each(first_removed(ablations.masks))
    for count in counts.unique().tolist():
        same = (counts == count).nonzero()[:, 0]
        order = same[torch.argsort(first[same], stable=True)]
        while len(order):
            rows = _rows_from(capture, int(first[order[0]]), count, ablations.kind)
            shape = shape_of(capture, rows, max(rows, capture.prompt.n_tokens - count))
            at_once = policy.ablations_at_once(model, shape)
            part, order = order.tensor_split([at_once])
            yield part[torch.argsort(ablations.layers[part], stable=True)], rows


def most_rows(capture: Capture, ablations: Ablations) -> int:
    """Return how many tokens the longest of these ablations runs by itself."""
    pairs = zip(
        first_removed(ablations.masks).tolist(),
        removed_counts(ablations.masks).tolist(),
        strict=True,
    )
    return max(_rows_from(capture, first, count, ablations.kind) for first, count in pairs)


def shape_of(capture: Capture, rows: int, columns: int) -> Shape:
    """Return the shape of an ablation of this prompt that runs so many rows over so many columns."""
    return Shape(rows, columns, len(capture.prompt.readout), not _is_causal(capture))


def _rows_from(capture: Capture, first: int, removed: int, kind: str) -> int:
    """Return how many tokens an ablation runs: from its first removed token on, or all where tokens see later ones."""
    rows = capture.prompt.n_tokens - (first if _is_causal(capture) else 0)
    return max(1, rows - removed if KIND_TABLE[kind].deletes else rows)


def _is_causal(capture: Capture) -> bool:
    """Return whether every layer ran without a mask argument, under plain causal attention."""
    return all(kwargs["attention_mask"] is None for kwargs in capture.arguments)


def _replay_if_it_fits(
    model: ProbedModel, capture: Capture, batch: Ablations, recompute: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the log-softmax of a batch, or None where memory does not hold it: this call then frees its tensors."""
    try:
        return _replay_batch(model, capture, batch, recompute)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _replay_batch(
    model: ProbedModel, capture: Capture, batch: Ablations, recompute: torch.Tensor | None
) -> torch.Tensor:
    """Return the log-softmax of a batch at the readout positions, (ablation, place, vocabulary), in nats."""
    start, last = int(batch.layers[0]), model.n_layers - 1
    removed = batch.removed
    changed = removed.any(0)
    affected = affected_rows(capture.arguments[start:], changed if recompute is None else changed | recompute)
    affected[capture.prompt.readout] = True
    rows = rows_to_run(removed, affected, deletes=KIND_TABLE[batch.kind].deletes)
    places, n_rows = len(capture.prompt.readout), rows.active.shape[1]
    part = rows_at_once(model, shape_of(capture, n_rows, len(rows.context) + n_rows), len(batch))
    states = capture.inputs[start].new_empty(0, rows.active.shape[1], capture.inputs[start].shape[1])
    for k in range(start, last + 1):
        joining = (batch.layers == k).nonzero()[:, 0]
        if len(joining):
            active = rows.of(joining, len(batch))
            states = torch.cat([states, _starting_rows(capture, batch.kind, removed[joining], active, k)])
        batch_rows = rows.first(len(states))
        if k == last:
            states = _run_last_layer(model, capture, batch_rows, states, part)
        else:
            states = run_layer(model, capture, batch_rows, states, k, part)
        states = _add_between(capture, batch_rows.active[:, -states.shape[1] :], states, k)
    return read_out(model, states[:, -places:])


def _add_between(capture: Capture, active: torch.Tensor, states: torch.Tensor, k: int) -> torch.Tensor:
    """Return the states with what the model itself adds between layer k and the next one (deepstack)."""
    added = capture.additions.get(k)
    return states if added is None else states + added[active]


def _starting_rows(capture: Capture, kind: str, removed: torch.Tensor, active: torch.Tensor, k: int) -> torch.Tensor:
    """Return the input of layer k for the ablations that begin there, (ablation, row, hidden)."""
    states = capture.inputs[k]
    row_states = states[active]
    fill = KIND_TABLE[kind].fill
    if fill is None:
        return row_states
    return torch.where(
        removed.gather(1, active)[..., None], fill(row_states, states, capture.prompt.removable), row_states
    )


def run_layer(
    model: ProbedModel, capture: Capture, rows: Rows, states: torch.Tensor, k: int, part: int | None = None
) -> torch.Tensor:
    """Return the output of layer k for the active rows of every ablation that has begun, (ablation, row, hidden).

    Args:
        model: the captured model.
        capture: one prompt.
        rows: the rows that run, and their context.
        states: (ablation, row, hidden), their input; overwritten where they run in parts.
        k: the layer.
        part: number of rows of each ablation that run at once; all by default.
    """
    n, context = rows.active.shape[1], _context(capture, rows, k)
    if part is None or part >= n:
        return _call(model, capture, k, states, rows, rows.active, context)
    parts = _parts(n, part)
    if capture.in_order:
        cache: FrozenContext = GrowingContext(context, len(states), n)
        for span in parts:
            visible_rows = rows.until(span.stop)
            states[:, span] = _call(model, capture, k, states[:, span], visible_rows, rows.active[:, span], cache)
        return states
    projections = _grown(model, capture, k, states, rows.active, context, part)
    cache = KnownContext(projections.keys, projections.values)
    for span in parts:
        states[:, span] = _call(model, capture, k, states[:, span], rows, rows.active[:, span], cache)
    return states


def _parts(n: int, part: int) -> list[slice]:
    """Return slices that split n rows into parts of this size; the last one may be smaller."""
    return [slice(start, min(start + part, n)) for start in range(0, n, part)]


def _run_last_layer(model: ProbedModel, capture: Capture, rows: Rows, states: torch.Tensor, part: int) -> torch.Tensor:
    """Return the last layer's output for the rows that are read, (ablation, place, hidden).

    Of the rows before them only keys and values are computed, a part at a time.
    """
    k, places = model.n_layers - 1, len(capture.prompt.readout)
    rows_before, places_read = rows.active[:, :-places], rows.active[:, -places:]
    if not rows_before.shape[1]:
        return run_layer(model, capture, rows, states, k)
    context = _context(capture, rows, k)
    cache = _grown(model, capture, k, states[:, :-places], rows_before, context, part, room=states.shape[1])
    return _call(model, capture, k, states[:, -places:], rows, places_read, cache)


def _grown(
    model: ProbedModel,
    capture: Capture,
    k: int,
    states: torch.Tensor,
    queries: torch.Tensor,
    context: FrozenContext,
    part: int,
    room: int | None = None,
) -> GrowingContext:
    """Return the context, extended by the keys and values of some rows, which are computed a part at a time.

    Room is left for `room` rows in all, by default for these alone.
    """
    grown = GrowingContext(context, len(states), room or states.shape[1])
    for span in _parts(states.shape[1], part):
        grown.update(*keys_and_values(model, capture, k, states[:, span], queries[:, span]))
    return grown


def keys_and_values(
    model: ProbedModel, capture: Capture, k: int, states: torch.Tensor, queries: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values that layer k computes of some rows, without running the rest of it.

    Args:
        model: the captured model.
        capture: one prompt.
        k: the layer.
        states: (ablation, row, hidden), the layer's input.
        queries: (ablation or 1, row) long, the rows' positions.

    Returns:
        Two tensors (ablation, key head, row, head_dim), the keys after rotary embedding.

    Raises:
        HorizonError: the layer stores no keys and values.
    """
    try:
        _call(model, capture, k, states, None, queries, Recorder())
    except Recorded as recorded:
        return recorded.keys, recorded.values
    raise HorizonError(f"layer {k} of {model.name!r} stores no keys and values: replays have no rule for it")


def _context(capture: Capture, rows: Rows, k: int) -> FrozenContext:
    """Return the captured keys and values of layer k at the context columns of the rows."""
    return FrozenContext(capture.keys[k][None, :, rows.context], capture.values[k][None, :, rows.context])


def _call(
    model: ProbedModel,
    capture: Capture,
    k: int,
    states: torch.Tensor,
    rows: Rows | None,
    queries: torch.Tensor,
    cache: FrozenContext | Recorder,
) -> torch.Tensor:
    """Return the output of layer k for the rows `queries`, which attend to all of `rows` (None: they only project)."""
    allowed = None
    if rows is not None and model.attn != "flash":  # which is causal, its last rows at the last columns, by itself
        allowed = attention_mask(capture.arguments[k]["attention_mask"], rows, queries)
        allowed = additive(allowed, states.dtype) if model.attn == "eager" else allowed
    return call_layer(model, capture, k, states, queries, allowed, cache)


def call_layer(
    model: ProbedModel,
    capture: Capture,
    k: int,
    states: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    cache: FrozenContext | Recorder,
) -> torch.Tensor:
    """Return the output of decoder layer k for some rows, called as in the capture but for these arguments.

    Args:
        model: the captured model.
        capture: one prompt.
        k: the layer.
        states: (ablation, row, hidden), the layer's input.
        positions: (ablation or 1, row) long, the rows' positions in the prompt.
        mask: the mask in the form that the model's attention takes, over the cache's columns; None for no mask.
        cache: the object that stands where the layer expects its cache.

    Returns:
        The output, (ablation, row, hidden).
    """
    arguments = dict(capture.arguments[k])
    cos, sin = (part[0][positions] for part in arguments["position_embeddings"])
    # The rotary embedding carries the positions; gapped position ids would be read as packed sequences.
    arguments.update(position_embeddings=(cos, sin), attention_mask=mask, past_key_values=cache, position_ids=None)
    output = model.layers[k](states, **arguments)
    return output[0] if isinstance(output, tuple) else output
