"""The public names exist, in the order of the work, are documented, and cost no torch until something is measured."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

import vlm_horizon as vh

PROMISED = {
    *("load_model", "read_samples", "capture", "matrix_entropy", "token_entropy", "removal_curve"),
    *("token_information", "run", "load_run", "find_collapse_layer", "find_horizon", "compare_horizons"),
}
MODULES = ("engines", "figures", "measures", "results", "samples", "selections", "tables", "verdicts")
# what the top level listed before it was put in the order of the work
EARLIER = """
    Agreement CollapseDetector CollapseLayer Comparison Cost CriterionVerdict Difference GateAgreement Generation
    Horizon HorizonDetector HorizonError InformationGrid IntegratedInformation JointCollapseLayer MeanSpectrum
    ModelAssociation ModelCheck ProbedModel Published PublishedNumbers RemovalCurve Replays Run RunConfig Sample
    SampleAssociation SampleError SamplePlan SampleStream Score Selection SplitEstimate Table TargetShare Task
    TokenGrids TokenInformation VisualStates capture check_model collapse_table compare_collapse_to_horizon
    compare_criteria compare_horizons correlate_half_depth correlate_models count_replays data_path difference_table
    estimate_cost exclusions figure_entropy_curves figure_horizon_comparison figure_removal_curves figure_spectrum
    figure_token_heatmap figure_token_information find_collapse_layer find_horizon find_task gate_agreement
    gather_information generate_answer horizon_table integrated_information joint_collapse_layer load_model
    load_published load_run matrix_entropy matrix_spectrum mean_spectra plan_samples plot_entropy_curves
    plot_horizon_comparison plot_removal_curves plot_spectrum plot_token_heatmap plot_token_information read_samples
    removal_curve render run run_adaptive run_demo sample_depths save_figures score_answer score_run select_samples
    split_estimates summarize target_shares to_csv to_record token_entropy token_information window_boxes
""".split()  # noqa: SIM905 (a list of so many would take a page)
FUNCTIONS = sorted(
    {value for name in EARLIER if inspect.isfunction(value := getattr(vh, name))}, key=lambda f: f.__name__
)


def loaded_after(code: str) -> set[str]:
    """Modules in a fresh interpreter after running code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_top_level_is_short_and_in_the_order_of_the_work():
    assert set(vh.__all__) >= PROMISED
    assert len(vh.__all__) == len(set(vh.__all__)) <= 38
    order = ["load_model", "read_samples", "capture", "run", "load_run", "find_horizon", "compare_horizons"]
    order += ["plan_samples", "plot_entropy_curves", "save_figures"]
    assert sorted(order, key=vh.__all__.index) == order


def test_the_guide_names_everything_in_the_same_order():
    """`help(vh)` begins with it; of figures it names the two forms and what they are drawn of."""
    guide = vh.__doc__
    drawings = [name for name in vh.__all__ if name.startswith(("plot_", "figure_"))]
    subjects = list(dict.fromkeys(name.partition("_")[2] for name in drawings))
    assert drawings == [f"{form}_{subject}" for subject in subjects for form in ("plot", "figure")]
    others = [name for name in vh.__all__ if name not in drawings]
    for names in (others[:-2], subjects, [*others[-2:], *sorted(MODULES)]):
        assert all(f"`{name}`" in guide for name in names)
    places = [guide.index(f"`{name}`") for name in vh.__all__ if name not in drawings]
    assert places[0] == min(places)
    assert len(guide.splitlines()) < 25


def test_listing_the_names_shows_nothing_else():
    assert dir(vh) == sorted([*vh.__all__, *MODULES])
    for module in MODULES:
        listed = [name for name in dir(getattr(vh, module)) if not name.startswith("_")]
        beside = ["comparison", "entropy", "horizon", "information", "overlay", "panels", "paper", "style"]
        assert [name for name in listed if module != "figures" or name not in beside] == sorted(
            getattr(vh, module).__all__
        )


@pytest.mark.parametrize("name", EARLIER)
def test_every_earlier_name_is_documented_and_has_a_place(name):
    value = getattr(vh, name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    places = [module for module in MODULES if name in getattr(vh, module).__all__]
    assert places or name in vh.__all__
    assert all(getattr(getattr(vh, module), name) is value for module in places)


def test_every_class_that_a_function_returns_is_a_result():
    assert {name for name in EARLIER if inspect.isclass(getattr(vh, name))} == {
        *vh.results.__all__,
        *("Sample", "SampleStream", "SampleError", "Task", "HorizonError", "Selection", "Table"),
        *("CollapseDetector", "HorizonDetector", "Published", "PublishedNumbers"),
    }


@pytest.mark.parametrize("module", MODULES)
def test_the_modules_say_what_they_are_for(module):
    assert inspect.getdoc(getattr(vh, module))


@pytest.mark.parametrize("name", vh.engines.__all__)
def test_engines_are_documented(name):
    assert inspect.getdoc(getattr(vh.engines, name))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_argument_is_documented(function):
    document = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters:
        assert argument in document, f"{function.__name__} does not say what {argument!r} is"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'vlm_horizon' has no attribute 'nothing'"):
        vh.nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'vlm_horizon\.results' has no attribute 'find_horizon'"):
        vh.results.find_horizon  # noqa: B018


# --- for type checkers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["", *(module for module in MODULES if module != "figures")])
def test_all_is_what_type_checkers_are_told(module):
    """Both lists stand in the file; `dir` and the imports at first use follow from the second."""
    public = getattr(vh, module) if module else vh
    blocks = [node for node in ast.parse(Path(public.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [alias.asname or alias.name for node in blocks[0].body for alias in node.names if alias.name != "*"]
    assert sorted(imports) == sorted([*public.__all__, *([] if module else [*MODULES, "window_boxes"])])


# --- what is imported when -------------------------------------------------------------------------------------------


def test_import_alone_pulls_in_no_torch():
    modules = loaded_after("import vlm_horizon")
    assert not {"torch", "transformers", "nnsight", "matplotlib", "numpy", "pandas"} & modules


def test_an_unknown_or_earlier_name_imports_no_more_than_it_needs():
    modules = loaded_after(
        "import vlm_horizon as vh; assert not hasattr(vh, 'nothing'); vh.results, vh.verdicts, vh.measures, vh.Horizon"
    )
    assert "analyses.verdicts.horizon" in modules
    assert not {"torch", "transformers", "nnsight", "matplotlib"} & modules
    assert not [name for name in modules if name.startswith("probes")]


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
