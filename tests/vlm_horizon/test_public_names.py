"""The public names exist, are documented, and cost no torch until something is measured."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

import vlm_horizon as vh

# what DESIGN promises by name
PROMISED = {
    *("load_model", "read_samples", "capture", "matrix_entropy", "token_entropy", "removal_curve"),
    *("token_information", "run", "load_run", "find_collapse_layer", "find_horizon", "compare_horizons"),
}


def loaded_after(code: str) -> set[str]:
    """Modules in a fresh interpreter after running code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_all_is_exactly_what_resolves():
    assert vh.__all__ == sorted(vh._HOMES)
    assert set(vh.__all__) >= PROMISED
    assert set(vh.__all__) <= set(dir(vh))


@pytest.mark.parametrize("name", vh.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(vh, name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    assert value.__module__ == vh._HOMES[name]


@pytest.mark.parametrize("name", [name for name in vh.__all__ if inspect.isfunction(getattr(vh, name))])
def test_every_argument_is_documented(name):
    document = inspect.getdoc(getattr(vh, name))
    for argument in inspect.signature(getattr(vh, name)).parameters:
        assert argument in document, f"{name} does not say what {argument!r} is"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vh.nothing  # noqa: B018


def test_import_alone_pulls_in_no_torch():
    modules = loaded_after("import vlm_horizon")
    assert not {"torch", "transformers", "nnsight", "matplotlib"} & modules


def test_concluding_and_drawing_leave_torch_out(tmp_path):
    """Import, load, find, compare, plot: the whole numpy side of the house."""
    write_run(
        tmp_path / "run",
        effects={name: np.tile(fade_curve(8, half), (6, 1)) for name, half in (("ocr", 6), ("vqa", 3))},
        entropies={"query": {name: np.tile(step_curve(8, 2), (6, 1)) for name in ("ocr", "vqa")}},
    )
    code = f"""
import vlm_horizon as vh
run = vh.load_run({str(tmp_path / "run")!r})
vh.find_collapse_layer(run)
horizons = vh.find_horizon(run)
vh.compare_horizons(run)
vh.plot_removal_curves(horizons)
vh.summarize(run)
"""
    modules = loaded_after(code)
    assert {"analyses.verdicts.horizon", "figures.horizon", "matplotlib"} <= modules
    assert not {"torch", "transformers", "nnsight"} & modules
    assert not [name for name in modules if name.startswith("probes")]


def test_reading_samples_leaves_torch_out():
    """Benchmarks can be looked at where no model is."""
    path = vh.data_path("demo-samples", "ocr.jsonl")
    modules = loaded_after(f"import vlm_horizon as vh; assert next(vh.read_samples({str(path)!r})).load_image()")
    assert "probes.data.readers" in modules
    assert not {"torch", "transformers", "nnsight", "matplotlib"} & modules


def test_analyses_and_figures_import_nothing_of_the_torch_side():
    modules = loaded_after(
        "import analyses, figures, pkgutil, importlib\n"
        "for package in (analyses, figures):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        importlib.import_module(module.name)"
    )
    assert {"analyses.comparisons.compare", "analyses.reports.tables", "figures.paper"} <= modules
    assert not {"torch", "transformers", "nnsight", "probes"} & modules


def test_probes_take_only_the_run_directory_from_analyses():
    modules = loaded_after("import probes.sweeps.sweep, probes.cost.cost, probes.loading.loading")
    rooms = {name.split(".")[1] for name in modules if name.startswith("analyses.")}
    assert rooms == {"runs"}
    assert not [name for name in modules if name.startswith(("figures", "matplotlib"))]
