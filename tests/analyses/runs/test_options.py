"""Options of a run are declared once: hashes, records, checks, signatures and types for editors follow from there."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import pytest

from analyses.runs import (
    CONTEXTS,
    KINDS,
    METHODS,
    PROBES,
    STREAMS,
    TARGETS,
    TOKENS,
    AdaptiveOptions,
    HorizonError,
    Measurement,
    RunConfig,
    RunOptions,
    SweepOptions,
    check_options,
    keywords,
    schema,
    split_stream,
)
from analyses.runs.options import Option, choices_of, description, hints_of, options_of, plain_type
from analyses.runs.signatures import KEYWORDS, keywords_source, takes_options

FACTS = {
    "model": "m",
    "revision": None,
    "weights": "w",
    "family": "llava",
    "n_layers": 8,
    "n_heads": 4,
    "n_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "vocab_size": 100,
    "dtype": "float32",
    "attn": "sdpa",
}
# what the hash was before options were declared in one place
HASHES = [
    ({}, "0f79d9351e8eb28e"),
    (
        {
            "model": "models/m/",
            "seed": 3,
            "batch_size": 4,
            "sources": ("a",),
            "versions": {"a": "1"},
            "device": "cpu",
            "n_parameters": 7,
            "prompt_example": "x",
            "conventions": {},
            "chosen_layers": {"ocr": [1]},
            "pilot_rows": (1,),
        },
        "0f79d9351e8eb28e",
    ),
    (
        {
            "probes": ("information",),
            "streams": (),
            "contexts": ("leave-one-out", "keep-one"),
            "window": None,
            "max_windows": 12,
            "layers": (0, 3, 7),
            "kind": "mean",
            "token_layers": (3,),
        },
        "671c17a31e431cd9",
    ),
    (
        {
            "token_layers": "auto",
            "method": "gate",
            "targets": ("answer", "gold"),
            "alpha": 2.0,
            "center": False,
            "normalize_rows": False,
            "prompt": "Q: {question}",
        },
        "d3c1341534212793",
    ),
    (
        {
            "tokens": "text",
            "streams": ("text:query",),
            "video": "8 frames",
            "with_ocr_tokens": True,
            "only_correct": True,
            "coarse": 4,
            "quantization": "4bit",
            "processor": "abc",
            "revision": "c0ffee",
        },
        "677e32b11f4d78bb",
    ),
]
# another value for each option that a run records
OTHER = {
    "probes": ("removal",),
    "tokens": "all",
    "streams": ("hidden",),
    "targets": ("greedy",),
    "contexts": ("leave-one-out",),
    "window": 3,
    "max_windows": 5,
    "coarse": 8,
    "layers": (1,),
    "token_layers": (1,),
    "kind": "zero",
    "method": "gate",
    "alpha": 2.0,
    "center": False,
    "normalize_rows": False,
    "only_correct": True,
    "prompt": "{question}!",
    "with_ocr_tokens": True,
    "video": "8 frames",
    "batch_size": 3,
    "seed": 7,
    "sources": ("x",),
}


@pytest.mark.parametrize(("changes", "digits"), HASHES)
def test_the_hash_of_a_configuration_stays(changes, digits):
    config = RunConfig(**FACTS | changes)
    assert config.hash == digits
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))).hash == digits


@pytest.mark.parametrize("name", options_of(Measurement))
def test_an_option_enters_the_hash_where_its_declaration_says_so(name):
    config = RunConfig(**FACTS)
    other = replace(config, **{name: OTHER[name]})
    assert (other.hash != config.hash) == options_of(Measurement)[name].estimand
    assert (name in RunConfig.NOT_ESTIMAND) != options_of(Measurement)[name].estimand


def test_what_is_recorded_only_is_listed():
    assert set(RunConfig.NOT_ESTIMAND) == {
        *("conventions", "n_parameters", "versions", "device", "batch_size", "sources", "prompt_example", "seed"),
        *("chosen_layers", "pilot_rows"),
    }


def test_an_older_record_opens_and_keys_of_a_later_one_are_ignored():
    """Options that a record does not hold have the value that they had when it was written."""
    config = RunConfig.from_dict({**FACTS, "streams": ["query"], "window": 1, "lens": "tuned"})
    assert (config.streams, config.window) == (("query",), 1)
    assert (config.tokens, config.video, config.with_ocr_tokens, config.method) == ("visual", "", False, "exact")
    assert RunConfig(**FACTS).window == 2


def test_each_declaration_adds_to_the_one_before():
    chain = [Measurement, RunOptions, SweepOptions, AdaptiveOptions]
    for smaller, larger in pairwise(chain):
        assert options_of(smaller).items() < options_of(larger).items()
    assert list(options_of(AdaptiveOptions)) == [field.name for field in fields(AdaptiveOptions)]
    recorded = {field.name for field in fields(RunConfig)}
    assert recorded & set(options_of(AdaptiveOptions)) == set(options_of(Measurement))


@pytest.mark.parametrize("name", options_of(AdaptiveOptions))
def test_every_option_says_what_it_is(name):
    text = description(AdaptiveOptions, name)
    assert re.fullmatch(r"[a-z].*\.", text)
    assert all(word in options_of(AdaptiveOptions) for word in re.findall(r"`(\w+)`", text))


def test_the_words_of_an_option_are_the_vocabulary():
    words = {name: choices_of(hint) for name, hint in hints_of(AdaptiveOptions).items() if choices_of(hint)}
    assert words == {
        "probes": PROBES,
        "tokens": TOKENS,
        "targets": TARGETS,
        "contexts": CONTEXTS,
        "kind": KINDS,
        "method": METHODS,
        "streams": schema.TOKEN_STREAMS,
    }


def test_streams_of_other_tokens_are_all_combinations():
    combined = {(tokens, stream) for tokens in TOKENS for stream in STREAMS}
    assert {split_stream(name) for name in schema.TOKEN_STREAMS} == combined
    assert len(schema.TOKEN_STREAMS) == len(combined)
    assert schema.TOKEN_STREAMS[: len(STREAMS)] == STREAMS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "delte"}, "kind 'delte' is unknown; did you mean 'delete'? choose from delete, zero, mean"),
        (
            {"probes": ("entropy", "removals")},
            "probe 'removals' is unknown; did you mean 'removal'?",
        ),
        ({"probes": ("xyz",)}, "probe 'xyz' is unknown; choose from entropy, removal, information"),
        (
            {"streams": ("text:querry",)},
            "stream 'text:querry' is unknown; did you mean 'text:query'? choose",
        ),
        ({"streams": ("visual:queries",)}, "stream 'queries' is unknown; did you mean 'query'?"),
        ({"streams": ("words:query",)}, "stream 'words:query' is unknown"),
        ({"targets": ("gold-row",)}, "target 'gold-row' is unknown; did you mean 'gold-raw'?"),
        ({"contexts": ("keepone",)}, "context 'keepone' is unknown; did you mean 'keep-one'?"),
        ({"tokens": "texts"}, "tokens 'texts' is unknown; did you mean 'text'? choose from visual, text, all"),
        ({"method": "gat"}, "method 'gat' is unknown; did you mean 'gate'? choose from exact, gate"),
        ({"probes": ()}, "no probe is given; choose from entropy"),
        ({"targets": ()}, "no target is given; choose from gold"),
        ({"streams": ()}, "the probe 'entropy' needs at least one stream"),
        ({"contexts": ()}, "the probe 'information' needs at least one context"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": 1.5}, "window is 1.5; it must be a whole number"),
        ({"coarse": 3}, "coarse is 3 and window 2: coarse must be a larger multiple"),
        ({"streams": "hidden"}, "streams is 'hidden'; give a list, even of one: streams=['hidden']"),
        ({"probes": "entropy"}, "probes is 'entropy'; give a list, even of one: probes=['entropy']"),
        ({"targets": "gold"}, "targets is 'gold'; give a list, even of one"),
        ({"window": "a"}, "window is 'a'; it must be a whole number"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        ({"limit": True}, "limit is True; it must be a whole number"),
        ({"alpha": "two"}, "alpha is 'two'; it must be a number"),
        ({"only_correct": "yes"}, "only_correct is 'yes'; it must be True or False"),
        ({"kind": 3}, "kind is 3; it must be one of its words"),
        ({"layers": 4}, "layers is 4; it must be a list"),
        ({"max_windows": 4, "window": 1}, "max_windows is 4 and chooses the side of the windows"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"generate": 0}, "generate is 0; it must be at least 1"),
        ({"token_samples": -1}, "token_samples is -1; it must be at least 0"),
        ({"gate_checks": -1}, "gate_checks is -1; it must be at least 0"),
        ({"spectra": -2}, "spectra is -2; it must be at least 0"),
        ({"alpha": 0.0}, "alpha is 0.0; it must be positive"),
        ({"alpha": float("nan")}, "alpha is nan; it must be positive"),
        ({"shard": (2, 2)}, "shard 2/2 is unusable: i/n takes 0 <= i < n"),
        ({"shard": (-1, 2)}, "shard -1/2 is unusable"),
        ({"layers": "auto"}, "layers 'auto' are chosen between two sweeps: call run_adaptive"),
        ({"token_layers": "all"}, "token_layers is 'all'; give layers, or 'auto'"),
        ({"only_correct": True, "targets": ("greedy",)}, "only_correct needs a target that says what is right"),
        ({"method": "gate", "kind": "zero"}, "method 'gate' takes tokens away as the removal kind 'delete' does"),
        ({"method": "gate", "tokens": "text"}, "method 'gate' has gates on visual tokens only"),
        ({"method": "gate", "coarse": 4}, "coarse windows (4) spare it nothing"),
        ({"probes": ("removal",), "method": "gate"}, "method 'gate' is of token grids: add the probe 'information'"),
        ({"probes": ("removal",), "coarse": 4}, "coarse 4 is of token grids"),
        ({"probes": ("entropy",), "max_windows": 4}, "max_windows 4 is of token grids"),
        ({"probes": ("removal",), "token_layers": (1,)}, "token_layers (1,) is of token grids"),
    ],
)
def test_unusable_options_are_named_without_a_model(options, message):
    with pytest.raises(HorizonError, match=re.escape(message)):
        check_options(RunOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"streams": ("visual:query", "text:hidden", "all:key_raw")},
        {"streams": (), "probes": ("removal",)},
        {"contexts": (), "probes": ("entropy",)},
        {"only_correct": True, "targets": ("greedy", "gold")},
        {"token_layers": "auto", "coarse": 4, "shard": (3, 4), "token_samples": 0, "spectra": 0, "gate_checks": 0},
        {"method": "gate", "probes": ("information",)},
    ],
)
def test_usable_options_pass(options):
    check_options(RunOptions(**options))


def test_streams_follow_the_tokens_unless_they_are_named():
    assert RunOptions().wanted_streams == ("query", "key", "hidden")
    assert RunOptions(tokens="all").wanted_streams == ("all:query", "all:key", "all:hidden")
    assert RunOptions(tokens="all", streams=("value",)).wanted_streams == ("value",)


# --- functions that take options by name -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Brewing:
    """Two options of nothing that is measured here."""

    minutes: Annotated[int | None, Option(text="time in the pot; as long as it takes by default.")] = None
    leaves: Annotated[Sequence[Literal["green", "black"]], Option(text="what is in it.")] = ("green",)


@takes_options(Brewing)
def brew(pot: str, *, warm: bool = True, **options: object) -> tuple[str, bool, Brewing]:
    """Make tea.

    Args:
        pot: to make it in.
        warm: the pot first.
        options: by name,
            over two lines.

    Returns:
        What was asked for.
    """
    return pot, warm, Brewing(**options)


def test_a_signature_shows_every_option_with_type_and_default():
    assert str(inspect.signature(brew)).startswith("(pot: 'str', *, warm: 'bool' = True, minutes: int | None = None, ")
    shown = inspect.signature(brew).parameters["leaves"]
    assert (shown.default, shown.kind) == (("green",), shown.KEYWORD_ONLY)
    assert shown.annotation == Sequence[Literal["green", "black"]]


def test_a_docstring_shows_the_text_of_every_option_in_its_place():
    assert inspect.getdoc(brew).splitlines()[2:] == [
        "Args:",
        "    pot: to make it in.",
        "    warm: the pot first.",
        "    minutes: time in the pot; as long as it takes by default.",
        "    leaves: what is in it. Any of green, black.",
        "",
        "Returns:",
        "    What was asked for.",
    ]


def test_options_arrive_and_unknown_names_are_refused_with_the_nearest():
    assert brew("pot", minutes=3) == ("pot", True, Brewing(minutes=3))
    assert brew(pot="pot", warm=False) == ("pot", False, Brewing())
    with pytest.raises(
        HorizonError, match=re.escape("option 'minuts' is unknown; did you mean 'minutes'? choose from")
    ):
        brew("pot", minuts=3)


def test_a_docstring_without_a_place_for_options_is_refused():
    with pytest.raises(ValueError, match="no entry 'options"):

        @takes_options(Brewing)
        def steep(**options: object) -> None:
            """Wait."""


# --- what editors and type checkers know -----------------------------------------------------------------------------


def test_the_keywords_of_editors_are_written_from_the_declaration():
    """`make options` writes them."""
    assert Path(keywords.__file__).read_text() == keywords_source()


@pytest.mark.parametrize(("title", "declaration"), KEYWORDS.items())
def test_keywords_have_the_names_and_types_of_the_options(title, declaration):
    known = get_type_hints(getattr(keywords, title))
    assert known == {name: plain_type(hint) for name, hint in hints_of(declaration).items()}
    assert not getattr(keywords, title).__required_keys__


def test_the_words_are_spelled_once():
    for name, words in vars(schema).items():
        if name.endswith("Name"):
            assert len(set(get_args(words))) == len(get_args(words)) > 1, name
