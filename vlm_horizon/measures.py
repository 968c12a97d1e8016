"""What is measured on one sample at a time, from the states of one forward pass."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from probes.measures.entropy import matrix_entropy, matrix_spectrum, token_entropy
    from probes.measures.generation import generate_answer
    from probes.measures.integrated import integrated_information
    from probes.measures.single import removal_curve, token_information
    from probes.replay.capture import capture
    from vlm_horizon.workflows.adaptive import count_replays
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "capture",
    "count_replays",
    "generate_answer",
    "integrated_information",
    "matrix_entropy",
    "matrix_spectrum",
    "removal_curve",
    "token_entropy",
    "token_information",
]
