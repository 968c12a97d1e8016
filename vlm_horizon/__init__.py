"""Where visual tokens live and die with depth in a vision-language model.

`import vlm_horizon as vh` pulls in no torch; the first use of a name that measures does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "analyses.runs": ("HorizonError", "Run", "RunConfig", "TokenGrids", "load_run"),
    "analyses.collapse": ("CollapseDetector", "CollapseLayer", "find_collapse_layer"),
    "analyses.horizon": ("Horizon", "HorizonDetector", "find_horizon"),
    "analyses.compare": ("Comparison", "Difference", "compare_horizons"),
    "analyses.agreement": ("Agreement", "JointCollapseLayer", "compare_collapse_to_horizon", "joint_collapse_layer"),
    "analyses.disagreement": ("CriterionVerdict", "compare_criteria"),
    "analyses.single_curves": ("sample_depths",),
    "analyses.covariates": ("SampleAssociation", "correlate_half_depth"),
    "analyses.scaling": ("ModelAssociation", "correlate_models"),
    "analyses.selection": ("SplitEstimate", "split_estimates"),
    "analyses.planning": ("SamplePlan", "plan_samples"),
    "analyses.published": ("Published", "PublishedNumbers", "load_published"),
    "analyses.export": ("render", "to_csv"),
    "analyses.tables": ("Table", "collapse_table", "difference_table", "horizon_table", "to_record"),
    "analyses.spectra": ("MeanSpectrum", "mean_spectra"),
    "analyses.summary": ("summarize",),
    "figures.entropy": ("plot_entropy_curves", "figure_entropy_curves", "plot_spectrum", "figure_spectrum"),
    "figures.information": (
        "TokenInformation",
        "gather_information",
        "plot_token_information",
        "figure_token_information",
    ),
    "figures.horizon": ("plot_removal_curves", "figure_removal_curves"),
    "figures.comparison": ("plot_horizon_comparison", "figure_horizon_comparison"),
    "figures.overlay": ("window_boxes", "plot_token_heatmap", "figure_token_heatmap"),
    "figures.paper": ("save_figures",),
    "probes.models": ("ProbedModel", "load_model"),
    "probes.samples": ("Sample", "SampleError"),
    "probes.readers": ("SampleStream", "read_samples"),
    "probes.tasks": ("Task", "find_task"),
    "probes.capture": ("VisualStates", "capture"),
    "probes.entropy": ("matrix_entropy", "matrix_spectrum", "token_entropy"),
    "probes.information": ("InformationGrid", "RemovalCurve", "removal_curve", "token_information"),
    "probes.sweep": ("run",),
    "vlm_horizon.demo": ("data_path", "run_demo"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # spelled out for readers and type checkers; a test holds it to _NAMES
    "Agreement",
    "CollapseDetector",
    "CollapseLayer",
    "Comparison",
    "CriterionVerdict",
    "Difference",
    "Horizon",
    "HorizonDetector",
    "HorizonError",
    "InformationGrid",
    "JointCollapseLayer",
    "MeanSpectrum",
    "ModelAssociation",
    "ProbedModel",
    "Published",
    "PublishedNumbers",
    "RemovalCurve",
    "Run",
    "RunConfig",
    "Sample",
    "SampleAssociation",
    "SampleError",
    "SamplePlan",
    "SampleStream",
    "SplitEstimate",
    "Table",
    "Task",
    "TokenGrids",
    "TokenInformation",
    "VisualStates",
    "capture",
    "collapse_table",
    "compare_collapse_to_horizon",
    "compare_criteria",
    "compare_horizons",
    "correlate_half_depth",
    "correlate_models",
    "data_path",
    "difference_table",
    "figure_entropy_curves",
    "figure_horizon_comparison",
    "figure_removal_curves",
    "figure_spectrum",
    "figure_token_heatmap",
    "figure_token_information",
    "find_collapse_layer",
    "find_horizon",
    "find_task",
    "gather_information",
    "horizon_table",
    "joint_collapse_layer",
    "load_model",
    "load_published",
    "load_run",
    "matrix_entropy",
    "matrix_spectrum",
    "mean_spectra",
    "plan_samples",
    "plot_entropy_curves",
    "plot_horizon_comparison",
    "plot_removal_curves",
    "plot_spectrum",
    "plot_token_heatmap",
    "plot_token_information",
    "read_samples",
    "removal_curve",
    "render",
    "run",
    "run_demo",
    "sample_depths",
    "save_figures",
    "split_estimates",
    "summarize",
    "to_csv",
    "to_record",
    "token_entropy",
    "token_information",
    "window_boxes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
