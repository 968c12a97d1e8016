"""Names of a module that are imported at their first use.

The imports stand where type checkers read them, below `if TYPE_CHECKING:`, and are read from there: there is no second
list of what comes from where.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any


def lazy_names(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a module whose imports are for type checkers only.

    The first imports a name where it is first used. The second lists the names of `__all__` and the imported modules.
    """
    statements = list(_imports_for_type_checkers(module))
    homes = {name: home for home, name, attribute in statements if attribute != "*"}
    modules = {name for _, name, attribute in statements if attribute is None}
    star_modules = [home for home, _, attribute in statements if attribute == "*"]

    def get(name: str) -> Any:
        if name in modules:
            value = import_module(homes[name])
        elif name in homes:
            value = getattr(import_module(homes[name]), name)
        else:
            home = next(
                (candidate for candidate in map(import_module, star_modules) if name in candidate.__all__), None
            )
            if home is None:
                raise AttributeError(f"module {module!r} has no attribute {name!r}")
            value = getattr(home, name)
        setattr(sys.modules[module], name, value)
        return value

    def names() -> list[str]:
        return sorted({*sys.modules[module].__all__, *modules})

    return get, names


def _imports_for_type_checkers(module: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield (home, name, attribute) of every name that a module imports below `if TYPE_CHECKING:`.

    The attribute is None where the name is that of a module.
    """
    spec = sys.modules[module].__spec__
    source = spec.loader.get_source(module)  # type: ignore[union-attr]  # every module with source has both
    for block in ast.parse(source).body:
        if not (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"):
            continue
        for statement in block.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == module:
                yield from ((f"{module}.{alias.name}", alias.name, None) for alias in statement.names)
            elif isinstance(statement, ast.ImportFrom):
                yield from ((statement.module or "", alias.name, alias.name) for alias in statement.names)
            elif isinstance(statement, ast.Import):
                yield from ((alias.name, alias.asname or alias.name, None) for alias in statement.names)
