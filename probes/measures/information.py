"""What the answer loses when tokens go, visual ones unless others are chosen: removal curves and token information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analyses.runs import CONTEXT_TABLE, METHOD_TABLE, TokenGrids, check_choice
from probes.gates.gate import check_method, sum_windows
from probes.measures.calls import GateCall, ReplayCall
from probes.measures.case import Case
from probes.models.grids import Window, choose_window
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, removable_windows
from probes.models.targets import Target
from probes.replay.ablations import (
    CONTEXT_MASKS,
    as_numpy,
    check_layers,
    kl_divergence,
    removal_ablations,
    window_ablations,
    window_table,
)
from probes.replay.kinds import KIND_TABLE


@dataclass(frozen=True)
class RemovalCurve:
    """All visual tokens (or text, or both) removed from layer k on, for one sample and one target.

    Attributes:
        layers: (layer,) int cuts k, ascending. The last is L, where nothing is removed: the model's own forward pass.
        log_p: (layer,) log p of the target in nats.
        kl: (layer,) KL(removed || all) over the vocabulary at the target's place, in nats.
        correct: (layer,) bool, whether the most probable token at the target's place is in the target set.
        same: (layer,) bool, whether that token is the one that the model gives with all tokens.
        target: the target whose probability was measured.
        kind: the kind of removal: "delete", "zero" or "mean".
        tokens: the tokens that are removed: "visual", "text" or "all".
    """

    layers: np.ndarray
    log_p: np.ndarray
    kl: np.ndarray
    correct: np.ndarray
    same: np.ndarray
    target: Target
    kind: str
    tokens: str = "visual"

    @property
    def log_p_all(self) -> float:
        """Log p with all tokens, in nats."""
        return float(self.log_p[-1])

    def effects(self, measure: str = "p") -> np.ndarray:
        """Return the (layer,) R_k = m(all) - m(none of the tokens from k) for m = p or log p (nats)."""
        value = np.exp(self.log_p) if measure == "p" else self.log_p
        return value[-1] - value


@dataclass(frozen=True)
class InformationGrid(TokenGrids):
    """Token grids of one sample as measured; `values` are the effects in p."""

    @property
    def values(self) -> np.ndarray:
        """(layer, window) I_k(v) for keep-one or D_k(v) for leave-one-out, in p."""
        return self.information("p")

    def effects(self, measure: str = "p") -> np.ndarray:
        """Return the (layer, window) effects in p, or in nats of log p."""
        return self.information(measure)


@dataclass(frozen=True)
class GridRequest:
    """The token grids that are to be measured on a sample.

    Attributes:
        context: "keep-one" or "leave-one-out".
        window: the side of a window in tokens; None where `max_windows` fixes it for each sample.
        max_windows: the largest number of windows of a sample; the smallest windows that keep to it are taken.
        layers: the cuts in 0..L-1; by default all.
        kind: the kind of removal: "delete", "zero" or "mean".
        method: "exact" for replays, "gate" for first-order estimates.
        batch_size: the number of ablations in one batch; by default as many as fit.
    """

    context: str = "keep-one"
    window: int | None = 2
    max_windows: int | None = None
    layers: tuple[int, ...] | None = None
    kind: str = "delete"
    method: str = "exact"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Raise HorizonError where the context or the kind is unknown."""
        check_choice("context", self.context, CONTEXT_MASKS)
        check_choice("removal kind", self.kind, KIND_TABLE)

    def side(self, prompt: Prompt) -> int:
        """Return the side of one sample's windows in tokens."""
        return choose_window(self.window, self.max_windows, prompt.removable_grids)

    def windows(self, prompt: Prompt) -> list[Window]:
        """Return the windows of one sample, in the order of the grids' columns."""
        return removable_windows(prompt, self.side(prompt))

    def cuts(self, model: ProbedModel) -> list[int]:
        """Return the layers in ascending order; raise HorizonError unless all lie in 0..L-1."""
        return check_layers(model, self.layers)


def removal_call(
    case: Case, layers: Sequence[int] | None = None, kind: str = "delete", batch_size: int | None = None
) -> ReplayCall:
    """Return the replays of `removal_curves`: all removable tokens of the prompt are removed, once from every cut."""
    cuts = check_layers(case.model, layers)
    return ReplayCall(removal_ablations(case.captured, cuts, kind), batch_size, whole=True)


def window_call(case: Case, request: GridRequest) -> ReplayCall:
    """Return the replays of exact token grids: every window at every cut, ordered by cut and then by window."""
    windows, cuts = request.windows(case.captured.prompt), request.cuts(case.model)
    ablations = window_ablations(case.captured, windows, request.context, cuts, request.kind)
    return ReplayCall(ablations, request.batch_size)


def removal_curves(
    case: Case, *, layers: Sequence[int] | None = None, kind: str = "delete", batch_size: int | None = None
) -> dict[str, RemovalCurve]:
    """Return the removal curve of each target of one captured sample; one sweep over the layers serves all targets."""
    call = removal_call(case, layers, kind, batch_size)
    unablated = case.captured.log_probs
    log_probs = unablated.new_empty(len(call.ablations), *unablated.shape)
    for indices, batch in call.run(case):
        log_probs[indices] = batch
    log_probs = torch.cat([log_probs, unablated[None]])
    axis = np.array([*call.ablations.layers.tolist(), case.model.n_layers])
    tokens = case.captured.prompt.tokens
    return {name: _removal_curve(target, log_probs, axis, kind, tokens) for name, target in case.targets.items()}


def _removal_curve(target: Target, log_probs: torch.Tensor, axis: np.ndarray, kind: str, tokens: str) -> RemovalCurve:
    """Read one target's curve from (layer, place, vocabulary) log-softmax, whose last layer is the unablated model."""
    at_target = log_probs[:, target.place]
    top_tokens = at_target.argmax(-1)
    return RemovalCurve(
        layers=axis,
        log_p=as_numpy(target.log_p(log_probs)),
        kl=as_numpy(kl_divergence(at_target, at_target[-1])),
        correct=target.contains(top_tokens).cpu().numpy(),
        same=(top_tokens == top_tokens[-1]).cpu().numpy(),
        target=target,
        kind=kind,
        tokens=tokens,
    )


def information_grids(
    case: Case, request: GridRequest, removals: Mapping[str, RemovalCurve] | None = None
) -> dict[str, InformationGrid]:
    """Return the (layer, window) token grid of each target of one captured sample, by the target's name.

    Args:
        case: the captured sample.
        request: the grids to measure.
        removals: the removal curve of each target, at these layers at least; by default they are measured here.
    """
    tokens = case.captured.prompt.tokens
    check_method(request.method, request.kind, (request.context,), case.model.dtype, tokens=tokens)
    cuts, windows = request.cuts(case.model), request.windows(case.captured.prompt)
    removals = removals or removal_curves(case, layers=cuts, kind=request.kind, batch_size=request.batch_size)
    removed = {name: removals[name].log_p[np.searchsorted(removals[name].layers, cuts)] for name in case.targets}
    if METHOD_TABLE[request.method].first_order:
        effects = GateCall(request.context, tuple(cuts)).run(case)
        sums = {name: sum_windows(effects[name], case.captured.prompt.visual, windows) for name in case.targets}
        log_p = {name: _shifted(removals[name], removed[name], sums[name], request.context) for name in sums}
    else:
        log_p = target_log_p(case, window_call(case, request))
    table = window_table(windows)
    return {
        name: InformationGrid(
            log_p=log_p[name].reshape(len(cuts), len(windows)).astype(np.float64),
            removed=removed[name],
            all=removals[name].log_p_all,
            layers=np.array(cuts),
            windows=table,
            context=request.context,
            target=name,
            method=request.method,
            tokens=tokens,
        )
        for name in case.targets
    }


def _shifted(removal: RemovalCurve, removed: np.ndarray, effects: np.ndarray, context: str) -> np.ndarray:
    """Return the (layer, window) log p in nats whose differences from the context's baseline are these effects."""
    rule = CONTEXT_TABLE[context]
    return rule.values(effects, rule.baseline(removed, np.asarray(removal.log_p_all)))


def target_log_p(case: Case, call: ReplayCall) -> dict[str, np.ndarray]:
    """Return the (ablation,) log p of each target in nats, by its name, reduced from the vocabulary batch by batch."""
    log_p = {name: np.empty(len(call.ablations)) for name in case.targets}
    for indices, log_probs in call.run(case):
        for name, target in case.targets.items():
            log_p[name][indices.cpu().numpy()] = as_numpy(target.log_p(log_probs))
    return log_p
