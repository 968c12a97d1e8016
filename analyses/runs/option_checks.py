"""Checks of what a run is asked for, as far as they need no model: a typo is refused before one is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from numbers import Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from analyses.runs.options import Option, RunOptions, choices_of, hints_of, options_of, value_type
from analyses.runs.schema import METHODS, PROBES, TARGETS, HorizonError, check_choice, check_choices
from analyses.runs.vocabulary import METHOD_TABLE

DEFAULT_WINDOW = 2  # tokens a side, the paper's
OF_GRIDS = ("method", "coarse", "max_windows", "token_layers")  # options that only token grids have


def check_names(names: Iterable[str], declaration: type) -> None:
    """Raise HorizonError, with the nearest name, unless every name is an option of a declaration."""
    for name in names:
        check_choice("option", name, tuple(options_of(declaration)))


def check_options(options: RunOptions) -> None:
    """Raise HorizonError where an option is unusable, alone or with the others, whatever the model is."""
    if isinstance(options.layers, str):
        raise HorizonError(
            f"layers {options.layers!r} are chosen between two sweeps: call run_adaptive, which makes them"
        )
    if isinstance(options.token_layers, str) and options.token_layers != "auto":
        raise HorizonError(f"token_layers is {options.token_layers!r}; give layers, or 'auto'")
    declaration: type = type(options)
    for name, option in options_of(declaration).items():
        value, hint = getattr(options, name), hints_of(declaration)[name]
        if value is None:
            continue
        check_type(name, value, value_type(hint))
        check_words(name, value, hint)
        check_number(name, value, option)
    check_choices("probe", options.probes, PROBES)
    check_choices("target", options.targets, TARGETS)
    _check_needs(options)
    index, count = options.shard
    if not 0 <= index < count:
        raise HorizonError(f"shard {index}/{count} is unusable: i/n takes 0 <= i < n")
    if options.only_correct and set(options.targets) == {"greedy"}:
        raise HorizonError("only_correct needs a target that says what is right: gold beside greedy, or greedy-correct")


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise HorizonError where a value is not of its option's type, before anything is made of it.

    Args:
        name: the name of the option.
        value: the value, not None.
        kind: the type, as `value_type` gives it.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if any(_is_of(value, each) for each in kinds):
        return
    if isinstance(value, str) and any(get_origin(each) is Sequence for each in kinds):
        raise HorizonError(f"{name} is {value!r}; give a list, even of one: {name}=[{value!r}]")
    raise HorizonError(f"{name} is {value!r}; it must be {' or '.join(map(_type_words, kinds))}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; of sequences and words the type alone is looked at."""
    if get_origin(kind) in (Sequence, tuple):
        return not isinstance(value, str) and isinstance(value, Sized) and isinstance(value, Iterable)
    if get_origin(kind) is Literal:
        return isinstance(value, str)
    if kind in (int, float):
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and (kind is float or value == int(value))
    return isinstance(value, kind)


def _type_words(kind: Any) -> str:
    """A type in the words of a sentence."""
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    return words.get(kind, "a list" if get_origin(kind) in (Sequence, tuple) else "one of its words")


def check_words(name: str, value: Any, hint: Any) -> None:
    """Raise HorizonError, with the nearest word, where a value is none of the words that its type holds.

    Args:
        name: of the option; of several values each is named by its singular.
        value: None, a word, or a sequence of words.
        hint: the option's type.
    """
    choices = choices_of(hint)
    if value is None or not choices:
        return
    for word in (value,) if isinstance(value, str) else value:
        what = name if isinstance(value, str) else name.removesuffix("s")
        # "visual:query" is "query", spelled out
        check_choice(what, word.removeprefix("visual:") if what == "stream" else word, choices)


def check_number(name: str, value: Any, option: Option) -> None:
    """Raise HorizonError where an option's number is too small; other values pass."""
    if option.least is not None and value < option.least:
        raise HorizonError(f"{name} is {value}; it must be at least {option.least}")
    if option.positive and not value > 0:
        raise HorizonError(f"{name} is {value}; it must be positive")


def _check_needs(options: RunOptions) -> None:
    """Raise HorizonError where a probe lacks what it needs, or something is asked for that only another probe has."""
    if "entropy" in options.probes and not options.wanted_streams:
        raise HorizonError("the probe 'entropy' needs at least one stream")
    if "information" not in options.probes:
        for name in OF_GRIDS:
            value = getattr(options, name)
            if value != getattr(RunOptions, name):
                raise HorizonError(f"{name} {value!r} is of token grids: add the probe 'information', or leave it out")
        check_windows(options.window, None, None)
        return
    if not options.contexts:
        raise HorizonError("the probe 'information' needs at least one context")
    check_windows(options.window, options.max_windows, options.coarse)
    check_grid_method(options.method, options.kind, options.tokens, options.coarse)


def check_windows(window: int | None, max_windows: int | None, coarse: int | None) -> int | None:
    """The side of all windows, 2 unless something is asked for; None where `max_windows` chooses it for each sample.

    Raises:
        HorizonError: a number is unusable, `window` and `max_windows` are both given, or `coarse` is not a larger
            multiple of `window`.
    """
    if max_windows is not None:
        if window is not None or coarse is not None:
            raise HorizonError(
                f"max_windows is {max_windows} and chooses the side of the windows, so it goes with neither window nor "
                "coarse: leave those out, or leave out max_windows"
            )
        if max_windows != int(max_windows) or max_windows < 1:
            raise HorizonError(f"max_windows is {max_windows!r}; it must be a whole number, at least 1")
        return None
    window = DEFAULT_WINDOW if window is None else window
    if window != int(window) or window < 1:
        raise HorizonError(f"window is {window!r}; it must be a whole number of tokens, at least 1")
    if coarse is not None and (coarse <= window or coarse % window):
        raise HorizonError(f"coarse is {coarse} and window {window}: coarse must be a larger multiple of window")
    return window


def check_grid_method(method: str, kind: str, tokens: str = "visual", coarse: int | None = None) -> None:
    """Raise HorizonError unless token grids can be measured by this method on some model."""
    check_choice("method", method, METHODS)
    for obstacle in METHOD_TABLE[method].obstacles(kind, tokens, coarse):
        raise HorizonError(obstacle)
