"""The vocabulary and schema of the run directory: the one contract between probes and analyses.

A run directory holds what was measured, never a difference or a verdict:

    run.json                          the RunConfig, with every convention in force
    samples/part-<shard>-<n>.parquet  one row a sample (SAMPLES); written last, it commits its part
    curves/part-<shard>-<n>.parquet   tidy rows (CURVES): one value a sample, target, context, layer, stream, measure
    tokens/part-<shard>-<n>.safetensors   "<row>/<target>/<context>[/removed|/all|/coarse]", see TokenGrids; metadata:
                                      "layers", and "row_layers" of the rows that have others
    spectra/part-<shard>-<n>.safetensors  "<row>/<stream>": eigenvalues, (layer, rank) float32, descending
    generations/part-<shard>-<n>.parquet  on request, whole answers (GENERATIONS); the newest of a row holds

*Layer k* is the residual stream at the input of 0-based decoder layer k; k = L is the input of the final norm, so a
removal "from layer L on" removes nothing and holds the model's own forward. If a row was committed more than once
(a failed sample tried again, a token grid asked for later), the newest measured one holds; a failure never replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import pyarrow as pa


def check_choice(what: str, value: str, choices: Sequence[str] | Mapping[str, object]) -> None:
    """Raise HorizonError, with the nearest choice and all of them, if `value` is none of them."""
    if value in choices:
        return
    near = get_close_matches(str(value), choices, 1)
    question = f"did you mean {near[0]!r}? " if near else ""
    named = ", ".join(choices) or "(none was measured)"
    raise HorizonError(f"{what} {value!r} is unknown; {question}choose from {named}")


def check_choices(what: str, values: Sequence[str], choices: Sequence[str] | Mapping[str, object]) -> None:
    """Raise HorizonError if there are no values, or where one of them is none of the choices."""
    if not values:
        raise HorizonError(f"no {what} is given; choose from {', '.join(choices)}")
    for value in values:
        check_choice(what, value, choices)


SCHEMA_VERSION = 1
CONTEXTS = ("keep-one", "leave-one-out")
PROBES = ("entropy", "removal", "information")
STREAMS = ("query", "key", "query_raw", "key_raw", "value", "hidden")
# What removals and token grids take away, and what an entropy is over: a stream is of the visual tokens unless it says
# "text:query" or "all:query". Entropies of the text count the last token of the prompt, which no removal takes away.
TOKENS = ("visual", "text", "all")
KINDS = ("delete", "zero", "mean")
WRONG = "answered wrong"  # why a sample is excluded that the model does not answer right
METHODS = ("exact", "gate")  # of token grids: one replay a window, or first order from a backward pass
TARGETS = ("gold", "gold-raw", "greedy", "greedy-correct", "answer")
WINDOW = pa.struct([(name, pa.int32()) for name in ("crop", "row", "column", "height", "width")])

CROP = pa.struct(
    [("rows", pa.int32()), ("columns", pa.int32())]
    # the part of the original image that the grid covers, as fractions of its width and height
    + [(name, pa.float32()) for name in ("left", "top", "right", "bottom")]
    + [("image", pa.int32())]  # which image or frame of the sample, from 0; null in older runs, which have one
)

SAMPLES = pa.schema(
    [
        ("row", pa.int64()),  # position in the sample stream, from 0
        ("id", pa.string()),
        ("task", pa.string()),
        ("task_type", pa.string()),
        ("category", pa.string()),
        # of the decoded RGB pixels, of all images or frames together; the cluster of every resampling
        ("image_sha256", pa.string()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("status", pa.string()),  # "ok", "failed" or "excluded": looked at, and left unmeasured on purpose
        ("error", pa.string()),  # why it failed or was excluded, else ""
        ("prediction", pa.string()),  # the model's first token with all visual tokens
        ("correct", pa.bool_()),  # that token is in the target set of the first target
        ("target_ids", pa.list_(pa.int32())),  # of the first target
        ("p", pa.float64()),  # of the first target, all tokens
        ("log_p", pa.float64()),  # nats
        ("output_entropy", pa.float64()),  # of the model's own distribution where the target is read, nats
        ("answer_tokens", pa.int32()),  # of the gold answer, from the first that carries information
        ("noise_floor_p", pa.float64()),
        ("noise_floor_log_p", pa.float64()),
        ("noise_floor_kl", pa.float64()),
        ("n_visual", pa.int32()),  # visual tokens, placeless ones included
        ("n_placeless", pa.int32()),
        ("n_prompt", pa.int32()),  # prompt tokens, visual ones included
        ("probes", pa.list_(pa.string())),  # what was measured on this row
        ("batch_size", pa.int32()),  # ablations at once, where the user set it
        ("seconds", pa.float64()),
        ("crops", pa.list_(CROP)),
        ("windows", pa.list_(WINDOW)),  # of the token grids; empty where none was measured
        ("thumbnail", pa.binary()),  # PNG, at most 256 px, of the first image or frame
        ("options", pa.list_(pa.string())),  # texts of the option letters A, B, ...; empty where there are none
        # of the first target: its first token decoded, blank for a bare space; of "answer": the whole answer
        ("target_text", pa.string()),
    ]
)

CURVES = pa.schema(
    [
        ("row", pa.int64()),
        ("target", pa.string()),  # "" for entropies
        ("context", pa.string()),  # "removal", "" for entropies, or that of the token grids
        ("layer", pa.int16()),
        ("stream", pa.string()),  # "" for removals
        # entropies: "entropy" (nats). Removals: "log_p" of the target (nats), "kl" of (removed || all) (nats),
        # "correct" (argmax in the target set), "same" (argmax as with all tokens). At layer L: nothing removed.
        # Checks of the method "gate" (context of the grids), first order against exact effects of a sample's windows:
        # "gate_rank_correlation" (Spearman), "gate_top_overlap" (share of the tenth of the windows with the largest
        # exact effects that is also the tenth with the largest estimates), "gate_largest_effect" (largest exact
        # effect in p, without its sign).
        ("measure", pa.string()),
        ("value", pa.float64()),
    ]
)

GENERATIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("text", pa.string()),  # the model's whole answer, decoded greedily; null where it could not be generated
        ("n_tokens", pa.int32()),
        ("finished", pa.bool_()),  # the model ended it; else it was cut after `max_new_tokens`
        ("max_new_tokens", pa.int32()),
        ("error", pa.string()),  # why it could not be generated, else ""
    ]
)

CONVENTIONS = {
    "layer": "k is the residual stream at the input of 0-based decoder layer k; L is the final norm",
    "cut": "tokens are absent from the input of layer k on; all others keep their positions",
    "entropy": "nats; eigenvalues of the Gram matrix over its trace; all tokens of the kind that the stream names, "
    "visual if none; of the text, and of all, the last token of the prompt counts, which no removal takes away",
    "log_p": "nats; pooled over the ids of the target by log-sum-exp",
    "kl": "KL(removed || all) in nats over the vocabulary",
    "windows": "tiled from each grid's top left; smaller at the edge; row-major",
    "text": "prompt tokens but visual ones and the last, which is read; beginning-of-sequence and chat markup count",
    "stretches": "text without a visual token in between, one row of tokens; as windows their crops follow the grids",
    "unreported": "NaN in a token grid: below the noise floor in its coarse window, so not measured; statistics take 0",
}


def split_stream(name: str) -> tuple[str, str]:
    """The tokens that a stream is of, and its plain name.

    >>> split_stream("query"), split_stream("text:query")
    (('visual', 'query'), ('text', 'query'))
    """
    tokens, colon, stream = name.rpartition(":")
    return (tokens, stream) if colon else ("visual", stream)


def default_streams(tokens: str) -> tuple[str, ...]:
    """The streams of a run on these tokens, unless others are asked for.

    >>> default_streams("visual"), default_streams("text")
    (('query', 'key', 'hidden'), ('text:query', 'text:key', 'text:hidden'))
    """
    plain = ("query", "key", "hidden")
    return plain if tokens == "visual" else tuple(f"{tokens}:{stream}" for stream in plain)


def tokens_text(name: str, tokens: str) -> str:
    """A name, and the tokens that its effects are of where these are not the visual ones.

    >>> tokens_text("tiny-8", "visual"), tokens_text("tiny-8", "text")
    ('tiny-8', 'tiny-8, text tokens')
    """
    return name if tokens == "visual" else f"{name}, {tokens} tokens"


class HorizonError(Exception):
    """Anything the toolkit cannot do, in one sentence that names the thing and the remedy."""


def short_name(model: str) -> str:
    """Last part of a model's id or path.

    >>> short_name("llava-hf/llava-1.5-7b-hf"), short_name("models/tiny-8/")
    ('llava-1.5-7b-hf', 'tiny-8')
    """
    return model.rstrip("/").rsplit("/", 1)[-1]
