"""Token grids only where they matter: removal curves at every layer first, then grids where these point.

A run with `token_layers="auto"` notes in its run.json which layers were chosen, so that it goes on after an
interruption as if there had been none. Verdicts come from `analyses`, measurements from `probes`; this loop stands
between the two, and what it knows is on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from analyses.arrays.depths import layer_words, settled_layer
from analyses.curves.effects import information_curves
from analyses.runs import PROBES, AdaptiveOptions, HorizonError, Run, SweepOptions
from analyses.runs.keywords import AdaptiveKeywords
from analyses.runs.signatures import takes_options
from analyses.verdicts.brackets import (
    Guide,
    default_budget,
    first_layers,
    layers_left,
    named_layers,
    next_layer,
    pilot_size,
)
from analyses.verdicts.horizon import Horizon, find_horizon

if TYPE_CHECKING:
    from probes.data.samples import Sample
    from probes.models.probed import ProbedModel
    from probes.sweeps.engines import Engine


@dataclass(frozen=True)
class Replays:
    """Numbers of ablations of token grids.

    Attributes:
        run: the number of ablations that were run, including those of coarse windows.
        all: the number that every window at every layer of the same samples would take.
    """

    run: int
    all: int


@dataclass(frozen=True)
class _Step:
    """What to measure next.

    Attributes:
        layers: the layers to add to the token grids of each task type.
        pilot: the rows to measure at every layer.
        words: the verdicts so far and the reason for this step, in words.
    """

    layers: dict[str, list[int]]
    pilot: list[int]
    words: str


@takes_options(AdaptiveOptions, without=("layers", "token_layers"))
def run_adaptive(
    model: ProbedModel,
    samples: Iterable[Sample],
    out: str | Path,
    *,
    engine: Engine | None = None,
    **options: Unpack[AdaptiveKeywords],
) -> Run:
    """Measure as `run` does, with token grids at few layers: those that bracket each task type's horizon.

    First everything but token grids, at every layer. Then, task type by task type: grids of a few pilot samples at
    every layer; grids of all samples at layer 0, where the pilot's effect is largest and from where on it is gone; and
    layer by layer those that close the bracket around the horizon by the criterion "information". What is left of the
    budget goes to the removal curve's horizon and half depth. Removal horizon and half depth are those of a full
    sweep, since they come from the same curves. The horizon by information is named only if the layer before it was
    measured too; that the effect is not larger, or back, at a layer that was skipped, is what the pilot suggests.

    The same call goes on where it was interrupted. Shards (`shard`) work too: what comes next depends on the rows of
    all, so each stops with a line when it is through with its own, and goes on when called again.

    Args:
        model: the model, as `load_model` returns it.
        samples: the samples, whose order fixes the row numbers; give the same ones to resume.
        out: the run directory, new or of the same configuration.
        engine: what runs the jobs of every sweep, as in `run`.
        options: of `run`, by name, except layers and token_layers.

    Returns:
        The run, read back.

    Raises:
        HorizonError: an argument is unusable, or `out` holds another configuration or other samples.
    """
    from probes.data.readers import SampleStream
    from probes.directory.writer import record_choice
    from probes.sweeps.sweep import run

    settings: dict[str, Any] = {**(samples.run_options if isinstance(samples, SampleStream) else {}), **options}
    samples = list(samples)
    budget = _budget(settings.pop("budget", None), model.n_layers)
    check_choosable(settings)
    request = SweepOptions(**settings)
    progress = request.progress
    while True:
        current = run(model, samples, out, engine=engine, **settings | {"token_layers": "auto"})
        settings["retry_failed"] = False  # once is enough
        samples = samples[: request.limit]
        grid_rows = _grid_rows(samples, request.token_samples)
        n_waiting = _of_other_shards(current, len(samples), grid_rows, request.shard)
        if n_waiting:
            _say(
                progress, f"{n_waiting} rows of other shards are still to come: give the same command again after them"
            )
            return current
        step = _next_step(current, grid_rows, budget)
        _say(progress, step.words)
        if not step.layers and not step.pilot:
            return current
        record_choice(out, layers=step.layers, pilot=step.pilot)


def count_replays(run: Run) -> Replays:
    """Return the number of ablations behind a run's token grids, and that of every window at every layer."""
    n_run = n_all = 0
    for context in run.config.contexts:
        for row in run.token_rows(context):
            grids = run.tokens(row, context=context)
            n_run += grids.replays
            n_all += len(grids.windows) * len(run.config.removal_layers)
    return Replays(n_run, n_all)


def spread_layers(n_layers: int, budget: int | None, options: dict[str, Any]) -> list[int]:
    """Return as many layers as a budget allows, evenly spread, which stand for those that a run will choose.

    Args:
        n_layers: the number of layers of the model.
        budget: the budget of `run_adaptive` in layers; None for its default.
        options: the options of `run`.

    Raises:
        HorizonError: there is nothing to choose.
    """
    check_choosable(options)
    return np.unique(np.linspace(0, n_layers - 1, _budget(budget, n_layers)).round().astype(int)).tolist()


def check_choosable(options: Mapping[str, Any]) -> None:
    """Raise HorizonError where the options of a run leave no layers to choose."""
    fixed = [name for name in ("layers", "token_layers") if options.get(name) is not None]
    if fixed:
        raise HorizonError(f"{' and '.join(fixed)} cannot be given where layers are chosen: leave out one or the other")
    absent = {"removal", "information"} - set(options.get("probes", PROBES))
    if absent:
        raise HorizonError(
            f"layers are chosen by removal curves for token grids, so the probe {' and '.join(sorted(absent))} is "
            "needed: add it, or name the layers"
        )


def _budget(budget: int | None, n_layers: int) -> int:
    """Return the budget in layers; raise HorizonError where it is unusable."""
    if budget is not None and not 1 <= budget <= n_layers:
        raise HorizonError(f"budget is {budget}; it must be 1 to {n_layers} layers")
    return default_budget(n_layers) if budget is None else budget


def _grid_rows(samples: Sequence[Sample], token_samples: int | None) -> set[int]:
    """Return the rows that get token grids: the first `token_samples` of each task, or all where that is None."""
    from probes.plans.jobs import placed

    return {row for row, place, _ in placed(samples) if token_samples is None or place < token_samples}


def _of_other_shards(run: Run, n_rows: int, grid_rows: set[int], shard: tuple[int, int]) -> int:
    """Return how many rows of other shards lack token grids at the layers chosen so far."""

    def lacks(row: int) -> bool:
        if row not in run.samples.index:
            return True
        record = run.samples.loc[row]
        layers = run.config.grid_layers(row, str(record["task_type"] or ""))
        if record["status"] != "ok" or row not in grid_rows or not layers:
            return False
        stored = run.token_layers(row)
        return bool(set(layers) - set(stored)) and (bool(stored) or "information" not in list(record["probes"]))

    return sum(lacks(row) for row in range(n_rows) if row % shard[1] != shard[0])


def _next_step(run: Run, grid_rows: set[int], budget: int) -> _Step:
    """Return the next step of a run, as it follows from the measurements on disk."""
    removal = {horizon.group["task_type"]: horizon for horizon in find_horizon(run, criterion="removal")}
    rows = {name: _rows_of(run, name, grid_rows) for name in removal}
    sizes = {name: pilot_size(len(rows[name]), run.config.n_layers, budget) for name in removal if rows[name]}
    if not sizes:
        return _Step({}, [], f"removal sweep done: {_verdicts(removal)}; no token grids are asked for")
    eligible = [name for name in sizes if removal[name].layer is not None]
    pilot = [row for name in eligible if "keep-one" in run.config.contexts for row in rows[name][: sizes[name]]]
    if not run.config.pilot_rows and not run.config.chosen_layers and pilot:
        words = f"removal sweep done: {_verdicts(removal)}; token grids at every layer on {len(pilot)} pilot samples"
        return _Step({}, pilot, words)
    information = {}
    if "keep-one" in run.config.contexts and run.config.chosen_layers:
        information = {horizon.group["task_type"]: horizon for horizon in find_horizon(run, criterion="information")}
    additions: dict[str, list[int]] = {}
    for name in sizes:
        n_pilot = len(set(rows[name]) & set(run.config.pilot_rows))
        bound = layers_left(len(rows[name]), n_pilot, run.config.n_layers, budget)
        layers = run.config.chosen_layers.get(name, [])
        additions[name] = _added(run, removal[name], information.get(name), layers, bound)
    additions = {name: layers for name, layers in additions.items() if layers}
    return _Step(additions, [], _words(run, removal, information, additions))


def _added(run: Run, removal: Horizon, information: Horizon | None, layers: list[int], bound: int) -> list[int]:
    """Return the layers to add in one task type; none where its horizon is settled or `bound` layers are chosen."""
    pilot = _pilot_guide(run, removal)
    if not layers:
        return first_layers(removal, pilot, bound)
    spare = [layer for layer in dict.fromkeys(named_layers(removal)) if layer not in layers]
    if information is None:
        return spare[: bound - len(layers)]
    guide = pilot or Guide(removal.layers, removal.effect, removal.layer or 0)
    following = next_layer(information, guide)
    return (spare if following is None else [following])[: max(0, bound - len(layers))]


def _pilot_guide(run: Run, removal: Horizon) -> Guide | None:
    """Return the mean magnitude of the information over the pilot samples of one task type, at every layer."""
    inside = run.samples["task_type"].fillna("") == removal.group["task_type"]
    rows = set(run.config.pilot_rows) & set(run.samples.index[inside])
    if not rows or "keep-one" not in run.config.contexts:
        return None
    pilot = information_curves(run, ("magnitude",))[0].of(sorted(rows))
    if not len(pilot.rows) or len(pilot.skipped):
        return None
    effect = np.nanmean(pilot.values, axis=0)
    horizon = settled_layer(effect, removal.detector.share * effect.max(), pilot.layers)
    return Guide(pilot.layers, effect, int(horizon))


def _rows_of(run: Run, task_type: str, grid_rows: set[int]) -> list[int]:
    """Return the rows of one task type that get token grids and have removal curves."""
    measured_rows = set(run.curves.loc[run.curves["target"] == run.config.targets[0], "row"])
    rows = run.ok.index[run.ok["task_type"].fillna("") == task_type]
    return [int(row) for row in rows if row in grid_rows and row in measured_rows]


def _words(
    run: Run, removal: dict[str, Horizon], information: dict[str, Horizon], additions: dict[str, list[int]]
) -> str:
    """Return in words the horizons so far and the next grids; at the end the replays spent and the open horizons."""
    verdict = f"by single windows' information {_verdicts(information)}" if information else "no keep-one grids"
    if additions:
        layers = {name: {*run.config.chosen_layers.get(name, []), *new} for name, new in additions.items()}
        planned = [
            f"{name or 'all'} token grids at {layer_words(np.array(sorted(cuts)))}" for name, cuts in layers.items()
        ]
        return f"{verdict if information else f'removal sweep done: {_verdicts(removal)}'}; {'; '.join(planned)}"
    count = count_replays(run)
    times = count.all / max(count.run, 1)
    grids = "first-order windows" if run.config.method == "gate" else "replays for token grids"
    work = f"{count.run} {grids}, {times:.1f} times fewer than at every layer"
    open_types = [name or "all" for name, horizon in information.items() if horizon.bracket is not None]
    open_ = (
        f"; the budget is used up with {', '.join(open_types)} open, a larger one goes on from here"
        if open_types
        else ""
    )
    return f"done: {_verdicts(removal)}; {verdict}; {work}{open_}"


def _verdicts(horizons: dict[str, Horizon]) -> str:
    """Return every group's horizon, its interval and its half depth, in a few words."""
    parts = []
    for name, horizon in horizons.items():
        if horizon.layer is None:
            parts.append(f"{name or 'all'} horizon none ({horizon.reason})")
            continue
        layer = "not before the end" if horizon.censored else horizon.layer
        ends = f" [{horizon.interval[0]}, {horizon.interval[1]}]" if horizon.interval else ""
        half = f", half depth {horizon.half_depth:.3g}" if horizon.half_depth is not None else ""
        parts.append(f"{name or 'all'} horizon {layer}{ends}{half}")
    return "; ".join(parts)


def _say(progress: bool, words: str) -> None:
    if progress:
        print(words, file=sys.stderr)
