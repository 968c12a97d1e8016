"""What is measured: questions about pictures, the files that they are read from, and known benchmarks."""

from typing import TYPE_CHECKING

from vlm_horizon.lazy import lazy_names

if TYPE_CHECKING:
    from probes.data.readers import SampleStream, read_samples
    from probes.data.samples import Sample, SampleError
    from probes.data.tasks import Task, find_task
    from vlm_horizon.shipped import data_path
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Sample",
    "SampleError",
    "SampleStream",
    "Task",
    "data_path",
    "find_task",
    "read_samples",
]
