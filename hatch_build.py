"""The build hook of the wheel: it ships the house inside `vlm_horizon`, with the imports that this asks for.

In the repository `probes`, `analyses` and `figures` are packages of their own, next to `vlm_horizon`. Names so common
have no place in the site-packages of other people: in a wheel they lie within `vlm_horizon`, and
`from probes.x import y` reads `from vlm_horizon.probes.x import y`. The packages are taken as they lie in the tree, at
any depth. Every place to rewrite is found in the syntax tree, in one of these forms:

- import statements, wherever they stand, those of examples in docstrings included;
- strings that are, as a whole, the dotted name of a module or of something in it, such as the table in
  `vlm_horizon/__init__.py` lists for `import_module`; "figures" without a dot is any word, and stays;
- the dotted names of modules in docstrings.

What has another meaning after the move, or one that cannot be told, ends the build with file and line. Lines stay
lines, so that a traceback from an installed wheel fits the repository. An editable install gets none of this.
"""

import ast
import doctest
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, NoReturn

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "vlm_horizon"
FOLDERS = ("probes", "analyses", "figures")
DATA = "data"  # ships inside the package too, untouched

_FOLDER = f"(?:{'|'.join(FOLDERS)})"
_DOTTED = re.compile(rf"(?<![\w./-])({_FOLDER}(?:\.[A-Za-z_]\w*)+)")
_REFERENCE = re.compile(rf"{_DOTTED.pattern}(?::[A-Za-z_]\w*)?")  # as of an entry point
_IMPORT_IN_STRING = re.compile(rf"(?:^|[;:])\s*(?:from\s+{_FOLDER}[.\w]*\s+import|import\s+{_FOLDER})\b", re.MULTILINE)
_PREFIX = re.compile(rf"{_FOLDER}(?:\.\w+)*\.")
_QUOTE = re.compile(r"[A-Za-z]{0,2}('''|\"\"\"|'|\")")
_PROMPT = len(">>> ")

Position = tuple[int, int]  # line, from 1, and column in characters, from 0


class WheelError(Exception):
    """What cannot ship inside `vlm_horizon` as it is. The message says where it stands and what to write instead."""


class Piece(NamedTuple):
    """Code of a file: all of it, or one example in a docstring.

    Attributes:
        path: the file, for messages.
        lines: the code.
        nodes: all nodes of its syntax tree.
        line: lines of the file before it.
        column: columns of the file left of it.
    """

    path: str
    lines: list[str]
    nodes: list[ast.AST]
    line: int = 0
    column: int = 0

    def position(self, line: int, column: int) -> Position:
        """The place in the file of a line and column of this piece."""
        return self.line + line, self.column + column

    def start(self, node: Any) -> Position:
        """Line and column of this piece where a node starts; the column in characters where the tree has bytes."""
        text = self.lines[node.lineno - 1]
        return node.lineno, len(text.encode()[: node.col_offset].decode())

    def refuse(self, node: Any, reason: str) -> NoReturn:
        """Raise a `WheelError` that names the file, the line of a node, and the reason."""
        raise WheelError(f"{self.path}:{self.line + node.lineno}: {reason}")


def rewrite(text: str, modules: frozenset[str], path: str = "<text>") -> str:
    """The code of a module as it reads inside `vlm_horizon`; of as many lines as before.

    Args:
        text: the code as it reads in the repository.
        modules: the dotted names of all modules and packages of the repository.
        path: its file, for messages.

    Raises:
        WheelError: the code imports a module that does not exist, or in a form that cannot be rewritten.
    """
    code = Piece(path, text.split("\n"), list(ast.walk(ast.parse(text, path))))
    docstrings = list(_docstrings(code))
    pieces = [code, *_examples(path, docstrings)]
    names = {node.id for piece in pieces for node in piece.nodes if isinstance(node, ast.Name)}
    places = set(_places_in_docstrings(docstrings, modules))
    for piece in pieces:
        places |= {piece.position(*place) for place in _places_in_imports(piece, modules, names)}
        places |= {piece.position(*place) for place in _places_in_strings(piece, modules)}
    lines = list(code.lines)
    for line, column in sorted(places, reverse=True):
        lines[line - 1] = f"{lines[line - 1][:column]}{PACKAGE}.{lines[line - 1][column:]}"
    result = "\n".join(lines)
    for node in ast.walk(ast.parse(result, path)):
        if any(name.split(".")[0] in FOLDERS for name in _imported(node)):
            code.refuse(node, "this import was not rewritten: a mistake of hatch_build.py")
    return result


def module_names(root: Path) -> frozenset[str]:
    """The dotted names of all modules and packages below the packages of the repository at `root`."""
    files = [file for folder in (*FOLDERS, PACKAGE) for file in _files(root / folder) if file.suffix == ".py"]
    paths = [file.relative_to(root).with_suffix("") for file in files]
    parts = [path.parts[:-1] if path.name == "__init__" else path.parts for path in paths]
    return frozenset(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))


def shipped_files(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of the packages of the repository at `root`: its path below `vlm_horizon`, and what it holds there.

    Raises:
        WheelError: code that cannot be rewritten, or two files for one place.
    """
    for name in (*FOLDERS, DATA):
        for place in (root / PACKAGE / name, root / PACKAGE / f"{name}.py"):
            if place.exists():
                path = place.relative_to(root)
                raise WheelError(f"{path}: the folder {name} is {PACKAGE}.{name} in a wheel; give it another name")
    modules = module_names(root)
    for folder in (*FOLDERS, PACKAGE):
        for file in _files(root / folder):
            path = file.relative_to(root)
            content = file.read_bytes()
            if file.suffix == ".py":
                content = rewrite(content.decode(), modules, path.as_posix()).encode()
            yield path.relative_to(PACKAGE) if folder == PACKAGE else path, content


class HouseHook(BuildHookInterface):
    """Writes the packages, rewritten, to a temporary directory, and has the wheel made from it and from `data`."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fill the wheel, unless it is that of an editable install, which only points at the repository."""
        if version == "editable":
            return
        self.tree = TemporaryDirectory(prefix="vlm-horizon-wheel-")
        for path, content in shipped_files(Path(self.root)):
            file = Path(self.tree.name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        build_data["force_include"][self.tree.name] = PACKAGE
        build_data["force_include"][DATA] = f"{PACKAGE}/{DATA}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary directory."""
        if version != "editable":
            self.tree.cleanup()


def _files(folder: Path) -> list[Path]:
    """All files of a package, in order, without caches and hidden ones."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return [
        file
        for file in files
        if not any(part == "__pycache__" or part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _imported(node: ast.AST) -> list[str]:
    """The modules that a node imports by their whole names; relative imports move with their package."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def _places_in_imports(piece: Piece, modules: frozenset[str], names: set[str]) -> Iterator[Position]:
    """Where the names of moved modules start in import statements."""
    tokens = list(tokenize.generate_tokens(StringIO("\n".join(piece.lines)).readline))
    after_from = {
        token.start: following.start for token, following in pairwise(tokens) if token[:2] == (tokenize.NAME, "from")
    }
    for node in piece.nodes:
        for module in _imported(node):
            if module.split(".")[0] in (*FOLDERS, PACKAGE) and module not in modules:
                piece.refuse(node, f"imports {module}, which is no module of this repository")
        if isinstance(node, ast.Import):
            for alias in node.names:
                folder = alias.name.split(".")[0]
                if folder not in FOLDERS:
                    continue
                if alias.asname is None and folder in names:
                    module = alias.name
                    remedy = f"write 'import {module} as ...' or 'from {module} import ...'"
                    piece.refuse(node, f"'import {module}' binds {folder!r}, which a wheel does not have: {remedy}")
                yield piece.start(alias)
        elif any(module.split(".")[0] in FOLDERS for module in _imported(node)):
            yield after_from[piece.start(node)]


def _places_in_strings(piece: Piece, modules: frozenset[str]) -> Iterator[Position]:
    """Where the dotted names of moved modules start in strings that hold nothing else."""
    prose = {id(node.value) for node in piece.nodes if isinstance(node, ast.Expr)}
    in_f_strings = {id(part) for node in piece.nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    calls = [node for node in piece.nodes if isinstance(node, ast.Call)]
    folders = {id(argument) for call in calls for argument in _module_arguments(piece, call)}
    for node in piece.nodes:
        if isinstance(node, ast.JoinedStr):
            head = node.values[0] if node.values else None
            if isinstance(head, ast.Constant) and _PREFIX.fullmatch(str(head.value)):
                piece.refuse(node, f"a module name composed of {head.value!r} cannot be rewritten: write it in full")
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)) or id(node) in prose:
            continue
        text = node.value
        if _IMPORT_IN_STRING.search(text):
            piece.refuse(node, "an import inside a string cannot be rewritten: import outside it")
        if id(node) not in in_f_strings and _PREFIX.fullmatch(text):
            piece.refuse(node, f"a module name composed of {text!r} cannot be rewritten: write it in full")
        is_module = _REFERENCE.fullmatch(text) and _names_module(text.split(":")[0], modules)
        if not is_module and not (id(node) in folders and text in FOLDERS):
            continue
        if id(node) in in_f_strings:
            piece.refuse(node, f"the module name {text!r} inside an f-string cannot be rewritten: write it outside")
        line, column = piece.start(node)
        quote = _QUOTE.match(piece.lines[line - 1], column)
        if quote is None:
            piece.refuse(node, f"the start of the string {text!r} was not found: a mistake of hatch_build.py")
        yield line, quote.end()


def _module_arguments(piece: Piece, call: ast.Call) -> list[ast.expr]:
    """The arguments of a call that imports by name; none for any other call."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function == "__import__":
        piece.refuse(call, "what __import__ returns changes with the move: use importlib.import_module")
    if function not in ("import_module", "find_spec"):
        return []
    for argument in call.args[:1]:
        in_package = isinstance(argument, ast.JoinedStr) and any(
            isinstance(part, ast.FormattedValue) and getattr(part.value, "id", "") in ("__name__", "__package__")
            for part in argument.values[:1]
        )
        if isinstance(argument, ast.JoinedStr | ast.BinOp | ast.Call) and not in_package:
            piece.refuse(call, "a module name composed at run time cannot be rewritten: write it in full")
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _names_module(name: str, modules: frozenset[str]) -> bool:
    """Whether a dotted name is that of a module within a folder, or of something in such a module."""
    parts = name.split(".")
    return len(parts) > 1 and ".".join(parts[:2]) in modules


def _docstrings(code: Piece) -> Iterator[tuple[int, list[str]]]:
    """The first line of every docstring of a file, and its lines, blank where quotes and what is before them stand."""
    for node in code.nodes:
        value = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
            continue
        lines = code.lines[value.lineno - 1 : value.end_lineno]
        opening = _QUOTE.match(lines[0], code.start(value)[1])
        if opening is None:
            code.refuse(value, "the start of this docstring was not found: a mistake of hatch_build.py")
        lines[-1] = lines[-1].encode()[: value.end_col_offset].decode().removesuffix(opening[1])
        lines[0] = " " * opening.end() + lines[0][opening.end() :]
        yield value.lineno, lines


def _examples(path: str, docstrings: list[tuple[int, list[str]]]) -> Iterator[Piece]:
    """The examples in the docstrings of a file."""
    for first, lines in docstrings:
        for example in doctest.DocTestParser().get_examples("\n".join(lines)):
            line = first - 1 + example.lineno
            try:
                tree = ast.parse(example.source)
            except SyntaxError:
                if _DOTTED.search(example.source):
                    raise WheelError(f"{path}:{line + 1}: an example that is no Python") from None
                continue
            yield Piece(path, example.source.split("\n"), list(ast.walk(tree)), line, example.indent + _PROMPT)


def _places_in_docstrings(docstrings: list[tuple[int, list[str]]], modules: frozenset[str]) -> Iterator[Position]:
    """Where the dotted names of moved modules start in docstrings."""
    for first, lines in docstrings:
        for number, line in enumerate(lines, first):
            for match in _DOTTED.finditer(line):
                if _names_module(match[1], modules):
                    yield number, match.start()
