"""From the numbers of a run to layers, intervals and comparisons."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from analyses.comparisons.compare import compare_horizons
    from analyses.comparisons.covariates import correlate_half_depth
    from analyses.comparisons.planning import plan_samples
    from analyses.comparisons.scaling import correlate_models
    from analyses.curves.spectra import mean_spectra
    from analyses.reports.summary import summarize
    from analyses.scores.scorers import score_answer
    from analyses.scores.scores import score_run
    from analyses.verdicts.agreement import compare_collapse_to_horizon, joint_collapse_layer
    from analyses.verdicts.collapse import CollapseDetector, find_collapse_layer
    from analyses.verdicts.disagreement import compare_criteria
    from analyses.verdicts.first_order import gate_agreement
    from analyses.verdicts.held_out import split_estimates
    from analyses.verdicts.horizon import HorizonDetector, find_horizon
    from analyses.verdicts.single_curves import sample_depths
    from analyses.verdicts.token_information import gather_information
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CollapseDetector",
    "HorizonDetector",
    "compare_collapse_to_horizon",
    "compare_criteria",
    "compare_horizons",
    "correlate_half_depth",
    "correlate_models",
    "find_collapse_layer",
    "find_horizon",
    "gate_agreement",
    "gather_information",
    "joint_collapse_layer",
    "mean_spectra",
    "plan_samples",
    "sample_depths",
    "score_answer",
    "score_run",
    "split_estimates",
    "summarize",
]
