"""What first-order token grids take: trajectories and backward passes, counted before any is run.

As in `operations`, a multiplication and an addition are two operations, and only products of matrices count. The
derivative of a product by what varies costs as much as the product again, weights being fixed; that of attention, where
both sides vary, twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probes.cost.operations import DecoderWeights, Work
from probes.gates.gate import GATED_CONTEXTS, LOG_GATES
from probes.gates.trajectories import Step, closed_rows, closed_steps, open_rows, parts_of
from probes.models.probed import ProbedModel
from probes.replay.batching import Shape, batch_bytes, feed_forward_size
from probes.replay.capture import Capture

NARROW = 7  # widths of the stream that the derivatives of one row hold
WIDE = 6  # widths of the feed-forward that they hold: four are saved for them, two are gradients


@dataclass(frozen=True)
class Block:
    """Rows that run together in a layer.

    Attributes:
        rows: the number of rows.
        columns: the number of columns that they attend to; 0 where only their keys and values are computed.
    """

    rows: int
    columns: int


@dataclass(frozen=True)
class Pass:
    """One trajectory, and derivatives along it.

    Attributes:
        cut: the first layer.
        forward: the blocks that run once in every layer from the cut on; none where the capture is the trajectory.
        backward: the blocks that run together with their derivatives.
        times: the number of times that `backward` runs.
        rows: the number of rows through which derivatives flow.
    """

    cut: int
    forward: tuple[Block, ...]
    backward: tuple[Block, ...]
    times: int
    rows: int


def gate_passes(captured: Capture, context: str, cuts: Sequence[int]) -> list[Pass]:
    """Return the passes of `gate_effects`: one from the first cut on where it gives all effects, else one per cut."""
    if GATED_CONTEXTS[context].one_pass:
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
    """Return the blocks into which so many rows are divided; all of them attend to every other token of the prompt."""
    fixed = captured.prompt.n_tokens - rows
    blocks = []
    for part in parts_of(captured, rows):
        size = part.rows.stop - part.rows.start
        columns = 0 if part.seen is None else fixed + part.seen.stop - part.seen.start + size * part.own
        blocks.append(Block(size, columns))
    return tuple(blocks)


def pass_work(weights: DecoderWeights, passes: Iterable[Pass], n_targets: int, n_places: int) -> Work:
    """Return the work of passes, which count as no replays."""
    return sum((_work_of(weights, gate_pass, n_targets, n_places) for gate_pass in passes), start=Work())


def _work_of(weights: DecoderWeights, gate_pass: Pass, n_targets: int, n_places: int) -> Work:
    layers = slice(gate_pass.cut, None)
    inner, outer, pair = weights.inner[layers].sum(), weights.outer[layers].sum(), weights.pair
    n_layers = len(weights.inner) - gate_pass.cut
    blocks = [*gate_pass.forward, *gate_pass.backward * gate_pass.times]
    attending = sum(block.rows for block in blocks if block.columns)
    forward = sum(block.rows for block in blocks) * inner + attending * outer
    forward += sum(block.rows * block.columns for block in blocks) * pair * n_layers
    pairs = sum(block.rows * block.columns for block in gate_pass.backward) * pair * n_layers
    backward = gate_pass.times * n_targets * (gate_pass.rows * (inner + outer) + 2 * pairs)
    head = gate_pass.times * (1 + n_targets) * n_places * weights.head
    return Work(0, attending * n_layers, 2.0 * float(forward + backward + head))


def pass_bytes(model: ProbedModel, captured: Capture, gate_pass: Pass, n_targets: int) -> tuple[int, str]:
    """Return the bytes that a pass takes at its peak beside the capture, and the formula behind them.

    They are those of the trajectory, and the larger of two: one block of one layer as it runs forward, and one with
    all that its derivatives need, beside the gradients of every row so far.
    """
    item, d = model.dtype.itemsize, model.hidden_size
    keys, layers = model.n_key_value_heads * model.head_dim, model.n_layers - gate_pass.cut
    tokens = captured.prompt.n_tokens if gate_pass.forward else 0  # of which keys and values are held
    trajectory_bytes = item * (layers * (gate_pass.rows * d + tokens * 2 * keys) + tokens * d)
    forward = max((_forward_bytes(model, block) for block in gate_pass.forward), default=0)
    backward = max(_derivative_bytes(model, block) for block in gate_pass.backward)
    backward += item * n_targets * gate_pass.rows * 2 * (d + keys)
    largest = max(gate_pass.backward, key=lambda block: block.rows * block.columns)
    of_tokens = f" + {tokens:,} tokens x 2 x {keys}" if tokens else ""
    return trajectory_bytes + max(forward, backward), (
        f"{layers} layers x ({gate_pass.rows:,} rows x {d}{of_tokens}) x {item} bytes, and the larger of {forward:,} "
        f"bytes of a layer forward and {backward:,} of one with derivatives of {largest.rows:,} rows over "
        f"{largest.columns:,} columns"
    )


def _forward_bytes(model: ProbedModel, block: Block) -> int:
    """Return the bytes of one block without derivatives: a replay, a mask of gates, and the keys and values."""
    shape = Shape(block.rows, block.columns, 0, own_mask=True)
    key_value_width = 2 * model.n_key_value_heads * model.head_dim
    return (
        batch_bytes(model, shape, part=block.rows)
        + block.rows * (block.columns + key_value_width) * model.dtype.itemsize
    )


def _derivative_bytes(model: ProbedModel, block: Block) -> int:
    """Return the bytes of one block with all that its derivatives need.

    The scores are saved; beside them stand their gradients, or the states of the feed-forward where these are larger.
    Keys and values of all columns are held four times: as leaves, joined, scaled, and as gradients.
    """
    queries, keys = model.n_heads * model.head_dim, model.n_key_value_heads * model.head_dim
    scores = model.n_heads * block.rows * block.columns
    transient = max(2 * scores, block.rows * WIDE * feed_forward_size(model))
    columns = block.columns * (4 * keys + 2 * queries)
    return model.dtype.itemsize * (scores + transient + block.rows * NARROW * model.hidden_size + columns)
