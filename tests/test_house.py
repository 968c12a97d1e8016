"""The house: which stratum and which room may import which, read from CONTRIBUTING.md and proved from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STRATA = {  # stratum -> the strata that it may import
    "probes": {"probes", "analyses"},
    "analyses": {"analyses"},
    "figures": {"figures", "analyses"},
    "vlm_horizon": {"probes", "analyses", "figures", "vlm_horizon"},
}
FOREIGN = {  # stratum -> libraries that it never imports
    "analyses": {"torch", "transformers", "nnsight", "matplotlib", "seaborn"},
    "figures": {"torch", "transformers", "nnsight", "scipy"},
    "probes": {"matplotlib", "seaborn", "typer"},
    "vlm_horizon": {"nnsight"},
}
FILES = [path.relative_to(ROOT) for stratum in STRATA for path in sorted((ROOT / stratum).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def allowed_rooms() -> dict[str, set[str]]:
    """Room -> rooms of its stratum that it may import, as the table of CONTRIBUTING.md says."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("<!-- rooms: begin -->")[2].partition("<!-- rooms: end -->")[0]
    rows = re.findall(r"^\| `(\w+)/(\w+)` \|[^|]*\|([^|]*)\|$", table, re.MULTILINE)
    return {
        f"{stratum}.{room}": {f"{stratum}.{name.strip()}" for name in others.split(",") if name.strip()}
        for stratum, room, others in rows
    }


ALLOWED = allowed_rooms()


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever in it: at the top, for type checkers, inside functions, by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """Modules of ours, and top names of libraries, that a file imports."""
    names = set(imported_names(ast.parse((ROOT / path).read_text())))
    own = {name for name in names if name in MODULES}
    return own | {name.split(".")[0] for name in names if name.split(".")[0] not in STRATA}


IMPORTS = {path: imports_of(path) for path in FILES}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def in_circle(graph: dict[str, set[str]]) -> list[str]:
    """What is left of a graph when all that imports nothing of the rest is taken away, again and again."""
    rest = dict(graph)
    while free := [name for name, others in rest.items() if not others & rest.keys()]:
        for name in free:
            del rest[name]
    return sorted(rest)


def test_every_room_is_in_the_table_and_stands_behind_those_that_it_imports():
    rooms = {room_of(module_of(path)) for path in FILES if len(path.parts) > 2}
    assert rooms == set(ALLOWED)
    order = list(ALLOWED)
    for room, others in ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in others), room


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_its_stratum_and_room_allow(path):
    stratum, room = path.parts[0], room_of(module_of(path))
    assert not IMPORTS[path] & FOREIGN[stratum]
    for module in IMPORTS[path] & MODULES.keys():
        assert module.split(".")[0] in STRATA[stratum], f"{path} imports {module}"
        other = room_of(module)
        if stratum == "probes" and other.startswith("analyses"):
            assert other == "analyses.runs", f"{path} imports {module}"
        elif room in ALLOWED and other in ALLOWED and other != room and other.split(".")[0] == stratum:
            assert other in ALLOWED[room], f"{path} imports {module}, which its room may not"


def test_only_one_module_knows_nnsight():
    assert [str(path) for path in FILES if "nnsight" in IMPORTS[path]] == ["probes/replay/capture.py"]


def test_no_circle_of_files():
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {module: IMPORTS[path] & (MODULES.keys() - packages) - {module} for module, path in MODULES.items()}
    assert in_circle(graph) == []


def test_no_circle_of_rooms():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        room = room_of(module)
        graph.setdefault(room, set()).update(room_of(name) for name in IMPORTS[path] & MODULES.keys())
        graph[room].discard(room)
    assert in_circle(graph) == []


def test_a_circle_would_be_seen():
    assert in_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "source",
    [
        "import probes.sweeps.sweep",
        "def f():\n    from probes.sweeps import sweep",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from probes.sweeps.sweep import run",
    ],
)
def test_hidden_imports_are_seen(source):
    assert "probes.sweeps.sweep" in set(imported_names(ast.parse(source)))


@pytest.mark.parametrize("room", ALLOWED)
def test_every_room_says_what_it_is_for(room):
    document = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text()))
    assert document, f"{room} says nothing"
    assert 2 <= len(document.splitlines()) <= 5
