"""What the answer loses when tokens go, visual ones unless others are chosen: removal curves and token information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses.runs import CONTEXTS, HorizonError, TokenGrids
from probes.admission import check_grids
from probes.capture import Capture, capture_prompt
from probes.gate import check_method, gate_effects, sum_windows
from probes.grids import Window, check_windows, choose_window
from probes.models import ProbedModel
from probes.prompts import Prompt, check_tokens, encode, removable_windows
from probes.replay import Ablations, check_kind, removable_mask, replay
from probes.samples import Sample, SampleError
from probes.targets import Target, check_targets, fixed_targets, forced_ids, resolve_targets


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


def removal_curve(
    model: ProbedModel,
    sample: Sample,
    *,
    target: str = "gold",
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    tokens: str = "visual",
) -> RemovalCurve:
    """Effect of removing all visual tokens from layer k on, for every k.

    Args:
        model: as loaded.
        sample: one image, one question.
        target: one of gold, gold-raw, greedy, greedy-correct, answer.
        layers: cuts in 0..L-1; all by default.
        kind: delete, zero or mean.
        tokens: visual; or text, all that comes before the last token of the prompt and is not visual, beginning-of-
            sequence and chat markup included; or all, both of them. The last token is read, so it stays.

    Raises:
        HorizonError: a layer, target, kind or choice of tokens is unknown. SampleError: the sample cannot be measured.
    """
    check_targets((target,))
    captured, targets = prepare(model, sample, (target,), tokens=tokens)
    chosen = chosen_target(targets, target, sample)
    return removal_curves(model, captured, {target: chosen}, layers=layers, kind=kind)[target]


def token_information(
    model: ProbedModel,
    sample: Sample,
    *,
    context: str = "keep-one",
    window: int | None = None,
    layers: Sequence[int] | None = None,
    target: str = "gold",
    kind: str = "delete",
    method: str = "exact",
    batch_size: int | None = None,
    coarse: int | None = None,
    max_windows: int | None = None,
    tokens: str = "visual",
) -> InformationGrid:
    """Effect of every window of visual tokens from layer k on, for every k.

    `keep-one`: I_k(v) = m(only v kept from k) - m(no visual token from k), Information Horizon's measure (its
    windows are 2 x 2). `leave-one-out`: D_k(v) = m(all) - m(all but v from k). With other `tokens` "visual" reads as
    these, and what does not belong to them stays.

    Args:
        model: as loaded.
        sample: one image, one question.
        context: keep-one or leave-one-out.
        window: side of a window in tokens; 1 for single tokens; 2 by default.
        layers: cuts in 0..L-1; all by default.
        target: as in `removal_curve`.
        kind: delete, zero or mean.
        method: "exact", one replay a window; or "gate", first order: the derivative by a gate on every visual token,
            from one backward pass (keep-one: one a cut), summed over a window's tokens. Only for `delete`.
        batch_size: ablations at once; by default as many as fit a fixed number of rows.
        coarse: side of larger windows that are measured first, a multiple of `window`. Windows inside one whose
            |effect| in p is no more than the sample's noise floor at a layer are not measured there: they are NaN,
            and statistics take 0. The others are exact.
        max_windows: the smallest windows that are at most so many, instead of `window`.
        tokens: visual, text or all, as in `removal_curve`. A window of text is `window` consecutive tokens of a
            stretch without a picture in between; its crop counts on after the image grids, its row is 0.

    Raises:
        HorizonError: a context, window, layer, target, kind, method or choice of tokens is unknown, the method cannot
            measure this, or the model's family has no grid rule. SampleError: the sample cannot be measured.
    """
    from probes.refinement import refined_grids  # which is made of the functions below

    check_targets((target,))
    check_tokens(tokens)
    check_grids(model.name, model.family, tokens)
    check_method(method, kind, (context,), model.dtype, coarse, tokens)
    window = check_windows(window, max_windows, coarse)
    captured, targets = prepare(model, sample, (target,), tokens=tokens)
    chosen = {target: chosen_target(targets, target, sample)}
    size = choose_window(window, max_windows, captured.prompt.removable_grids)
    how: dict[str, Any] = {"context": context, "window": size, "layers": layers, "kind": kind, "batch_size": batch_size}
    if coarse is not None:
        return refined_grids(model, captured, chosen, coarse=coarse, **how)[target]
    return information_grids(model, captured, chosen, method=method, **how)[target]


def prepare(
    model: ProbedModel, sample: Sample, targets: Sequence[str], streams: Sequence[str] = (), tokens: str = "visual"
) -> tuple[Capture, dict[str, Target]]:
    """Capture one sample and resolve its targets (none is fine); what they must be read after is forced.

    Raises:
        HorizonError: a stream is unknown. SampleError: the sample cannot be measured.
    """
    prompt, fixed = encode_targets(model, sample, targets, tokens)
    return capture_targets(model, sample, prompt, targets, fixed, streams)


def encode_targets(
    model: ProbedModel, sample: Sample, targets: Sequence[str], tokens: str = "visual"
) -> tuple[Prompt, dict[str, Target]]:
    """The first half of `prepare`, which needs no forward pass: the prompt, and the targets that are fixed before one.

    Raises:
        SampleError: the sample cannot be encoded, or an answer is needed and missing.
    """
    if sample.error:
        raise SampleError(sample.error)
    prompt = encode(model, sample, forced_ids(targets, model.tokenizer, sample), tokens=tokens)
    return prompt, fixed_targets(targets, model.tokenizer, sample)


def capture_targets(
    model: ProbedModel,
    sample: Sample,
    prompt: Prompt,
    targets: Sequence[str],
    fixed: dict[str, Target],
    streams: Sequence[str] = (),
) -> tuple[Capture, dict[str, Target]]:
    """The second half of `prepare`: run the prompt and resolve the targets that follow from the model's answer.

    Raises:
        HorizonError: a stream is unknown. SampleError: the model's output is not finite.
    """
    captured = capture_prompt(model, prompt, streams)
    if not torch.isfinite(captured.log_probs).all():
        raise SampleError(f"sample {sample.id!r}: the model's own output is not finite in {model.dtype}")
    return captured, resolve_targets(targets, model.tokenizer, sample, captured.log_probs, fixed)


def removal_curves(
    model: ProbedModel,
    captured: Capture,
    targets: dict[str, Target],
    *,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    batch_size: int | None = None,
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
    batch_size: int | None = None,
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
    if method == "gate":
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
    return removed[:, None] + effects if context == "keep-one" else removal.log_p_all - effects


def check_layers(model: ProbedModel, layers: Sequence[int] | None) -> list[int]:
    """The cuts in ascending order; raises HorizonError unless all lie in 0..L-1."""
    if layers is None:
        return list(range(model.n_layers))
    wrong = [k for k in layers if not 0 <= k < model.n_layers]
    if wrong or not layers:
        named = ", ".join(map(str, wrong)) or "none given"
        raise HorizonError(f"layer {named}: {model.name!r} has cuts 0 to {model.n_layers - 1}")
    return sorted(set(layers))


def check_context(context: str) -> None:
    """Raise HorizonError unless the context is known."""
    if context not in CONTEXTS:
        raise HorizonError(f"context {context!r} is unknown; choose from {', '.join(CONTEXTS)}")


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
    return Ablations.at_every(cuts, removable & ~masks if context == "keep-one" else masks, kind)


def window_table(windows: Sequence[Window]) -> pd.DataFrame:
    """One row a window: crop, row, column, height, width."""
    names = ("crop", "row", "column", "height", "width")
    return pd.DataFrame([{name: getattr(window, name) for name in names} for window in windows])


def target_log_p(
    model: ProbedModel, captured: Capture, ablations: Ablations, targets: dict[str, Target], batch_size: int | None
) -> dict[str, np.ndarray]:
    """(ablation,) log p of every target; the vocabulary is reduced batch by batch."""
    found = {name: np.empty(len(ablations)) for name in targets}
    for indices, log_probs in replay(model, captured, ablations, batch_size=batch_size):
        for name, target in targets.items():
            found[name][indices.cpu().numpy()] = as_numpy(target.log_p(log_probs))
    return found


def kl_divergence(log_probs: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL(ablated || all) over the vocabulary in nats; rounding can make it a little negative, which it is not."""
    return (log_probs.exp() * (log_probs - own)).sum(-1).clamp(min=0.0)


def chosen_target(targets: dict[str, Target], name: str, sample: Sample) -> Target:
    """The target of that name; raises SampleError where the sample has none."""
    if name not in targets:
        raise SampleError(f"sample {sample.id!r}: the model answers wrong, so it has no {name!r} target")
    return targets[name]


def as_numpy(values: torch.Tensor) -> np.ndarray:
    """Float64 on the CPU."""
    return values.double().cpu().numpy()
