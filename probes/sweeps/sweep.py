"""Measure a stream of samples and write the run directory: capture once, measure everything, record what failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from analyses.runs import PROBES, HorizonError, Run, load_run
from probes.data.samples import Sample
from probes.directory.writer import RunWriter
from probes.models.probed import ProbedModel
from probes.plans.jobs import Chosen, Job, jobs_of
from probes.plans.options import RunOptions
from probes.plans.progress import RunProgress
from probes.sweeps.commits import Commits
from probes.sweeps.engines import Engine, InThreads, InTurn
from probes.sweeps.forecast import announce
from probes.sweeps.stages import SampleStages


def run(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    probes: Sequence[str] = PROBES,
    streams: Sequence[str] | None = None,
    targets: Sequence[str] = ("gold",),
    contexts: Sequence[str] = ("keep-one",),
    window: int | None = None,
    layers: Sequence[int] | None = None,
    kind: str = "delete",
    method: str = "exact",
    alpha: float = 1.0,
    center: bool = True,
    normalize_rows: bool = True,
    token_samples: int | None = None,
    gate_checks: int = 2,
    spectra: int = 0,
    prompt: str | None = None,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    batch_size: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    progress: bool = True,
    sources: Sequence[str] = (),
    overlap: bool = True,
    token_layers: Sequence[int] | str | None = None,
    coarse: int | None = None,
    max_windows: int | None = None,
    only_correct: bool = False,
    generate: int | None = None,
    with_ocr_tokens: bool | None = None,
    video: str | None = None,
    tokens: str = "visual",
    engine: Engine | None = None,
) -> Run:
    """Measure every sample and write `out`; samples already there are skipped, so the same call resumes.

    Args:
        model: as loaded.
        samples: their order fixes the row numbers; give the same to resume.
        out: the run directory, new or of the same configuration.
        probes: subset of entropy, removal, information.
        streams: of the entropies; `text:query`, `all:query` are of the prompt's text and of all its tokens. By default
            query, key and hidden, of `tokens`.
        targets: the first is the one that the samples table shows.
        contexts: of the token grids: keep-one, leave-one-out.
        window: side of their windows in tokens; 2 by default.
        layers: cuts of removals and token grids, 0..L-1; all by default. To have them chosen, see `run_adaptive`.
        kind: delete, zero or mean.
        method: of the token grids: "exact", or first order by "gate" (see `token_information`).
        alpha: Renyi order of the entropies.
        center: center tokens before the Gram matrix.
        normalize_rows: scale tokens to length 1 before it.
        token_samples: token grids for the first so many samples of each task only; all by default.
        gate_checks: with the method "gate", hold token grids of the first so many samples of each task against exact
            ones at up to four layers; what the estimates are worth on this model is then part of the run.
        spectra: keep eigenvalues of the first so many samples of each task.
        prompt: question template with `{question}`.
        limit: measure at most the first so many samples.
        shard: (i, n): only rows r with r % n == i, in parts of their own.
        batch_size: ablations at once; by default as many as fit a fixed number of rows.
        seed: recorded; nothing here is drawn at random.
        retry_failed: measure samples again that failed before.
        progress: show a progress bar on standard error.
        sources: where the samples came from, recorded.
        overlap: while the model is at work, read and encode the next samples and finish and write the last ones in
            two threads beside it; the results are the same without.
        token_layers: cuts of the token grids, some of `layers`; all of them by default. "auto": those that
            `run_adaptive` has recorded in `out` so far, none before it did.
        coarse: side of windows to measure first; smaller ones only inside those with an effect above the noise floor.
        max_windows: the smallest windows that are at most so many in a sample, instead of `window`.
        only_correct: exclude samples that the model answers wrong, after one forward pass and before all ablations;
            they are recorded and counted. Another population, hence another configuration; `select_samples` makes
            the same choice afterwards.
        generate: also let the model write out its answer, of at most so many tokens, for `score_run`. No measured
            value depends on it, so a later call can add it to a run that is there.
        with_ocr_tokens: prompts carry reference OCR tokens; by default as the samples say.
        video: how frames of videos were chosen, for example "8 frames"; by default as the first sample says.
        tokens: that removals and token grids take away: visual, text or all (see `removal_curve`). Runs of one model,
            revision and prompt can be compared (`compare_horizons` between "tokens") and drawn together.
        engine: what runs the jobs; by default this thread with two beside it, or alone where `overlap` is False. The
            results do not depend on it.

    Returns:
        The run, read back; `Run.failed` lists what could not be measured.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    options = RunOptions(
        probes=probes,
        streams=streams,
        targets=targets,
        contexts=contexts,
        window=window,
        layers=layers,
        kind=kind,
        method=method,
        alpha=alpha,
        center=center,
        normalize_rows=normalize_rows,
        token_samples=token_samples,
        gate_checks=gate_checks,
        spectra=spectra,
        prompt=prompt,
        limit=limit,
        shard=shard,
        batch_size=batch_size,
        seed=seed,
        sources=sources,
        token_layers=token_layers,
        coarse=coarse,
        max_windows=max_windows,
        only_correct=only_correct,
        generate=generate,
        with_ocr_tokens=with_ocr_tokens,
        video=video,
        tokens=tokens,
    )
    config, samples = options.config(model, samples)
    total = len(samples) if isinstance(samples, Sequence) else None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    chosen = Chosen(options, retry_failed)
    with RunWriter(out, config, shard=shard) as writer, RunProgress(total, enabled=progress) as bar:
        if progress:
            samples = announce(model, samples, writer, bar, chosen)
            if not writer.committed:
                bar.say(f"first prompt: {config.prompt_example!r}")
        jobs = jobs_of(islice(samples, limit), writer, bar, chosen)
        _sweep(jobs, SampleStages(model, writer.config), Commits(writer, bar), engine or default_engine(overlap))
    return load_run(out)


def default_engine(overlap: bool) -> Engine:
    """The engine of a run that names none: this thread, with two beside it where jobs may overlap."""
    return InThreads() if overlap else InTurn()


def _sweep(jobs: Iterator[Job], stages: SampleStages, commits: Commits, engine: Engine) -> None:
    """Have the engine run all jobs.

    Raises:
        HorizonError: it returned without an outcome of every job.
    """
    drawn = 0

    def counted() -> Iterator[Job]:
        nonlocal drawn
        for job in jobs:
            drawn += 1
            yield job

    engine.run(counted(), stages, commits.keep)
    if commits.kept != drawn:
        raise HorizonError(
            f"the engine {type(engine).__name__} gave {commits.kept} outcomes of {drawn} jobs: what it gave is kept; "
            "give the same call again for the rest, with another engine if this one stays short"
        )
