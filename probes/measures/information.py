"""What the answer loses when tokens go, visual ones unless others are chosen: removal curves and token information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analyses.runs import CONTEXT_TABLE, METHOD_TABLE, TokenGrids
from probes.gates.gate import check_method, sum_windows
from probes.measures.calls import GateCall, ReplayCall
from probes.measures.case import Case
from probes.models.grids import Window, choose_window
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, removable_windows
from probes.models.targets import Target
from probes.replay.ablations import (
    as_numpy,
    check_context,
    check_layers,
    kl_divergence,
    removal_ablations,
    window_ablations,
    window_table,
)
from probes.replay.kinds import check_kind


@dataclass(frozen=True)
class RemovalCurve:
    """All visual tokens (or text, or both) removed from layer k on, for one sample and one target.

    Attributes:
        layers: (layer,) int cuts k, ascending; the last is L: nothing removed, the model's own forward.
        log_p: (layer,) log p of the target in nats.
        kl: (layer,) KL(removed || all) over the vocabulary at the target's place, in nats.
        correct: (layer,) bool, the most probable token there is in the target set.
        same: (layer,) bool, it is the one that the model gives with all tokens.
        target: what was measured.
        kind: removal kind.
        tokens: what is removed: "visual", "text" or "all".
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

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Token ids that count as the answer."""
        return self.target.ids

    def effects(self, measure: str = "p") -> np.ndarray:
        """(layer,) R_k = m(all) - m(none of the tokens from k) for m = p or log p (nats)."""
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
        """(layer, window) the same in p or in nats of log p."""
        return self.information(measure)


@dataclass(frozen=True)
class GridRequest:
    """Which token grids are wanted of a sample.

    Attributes:
        context: keep-one or leave-one-out.
        window: side of a window in tokens; None where `max_windows` chooses it for each sample.
        max_windows: the smallest windows that are at most so many.
        layers: cuts in 0..L-1; all by default.
        kind: delete, zero or mean.
        method: "exact", or first order by "gate".
        batch_size: ablations at once; as many as fit by default.
    """

    context: str = "keep-one"
    window: int | None = 2
    max_windows: int | None = None
    layers: tuple[int, ...] | None = None
    kind: str = "delete"
    method: str = "exact"
    batch_size: int | None = None

    def side(self, prompt: Prompt) -> int:
        """Side of one sample's windows in tokens."""
        return choose_window(self.window, self.max_windows, prompt.removable_grids)

    def windows(self, prompt: Prompt) -> list[Window]:
        """The windows of one sample, in the order of the grids' columns."""
        return removable_windows(prompt, self.side(prompt))

    def cuts(self, model: ProbedModel) -> list[int]:
        """The layers in ascending order; raises HorizonError unless all lie in 0..L-1."""
        return check_layers(model, self.layers)


def removal_call(
    case: Case, layers: Sequence[int] | None = None, kind: str = "delete", batch_size: int | None = None
) -> ReplayCall:
    """The replays of `removal_curves`: everything that the prompt says is taken away, at every cut."""
    cuts = check_layers(case.model, layers)
    check_kind(kind)
    return ReplayCall(removal_ablations(case.captured, cuts, kind), batch_size, whole=True)


def window_call(case: Case, request: GridRequest) -> ReplayCall:
    """The replays of exact token grids: every window at every cut, cut-major."""
    windows, cuts = request.windows(case.captured.prompt), request.cuts(case.model)
    ablations = window_ablations(case.captured, windows, request.context, cuts, request.kind)
    return ReplayCall(ablations, request.batch_size)


def removal_curves(
    case: Case, *, layers: Sequence[int] | None = None, kind: str = "delete", batch_size: int | None = None
) -> dict[str, RemovalCurve]:
    """`removal_curve` for every target of one captured sample: one sweep over the layers serves all."""
    call = removal_call(case, layers, kind, batch_size)
    own = case.captured.log_probs
    log_probs = own.new_empty(len(call.ablations), *own.shape)
    for indices, found in call.run(case):
        log_probs[indices] = found
    log_probs = torch.cat([log_probs, own[None]])
    axis = np.array([*call.ablations.layers.tolist(), case.model.n_layers])
    tokens = case.captured.prompt.tokens
    return {name: _removal_curve(target, log_probs, axis, kind, tokens) for name, target in case.targets.items()}


def _removal_curve(target: Target, log_probs: torch.Tensor, axis: np.ndarray, kind: str, tokens: str) -> RemovalCurve:
    """One target read from (layer, place, vocabulary) log-softmax, the model's own forward last."""
    there = log_probs[:, target.place]
    best = there.argmax(-1)
    return RemovalCurve(
        layers=axis,
        log_p=as_numpy(target.log_p(log_probs)),
        kl=as_numpy(kl_divergence(there, there[-1])),
        correct=target.contains(best).cpu().numpy(),
        same=(best == best[-1]).cpu().numpy(),
        target=target,
        kind=kind,
        tokens=tokens,
    )


def information_grids(
    case: Case, request: GridRequest, removals: Mapping[str, RemovalCurve] | None = None
) -> dict[str, InformationGrid]:
    """`token_information` for every target of one captured sample.

    Args:
        case: one sample.
        request: which grids.
        removals: by target, measured before at these layers at least; measured here by default.

    Returns:
        By target: (layer, window) grids.
    """
    _check_request(case, request)
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
            tokens=case.captured.prompt.tokens,
        )
        for name in case.targets
    }


def _check_request(case: Case, request: GridRequest) -> None:
    """Raise HorizonError unless this sample can give such grids."""
    check_context(request.context)
    check_kind(request.kind)
    tokens = case.captured.prompt.tokens
    check_method(request.method, request.kind, (request.context,), case.model.dtype, tokens=tokens)


def _shifted(removal: RemovalCurve, removed: np.ndarray, effects: np.ndarray, context: str) -> np.ndarray:
    """(layer, window) log p that a context's effects, in nats, are the differences of."""
    rule = CONTEXT_TABLE[context]
    return rule.values(effects, rule.baseline(removed, np.asarray(removal.log_p_all)))


def target_log_p(case: Case, call: ReplayCall) -> dict[str, np.ndarray]:
    """(ablation,) log p of every target; the vocabulary is reduced batch by batch."""
    log_p = {name: np.empty(len(call.ablations)) for name in case.targets}
    for indices, log_probs in call.run(case):
        for name, target in case.targets.items():
            log_p[name][indices.cpu().numpy()] = as_numpy(target.log_p(log_probs))
    return log_p
