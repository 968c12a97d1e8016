"""Where visual tokens live and die with depth in a vision-language model.

The names in the order of the work; `help` of each says more:

- load: `load_model`, `check_model`; read: `read_samples`, `Sample`, `data_path` (what ships with the package)
- probe one sample: `capture`, `matrix_entropy`, `token_entropy`, `removal_curve`, `token_information`
- run over many: `estimate_cost`, `run`, `run_adaptive`, `load_run`, `run_demo`
- find: `select_samples`, `score_run`, `find_collapse_layer`, `find_horizon`, `summarize`
- compare and plan: `compare_horizons`, `compare_collapse_to_horizon`, `plan_samples`
- draw: `plot_x(result, ax=None)` for one panel and `figure_x(runs)` for a whole figure, where x is `entropy_curves`,
  `spectrum`, `token_information`, `removal_curves`, `horizon_comparison` or `token_heatmap`; `save_figures`

What goes wrong is a `HorizonError`, which says what to do. The classes that functions return, and more special
functions, have modules of their own: `samples`, `measures`, `engines`, `results`, `selections`, `verdicts`, `tables`,
`figures`. A name is imported at its first use: `import vlm_horizon as vh` pulls in no torch, and nor does anything that
concludes from a run or draws it.
"""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    import figures as figures
    from analyses.comparisons.compare import compare_horizons
    from analyses.comparisons.planning import plan_samples
    from analyses.curves.selections import select_samples
    from analyses.reports.summary import summarize
    from analyses.runs.reader import load_run
    from analyses.runs.schema import HorizonError
    from analyses.scores.scores import score_run
    from analyses.verdicts.agreement import compare_collapse_to_horizon
    from analyses.verdicts.collapse import find_collapse_layer
    from analyses.verdicts.horizon import find_horizon
    from figures.comparison import figure_horizon_comparison, plot_horizon_comparison
    from figures.entropy import figure_entropy_curves, figure_spectrum, plot_entropy_curves, plot_spectrum
    from figures.horizon import figure_removal_curves, plot_removal_curves
    from figures.information import figure_token_information, plot_token_information
    from figures.overlay import figure_token_heatmap, plot_token_heatmap
    from figures.overlay import window_boxes as window_boxes
    from figures.paper import save_figures
    from probes.cost.cost import estimate_cost
    from probes.data.readers import read_samples
    from probes.data.samples import Sample
    from probes.loading.check import check_model
    from probes.loading.loading import load_model
    from probes.measures.entropy import matrix_entropy, token_entropy
    from probes.measures.single import removal_curve, token_information
    from probes.replay.capture import capture
    from probes.sweeps.sweep import run
    from vlm_horizon import engines as engines
    from vlm_horizon import measures as measures
    from vlm_horizon import results as results
    from vlm_horizon import samples as samples
    from vlm_horizon import selections as selections
    from vlm_horizon import tables as tables
    from vlm_horizon import verdicts as verdicts

    # all names of these modules may be had from here too, as before they had a place of their own
    from vlm_horizon.measures import *  # noqa: F403
    from vlm_horizon.results import *  # noqa: F403
    from vlm_horizon.samples import *  # noqa: F403
    from vlm_horizon.selections import *  # noqa: F403
    from vlm_horizon.shipped import data_path
    from vlm_horizon.tables import *  # noqa: F403
    from vlm_horizon.verdicts import *  # noqa: F403
    from vlm_horizon.workflows.adaptive import run_adaptive
    from vlm_horizon.workflows.demo import run_demo
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [  # noqa: RUF022 (in the order of the work)
    # load a model, read samples
    "load_model",
    "check_model",
    "data_path",
    "read_samples",
    "Sample",
    # probe one sample
    "capture",
    "matrix_entropy",
    "token_entropy",
    "removal_curve",
    "token_information",
    # run
    "estimate_cost",
    "run",
    "run_adaptive",
    "load_run",
    "run_demo",
    # find
    "select_samples",
    "score_run",
    "find_collapse_layer",
    "find_horizon",
    "summarize",
    # compare, plan
    "compare_horizons",
    "compare_collapse_to_horizon",
    "plan_samples",
    # figures
    "plot_entropy_curves",
    "figure_entropy_curves",
    "plot_spectrum",
    "figure_spectrum",
    "plot_token_information",
    "figure_token_information",
    "plot_removal_curves",
    "figure_removal_curves",
    "plot_horizon_comparison",
    "figure_horizon_comparison",
    "plot_token_heatmap",
    "figure_token_heatmap",
    "save_figures",
    # what all of them raise
    "HorizonError",
]
