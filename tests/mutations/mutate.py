"""Break the source in one place at a time, by seed, and see which tests notice (see `--help`).

A mutant is a copy of the tree with one comparison, operator, constant, bound or condition changed, in a file (nnsight
reads its source from there). It meets the tests that call its function: those of its module first, then those of files
that import the module, fastest first. One JSON line a mutant says where it was, what became what, which test failed.
Mutants that no test notices are equivalent to the source, or show what a test should assert: RESULTS.md judges them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

COMPARISONS = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
PAIRS = (("min", "max"), ("minimum", "maximum"), ("any", "all"), ("argmin", "argmax"), ("zeros", "ones"))
TWINS = {**dict(PAIRS), **{b: a for a, b in PAIRS}}
THIRD_PARTY = (
    "numpy",
    "pandas",
    "scipy.stats",
    "pyarrow.parquet",
    "PIL.Image",
    "safetensors.numpy",
    "pytest",
    "hypothesis.internal.conjecture.engine",
)
HEAVY = ("torch", "transformers", "nnsight")
QUIET = ("-p", "no:cacheprovider", "-p", "no:anyio", "-W", "ignore::pytest.PytestAssertRewriteWarning")
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis", ".*_cache")


@dataclass(frozen=True)
class Mutant:
    """One change of one file: bytes `start` to `end` are `before` and become `after`; what the tests made of it."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str
    status: str = ""  # "killed", "survived" or "timeout"
    by: str = ""  # the first test that failed
    seconds: float = 0.0


def mutants_of(file: str, source: bytes, functions: set[str] | None = None) -> list[Mutant]:
    """Every mutant of a file that still parses; of some functions only if these are named."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def text(node: ast.AST) -> str:
        return source[slice(*span(node))].decode()

    def between(left: ast.AST, right: ast.AST, old: str, new: str) -> tuple[int, int, str]:
        start, end = span(left)[1], span(right)[0]
        pattern = rb"(?<![\w<>=!/*])" + re.escape(old).replace(r"\ ", r"\s+").encode() + rb"(?![\w<>=/*])"
        found = re.search(pattern, re.sub(rb"#[^\n]*", lambda m: b" " * len(m[0]), source[start:end]))
        return (start + found.start(), start + found.end(), new) if found else (0, 0, "")

    def changes(node: ast.AST) -> Iterator[tuple[int, int, str]]:
        if isinstance(node, ast.Compare):
            for left, op, right in zip((node.left, *node.comparators), node.ops, node.comparators, strict=False):
                old, others = COMPARISONS[type(op)]
                yield from (between(left, right, old, new) for new in others)
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield between(node.left, node.right, *OPERATORS[type(node.op)])
            if isinstance(node.right, ast.Constant) and node.right.value == 1:
                yield (*span(node), text(node.left))
        elif isinstance(node, ast.BoolOp):
            words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            yield from (between(*pair, *words) for pair in zip(node.values, node.values[1:], strict=False))
        elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
            yield (*span(node), f"({text(node.operand)})")
        elif isinstance(node, ast.Constant) and not isinstance(node.value, str | bytes | None):
            value = node.value
            new = {bool: lambda: [not value], int: lambda: [value + 1], float: lambda: [value * 2 or 1.0, value / 2]}
            yield from ((*span(node), repr(other)) for other in new.get(type(value), list)())
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in TWINS:
                yield span(node)[1] - len(name), span(node)[1], TWINS[name]
        elif isinstance(node, ast.Slice):
            yield from ((*span(bound), "") for bound in (node.lower, node.upper, node.step) if bound is not None)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield (*span(node.test), f"(not ({text(node.test)}))")
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Compare | ast.BoolOp | ast.Call | ast.Name):
            known = {"bool": "not ({})", "int": "({}) + 1", "float": "({}) + 1", "str": '""'}
            if (returned := getattr(returns.get(node), "id", "")) in known:
                yield (*span(node.value), known[returned].format(text(node.value)))

    def kept(node: ast.AST) -> Iterator[ast.AST]:
        """What of a node may change: no annotations, messages of errors, texts, decorators, nor what only types."""
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        hidden = {"annotation", "returns", "decorator_list", "type_params"}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            hidden |= {"value"} if re.match(r"(dict|list|tuple|Callable|Literal)\[", text(node.value)) else set()
        yield node
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                silent = isinstance(child, ast.keyword) and child.arg in ("strict", "repr", "slots", "frozen")
                if isinstance(child, ast.AST) and name not in hidden and not silent:
                    yield from kept(child)

    tree = ast.parse(source)
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    returns = {inner: f.returns for f in defined for inner in ast.walk(f) if isinstance(inner, ast.Return)}
    roots = [tree] if functions is None else [node for node in defined if node.name in functions]
    found = {}
    for node in (inner for root in roots for inner in kept(root)):
        for start, end, after in changes(node):
            changed = source[:start] + after.encode() + source[end:]
            if end and parses(changed):
                line = source[:start].count(b"\n") + 1
                found[start, end, after] = Mutant(file, line, start, end, source[start:end].decode(), after)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.after))


def parses(source: bytes) -> bool:
    """Whether this is Python."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def tests_of(root: Path, file: str) -> tuple[list[str], list[str]]:
    """A module's doctests and test files of its name, and the others that import it, by their paths under the root."""
    module, stem = file.removesuffix(".py").replace("/", "."), Path(file).stem
    package, _, name = module.rpartition(".")
    plain, member = re.escape(module), rf"{re.escape(package)} import.*\b{name}\b"
    imported = re.compile(rf"from {plain} import|import {plain}\b|from {member}")
    files = sorted((root / "tests").rglob("test_*.py"))
    own = [path for path in files if path.stem == f"test_{stem}" and Path(file).parts[0] in path.parts]
    others = [path for path in files if path not in own and imported.search(path.read_text())]
    doctests = [file] if ">>> " in (root / file).read_text() else []
    return [*doctests, *(str(path.relative_to(root)) for path in own)], [str(path.relative_to(root)) for path in others]


class Watch:
    """A plugin of pytest that notes which functions of some files each passing test calls, and how long it takes.

    What a fixture calls counts for every test of its file.
    """

    def __init__(self, tree: Path, files: Sequence[str]) -> None:
        self.names = {str(tree / file): file for file in files}
        self.seen: set[str] = set()
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self.shared: set[str] = set()
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and (file := self.names.get(frame.f_code.co_filename)):
            self.seen.add(f"{file}:{frame.f_code.co_firstlineno}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call":
            self.shared |= self.seen
        elif report.outcome == "passed":
            self.tests[report.nodeid] = (round(report.duration, 2), sorted(self.seen))
        self.seen = set()


def not_copied(folder: str, names: list[str]) -> set[str]:
    """What a copy of the tree does without: caches anywhere, and at the top the runs that a user measured."""
    return {*NOT_SOURCE(folder, names), *({"runs", "shared"} & set(names) if Path(folder) == ROOT else ())}


def run_tests(tree: Path, tests: Sequence[str], limit: float, watched: Sequence[str] = ()) -> tuple[str, str, float]:
    """Run tests in a fork, which finds the heavy libraries imported: status, first failing test, seconds.

    Where files are watched, the tests' calls into them are written to calls.json in the tree.
    """
    shutil.rmtree(tree / ".hypothesis", ignore_errors=True)  # examples that killed an earlier mutant
    log, start = tree / "mutant.log", time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(tree)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, HERE))]
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        plugins = [Watch(tree, watched)] if watched else []
        first = [] if watched else ["-x"]
        code = pytest.main([*first, "-q", "--tb=no", "-rfE", *QUIET, "--rootdir", str(tree), *tests], plugins)
        for plugin in plugins:
            (tree / "calls.json").write_text(json.dumps({"tests": plugin.tests, "shared": sorted(plugin.shared)}))
        sys.stdout.flush()
        os._exit(int(code))
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - start < limit:
        time.sleep(0.02)
    seconds = round(time.monotonic() - start, 1)
    if ended[0] == 0:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout", "", seconds
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return ("survived" if ended[1] == 0 else "killed"), found[1] if found else "", seconds


def calls_of(tree: Path, file: str, watched: Sequence[str], folder: Path) -> dict[str, Any]:
    """What the tests of a file call, from the folder of an earlier run if it is there."""
    kept = folder / (file.replace("/", "+") + ".json")
    if not kept.exists():
        status, by, seconds = run_tests(tree, [file], 900, watched)
        print(f"{file}: {seconds} s" + (f", {by} fails on the true source" if status == "killed" else ""), flush=True)
        if not (tree / "calls.json").exists() or not json.loads((tree / "calls.json").read_text())["tests"]:
            raise SystemExit(
                f"no test of {file} passes on the true source:\n{(tree / 'mutant.log').read_text()[-2000:]}"
            )
        kept.write_bytes((tree / "calls.json").read_bytes())
        (tree / "calls.json").unlink(missing_ok=True)
    return json.loads(kept.read_text())


def function_at(tree: ast.Module, line: int) -> int:
    """First line of the innermost function that holds a line, decorators included; 0 outside of any."""
    starts = {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node.end_lineno or 0
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    return max((start for start, end in starts.items() if start <= line <= end), default=0)


def choose_tests(mutant: Mutant, source: str, files: Sequence[str], calls: dict[str, Any], most: float) -> list[str]:
    """The tests that call the mutant's function, or all of its module's outside of one: in the order of the files."""
    tree = ast.parse(source)
    function, chosen = function_at(tree, mutant.line), []
    for file in files:
        found = calls[file]

        def calls_it(names: Sequence[str]) -> bool:
            places = (name.rpartition(":") for name in names)
            return any(at == mutant.file and function_at(tree, int(line)) == function for at, _, line in places)

        every = function == 0 or calls_it(found.get("shared", ()))
        own = {test: seconds for test, (seconds, names) in found["tests"].items() if every or calls_it(names)}
        chosen += [test for test in sorted(own, key=own.__getitem__) if own[test] <= most]
    return chosen


def judge(tree: Path, mutant: Mutant, tests: Sequence[str]) -> Mutant:
    """Plant a mutant, run its tests until one fails, and take it out again."""
    path = tree / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    forget(path)
    status, by, seconds = run_tests(tree, tests, 600) if tests else ("survived", "", 0.0)
    path.write_bytes(source)
    forget(path)
    return replace(mutant, status=status, by=by, seconds=seconds)


def forget(path: Path) -> None:
    """Remove a module's bytecode: Python compares whole seconds and sizes only, and mutants differ in neither."""
    for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
        stale.unlink()


def main() -> None:
    """Draw mutants, judge each, and print how many were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", nargs="+", required=True, help="source files, or file.py:function,function")
    parser.add_argument("--n", type=int, default=100, help="mutants to draw; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a copy of the tree")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="what it holds is not judged again")
    parser.add_argument("--tests", nargs="*", help="test files beside the module's own; by default all that import it")
    parser.add_argument("--most", type=float, default=60.0, help="seconds beyond which a test is left out")
    options = parser.parse_args()
    chosen = []
    for spec in sorted(options.paths):
        file, _, functions = spec.partition(":")
        chosen += mutants_of(file, (ROOT / file).read_bytes(), set(functions.split(",")) if functions else None)
    n_all = len(chosen)
    random.Random(options.seed).shuffle(chosen)
    chosen = [m for m in chosen[: options.n or None] if m.before != m.after]  # half of 0.0 is no mutant
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    judged = {(m["file"], m["start"], m["end"], m["after"]) for m in done}
    left = [m for m in chosen if (m.file, m.start, m.end, m.after) not in judged]
    print(f"{n_all} mutants possible, {len(chosen)} drawn by seed {options.seed}, {len(left)} to judge", flush=True)
    for name in (*THIRD_PARTY, *(HEAVY if any("probes/" in m.file for m in left) else ())):
        importlib.import_module(name)
    trees = [Path(tempfile.mkdtemp(prefix="mutants-")) / "tree" for _ in range(options.jobs)]
    for tree in trees:
        shutil.copytree(ROOT, tree, ignore=not_copied)
    files = {}
    for file in {m.file for m in left}:
        own, importing = tests_of(ROOT, file)
        files[file] = [*own, *(name for name in options.tests or importing if name not in own)]
    folder, watched = options.out.with_suffix(".calls"), sorted({spec.partition(":")[0] for spec in options.paths})
    folder.mkdir(exist_ok=True)
    named = sorted({name for names in files.values() for name in names})
    calls = {name: calls_of(trees[0], name, watched, folder) for name in named}
    workers = []
    for number, tree in enumerate(trees):
        workers.append(os.fork())
        if workers[-1] == 0:
            for mutant in left[number :: options.jobs]:
                source = (ROOT / mutant.file).read_text()
                tests = choose_tests(mutant, source, files[mutant.file], calls, options.most)
                line = json.dumps(asdict(judge(tree, mutant, tests)))
                with options.out.open("a") as out:
                    out.write(line + "\n")
            os._exit(0)
    for worker in workers:
        os.waitpid(worker, 0)
    for tree in trees:
        shutil.rmtree(tree.parent)
    found = [json.loads(line)["status"] for line in options.out.read_text().splitlines()]
    print(f"{len(found)} judged: " + ", ".join(f"{found.count(s)} {s}" for s in ("killed", "timeout", "survived")))


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

if __name__ == "__main__":
    main()
