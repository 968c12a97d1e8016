"""What stands behind the words of the vocabulary, as far as numbers and sentences need it: one entry a word.

The words themselves and their order are in `analyses.runs.schema`. What the models need of a word (masks, fills,
readers of states, derivatives) stands in tables of the same keys in the rooms of `probes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Context:
    """How the effect of a window follows from log p, or p, of its ablation.

    Attributes:
        name: one of `CONTEXTS`.
        symbol: of the effect, in the notation of the papers.
        baseline: from (layer,) values without any of the tokens and the value with all of them, what an ablation is
            compared with, of a shape that goes with (layer, window).
        loss: whether the effect is what the ablation lost of the baseline; else it is what it gained over it.
    """

    name: str
    symbol: str
    baseline: Callable[[np.ndarray, np.ndarray], np.ndarray]
    loss: bool

    def effects(self, values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
        """(layer, window) effects of ablations with these values, in the unit of the values."""
        return baseline - values if self.loss else values - baseline

    def values(self, effects: np.ndarray, baseline: np.ndarray) -> np.ndarray:
        """(layer, window) values of ablations that have these effects: the inverse of `effects`."""
        return baseline - effects if self.loss else baseline + effects


def _without_any(removed: np.ndarray, _everything: np.ndarray) -> np.ndarray:
    return removed[:, None]


def _with_all(_removed: np.ndarray, everything: np.ndarray) -> np.ndarray:
    return everything


CONTEXT_TABLE = {
    context.name: context
    for context in (
        Context("keep-one", "I_k", _without_any, loss=False),
        Context("leave-one-out", "D_k", _with_all, loss=True),
    )
}


@dataclass(frozen=True)
class Method:
    """What the numbers of a token grid are, by the method that measured them.

    Attributes:
        name: one of `METHODS`.
        first_order: whether effects are estimates to first order; else every ablation was run.
        quantity: what axes and titles call the effects.
        obstacles: from the removal kind, the tokens and the side of coarse windows that are asked for: why the method
            cannot measure them on any model, one sentence a reason.
        caution: what follows "the run, since" where effects must not pass for exact ones; "" where they are.
    """

    name: str
    first_order: bool
    quantity: str
    obstacles: Callable[[str, str, int | None], Iterator[str]]
    caution: str = ""

    @property
    def has_floor(self) -> bool:
        """Whether rounding alone parts its values from the truth, so that a noise floor bounds their error."""
        return not self.first_order


def _no_obstacles(_kind: str, _tokens: str, _coarse: int | None) -> Iterator[str]:
    return iter(())


def _gate_obstacles(kind: str, tokens: str, coarse: int | None) -> Iterator[str]:
    """What gates cannot do."""
    if kind != "delete":
        yield f"method 'gate' takes tokens away as the removal kind 'delete' does and has no counterpart of {kind!r}"
    if tokens != "visual":
        yield (
            f"method 'gate' has gates on visual tokens only and cannot measure those of tokens {tokens!r}: take the "
            "method 'exact', or visual tokens"
        )
    if coarse is not None:
        yield (
            f"method 'gate' takes one backward pass for all windows, so coarse windows ({coarse}) spare it nothing: "
            "leave coarse out"
        )


METHOD_TABLE = {
    method.name: method
    for method in (
        Method("exact", first_order=False, quantity="Token information", obstacles=_no_obstacles),
        Method(
            "gate",
            first_order=True,
            quantity="First-order information",
            obstacles=_gate_obstacles,
            caution="its token grids are first-order estimates (method gate), not exact effects",
        ),
    )
}


class Dimensions(Protocol):
    """The dimensions of a decoder, as a run's configuration and a probed model name them."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""

    @property
    def n_heads(self) -> int:
        """Query heads of a layer."""

    @property
    def n_key_value_heads(self) -> int:
        """Key heads of a layer, as many as value heads."""


def _of_queries(dimensions: Dimensions) -> int:
    return dimensions.n_heads * dimensions.head_dim


def _of_keys(dimensions: Dimensions) -> int:
    return dimensions.n_key_value_heads * dimensions.head_dim


STREAM_WIDTHS: dict[str, Callable[[Dimensions], int]] = {  # of one token, by the stream's plain name
    "query": _of_queries,
    "key": _of_keys,
    "query_raw": _of_queries,
    "key_raw": _of_keys,
    "value": _of_keys,
    "hidden": lambda dimensions: dimensions.hidden_size,
}
