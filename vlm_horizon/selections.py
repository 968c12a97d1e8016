"""Which samples of a run a verdict rests on."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from analyses.curves.selections import Selection, exclusions, select_samples
    from analyses.curves.target_shares import target_shares
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Selection",
    "exclusions",
    "select_samples",
    "target_shares",
]
