"""Functions that take the options of a declaration by name: their signature, their docstring, and types for editors.

`python -m analyses.runs.signatures` (`make options`) writes `analyses.runs.keywords`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from analyses.runs import schema
from analyses.runs.option_checks import check_names
from analyses.runs.options import (
    AdaptiveOptions,
    RunOptions,
    SweepOptions,
    description,
    hints_of,
    options_of,
    plain_type,
)

Function = TypeVar("Function", bound=Callable[..., Any])

WIDTH = 120  # columns of a line
KEYWORDS = {"RunKeywords": RunOptions, "SweepKeywords": SweepOptions, "AdaptiveKeywords": AdaptiveOptions}


def takes_options(declaration: type, *, without: Collection[str] = ()) -> Callable[[Function], Function]:
    """Let a function that ends with `**options` show every option, in its signature and in its docstring.

    The signature then holds name, type and default of each, and the docstring its text.
    A name that is no option raises HorizonError, with the nearest one that is.

    Args:
        declaration: a dataclass whose fields are the options.
        without: names of options that the function does not show, since it refuses or sets them itself.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        explicit = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        names = {each.name for each in explicit}

        @wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            check_names(keywords.keys() - names, declaration)
            return function(*arguments, **keywords)

        shown = [name for name in options_of(declaration) if name not in without]
        parameters = [*explicit, *(_parameter(declaration, name) for name in shown)]
        checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        checked.__doc__ = function.__doc__ and _documented(function.__doc__, declaration, shown)
        return cast(Function, checked)

    return decorate


def _parameter(declaration: type, name: str) -> inspect.Parameter:
    hint = plain_type(hints_of(declaration)[name])
    default = getattr(declaration, name)  # a dataclass keeps defaults as attributes of the class
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _documented(document: str, declaration: type, names: Sequence[str]) -> str:
    """A docstring whose entry "options: ..." of the arguments is replaced by one entry an option."""
    entry = re.search(r"^( *)options: .*\n(?:\1 +.*\n)*", document, re.MULTILINE)
    if entry is None:
        raise ValueError(f"no entry 'options: ...' to replace in {document!r}")
    indent = entry[1]
    lines = [_wrapped(f"{name}: {description(declaration, name)}", indent, f"{indent}    ") for name in names]
    return document[: entry.start()] + "\n".join(lines) + "\n" + document[entry.end() :]


def _wrapped(text: str, first: str, rest: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest or first, break_on_hyphens=False)


def keywords_source() -> str:
    """The source of `analyses.runs.keywords`: for each declaration a TypedDict of its options, with their texts."""
    words = {value: name for name, value in vars(schema).items() if name.endswith("Name") and get_args(value)}
    bodies, shown, base = [], set(), "TypedDict"
    for title, declaration in KEYWORDS.items():
        lines = [f"class {title}({base}, total=False):", f'    """{_first_line(declaration)}"""', ""]
        for name in options_of(declaration):
            if name not in shown:
                shown.add(name)
                lines.append(f"    {name}: {_type_source(plain_type(hints_of(declaration)[name]), words)}")
                lines.append(_wrapped(f'"""{sentence(description(declaration, name))}"""', "    "))
        bodies.append("\n".join(lines))
        base = title
    used = {word for body in bodies for word in re.findall(r"\w+", body)} & set(words.values())
    imports = "".join(f"    {name},\n" for name in sorted(used, key=str.lower))
    return (
        f'"""The options of a run as editors and type checkers know them.\n\nWritten from `analyses.runs.options` by '
        '`make options`; change them there.\n"""\n\n'
        "from __future__ import annotations\n\n"
        "from collections.abc import Sequence\n"
        "from typing import Literal, TypedDict\n\n"
        f"from {schema.__name__} import (\n{imports})\n\n\n" + "\n\n\n".join(bodies) + "\n"
    )


def _first_line(declaration: type) -> str:
    return (declaration.__doc__ or "").splitlines()[0]


def sentence(text: str) -> str:
    """A text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


def _type_source(hint: Any, words: dict[Any, str]) -> str:
    """A type as it is written, words of the vocabulary by their names."""
    if hint in words:
        return words[hint]
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_type_source(part, words) for part in get_args(hint))
    if get_origin(hint) is not None and get_args(hint):
        parts = (f'"{part}"' if isinstance(part, str) else _type_source(part, words) for part in get_args(hint))
        origin: Any = get_origin(hint)
        return f"{'Literal' if origin is Literal else origin.__name__}[{', '.join(parts)}]"
    return "None" if hint is NoneType else hint.__name__


if __name__ == "__main__":
    Path(__file__).with_name("keywords.py").write_text(keywords_source())
