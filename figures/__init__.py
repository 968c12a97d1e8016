"""Publication figures (matplotlib) of what `analyses` concludes; never torch, never a statistic of its own."""

from figures.comparison import figure_horizon_comparison, plot_horizon_comparison
from figures.entropy import figure_entropy_curves, figure_spectrum, plot_entropy_curves, plot_spectrum
from figures.horizon import figure_removal_curves, plot_removal_curves
from figures.information import figure_token_information, plot_token_information
from figures.overlay import figure_token_heatmap, plot_token_heatmap, window_boxes
from figures.paper import save_figures

__all__ = [
    "figure_entropy_curves",
    "figure_horizon_comparison",
    "figure_removal_curves",
    "figure_spectrum",
    "figure_token_heatmap",
    "figure_token_information",
    "plot_entropy_curves",
    "plot_horizon_comparison",
    "plot_removal_curves",
    "plot_spectrum",
    "plot_token_heatmap",
    "plot_token_information",
    "save_figures",
    "window_boxes",
]
