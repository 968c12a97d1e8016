"""The classes that functions return: what they hold is in their attributes, with shape and unit."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from analyses.comparisons.compare import Comparison, Difference
    from analyses.comparisons.covariates import SampleAssociation
    from analyses.comparisons.planning import SamplePlan
    from analyses.comparisons.scaling import ModelAssociation
    from analyses.curves.spectra import MeanSpectrum
    from analyses.curves.target_shares import TargetShare
    from analyses.runs.config import RunConfig
    from analyses.runs.reader import Run, TokenGrids
    from analyses.scores.scores import Score
    from analyses.verdicts.agreement import Agreement, JointCollapseLayer
    from analyses.verdicts.collapse import CollapseLayer
    from analyses.verdicts.disagreement import CriterionVerdict
    from analyses.verdicts.first_order import GateAgreement
    from analyses.verdicts.held_out import SplitEstimate
    from analyses.verdicts.horizon import Horizon
    from analyses.verdicts.token_information import TokenInformation
    from probes.cost.cost import Cost
    from probes.loading.check import ModelCheck
    from probes.measures.generation import Generation
    from probes.measures.information import InformationGrid, RemovalCurve
    from probes.measures.integrated import IntegratedInformation
    from probes.models.probed import ProbedModel
    from probes.replay.capture import VisualStates
    from vlm_horizon.workflows.adaptive import Replays
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Agreement",
    "CollapseLayer",
    "Comparison",
    "Cost",
    "CriterionVerdict",
    "Difference",
    "GateAgreement",
    "Generation",
    "Horizon",
    "InformationGrid",
    "IntegratedInformation",
    "JointCollapseLayer",
    "MeanSpectrum",
    "ModelAssociation",
    "ModelCheck",
    "ProbedModel",
    "RemovalCurve",
    "Replays",
    "Run",
    "RunConfig",
    "SampleAssociation",
    "SamplePlan",
    "Score",
    "SplitEstimate",
    "TargetShare",
    "TokenGrids",
    "TokenInformation",
    "VisualStates",
]
