"""What first-order token grids take: trajectories and backward passes, counted before any is run.

As in `operations`, a multiplication and an addition are two operations, and only products of matrices count. The
derivative of a product by what varies costs as much as the product again, weights being fixed; that of attention, where
both sides vary, twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probes.batching import feed_forward_size
from probes.capture import Capture
from probes.gate import LOG_GATES
from probes.models import ProbedModel
from probes.operations import DecoderWeights, Work
from probes.trajectories import Step, closed_rows, closed_steps, open_rows, parts_of

SCORES = 3  # tensors of the size of the scores that a backward pass holds at once
WIDE = 5  # feed-forward widths of a row that it holds, what is saved and the gradients
NARROW = 12  # widths of the stream


@dataclass(frozen=True)
class Block:
    """Rows that run together in a layer, and columns that they see; none where only keys and values are computed."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Pass:
    """One trajectory, and derivatives along it.

    Attributes:
        cut: the first layer.
        forward: what runs once in every layer from the cut on; nothing where the capture is the trajectory.
        backward: what runs with its derivatives.
        times: how often it does.
        rows: through which derivatives flow.
    """

    cut: int
    forward: tuple[Block, ...]
    backward: tuple[Block, ...]
    times: int
    rows: int


def gate_passes(captured: Capture, context: str, cuts: Sequence[int]) -> list[Pass]:
    """The passes of `gate_effects`: one from the first cut on for leave-one-out, one a cut for keep-one.

    Args:
        captured: one prompt.
        context: keep-one or leave-one-out.
        cuts: ascending.
    """
    if context == "leave-one-out":
        rows = len(open_rows(captured, cuts[0]))
        return [Pass(cuts[0], (), _derivative_blocks(captured, rows), 1, rows)]
    passes = []
    for cut in cuts:
        forward = tuple(_block(step) for step in closed_steps(captured, cut))
        rows = len(closed_rows(captured, cut))
        passes.append(Pass(cut, forward, _derivative_blocks(captured, rows), len(LOG_GATES), rows))
    return passes


def _block(step: Step) -> Block:
    if step.context is None:
        return Block(len(step.rows), 0)
    return Block(len(step.rows), len(step.context) + len(step.rows) * step.own)


def _derivative_blocks(captured: Capture, rows: int) -> tuple[Block, ...]:
    """The parts of so many rows; every other token of the prompt is seen by all of them."""
    fixed = captured.prompt.n_tokens - rows
    blocks = []
    for part in parts_of(captured, rows):
        size = part.rows.stop - part.rows.start
        seen = 0 if part.seen is None else fixed + part.seen.stop - part.seen.start + size * part.own
        blocks.append(Block(size, seen))
    return tuple(blocks)


def pass_work(weights: DecoderWeights, passes: Iterable[Pass], n_targets: int, n_places: int) -> Work:
    """Count the work of passes, which are no replays.

    Args:
        weights: of the decoder.
        passes: what runs.
        n_targets: targets that derivatives are taken of.
        n_places: readout places of the prompt.
    """
    return sum((_work_of(weights, one, n_targets, n_places) for one in passes), start=Work())


def _work_of(weights: DecoderWeights, one: Pass, n_targets: int, n_places: int) -> Work:
    layers = slice(one.cut, None)
    inner, outer, pair = weights.inner[layers].sum(), weights.outer[layers].sum(), weights.pair
    n_layers = len(weights.inner) - one.cut
    run = [*one.forward, *one.backward * one.times]
    attending = sum(block.rows for block in run if block.columns)
    forward = sum(block.rows for block in run) * inner + attending * outer
    forward += sum(block.rows * block.columns for block in run) * pair * n_layers
    pairs = sum(block.rows * block.columns for block in one.backward) * pair * n_layers
    backward = one.times * n_targets * (one.rows * (inner + outer) + 2 * pairs)
    head = one.times * (1 + n_targets) * n_places * weights.head
    return Work(0, attending * n_layers, 2.0 * float(forward + backward + head))


def pass_bytes(model: ProbedModel, captured: Capture, one: Pass, n_targets: int) -> tuple[int, str]:
    """Memory that a pass takes at its peak beside the capture, and the formula behind it.

    The trajectory, what each row is worth so far, and one part of one layer with all that its derivatives need.
    """
    item, n, d = model.dtype.itemsize, captured.prompt.n_tokens, model.hidden_size
    keys, layers = model.n_key_value_heads * model.head_dim, model.n_layers - one.cut
    held = one.rows * d + (2 * n * keys if one.forward else 0)
    gradients = n_targets * one.rows * 2 * (d + keys)
    block = max(one.backward, key=lambda block: block.rows * block.columns)
    scores = SCORES * model.n_heads * block.rows * block.columns
    widths = NARROW * d + WIDE * feed_forward_size(model)
    columns = block.columns * (4 * keys + 4 * model.n_heads * model.head_dim)
    total = item * (layers * held + gradients + scores + block.rows * widths + columns)
    return total, (
        f"{layers} layers x ({one.rows:,} rows x {d}{f' + {n:,} tokens x 2 x {keys}' if one.forward else ''}) + "
        f"{block.rows:,} rows x ({SCORES} x {model.n_heads} heads x {block.columns:,} + {widths:,}), {item} bytes "
        "each, and gradients of rows, keys and values"
    )
