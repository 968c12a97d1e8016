"""Where visual tokens live and die with depth in a vision-language model.

`import vlm_horizon as vh` pulls in no torch; the first use of a name that measures does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "analyses.runs.schema": ("HorizonError",),
    "analyses.runs.reader": (
        "Run",
        "TokenGrids",
        "load_run",
    ),
    "analyses.runs.config": ("RunConfig",),
    "analyses.verdicts.collapse": (
        "CollapseDetector",
        "CollapseLayer",
        "find_collapse_layer",
    ),
    "analyses.verdicts.horizon": (
        "Horizon",
        "HorizonDetector",
        "find_horizon",
    ),
    "analyses.comparisons.compare": (
        "Comparison",
        "Difference",
        "compare_horizons",
    ),
    "analyses.verdicts.agreement": (
        "Agreement",
        "JointCollapseLayer",
        "compare_collapse_to_horizon",
        "joint_collapse_layer",
    ),
    "analyses.verdicts.disagreement": (
        "CriterionVerdict",
        "compare_criteria",
    ),
    "analyses.verdicts.single_curves": ("sample_depths",),
    "analyses.comparisons.covariates": (
        "SampleAssociation",
        "correlate_half_depth",
    ),
    "analyses.comparisons.scaling": (
        "ModelAssociation",
        "correlate_models",
    ),
    "analyses.verdicts.held_out": (
        "SplitEstimate",
        "split_estimates",
    ),
    "analyses.comparisons.planning": (
        "SamplePlan",
        "plan_samples",
    ),
    "analyses.reports.published": (
        "Published",
        "PublishedNumbers",
        "load_published",
    ),
    "analyses.reports.export": (
        "render",
        "to_csv",
    ),
    "analyses.reports.text": (
        "Table",
        "to_record",
    ),
    "analyses.reports.tables": (
        "collapse_table",
        "difference_table",
        "horizon_table",
    ),
    "analyses.scores.scorers": ("score_answer",),
    "analyses.scores.scores": (
        "Score",
        "score_run",
    ),
    "analyses.curves.selections": (
        "Selection",
        "exclusions",
        "select_samples",
    ),
    "analyses.curves.target_shares": (
        "TargetShare",
        "target_shares",
    ),
    "analyses.verdicts.first_order": (
        "GateAgreement",
        "gate_agreement",
    ),
    "analyses.curves.spectra": (
        "MeanSpectrum",
        "mean_spectra",
    ),
    "analyses.reports.summary": ("summarize",),
    "figures.entropy": (
        "plot_entropy_curves",
        "figure_entropy_curves",
        "plot_spectrum",
        "figure_spectrum",
    ),
    "analyses.verdicts.token_information": (
        "TokenInformation",
        "gather_information",
    ),
    "figures.information": (
        "plot_token_information",
        "figure_token_information",
    ),
    "figures.horizon": (
        "plot_removal_curves",
        "figure_removal_curves",
    ),
    "figures.comparison": (
        "plot_horizon_comparison",
        "figure_horizon_comparison",
    ),
    "figures.overlay": (
        "window_boxes",
        "plot_token_heatmap",
        "figure_token_heatmap",
    ),
    "figures.paper": ("save_figures",),
    "probes.models.probed": ("ProbedModel",),
    "probes.loading.loading": ("load_model",),
    "probes.data.samples": (
        "Sample",
        "SampleError",
    ),
    "probes.data.readers": (
        "SampleStream",
        "read_samples",
    ),
    "probes.data.tasks": (
        "Task",
        "find_task",
    ),
    "probes.replay.capture": (
        "VisualStates",
        "capture",
    ),
    "probes.measures.entropy": (
        "matrix_entropy",
        "matrix_spectrum",
        "token_entropy",
    ),
    "probes.measures.generation": (
        "Generation",
        "generate_answer",
    ),
    "probes.measures.information": (
        "InformationGrid",
        "RemovalCurve",
    ),
    "probes.measures.single": (
        "removal_curve",
        "token_information",
    ),
    "probes.cost.cost": (
        "Cost",
        "estimate_cost",
    ),
    "probes.loading.check": (
        "ModelCheck",
        "check_model",
    ),
    "probes.measures.integrated": (
        "IntegratedInformation",
        "integrated_information",
    ),
    "probes.sweeps.sweep": ("run",),
    "vlm_horizon.adaptive": (
        "Replays",
        "count_replays",
        "run_adaptive",
    ),
    "vlm_horizon.shipped": ("data_path",),
    "vlm_horizon.demo": ("run_demo",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # spelled out for readers and type checkers; a test holds it to _NAMES
    "Agreement",
    "CollapseDetector",
    "CollapseLayer",
    "Comparison",
    "Cost",
    "CriterionVerdict",
    "Difference",
    "GateAgreement",
    "Generation",
    "Horizon",
    "HorizonDetector",
    "HorizonError",
    "InformationGrid",
    "IntegratedInformation",
    "JointCollapseLayer",
    "MeanSpectrum",
    "ModelAssociation",
    "ModelCheck",
    "ProbedModel",
    "Published",
    "PublishedNumbers",
    "RemovalCurve",
    "Replays",
    "Run",
    "RunConfig",
    "Sample",
    "SampleAssociation",
    "SampleError",
    "SamplePlan",
    "SampleStream",
    "Score",
    "Selection",
    "SplitEstimate",
    "Table",
    "TargetShare",
    "Task",
    "TokenGrids",
    "TokenInformation",
    "VisualStates",
    "capture",
    "check_model",
    "collapse_table",
    "compare_collapse_to_horizon",
    "compare_criteria",
    "compare_horizons",
    "correlate_half_depth",
    "correlate_models",
    "count_replays",
    "data_path",
    "difference_table",
    "estimate_cost",
    "exclusions",
    "figure_entropy_curves",
    "figure_horizon_comparison",
    "figure_removal_curves",
    "figure_spectrum",
    "figure_token_heatmap",
    "figure_token_information",
    "find_collapse_layer",
    "find_horizon",
    "find_task",
    "gate_agreement",
    "gather_information",
    "generate_answer",
    "horizon_table",
    "integrated_information",
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
    "run_adaptive",
    "run_demo",
    "sample_depths",
    "save_figures",
    "score_answer",
    "score_run",
    "select_samples",
    "split_estimates",
    "summarize",
    "target_shares",
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
