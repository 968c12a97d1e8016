"""The options of a run as editors and type checkers know them.

Written from `analyses.runs.options` by `make options`; change them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from analyses.runs.schema import (
    ContextName,
    KindName,
    MethodName,
    ProbeName,
    TargetName,
    TokensName,
    TokenStreamName,
)


class RunKeywords(TypedDict, total=False):
    """What a run is asked for: what is measured, on how many samples, and what some of them get beside it."""

    probes: Sequence[ProbeName]
    """What is measured. Any of entropy, removal, information."""
    tokens: TokensName
    """What removals and token grids take away, and what entropies are over. Runs of one model, revision and prompt on
    different tokens can be compared and drawn together. One of visual, text, all."""
    streams: Sequence[TokenStreamName] | None
    """States whose entropy is measured; of the prompt's text, and of all its tokens, as text:query and all:query. By
    default query, key and hidden, of `tokens`. Any of query, key, query_raw, key_raw, value, hidden."""
    targets: Sequence[TargetName]
    """Answers whose probability is read; the first is the one that the samples table shows. Any of gold, gold-raw,
    greedy, greedy-correct, answer."""
    contexts: Sequence[ContextName]
    """How a window of the token grids is held against the rest. Any of keep-one, leave-one-out."""
    window: int | None
    """Side of the token grids' windows, in tokens; 2 by default."""
    max_windows: int | None
    """The smallest windows that are at most so many in a sample, instead of `window`."""
    coarse: int | None
    """Side of windows to measure first; those of `window` only inside those with an effect above the noise floor."""
    layers: Sequence[int] | None
    """Cuts of removals and token grids, 0..L-1; all by default."""
    token_layers: Sequence[int] | Literal["auto"] | None
    """Cuts of the token grids, some of `layers`; all of them by default. "auto": those that run_adaptive has recorded
    in the run directory so far, none before it did."""
    kind: KindName
    """Kind of removal: what stands in the place of tokens that are taken away. One of delete, zero, mean."""
    method: MethodName
    """How token grids are measured; gate is first order, by backward passes. One of exact, gate."""
    alpha: float
    """Order of the Renyi entropies."""
    center: bool
    """Center tokens before the Gram matrix of the entropies."""
    normalize_rows: bool
    """Scale tokens to length 1 before it."""
    only_correct: bool
    """Exclude samples that the model answers wrong, after one forward pass and before all ablations; they are recorded
    and counted. Another population, hence another configuration; select_samples makes the same choice afterwards."""
    prompt: str | None
    """Question template with {question} in it."""
    with_ocr_tokens: bool | None
    """Prompts carry reference OCR tokens; by default as the samples say."""
    video: str | None
    """How frames of videos were chosen, for example "8 frames"; by default as the first sample says."""
    batch_size: int | None
    """Ablations at once; by default as many as fit a fixed number of rows."""
    seed: int
    """Recorded; nothing here is drawn at random."""
    sources: Sequence[str]
    """Where the samples came from, recorded."""
    token_samples: int | None
    """Token grids for the first so many samples of each task only; all by default."""
    gate_checks: int
    """Where `method` is gate: hold token grids of the first so many samples of each task against exact ones at up to
    four layers; what the estimates are worth on this model is then part of the run."""
    spectra: int
    """Keep eigenvalues of the first so many samples of each task."""
    generate: int | None
    """Also let the model write out its answer, of at most so many tokens, to be scored by score_run. No measured value
    depends on it, so a later call can add it to a run that is there."""
    limit: int | None
    """Measure at most the first so many samples."""
    shard: tuple[int, int]
    """Given as i and n: only every n-th sample, from the i-th on (0-based), in parts of their own."""


class SweepKeywords(RunKeywords, total=False):
    """What `run` is asked for: also how the measuring goes on, which changes no result."""

    retry_failed: bool
    """Measure samples again that failed before."""
    progress: bool
    """Show progress, and what the run takes, on standard error."""
    overlap: bool
    """While the model is at work, read and encode the next samples and finish and write the last ones in two threads
    beside it; the results are the same without."""


class AdaptiveKeywords(SweepKeywords, total=False):
    """What `run_adaptive` is asked for: also at how many layers there may be token grids."""

    budget: int | None
    """Where `layers` are chosen: token grids to measure, in layers for each sample; by default a quarter of the layers,
    at least 8."""
