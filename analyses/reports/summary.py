"""What a run says, in a few sentences that claim no more than the intervals do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analyses.comparisons.compare import Difference, compare_horizons
from analyses.comparisons.levels import comparable
from analyses.reports.text import group_text, interval_text, model_text, number_text
from analyses.runs import HorizonError, Run, as_runs
from analyses.verdicts.collapse import (
    CollapseDetector,
    CollapseLayer,
    find_collapse_layer,
)
from analyses.verdicts.criteria import criteria_of
from analyses.verdicts.first_order import GateAgreement
from analyses.verdicts.horizon import NOT_REACHED, Horizon, HorizonDetector, find_horizon


def describe_agreement(results: Sequence[GateAgreement]) -> str:
    """One line: means over layers, context by context; says so where nothing was checked."""
    if not results:
        return "gate against exact values: no sample was checked, so nothing says what the first-order values are worth"
    parts = []
    for context in dict.fromkeys(r.context for r in results):
        of_context = [r for r in results if r.context == context]
        known = [r.rank_correlation for r in of_context if np.isfinite(r.rank_correlation)]
        rank = number_text(float(np.mean(known)) if known else None, 2)
        overlap = number_text(100 * float(np.mean([r.top_overlap for r in of_context])), 0)
        parts.append(f"{context}: rank correlation {rank}, top-10 % overlap {overlap} %")
    n = max(r.n_samples for r in results)
    return f"gate against exact values on {n} samples, mean over layers: {'; '.join(parts)}"


SPOKEN = ("removal", "information")  # the default and the papers' own; tables show every criterion


def summarize(
    run_or_runs: Run | Sequence[Run],
    *,
    collapse_detector: CollapseDetector | None = None,
    horizon_detector: HorizonDetector | None = None,
    horizons: Sequence[Sequence[Horizon]] | None = None,
) -> list[str]:
    """Sum up one run or several: collapse, horizons by task type, task types and models against each other.

    Args:
        run_or_runs: one run or several; between several, models and removed tokens are compared too.
        collapse_detector: parameters of the search for the ECL.
        horizon_detector: parameters of the search for the horizons.
        horizons: of each run by task type, one list a run; looked for if not given.

    Returns:
        Sentences, one a claim; what a run did not measure is left out.
    """
    runs = as_runs(run_or_runs)
    sentences = []
    if horizons is None:
        horizons = [_spoken_horizons(run, horizon_detector) for run in runs]
    for run, by_task_type in zip(runs, horizons, strict=True):
        if "entropy" in run.config.probes:
            sentences.append(describe_collapse(find_collapse_layer(run, by=(), detector=collapse_detector)))
        for criterion in SPOKEN:
            sentences += [describe_horizon(horizon) for horizon in by_task_type if horizon.criterion == criterion]
    measured = [run for run in runs if "removal" in run.config.probes]
    if measured:
        sentences += describe_differences(compare_horizons(measured, detector=horizon_detector).differences)
    for across in ("model", "tokens"):
        if comparable(measured, across):
            between = compare_horizons(measured, between=across, within=("task_type",), detector=horizon_detector)
            sentences += describe_differences(between.differences)
    return sentences


def _spoken_horizons(run: Run, detector: HorizonDetector | None) -> list[Horizon]:
    """Horizons by task type and by the criteria that sentences are about, as far as the run carries them."""
    criteria = [criterion for criterion in SPOKEN if criterion in criteria_of(run)]
    return [horizon for name in criteria for horizon in find_horizon(run, criterion=name, detector=detector)]


def describe_collapse(results: Sequence[CollapseLayer]) -> str:
    """One sentence on the ECL of one group in all streams.

    Raises:
        HorizonError: there is no result to describe.
    """
    if not results:
        raise HorizonError("there is no entropy curve to describe: the run measured no stream")
    collapses = [r for r in results if r.layer is not None]
    missing = [r for r in results if r.layer is None]
    parts = [
        f"the entropy of {r.stream} collapses at layer {r.layer} {interval_text(r.interval)}, "
        f"dropping by {number_text(r.drop, 2)} nats ({r.consistency:.0%} of resamples agree)"
        for r in collapses
    ]
    if missing:
        reasons = "; ".join(f"{r.stream}: {r.reason}" for r in missing)
        parts.append(f"no entropy collapse layer in {_enumerate([r.stream for r in missing])} ({reasons})")
    where = f", {group_text(results[0].group)}" if results[0].group else ""
    return f"{results[0].model}{where}: {'; '.join(parts)}."


def describe_horizon(horizon: Horizon) -> str:
    """One sentence on the horizon and half depth of one group."""
    basis = f"{horizon.criterion} criterion, {horizon.n_images} images"
    where = f"{model_text(horizon)}, {group_text(horizon.group)} ({basis})"
    if horizon.layer is None:
        return f"{where}: no information horizon, because {horizon.reason}."
    end = horizon.n_layers
    interval = interval_text(horizon.interval, end=end)
    at = f"the information horizon is layer {horizon.layer} {interval} of {end}"
    if horizon.censored:
        earliest = horizon.interval[0] if horizon.interval else end
        bound = f", at the earliest layer {earliest}" if earliest < end else ""
        at = f"the information horizon is {NOT_REACHED} of the {end} layers{bound}"
    beware = f" ({horizon.warning})" if horizon.warning else ""
    if horizon.half_depth is None:
        return f"{where}: {at}{beware}."
    half = f"{number_text(horizon.half_depth, 2)} {interval_text(horizon.half_depth_interval, 2)}"
    return f"{where}: {at}; half of the effect is gone at depth {half}{beware}."


def describe_differences(differences: Sequence[Difference]) -> list[str]:
    """One sentence a pair of levels, from the half depths: in layers and fraction of depth, unpaired and paired."""
    pairs = dict.fromkeys((d.a, d.b) for d in differences)
    return [
        _describe_pair([d for d in differences if (d.a, d.b) == pair and d.quantity == "half_depth"])
        for pair in pairs
        if any((d.a, d.b, d.quantity) == (*pair, "half_depth") for d in differences)
    ]


def _describe_pair(differences: Sequence[Difference]) -> str:
    a, b = differences[0].a, differences[0].b
    by_kind = {(d.paired, d.unit): d for d in differences}
    everything, shared = by_kind[False, "layers"], by_kind[True, "layers"]
    parts = []
    if (everything.n_a, everything.n_b) != (shared.n_a, shared.n_b):
        parts.append(f"over all images {_verdict(everything, by_kind[False, 'fraction'])}")
    if shared.value is not None or not parts:
        parts.append(f"on the {shared.n_a} images asked in both {_verdict(shared, by_kind[True, 'fraction'])}")
    shared_part, short_a, short_b = _split_labels(a, b)
    beware = f" ({everything.warning})" if everything.warning else ""
    return f"{shared_part}{short_a} against {short_b}, by half depth: {'; '.join(parts)}{beware}."


def _split_labels(a: str, b: str) -> tuple[str, str, str]:
    """What two labels have in common, as a heading, and what sets them apart.

    >>> _split_labels("tiny-8: ocr", "tiny-8: vqa"), _split_labels("tiny-8: ocr", "tiny-12: ocr")
    (('tiny-8, ', 'ocr', 'vqa'), ('ocr, ', 'tiny-8', 'tiny-12'))
    """
    parts_a, parts_b = a.split(": "), b.split(": ")
    common = [part for part in parts_a if part in parts_b]
    apart = [": ".join(part for part in parts if part not in common) for parts in (parts_a, parts_b)]
    if not common or not all(apart):
        return "", a, b
    return f"{': '.join(common)}, ", apart[0], apart[1]


def _verdict(layers: Difference, fraction: Difference) -> str:
    """What the two intervals allow to say; layers and fraction of depth may disagree between models."""
    if layers.value is None or fraction.value is None:
        return f"no comparison is possible ({layers.reason})"
    words = [_word(layers), _word(fraction)]
    numbers = [
        f"{number_text(d.value, 2, signed=True)} {interval_text(d.interval, 2, signed=True)} {unit}"
        for d, unit in ((layers, "layers"), (fraction, "of the depth"))
    ]
    if words[0] == words[1]:
        return f"{words[0]} ({', '.join(numbers)})"
    return f"in layers {words[0]} ({numbers[0]}), in fraction of depth {words[1]} ({numbers[1]})"


def _word(difference: Difference) -> str:
    _, a, b = _split_labels(difference.a, difference.b)
    low, high = difference.interval or (0.0, 0.0)
    if low > 0:
        return f"{a} lies deeper"
    if high < 0:
        return f"{b} lies deeper"
    return "they cannot be told apart"


def _enumerate(words: Sequence[str]) -> str:
    """Join words: "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
