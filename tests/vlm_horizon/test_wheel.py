"""A wheel holds `vlm_horizon` and nothing beside it: imports are rewritten or refused, and the API runs from it."""

import json
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copy

import pytest

import vlm_horizon as vh

ROOT = Path(__file__).parents[2]
SITE = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]

_spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
hatch_build = module_from_spec(_spec)
_spec.loader.exec_module(hatch_build)

MODULES = frozenset(
    {
        *(
            "probes",
            "probes.models",
            "probes.data",
            "probes.data.samples",
            "probes.data.hub",
            "figures",
            "figures.paper",
        ),
        *("analyses", "analyses.runs", "analyses.runs.schema", "vlm_horizon", "vlm_horizon.demo"),
    }
)

REWRITTEN = {
    "from a module": ("from probes.models import X", "from vlm_horizon.probes.models import X"),
    "from a module at any depth": (
        "from probes.data.samples import X as Y, Z",
        "from vlm_horizon.probes.data.samples import X as Y, Z",
    ),
    "from a package": ("from probes.data import hub, samples", "from vlm_horizon.probes.data import hub, samples"),
    "from a folder": ("from figures import paper", "from vlm_horizon.figures import paper"),
    "everything": ("from probes.data import *", "from vlm_horizon.probes.data import *"),
    "under a name": ("import probes.data.hub as hub", "import vlm_horizon.probes.data.hub as hub"),
    "a folder under a name": ("import figures as drawing", "import vlm_horizon.figures as drawing"),
    "for its effects": ("import probes.data.hub", "import vlm_horizon.probes.data.hub"),
    "several": (
        "import json, probes.models as m, os, analyses.runs as r",
        "import json, vlm_horizon.probes.models as m, os, vlm_horizon.analyses.runs as r",
    ),
    "two on a line": (
        "import os; from probes import data; from analyses import runs",
        "import os; from vlm_horizon.probes import data; from vlm_horizon.analyses import runs",
    ),
    "on several lines": (
        "from analyses.runs import (  # from probes.models import X\n    A,\n    B,\n)",
        "from vlm_horizon.analyses.runs import (  # from probes.models import X\n    A,\n    B,\n)",
    ),
    "behind a backslash": ("from \\\n    probes.models import X", "from \\\n    vlm_horizon.probes.models import X"),
    "in a function": (
        "def f():\n    from probes.models import X\n    return X",
        "def f():\n    from vlm_horizon.probes.models import X\n    return X",
    ),
    "after a deeper block": (
        "def f():\n    if 1:\n        pass\n    from probes.models import X",
        "def f():\n    if 1:\n        pass\n    from vlm_horizon.probes.models import X",
    ),
    "for types only": (
        "if TYPE_CHECKING:\n    from probes.models import X",
        "if TYPE_CHECKING:\n    from vlm_horizon.probes.models import X",
    ),
    "after characters of several bytes": (
        "x = 'λ→∞'; from probes.models import X",
        "x = 'λ→∞'; from vlm_horizon.probes.models import X",
    ),
    "in an example": (
        '"""Say.\n\n    >>> from probes.models import (\n    ...     X,\n    ... )\n'
        '    >>> import figures.paper as p\n    """',
        '"""Say.\n\n    >>> from vlm_horizon.probes.models import (\n    ...     X,\n    ... )\n'
        '    >>> import vlm_horizon.figures.paper as p\n    """',
    ),
    "in an example on the first line": (
        'def f():\n    """>>> from probes import models"""',
        'def f():\n    """>>> from vlm_horizon.probes import models"""',
    ),
    "in an example of a raw docstring": (
        'r"""\\d\n>>> from probes.models import X; "probes.data"\n"""',
        'r"""\\d\n>>> from vlm_horizon.probes.models import X; "vlm_horizon.probes.data"\n"""',
    ),
    "a module in prose": (
        '"""See `probes.models.load` and analyses.runs.schema, not probes.parquet, '
        'probes/models or x.probes.models."""',
        '"""See `vlm_horizon.probes.models.load` and vlm_horizon.analyses.runs.schema, not probes.parquet, '
        'probes/models or x.probes.models."""',
    ),
    "a table of modules": (
        'T = {"probes.data.samples": ("Sample",), "vlm_horizon.demo": ("run",)}',
        'T = {"vlm_horizon.probes.data.samples": ("Sample",), "vlm_horizon.demo": ("run",)}',
    ),
    "a string in pieces": ("T = (r'probes.' 'models')", "T = (r'vlm_horizon.probes.' 'models')"),
    "a class by its path": (
        "T = 'probes.models:X', 'probes.models.X'",
        "T = 'vlm_horizon.probes.models:X', 'vlm_horizon.probes.models.X'",
    ),
    "a literal module": (
        "import_module('probes.models'); find_spec('figures')",
        "import_module('vlm_horizon.probes.models'); find_spec('vlm_horizon.figures')",
    ),
    "a literal anchor": (
        "import_module('.models', package='probes')",
        "import_module('.models', package='vlm_horizon.probes')",
    ),
}
UNCHANGED = {
    "relative imports": "from . import models\nfrom .data.hub import x\nfrom ..runs import y",
    "other packages": "import probes_of_others.x\nfrom figures_of_others import y\nfrom vlm_horizon.demo import z",
    "words": "T = row['probes'], out / 'figures', {'analyses': 1}, 'figures.pdf', 'probes.parquet', 'probes:models'",
    "bytes": "T = b'probes.models'",
    "names": "probes = []\nprobes.append(1)\nfigures.paper",
    "a message": "say(f'figures in {out}: see probes.models')",
    "a relative name in its own package": "import_module(f'{__name__}.hub'); import_module(_HOMES[name])",
}

REFUSED = {
    "a name that a wheel does not bind": ("import probes.models\n\nprobes.models.load()", 1, "binds 'probes'"),
    "the same in an example": (
        'x = 1\n"""\n>>> import figures.paper\n>>> figures.paper.draw()\n"""',
        3,
        "binds 'figures'",
    ),
    "a folder by its bare name": ("import json\nimport figures\nfigures.paper", 2, "import figures as ..."),
    "a module that is not there": ("\nfrom probes.modles import X", 2, "probes.modles, which is no module"),
    "one of vlm_horizon that is not there": ("from vlm_horizon.dmo import X", 1, "vlm_horizon.dmo, which is no module"),
    "a composed name": ("x = 1\nm = import_module('probes.' + name)", 2, "composed"),
    "a formatted name": ("m = import_module(f'{folder}.{name}')", 1, "composed at run time"),
    "a formatted name, imported later": ("name = f'probes.{room}'", 1, "composed of 'probes.'"),
    "a prefix": ("name = 'analyses.runs.'", 1, "composed of 'analyses.runs.'"),
    "a joined name": ("m = import_module('.'.join(parts))", 1, "composed at run time"),
    "the old import function": ("m = __import__('probes.models')", 1, "import_module"),
    "code in a string": ("run('-c', 'import json; from probes.models import X')", 1, "inside a string"),
    "code in a longer string": ("S = '''\nimport probes\n'''", 1, "inside a string"),
    "a module within an f-string": ("s = f\"{T['probes.models']}\"", 1, "inside an f-string"),
    "an example that is no Python": ('"""\n\n>>> from probes.models import\n"""', 3, "no Python"),
}


@pytest.mark.parametrize(("before", "after"), REWRITTEN.values(), ids=list(REWRITTEN))
def test_modules_that_move_are_named_where_they_are(before, after):
    assert hatch_build.rewrite(before, MODULES) == after
    compile(after, "after", "exec")


@pytest.mark.parametrize("code", UNCHANGED.values(), ids=list(UNCHANGED))
def test_what_names_no_module_that_moves_stays(code):
    assert hatch_build.rewrite(code, MODULES) == code


@pytest.mark.parametrize(("code", "line", "words"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_rewritten_is_refused_by_file_and_line(code, line, words):
    with pytest.raises(hatch_build.WheelError, match=re.escape(words)) as refusal:
        hatch_build.rewrite(code, MODULES, "probes/x.py")
    assert str(refusal.value).startswith(f"probes/x.py:{line}: ")


def test_rewriting_adds_the_name_of_the_package_and_nothing_else():
    """On the whole house: every line stays where it is, and without the added names it is the line before."""
    files = dict(hatch_build.shipped_files(ROOT))
    for path, content in files.items():
        source = ROOT / path if path.parts[0] in hatch_build.FOLDERS else ROOT / "vlm_horizon" / path
        bare = re.sub(rb"vlm_horizon\.(?=(probes|analyses|figures)\.?)", b"", content)
        assert bare == source.read_bytes(), path
    assert sum(content.count(b"from vlm_horizon.") for content in files.values()) > 300


def test_a_module_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "vlm_horizon").mkdir()
    (tmp_path / "vlm_horizon" / "figures.py").touch()
    with pytest.raises(hatch_build.WheelError, match=r"vlm_horizon/figures\.py: the folder figures is"):
        list(hatch_build.shipped_files(tmp_path))


def build(project: Path, out: Path, *targets: str) -> list[Path]:
    """Build with the backend of this environment, offline; the files in the order of the targets."""
    options = [option for target in targets for option in ("-t", target)]
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", out, *options], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [next(out.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[target])) for target in targets]


def run_isolated(wheel: Path, code: str, *arguments: str) -> str:
    """Run code from an unpacked wheel and the installed dependencies; an editable install's .pth is not read."""
    start = f"import sys; sys.path[:0] = [{str(wheel)!r}]; sys.path += {SITE!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + textwrap.dedent(code), *arguments],
        cwd=wheel,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(wheel: Path) -> dict[str, bytes]:
    """What a wheel holds."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


HOUSE = {
    "probes/__init__.py": '"""Probes."""',
    "probes/data/__init__.py": "from probes.data.samples import Sample\n\n__all__ = ['Sample']",
    "probes/data/samples.py": "from analyses.runs import UNIT\n\nclass Sample:\n    unit = UNIT",
    "probes/models/deep/__init__.py": "from probes.data import Sample",
    "probes/models/deep/er.py": "from ...data.samples import Sample\nfrom . import Sample as Same",
    "probes/models/deep/table.json": "{}",
    "analyses/__init__.py": "",
    "analyses/runs/__init__.py": "from analyses.runs.schema import UNIT",
    "analyses/runs/schema.py": "UNIT = 'nat'",
    "figures/build/dist.py": "import probes.models.deep.er as er",
    "vlm_horizon/__init__.py": (
        "from importlib import import_module\n\n_HOMES = {'Sample': 'probes.data'}\n\n\n"
        "def __getattr__(name):\n    return getattr(import_module(_HOMES[name]), name)"
    ),
    "vlm_horizon/.hidden.py": "",
    "vlm_horizon/__pycache__/old.py": "",
    "data/make/make.py": "from probes import data",
    "data/runs.json": "[]",
    "tests/test_x.py": "",
    "docs/guide.md": "",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A miniature of the repository with nested packages, some of them with the names of ignored folders."""
    root = tmp_path_factory.mktemp("house")
    for name, text in HOUSE.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in ("pyproject.toml", "hatch_build.py", ".gitignore", "LICENSE", "README.md"):
        copy(ROOT / name, root / name)
    return root


def test_packages_ship_at_any_depth_and_from_a_source_distribution_too(house, tmp_path):
    sdist, wheel = build(house, tmp_path / "first", "sdist", "wheel")
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    inside = {name for name in HOUSE if name.split("/")[0] in (*hatch_build.FOLDERS, "data")}
    assert names == {"vlm_horizon/__init__.py", *(f"vlm_horizon/{name}" for name in inside)}
    assert contents(wheel)["vlm_horizon/data/make/make.py"] == HOUSE["data/make/make.py"].encode()
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (again,) = build(next(tmp_path.glob("vlm_horizon-*")), tmp_path / "second", "wheel")
    assert contents(again) == contents(wheel)
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    code = """
        import vlm_horizon, vlm_horizon.figures.build.dist as dist
        from vlm_horizon.probes.models.deep.er import Same
        print(vlm_horizon.Sample is dist.er.Sample is Same, Same.unit, Same.__module__)
    """
    assert run_isolated(tmp_path / "unpacked", code).split() == ["True", "nat", "vlm_horizon.probes.data.samples"]


def test_an_editable_install_is_a_path_and_nothing_else(house, tmp_path):
    code = f"from hatchling.build import build_editable; print(build_editable({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=house, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    paths = {name: text for name, text in contents(wheel).items() if ".dist-info/" not in name}
    assert [(Path(name).suffix, text.decode()) for name, text in paths.items()] == [(".pth", str(house))]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this repository, unpacked."""
    out = tmp_path_factory.mktemp("wheel")
    (file,) = build(ROOT, out, "wheel")
    zipfile.ZipFile(file).extractall(out / "unpacked")
    return out / "unpacked"


def test_nothing_but_the_package_and_its_metadata_is_installed(wheel):
    package, metadata = sorted(path.name for path in wheel.iterdir())
    assert package == "vlm_horizon"
    assert re.fullmatch(r"vlm_horizon-[\d.]+\.dist-info", metadata)
    assert (wheel / metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "vlm-horizon = vlm_horizon.cli:main" in (wheel / metadata / "entry_points.txt").read_text()
    files = [file for folder in hatch_build.FOLDERS for file in (ROOT / folder).rglob("*.py")]
    repository = {file.relative_to(ROOT) for file in files}
    repository |= {file.relative_to(ROOT / package) for file in (ROOT / package).rglob("*.py")}
    shipped = {file.relative_to(wheel / package) for file in (wheel / package).rglob("*.py")}
    assert repository <= shipped
    assert {path.parts[0] for path in shipped - repository} == {"data"}


FROM_WHEEL = """
    import functools, json
    from importlib import import_module
    from importlib.util import find_spec

    import vlm_horizon as vh

    out, modules = sys.argv[1], json.loads(sys.argv[2])
    for module in modules:
        import_module(module)
    earlier = ("Horizon", "RemovalCurve", "window_boxes")
    homes = {name: getattr(vh, name).__module__ for name in (*vh.__all__, *earlier)}
    assert (vh.Horizon, vh.window_boxes) == (vh.results.Horizon, vh.figures.window_boxes)
    paper = vh.figures.paper
    short = {"names": ["token-heatmap"], "formats": ["png"], "widths": ["column"]}
    paper.save_figures = functools.partial(paper.save_figures, **short)
    demo = vh.run_demo(out, token_samples=1, limit=2, progress=False, say=lambda line: None)
    folders = [name for name in ("probes", "analyses", "figures") if name in sys.modules or find_spec(name)]
    counts = [[len(run.ok), len(run.token_rows())] for run in demo.runs]
    print(json.dumps([vh.__file__, homes, folders, counts, len(demo.figures), len(demo.sentences)]))
"""


def test_every_module_every_name_and_the_demo_work_from_a_wheel(wheel, tmp_path):
    files = [file for file in (wheel / "vlm_horizon").rglob("*.py") if file.relative_to(wheel).parts[1] != "data"]
    paths = [file.relative_to(wheel).with_suffix("") for file in files]
    modules = sorted(".".join(path.parts[:-1] if path.name == "__init__" else path.parts) for path in paths)
    assert {"vlm_horizon", "vlm_horizon.probes", "vlm_horizon.analyses.runs", "vlm_horizon.__main__"} <= set(modules)
    printed = run_isolated(wheel, FROM_WHEEL, str(tmp_path / "demo"), json.dumps(modules))
    place, homes, folders, counts, n_figures, n_sentences = json.loads(printed.splitlines()[-1])
    assert Path(place) == wheel / "vlm_horizon" / "__init__.py"
    assert folders == []
    assert sorted(homes) == sorted([*vh.__all__, "Horizon", "RemovalCurve", "window_boxes"])
    assert all(home.startswith("vlm_horizon.") for home in homes.values())
    assert counts == [[4, 2], [4, 2]]
    assert n_figures == 1
    assert n_sentences > 0


def test_the_command_line_runs_from_a_wheel(wheel):
    code = "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('vlm_horizon', run_name='__main__')"
    text = run_isolated(wheel, code)
    for command in ("demo", "run", "show", "compare", "figures"):
        assert re.search(rf"\b{command}\b", text)
