"""What the answer loses when tokens go, visual ones unless others are chosen: removal curves and token information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from analyses.runs import CONTEXT_TABLE, METHOD_TABLE, TokenGrids
from probes.gates.gate import check_method, gate_effects, sum_windows
from probes.models.probed import ProbedModel
from probes.models.prompts import removable_windows
from probes.models.targets import Target
from probes.replay.ablations import (
    Ablations,
    as_numpy,
    check_context,
    check_layers,
    kl_divergence,
    removal_ablations,
    window_ablations,
    window_table,
)
from probes.replay.batching import BatchPolicy
from probes.replay.capture import Capture
from probes.replay.kinds import check_kind
from probes.replay.replay import replay


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


def removal_curves(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    *,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    batch_size: BatchPolicy | int | None = None,
) -> dict[str, RemovalCurve]:
    """`removal_curve` for several targets of one captured sample: one sweep over the layers serves all."""
    cuts = check_layers(model, layers)
    check_kind(kind)
    ablations = removal_ablations(captured, cuts, kind)
    own = captured.log_probs
    log_probs = own.new_empty(len(cuts), *own.shape)
    for indices, found in replay(model, captured, ablations, batch_size=batch_size):
        log_probs[indices] = found
    log_probs = torch.cat([log_probs, own[None]])
    axis = np.array([*cuts, model.n_layers])
    tokens = captured.prompt.tokens
    return {name: _removal_curve(target, log_probs, axis, kind, tokens) for name, target in targets.items()}


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
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    *,
    context: str = "keep-one",
    window: int = 2,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    method: str = "exact",
    batch_size: BatchPolicy | int | None = None,
    removal: dict[str, RemovalCurve] | None = None,
) -> dict[str, InformationGrid]:
    """`token_information` for several targets of one captured sample; `removal` spares measuring the baseline again."""
    cuts = check_layers(model, layers)
    check_context(context)
    check_kind(kind)
    check_method(method, kind, (context,), model.dtype, tokens=captured.prompt.tokens)
    windows = removable_windows(captured.prompt, window)
    removal = removal or removal_curves(model, captured, targets, layers=cuts, kind=kind, batch_size=batch_size)
    removed = {name: removal[name].log_p[np.searchsorted(removal[name].layers, cuts)] for name in targets}
    if METHOD_TABLE[method].first_order:
        effects = gate_effects(model, captured, targets, context, cuts)
        sums = {name: sum_windows(effects[name], captured.prompt.visual, windows) for name in targets}
        found = {name: _shifted(removal[name], removed[name], sums[name], context) for name in targets}
    else:
        ablations = window_ablations(captured, windows, context, cuts, kind)
        found = target_log_p(model, captured, ablations, targets, batch_size)
    table = window_table(windows)
    return {
        name: InformationGrid(
            log_p=found[name].reshape(len(cuts), len(windows)).astype(np.float64),
            removed=removed[name],
            all=removal[name].log_p_all,
            layers=np.array(cuts),
            windows=table,
            context=context,
            target=name,
            method=method,
            tokens=captured.prompt.tokens,
        )
        for name in targets
    }


def _shifted(removal: RemovalCurve, removed: np.ndarray, effects: np.ndarray, context: str) -> np.ndarray:
    """(layer, window) log p that a context's effects, in nats, are the differences of."""
    rule = CONTEXT_TABLE[context]
    return rule.values(effects, rule.baseline(removed, np.asarray(removal.log_p_all)))


def target_log_p(
    model: ProbedModel,
    captured: Capture,
    ablations: Ablations,
    targets: dict[str, Target],
    batch_size: BatchPolicy | int | None,
) -> dict[str, np.ndarray]:
    """(ablation,) log p of every target; the vocabulary is reduced batch by batch."""
    found = {name: np.empty(len(ablations)) for name in targets}
    for indices, log_probs in replay(model, captured, ablations, batch_size=batch_size):
        for name, target in targets.items():
            found[name][indices.cpu().numpy()] = as_numpy(target.log_p(log_probs))
    return found
