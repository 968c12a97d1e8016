"""Measurements of one sample, as a user calls them: its removal curve and the information of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from analyses.runs import TOKENS, check_choice, check_windows
from probes.data.samples import Sample
from probes.gates.gate import check_method
from probes.measures.information import (
    GridRequest,
    InformationGrid,
    RemovalCurve,
    information_grids,
    removal_curves,
)
from probes.measures.preparing import prepare_target
from probes.measures.refinement import refined_grids
from probes.models.families import check_grids
from probes.models.probed import ProbedModel


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
        model: the model, as `load_model` returns it.
        sample: one image with one question.
        target: one of gold, gold-raw, greedy, greedy-correct, answer.
        layers: the cuts in 0..L-1; by default all.
        kind: the kind of removal: "delete", "zero" or "mean".
        tokens: the tokens to remove: "visual"; "text", all that comes before the last token of the prompt and is not
            visual, including beginning-of-sequence and chat markup; or "all", both of them. The last token is read,
            so it stays.

    Raises:
        HorizonError: a layer, target, kind or choice of tokens is unknown. SampleError: the sample cannot be measured.
    """
    return removal_curves(prepare_target(model, sample, target, tokens), layers=layers, kind=kind)[target]


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
        model: the model, as `load_model` returns it.
        sample: one image with one question.
        context: "keep-one" or "leave-one-out".
        window: the side of a window in tokens, 1 for single tokens; by default 2.
        layers: the cuts in 0..L-1; by default all.
        target: the name of the target, one of those of `removal_curve`.
        kind: the kind of removal: "delete", "zero" or "mean".
        method: "exact" takes one replay per window. "gate" is first order: the derivative by a gate on every visual
            token, from one backward pass (for keep-one: one per cut), summed over a window's tokens; only for the
            kind "delete".
        batch_size: the number of ablations in one batch; by default as many as fit a fixed number of rows.
        coarse: the side of larger windows that are measured first, a multiple of `window`. Windows inside a larger
            one whose |effect| in p does not exceed the sample's noise floor at a layer are not measured there: they
            are NaN, and statistics take 0. The others are exact.
        max_windows: the largest number of windows, in place of `window`; the smallest windows that keep to it are
            taken.
        tokens: "visual", "text" or "all", as in `removal_curve`. A window of text is `window` consecutive tokens of a
            stretch without a picture in between; its crop counts on after the image grids, its row is 0.

    Raises:
        HorizonError: a context, window, layer, target, kind, method or choice of tokens is unknown, the method cannot
            measure this, or the model's family has no grid rule. SampleError: the sample cannot be measured.
    """
    check_choice("tokens", tokens, TOKENS)
    window = check_windows(window, max_windows, coarse)
    cuts = None if layers is None else tuple(layers)
    request = GridRequest(context, window, max_windows, cuts, kind, method, batch_size)
    check_grids(model.name, model.family, tokens)
    check_method(method, kind, (context,), model.dtype, coarse, tokens)
    case = prepare_target(model, sample, target, tokens)
    if coarse is not None:
        return refined_grids(case, request, coarse)[target]
    return information_grids(case, request)[target]
