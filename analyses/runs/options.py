"""The options of a run, each declared once: its name, type, default and text, and whether it enters the hash.

`run`, `run_adaptive` and `estimate_cost`, the commands `run` and `cost`, and the configuration in run.json follow from
these classes. `make options` writes `analyses.runs.keywords` from them, for editors and type checkers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from analyses.runs.schema import (
    PROBES,
    ContextName,
    KindName,
    MethodName,
    ProbeName,
    TargetName,
    TokensName,
    TokenStreamName,
    default_streams,
)


@dataclass(frozen=True)
class Entry:
    """What is known of a field of run.json beside its name, type and default.

    Attributes:
        estimand: whether it changes a measured value, so that the hash of a configuration covers it.
    """

    estimand: bool = True


@dataclass(frozen=True)
class Option(Entry):
    """What is known of an option beside its name, type and default.

    Attributes:
        text: what it means, in a sentence; `name` in backticks is another option.
        flag: its name on the command line, where that is another; "" where commands that take groups of options do
            not take it.
        least: the smallest usable number.
        positive: whether a number must be larger than 0.
    """

    text: str = ""
    flag: str | None = None
    least: int | None = None
    positive: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured, and how: the options that run.json records under the same names."""

    probes: Annotated[Sequence[ProbeName], Option(text="what is measured.")] = PROBES
    tokens: Annotated[
        TokensName,
        Option(
            text="what removals and token grids take away, and what entropies are over. Runs of one model, "
            "revision and prompt on different tokens can be compared and drawn together."
        ),
    ] = "visual"
    streams: Annotated[
        Sequence[TokenStreamName] | None,
        Option(
            text="states whose entropy is measured; of the prompt's text, and of all its tokens, as text:query and "
            "all:query. By default query, key and hidden, of `tokens`."
        ),
    ] = None
    targets: Annotated[
        Sequence[TargetName],
        Option(text="answers whose probability is read; the first is the one that the samples table shows."),
    ] = ("gold",)
    contexts: Annotated[
        Sequence[ContextName], Option(text="how a window of the token grids is held against the rest.")
    ] = ("keep-one",)
    window: Annotated[
        int | None, Option(text="side of the token grids' windows, in tokens; 2 by default.", least=1)
    ] = None
    max_windows: Annotated[
        int | None,
        Option(text="the smallest windows that are at most so many in a sample, instead of `window`.", least=1),
    ] = None
    coarse: Annotated[
        int | None,
        Option(
            text="side of windows to measure first; those of `window` only inside those with an effect above the noise "
            "floor.",
            least=1,
        ),
    ] = None
    layers: Annotated[
        Sequence[int] | None, Option(text="cuts of removals and token grids, 0..L-1; all by default.")
    ] = None
    token_layers: Annotated[
        Sequence[int] | Literal["auto"] | None,
        Option(
            text='cuts of the token grids, some of `layers`; all of them by default. "auto": those that run_adaptive '
            "has recorded in the run directory so far, none before it did.",
            flag="",
        ),
    ] = None
    kind: Annotated[
        KindName, Option(text="kind of removal: what stands in the place of tokens that are taken away.")
    ] = "delete"
    method: Annotated[
        MethodName, Option(text="how token grids are measured; gate is first order, by backward passes.")
    ] = "exact"
    alpha: Annotated[float, Option(text="order of the Renyi entropies.", positive=True)] = 1.0
    center: Annotated[bool, Option(text="center tokens before the Gram matrix of the entropies.", flag="")] = True
    normalize_rows: Annotated[bool, Option(text="scale tokens to length 1 before it.", flag="")] = True
    only_correct: Annotated[
        bool,
        Option(
            text="exclude samples that the model answers wrong, after one forward pass and before all ablations; they "
            "are recorded and counted. Another population, hence another configuration; select_samples makes the same "
            "choice afterwards."
        ),
    ] = False
    prompt: Annotated[str | None, Option(text="question template with {question} in it.", flag="")] = None
    with_ocr_tokens: Annotated[
        bool | None, Option(text="prompts carry reference OCR tokens; by default as the samples say.", flag="")
    ] = None
    video: Annotated[
        str | None,
        Option(
            text='how frames of videos were chosen, for example "8 frames"; by default as the first sample says.',
            flag="",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        Option(text="ablations at once; by default as many as fit a fixed number of rows.", least=1, estimand=False),
    ] = None
    seed: Annotated[int, Option(text="recorded; nothing here is drawn at random.", flag="", estimand=False)] = 0
    sources: Annotated[
        Sequence[str], Option(text="where the samples came from, recorded.", flag="", estimand=False)
    ] = ()


@dataclass(frozen=True, kw_only=True)
class RunOptions(Measurement):
    """What a run is asked for: what is measured, on how many samples, and what some of them get beside it."""

    token_samples: Annotated[
        int | None,
        Option(text="token grids for the first so many samples of each task only; all by default.", least=0),
    ] = None
    gate_checks: Annotated[
        int,
        Option(
            text="where `method` is gate: hold token grids of the first so many samples of each task against exact "
            "ones at up to four layers; what the estimates are worth on this model is then part of the run.",
            least=0,
        ),
    ] = 2
    spectra: Annotated[int, Option(text="keep eigenvalues of the first so many samples of each task.", least=0)] = 0
    generate: Annotated[
        int | None,
        Option(
            text="also let the model write out its answer, of at most so many tokens, to be scored by score_run. No "
            "measured value depends on it, so a later call can add it to a run that is there.",
            least=1,
        ),
    ] = None
    limit: Annotated[int | None, Option(text="measure at most the first so many samples.", flag="", least=1)] = None
    shard: Annotated[
        tuple[int, int],
        Option(text="given as i and n: only every n-th sample, from the i-th on (0-based), in parts of their own."),
    ] = (0, 1)

    @property
    def wanted_streams(self) -> Sequence[TokenStreamName]:
        """The streams of the entropies: those of the tokens that are taken away, unless others are named."""
        return default_streams(self.tokens) if self.streams is None else self.streams


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions):
    """What `run` is asked for: also how the measuring goes on, which changes no result."""

    retry_failed: Annotated[bool, Option(text="measure samples again that failed before.", flag="")] = False
    progress: Annotated[bool, Option(text="show progress, and what the run takes, on standard error.", flag="")] = True
    overlap: Annotated[
        bool,
        Option(
            text="while the model is at work, read and encode the next samples and finish and write the last ones in "
            "two threads beside it; the results are the same without.",
            flag="",
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions(SweepOptions):
    """What `run_adaptive` is asked for: also at how many layers there may be token grids."""

    budget: Annotated[
        int | None,
        Option(
            text="where `layers` are chosen: token grids to measure, in layers for each sample; by default a quarter "
            "of the layers, at least 8.",
            flag="layer_budget",
            least=1,
        ),
    ] = None


@cache
def hints_of(declaration: type) -> dict[str, Any]:
    """Name -> type of every field of a declaration, in order, with what is known of it as metadata."""
    hints = get_type_hints(declaration, include_extras=True)
    return {field.name: hints[field.name] for field in fields(declaration)}


@cache
def options_of(declaration: type) -> dict[str, Option]:
    """Name -> what is known of each option of a declaration; fields that are no options are left out.

    >>> options_of(RunOptions)["seed"].estimand
    False
    """
    found: dict[str, Option] = {}
    for base in reversed(declaration.__mro__):
        for name, hint in get_type_hints(base, include_extras=True).items() if base is not object else ():
            extras = getattr(hint, "__metadata__", ())
            found.update((name, extra) for extra in extras if isinstance(extra, Option))
    return {field.name: found[field.name] for field in fields(declaration) if field.name in found}


def plain_type(hint: Any) -> Any:
    """A type without metadata.

    >>> plain_type(Annotated[int | None, "metadata"])
    int | None
    """
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def value_type(hint: Any) -> Any:
    """The type of a value that is given: without metadata, and without None.

    >>> value_type(Annotated[int | None, "metadata"])
    <class 'int'>
    """
    hint = plain_type(hint)
    if get_origin(hint) not in (Union, UnionType):
        return hint
    rest = tuple(part for part in get_args(hint) if part is not NoneType)
    return Union[rest]  # noqa: UP007


def choices_of(hint: Any) -> tuple[str, ...]:
    """The words that a value, or each of a sequence of values, is one of; none where it may be any.

    >>> choices_of(KindName), choices_of(Sequence[KindName] | None), choices_of(str | None)
    (('delete', 'zero', 'mean'), ('delete', 'zero', 'mean'), ())
    """
    kind = value_type(hint)
    if get_origin(kind) is Sequence:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def description(declaration: type, name: str) -> str:
    """What an option means, with the words to choose from, as a sentence that begins with a small letter.

    >>> description(RunOptions, "kind")
    'kind of removal: what stands in the place of tokens that are taken away. One of delete, zero, mean.'
    """
    hint = hints_of(declaration)[name]
    words = [word for word in choices_of(hint) if ":" not in word]  # streams of other tokens are told by a rule
    several = get_origin(value_type(hint)) is Sequence
    return options_of(declaration)[name].text + (
        f" {'Any' if several else 'One'} of {', '.join(words)}." if words else ""
    )
