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

MASKS_AT_ONCE = 256  # sets of tokens that are widened to whole numbers together
MOST_NAMED = 5  # wrong layers that a sentence names


@dataclass(frozen=True)
class Ablations:
    """What is taken away, and from which layer on.

    Attributes:
        layers: (ablation,) long, the layer k at whose input each begins.
        masks: (mask, token) bool, sets of tokens to take away; one an ablation unless `which` says otherwise.
        kind: a removal kind, one of `KIND_TABLE`. "delete": absent from layer k on, the others keep their positions.
            "zero", "mean": their rows at the input of layer k are replaced once, by zeros or by the mean over the
            prompt's removable tokens there.
        which: (ablation,) long, the mask of each ablation: the same sets at many layers are held once.
    """

    layers: torch.Tensor
    masks: torch.Tensor
    kind: str = "delete"
    which: torch.Tensor | None = None

    @classmethod
    def at_every(cls, cuts: Sequence[int], masks: torch.Tensor, kind: str = "delete") -> Ablations:
        """Every mask at every cut, cut-major."""
        layers = torch.tensor(list(cuts), device=masks.device).repeat_interleave(len(masks))
        return cls(layers, masks, kind, torch.arange(len(masks), device=masks.device).repeat(len(cuts)))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: torch.Tensor) -> Ablations:
        return replace(self, layers=self.layers[index], which=self._which[index])

    @property
    def removed(self) -> torch.Tensor:
        """(ablation, token) bool, the tokens taken away."""
        return self.masks if self.which is None else self.masks[self.which]

    def of_each(self, values: torch.Tensor) -> torch.Tensor:
        """(mask,) values -> (ablation,)."""
        return values[self._which]

    @property
    def _which(self) -> torch.Tensor:
        return torch.arange(len(self.layers), device=self.layers.device) if self.which is None else self.which


def visual_mask(captured: Capture) -> torch.Tensor:
    """(token,) bool, all visual tokens, placeless ones included."""
    return _mask_of(captured, captured.prompt.visual)


def removable_mask(captured: Capture) -> torch.Tensor:
    """(token,) bool, all tokens that the prompt says are taken away: visual ones, unless it says otherwise."""
    return _mask_of(captured, captured.prompt.removable)


def _mask_of(captured: Capture, positions: torch.Tensor) -> torch.Tensor:
    """(token,) bool, true at these positions of the prompt."""
    mask = torch.zeros(captured.prompt.n_tokens, dtype=torch.bool, device=positions.device)
    mask[positions] = True
    return mask


def removed_counts(masks: torch.Tensor) -> torch.Tensor:
    """(mask,) how many tokens each of some (mask, token) bool sets takes away."""
    return torch.cat([part.sum(1) for part in masks.split(MASKS_AT_ONCE)])


def first_removed(masks: torch.Tensor) -> torch.Tensor:
    """(mask,) position of the first token that each of some (mask, token) bool sets takes away; 0 where it is empty."""
    return torch.cat([part.int().argmax(1) for part in masks.split(MASKS_AT_ONCE)])


def check_layers(model: ProbedModel, layers: Sequence[int] | None) -> list[int]:
    """The cuts in ascending order; raises HorizonError unless all lie in 0..L-1."""
    if layers is None:
        return list(range(model.n_layers))
    wrong = [k for k in layers if not 0 <= k < model.n_layers]
    if wrong or not layers:
        few = ", ".join(map(str, wrong[:MOST_NAMED])) or "none given"
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise HorizonError(f"layer {few}{more}: {model.name!r} has cuts 0 to {model.n_layers - 1}")
    return sorted(set(layers))


Masks = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _all_but_window(removable: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    return removable & ~windows


def _window_alone(_removable: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    return windows


# By context: from the (token,) bool removable tokens and the (window, token) bool tokens of each window, what the
# ablation of each window takes away, (window, token) bool. Placeless tokens are removable and belong to no window.
CONTEXT_MASKS: dict[str, Masks] = {"keep-one": _all_but_window, "leave-one-out": _window_alone}


def check_context(context: str) -> None:
    """Raise HorizonError unless the context is known."""
    check_choice("context", context, CONTEXT_MASKS)


def removal_ablations(captured: Capture, cuts: Sequence[int], kind: str = "delete") -> Ablations:
    """All tokens that the prompt says are taken away, removed at every cut."""
    return Ablations.at_every(cuts, removable_mask(captured)[None], kind)


def window_ablations(
    captured: Capture, windows: Sequence[Window], context: str, cuts: Sequence[int], kind: str = "delete"
) -> Ablations:
    """Every window kept alone, or left out, at every cut, cut-major.

    Placeless visual tokens go with the rest in keep-one and stay in leave-one-out.
    """
    removable = removable_mask(captured)
    masks = removable.new_zeros(len(windows), len(removable))
    for mask, window in zip(masks, windows, strict=True):
        mask[list(window.positions)] = True
    return Ablations.at_every(cuts, CONTEXT_MASKS[context](removable, masks), kind)


def window_table(windows: Sequence[Window]) -> pd.DataFrame:
    """One row a window: crop, row, column, height, width."""
    names = ("crop", "row", "column", "height", "width")
    return pd.DataFrame([{name: getattr(window, name) for name in names} for window in windows])


def kl_divergence(log_probs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL(ablated || all) over the vocabulary in nats; rounding can make it a little negative, which it is not."""
    return (log_probs.exp() * (log_probs - own)).sum(-1).clamp(min=0.0)


def as_numpy(values: torch.Tensor) -> np.ndarray:
    """Float64 on the CPU."""
    return values.double().cpu().numpy()
