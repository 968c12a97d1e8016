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
    "probes.samples": ("Sample", "SampleError", "read_samples"),
    "probes.capture": ("VisualStates", "capture"),
    "probes.entropy": ("matrix_entropy", "matrix_spectrum", "token_entropy"),
    "probes.information": ("InformationGrid", "RemovalCurve", "removal_curve", "token_information"),
    "probes.sweep": ("run",),
    "vlm_horizon.demo": ("data_path", "run_demo"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # spelled out for readers and type checkers; a test holds it to _NAMES
    "CollapseDetector",
    "CollapseLayer",
    "Comparison",
    "Difference",
    "Horizon",
    "HorizonDetector",
    "HorizonError",
    "InformationGrid",
    "MeanSpectrum",
    "ProbedModel",
    "RemovalCurve",
    "Run",
    "RunConfig",
    "Sample",
    "SampleError",
    "TokenGrids",
    "TokenInformation",
    "VisualStates",
    "capture",
    "compare_horizons",
    "data_path",
    "figure_entropy_curves",
    "figure_horizon_comparison",
    "figure_removal_curves",
    "figure_spectrum",
    "figure_token_heatmap",
    "figure_token_information",
    "find_collapse_layer",
    "find_horizon",
    "gather_information",
    "load_model",
    "load_run",
    "matrix_entropy",
    "matrix_spectrum",
    "mean_spectra",
    "plot_entropy_curves",
    "plot_horizon_comparison",
    "plot_removal_curves",
    "plot_spectrum",
    "plot_token_heatmap",
    "plot_token_information",
    "read_samples",
    "removal_curve",
    "run",
    "run_demo",
    "save_figures",
    "summarize",
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
