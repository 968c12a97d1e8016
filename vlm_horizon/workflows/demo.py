"""The demonstration: the shipped models on the shipped sets, from weights to figures and a few honest sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from analyses.runs import STREAMS, Run
from vlm_horizon.shipped import data_path

MODELS = ("tiny-8", "tiny-12")
SETS = ("ocr", "vqa")
TOKEN_SAMPLES = 100  # of each task; with both models the demo then stays well under its six minutes on two cores


@dataclass(frozen=True)
class Demo:
    """The results of the demonstration.

    Attributes:
        runs: one run for each model.
        figures: the files of the figures.
        sentences: the conclusions from the runs.
    """

    runs: list[Run]
    figures: list[Path]
    sentences: list[str]


def run_demo(
    out: str | Path = "runs/demo",
    *,
    token_samples: int = TOKEN_SAMPLES,
    limit: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Demo:
    """Measure both demo models on both sample sets, conclude and draw. Resumes where it was interrupted.

    Args:
        out: the directory of the two runs and the figures.
        token_samples: the number of samples of each task that also get token grids.
        limit: the largest number of samples of each set; by default all.
        progress: whether progress is shown on standard error.
        say: the function that takes the lines on what is done, one at a time.

    Returns:
        The runs, the figures and the sentences; runs and figures are in `out`.
    """
    import torch

    from analyses.reports.summary import summarize
    from figures.paper import save_figures
    from probes.data.readers import read_samples
    from probes.loading.loading import load_model
    from probes.sweeps.sweep import run

    out = Path(out)
    files = [data_path("demo-samples", f"{name}.jsonl") for name in SETS]
    samples = [sample for file in files for sample in read_samples(file, limit=limit)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from two, and lose much where cores are shared
    runs = []
    try:
        for name in MODELS:
            model = load_model(data_path("demo-models", name))
            with_grids = min(token_samples, limit or token_samples)
            say(
                f"{name}: {len(samples)} samples, removals from {model.n_layers} layers and {len(STREAMS)} entropy "
                f"streams each; token grids on the first {with_grids} of each task"
            )
            runs.append(
                run(
                    model,
                    samples,
                    out / name,
                    streams=STREAMS,
                    token_samples=token_samples,
                    spectra=20,
                    progress=progress,
                    sources=[file.name for file in files],
                )
            )
    finally:
        torch.set_num_threads(threads)
    saved = save_figures(runs, out / "figures")
    for name, reason in saved.skipped.items():
        say(f"figure {name} was not drawn: {reason}")
    return Demo(runs, saved.written, summarize(runs))
