"""Ablations: which tokens are taken away from which layer on, one set a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from analyses.runs import HorizonError, check_choice
from probes.models.grids import Window
from probes.models.probed import ProbedModel
from probes.replay.capture import Capture
from probes.replay.kinds import KIND_TABLE

MASKS_AT_ONCE = 256  # sets of tokens that are widened to whole numbers together
MOST_NAMED = 5  # wrong layers that a sentence names


@dataclass(frozen=True)
class Ablations:
    """What is taken away, and from which layer on.

    Attributes:
        layers: (ablation,) long, the layer k at whose input each begins.
        masks: (mask, token) bool, the sets of tokens to take away: one for each ablation unless `which` is given.
        kind: a removal kind, one of `KIND_TABLE`. "delete": absent from layer k on, the others keep their positions.
            "zero", "mean": their rows at the input of layer k are replaced once, by zeros or by the mean over the
            prompt's removable tokens there.
        which: (ablation,) long, the index of each ablation's mask, so that a set used at many layers is stored once.
    """

    layers: torch.Tensor
    masks: torch.Tensor
    kind: str = "delete"
    which: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Raise HorizonError where the kind is unknown."""
        check_choice("removal kind", self.kind, KIND_TABLE)

    @classmethod
    def at_every(cls, cuts: Sequence[int], masks: torch.Tensor, kind: str = "delete") -> Ablations:
        """Return the ablations of every mask at every cut, ordered by cut and then by mask."""
        layers = torch.tensor(list(cuts), device=masks.device).repeat_interleave(len(masks))
        return cls(layers, masks, kind, torch.arange(len(masks), device=masks.device).repeat(len(cuts)))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: torch.Tensor) -> Ablations:
        return replace(self, layers=self.layers[index], which=self._which[index])

    @property
    def removed(self) -> torch.Tensor:
        """The tokens that each ablation takes away, (ablation, token) bool."""
        return self.masks if self.which is None else self.masks[self.which]

    def of_each(self, values: torch.Tensor) -> torch.Tensor:
        """Return the value that belongs to the mask of each ablation, (ablation,), from (mask,) values."""
        return values[self._which]

    @property
    def _which(self) -> torch.Tensor:
        return torch.arange(len(self.layers), device=self.layers.device) if self.which is None else self.which


def visual_mask(captured: Capture) -> torch.Tensor:
    """Return which tokens are visual, (token,) bool; those without a place on a grid are included."""
    return _mask_of(captured, captured.prompt.visual)


def removable_mask(captured: Capture) -> torch.Tensor:
    """Return which tokens the prompt lets a replay take away, (token,) bool: the visual ones by default."""
    return _mask_of(captured, captured.prompt.removable)


def _mask_of(captured: Capture, positions: torch.Tensor) -> torch.Tensor:
    """Return a (token,) bool mask that is true at these positions of the prompt."""
    mask = torch.zeros(captured.prompt.n_tokens, dtype=torch.bool, device=positions.device)
    mask[positions] = True
    return mask


def removed_counts(masks: torch.Tensor) -> torch.Tensor:
    """Return how many tokens each set takes away, (mask,) long, from (mask, token) bool sets."""
    return torch.cat([part.sum(1) for part in masks.split(MASKS_AT_ONCE)])


def first_removed(masks: torch.Tensor) -> torch.Tensor:
    """Return the position of the first token of each set, (mask,) long, from (mask, token) bool; 0 for an empty set."""
    return torch.cat([part.int().argmax(1) for part in masks.split(MASKS_AT_ONCE)])


def check_layers(model: ProbedModel, layers: Sequence[int] | None) -> list[int]:
    """Return the cuts in ascending order; raise HorizonError unless all lie in 0..L-1."""
    if layers is None:
        return list(range(model.n_layers))
    outside = [k for k in layers if not 0 <= k < model.n_layers]
    if outside or not layers:
        few = ", ".join(map(str, outside[:MOST_NAMED])) or "none given"
        more = f" and {len(outside) - MOST_NAMED} more" if len(outside) > MOST_NAMED else ""
        raise HorizonError(f"layer {few}{more}: {model.name!r} has cuts 0 to {model.n_layers - 1}")
    return sorted(set(layers))


Masks = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _all_but_window(removable: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Return the removable tokens outside each window, (window, token) bool."""
    return removable & ~windows


def _window_alone(_removable: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Return the tokens of each window, (window, token) bool."""
    return windows


# By context: from the (token,) bool removable tokens and the (window, token) bool tokens of each window, what the
# ablation of each window takes away, (window, token) bool. Placeless tokens are removable and belong to no window.
CONTEXT_MASKS: dict[str, Masks] = {"keep-one": _all_but_window, "leave-one-out": _window_alone}


def removal_ablations(captured: Capture, cuts: Sequence[int], kind: str = "delete") -> Ablations:
    """Return the ablations that remove, at every cut, all tokens that the prompt lets a replay take away."""
    return Ablations.at_every(cuts, removable_mask(captured)[None], kind)


def window_ablations(
    captured: Capture, windows: Sequence[Window], context: str, cuts: Sequence[int], kind: str = "delete"
) -> Ablations:
    """Return the ablations that keep, or leave out, each window at every cut, ordered by cut and then by window.

    Visual tokens without a place on a grid are removed in keep-one and stay in leave-one-out.
    """
    removable = removable_mask(captured)
    masks = removable.new_zeros(len(windows), len(removable))
    for mask, window in zip(masks, windows, strict=True):
        mask[list(window.positions)] = True
    return Ablations.at_every(cuts, CONTEXT_MASKS[context](removable, masks), kind)


def window_table(windows: Sequence[Window]) -> pd.DataFrame:
    """Return a table with one row for each window: crop, row, column, height and width, counted in tokens."""
    names = ("crop", "row", "column", "height", "width")
    return pd.DataFrame([{name: getattr(window, name) for name in names} for window in windows])


def kl_divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KL(ablated || reference) over the last axis, the vocabulary, in nats.

    Values are clamped at 0, since rounding can make them a little negative.

    Args:
        log_probs: (..., vocabulary) log-softmax of the ablated forward passes.
        reference: (..., vocabulary) log-softmax of the forward pass with all tokens.
    """
    return (log_probs.exp() * (log_probs - reference)).sum(-1).clamp(min=0.0)


def as_numpy(values: torch.Tensor) -> np.ndarray:
    """Return the values as a float64 array in main memory."""
    return values.double().cpu().numpy()
