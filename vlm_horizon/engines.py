"""Who runs the jobs of a run, for the argument `engine` of `run` and `run_adaptive`."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from probes.sweeps.engines import Engine, InThreads, InTurn, Stages
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Engine",
    "InThreads",
    "InTurn",
    "Stages",
]
