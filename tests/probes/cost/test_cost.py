"""What a run is said to take is what it takes: replays as they run, time by the work done, memory and disk by bytes."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from demo_data import demo_model, demo_samples
from planted_models import cut_from
from random_models import random_image, random_llava, random_processor
from torch.utils.flop_counter import FlopCounterMode

import probes.measures.calls
import probes.measures.noise
import probes.plans.jobs
import probes.replay.replay
import probes.sweeps.forecast
import probes.sweeps.measure
import probes.sweeps.sweep
import vlm_horizon as vh
from analyses.runs import RunOptions
from probes.cost.calibration import time_parts
from probes.cost.memory import resident_bytes
from probes.cost.meters import memory_parts, part_work
from probes.cost.operations import decoder_weights, make_batches, replay_work
from probes.cost.units import duration_text
from probes.cost.workload import meet
from probes.directory.writer import Record
from probes.loading.loading import load_model
from probes.measures.calls import ReplayCall
from probes.measures.information import target_log_p
from probes.models.grids import tile_windows
from probes.models.prompts import encode, removable_windows
from probes.parts.part import Outline, Part, Results, outline_of
from probes.plans.options import run_config
from probes.plans.plans import Plan, parts_of
from probes.replay.ablations import Ablations

GATE, COARSE = {"method": "gate"}, {"coarse": 2}
OPTIONS = {"streams": ("query", "hidden"), "window": 4, "layers": (0, 5)}


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture
def run_replays(monkeypatch) -> list[int]:
    """How many ablations each call of `replay` gets."""
    counts: list[int] = []
    original = probes.measures.calls.replay

    def counting(model, captured, ablations, **how):
        counts.append(len(ablations))
        return original(model, captured, ablations, **how)

    for module in (probes.measures.calls, probes.measures.noise):
        monkeypatch.setattr(module, "replay", counting)
    return counts


class Announced:
    """What runs said that they take, and what those before them took."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.taken: list[int] = []

    def __call__(self) -> int:
        return self.counts[-1]


@pytest.fixture
def announced(monkeypatch, run_replays):
    """Replays that the first line of the last run names."""
    original, found = probes.sweeps.forecast.announcement, Announced()

    def listening(*arguments, **how):
        found.taken.append(sum(run_replays))
        said = original(*arguments, **how)
        found.counts.append(int(re.search(r"([\d,]+) replays", said)[1].replace(",", "")))
        run_replays.clear()  # the calibration's
        return said

    monkeypatch.setattr(probes.sweeps.forecast, "announcement", listening)
    return found


# --- replays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"contexts": ("keep-one", "leave-one-out"), "token_samples": 1},
        {"kind": "zero", "token_samples": 0},
        {"probes": ("removal",), "batch_size": 3},
        {"tokens": "text", "streams": None, "contexts": ("leave-one-out",)},
    ],
)
def test_replays_are_those_that_the_run_makes(model, run_replays, tmp_path, options):
    samples = demo_samples(2)
    cost = vh.estimate_cost(model, samples, **OPTIONS | options)
    run_replays.clear()
    vh.run(model, samples, tmp_path / "run", progress=False, **OPTIONS | options)
    assert cost.total_replays == sum(run_replays)
    assert cost.replays["removal"] == 2 * len(samples)


def test_coarse_windows_are_counted_for_sure_and_fine_ones_at_most(run_replays, tmp_path):
    """Of a model that reads no visual token from layer 2 on: there coarse windows show nothing."""
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",), task="noise")
    plain = load_model(random_llava(34), processor=random_processor(), dtype="float64")
    visual = encode(plain, sample).visual.tolist()
    planted = load_model(cut_from(random_llava(34), 2, visual), processor=random_processor(), dtype="float64")
    contexts = ("keep-one", "leave-one-out")
    fixed = {"probes": ("removal", "information"), "contexts": contexts, "window": 2, "coarse": 4}
    cost = vh.estimate_cost(planted, sample, layers=(0, 3), **fixed)
    for context in contexts:
        assert cost.replays[f"{context}, coarse"] == 2 * 4  # cuts, windows
        assert cost.replays[context] == 2 * 9
    run_replays.clear()
    run = vh.run(planted, [sample], tmp_path / "run", layers=(0, 3), progress=False, **fixed)
    spared = sum(int(np.isnan(run.tokens("noise", context=context).log_p).sum()) for context in contexts)
    assert spared >= 2 * 9
    assert cost.total_replays == sum(run_replays) + spared


@pytest.mark.parametrize("checks", [0, 1])
def test_estimates_replay_for_their_checks_alone(model, run_replays, tmp_path, checks):
    """Of one sample of each task, at up to four of the cuts."""
    samples, contexts = demo_samples(2), ("keep-one", "leave-one-out")
    fixed = {"probes": ("removal", "information"), "contexts": contexts, "window": 4, "method": "gate"}
    cost = vh.estimate_cost(model, samples, layers=(0, 5), gate_checks=checks, **fixed)
    run_replays.clear()
    vh.run(model, samples, tmp_path / "run", layers=(0, 5), progress=False, gate_checks=checks, **fixed)
    assert cost.total_replays == sum(run_replays)
    for context in contexts:
        assert cost.replays[f"gate {context}"] == 0 < cost.operations[f"gate {context}"]
        assert cost.replays.get(f"{context} check", 0) == checks * 2 * 2 * 4
        assert (f"{context} check" in cost.seconds) == bool(checks)


def test_coarse_windows_of_text_are_those_of_the_text(model, tmp_path):
    """Counted and written: not those of the picture's grids, but of stretches of text, which windows never cross."""
    sample, how = demo_samples(1, "ocr")[0], {"tokens": "text", "window": 1, "coarse": 4, "layers": (5,)}
    prompt = encode(model, sample, tokens="text")
    assert len(removable_windows(prompt, 4)) != len(tile_windows(prompt.grids, 4))
    cost = vh.estimate_cost(model, sample, **how)
    grids = vh.run(model, [sample], tmp_path / "run", progress=False, **how).tokens(0)
    assert cost.replays["keep-one, coarse"] == grids.coarse.size == len(removable_windows(prompt, 4))
    assert cost.replays["keep-one"] == grids.log_p.size
    config, _ = run_config(RunOptions(**how), model, [sample])
    every = parts_of(config, Plan(tokens=True, spectra=False, layers=(5,)))
    arrays = outline_of(every, meet(model, sample, config).case).tokens
    assert arrays["gold/keep-one/coarse"] == grids.coarse.shape


@pytest.fixture
def run_work(monkeypatch):
    """Ablations that `replay` runs, and rows of tokens that go through the layers for them, layer by layer."""
    work = {"replays": 0, "rows": 0}
    original, layer = probes.measures.calls.replay, probes.replay.replay.run_layer

    def counting(model, captured, ablations, **how):
        for indices, log_probs in original(model, captured, ablations, **how):
            work["replays"] += len(indices)
            yield indices, log_probs

    def counting_layer(model, capture, rows, states, k, part=None):
        if k < model.n_layers - 1:  # the last layer is counted below, whether or not it runs whole
            work["rows"] += states.shape[0] * states.shape[1]
        return layer(model, capture, rows, states, k, part)

    last = probes.replay.replay._run_last_layer

    def counting_last(model, capture, rows, states, part):
        work["rows"] += states.shape[0] * states.shape[1]
        return last(model, capture, rows, states, part)

    for module in (probes.measures.calls, probes.measures.noise):
        monkeypatch.setattr(module, "replay", counting)
    monkeypatch.setattr(probes.replay.replay, "run_layer", counting_layer)
    monkeypatch.setattr(probes.replay.replay, "_run_last_layer", counting_last)
    return work


def option_combinations() -> list[dict]:
    """Every choice of what decides which ablations there are, each with every other at least once."""
    choices = {
        "tokens": ("visual", "text", "all"),
        "windows": ({"window": 3}, {"max_windows": 8}, {"window": 1, "coarse": 3}, {"method": "gate"}),
        "contexts": (("keep-one",), ("leave-one-out",), ("keep-one", "leave-one-out")),
        "kind": ("delete", "mean"),
        "batch_size": (None, 5),
        "token_layers": (None, (2, 7)),
    }
    random, names = np.random.default_rng(0), list(choices)
    found = [{name: options[n % len(options)] for name, options in choices.items()} for n in range(12)]
    found += [{name: options[random.integers(len(options))] for name, options in choices.items()} for _ in range(4)]
    assert all(len({repr(one[name]) for one in found}) == len(choices[name]) for name in names)
    return [{**{key: value for key, value in one.items() if key != "windows"}, **one["windows"]} for one in found]


@pytest.mark.parametrize("options", option_combinations(), ids=repr)
def test_what_is_counted_is_what_runs(model, run_work, tmp_path, options):
    """Ablations and rows of every part but the noise floor's rows, whose layers lie in the data; and what is left.

    Coarse windows, one of whose effects is above any floor here, are counted for sure, fine ones at most.
    """
    if options.get("method") == "gate":
        options = options | {"tokens": "visual", "kind": "delete"}
    sample, how = demo_samples(1, "vqa")[0], {"layers": (2, 5, 7), "streams": ("query",), **options}
    config, _ = run_config(RunOptions(**how), model, [sample])
    case = meet(model, sample, config).case
    results = Results(Record({}))
    every = parts_of(config, Plan(tokens=True, spectra=True, gate_check=True, layers=config.grid_layers()))
    for part in every:
        calls = [call for call in part.calls(case) if isinstance(call, ReplayCall)]
        batches = [
            make_batches(model, case.captured, call.ablations, batch_size=call.batch_size, recompute=call.recompute)
            for call in calls
        ]
        counted = replay_work(decoder_weights(model), [batch for made in batches for batch in made], 1)
        run_work.update(replays=0, rows=0)
        results = part.run(case, results)
        if part.less:
            assert 0 < run_work["replays"] <= counted.replays
            spared = sum(int(np.isnan(results.grids[name, part.request.context].log_p).sum()) for name in case.targets)
            assert run_work["replays"] + spared == counted.replays
            continue
        assert run_work["replays"] == counted.replays
        if part.name != "noise floor":
            assert run_work["rows"] == counted.rows
    record, outline = probes.sweeps.measure.finished(results), outline_of(every, case)
    assert set(outline.columns) <= set(record.sample)
    assert sorted(row[:-1] for row in outline.curves) == sorted(row[:-1] for row in record.curves)
    for said, arrays in ((outline.tokens, record.tokens), (outline.spectra, record.spectra)):
        assert dict(said) == {key: array.shape for key, array in arrays.items()}
    assert outline.token_layers == record.token_layers


@dataclass(frozen=True)
class FirstTokenAlone(Part):
    """A probe that no module of the project knows: the first visual token is taken away, from two layers on."""

    name = "first token"
    reads_targets = True

    def calls(self, case):
        mask = torch.zeros(1, case.captured.prompt.n_tokens, dtype=torch.bool)
        mask[0, case.captured.prompt.visual[0]] = True
        return (ReplayCall(Ablations.at_every((1, 6), mask)),)

    def run(self, case, results):
        (call,) = self.calls(case)
        log_p = target_log_p(case, call)
        return results.with_curves(
            (name, "first", layer, "", "log_p", value)
            for name, values in log_p.items()
            for layer, value in zip((1, 6), values.tolist(), strict=True)
        )

    def outline(self, case):
        return Outline(curves=tuple((n, "first", layer, "", "log_p", float) for n in case.targets for layer in (1, 6)))


def test_a_new_probe_is_counted_timed_sized_and_run_like_any_other(model, run_replays, tmp_path, monkeypatch):
    """It enters the list of parts, and nothing else is told of it."""
    fixed = {"probes": ("removal",), "layers": (5,), "streams": ()}
    samples = demo_samples(1)
    before = vh.estimate_cost(model, samples, **fixed)

    def with_one_more(config, plan):
        return (*parts_of(config, plan), FirstTokenAlone())

    monkeypatch.setattr(probes.plans.jobs, "parts_of", with_one_more)
    monkeypatch.setattr(probes.sweeps.measure, "parts_of", with_one_more)
    cost = vh.estimate_cost(model, samples, **fixed)
    assert cost.replays == before.replays | {"first token": 2 * len(samples)}
    assert cost.operations["first token"] > 0
    assert cost.seconds["first token"] > 0
    assert cost.memory["replays"] >= before.memory["replays"]
    assert cost.disk["samples and curves"] > before.disk["samples and curves"]
    run_replays.clear()
    run = vh.run(model, samples, tmp_path / "run", progress=False, **fixed)
    assert sum(run_replays) == cost.total_replays
    assert run.matrix("log_p", context="first", target="gold")[2].shape == (len(samples), 2)


def test_entropies_alone_replay_nothing(model):
    cost = vh.estimate_cost(model, replace(demo_samples(1)[0], answers=()), probes=("entropy",))
    assert cost.replays == {}
    assert set(cost.operations) == {"forward", "entropies"}
    assert set(cost.memory) == {"resident", "capture", "forward", "entropies"}


def test_tasks_keep_their_proportions(model):
    samples = demo_samples(3)
    few = vh.estimate_cost(model, samples, token_samples=2, spectra=1, **OPTIONS)
    assert (few.samples, few.grid_samples) == (6, 4)
    many = vh.estimate_cost(model, samples, token_samples=2, spectra=1, n_samples=600, **OPTIONS)
    assert (many.samples, many.grid_samples) == (600, 4)
    assert many.replays["removal"] == 100 * few.replays["removal"]
    assert many.replays["keep-one"] == few.replays["keep-one"]
    assert many.operations["forward"] == pytest.approx(100 * few.operations["forward"])
    assert many.operations["spectra"] == pytest.approx(few.operations["spectra"])


@pytest.mark.parametrize(("n_samples", "sizes"), [(None, (2, 1)), (7, (4, 3))])
def test_shards_take_their_rows(model, n_samples, sizes):
    samples = demo_samples(3, "ocr")
    for index, size in enumerate(sizes):
        cost = vh.estimate_cost(model, samples, shard=(index, 2), n_samples=n_samples, token_samples=0, **OPTIONS)
        assert (cost.samples, cost.replays["removal"]) == (size, 2 * size)
    grids = [vh.estimate_cost(model, samples, shard=(i, 2), token_samples=2, **OPTIONS).grid_samples for i in (0, 1)]
    assert grids == [1, 1]  # of rows 0 and 1


def test_a_limit_ends_what_is_read(model):
    endless = itertools.cycle(demo_samples(1))
    assert vh.estimate_cost(model, endless, limit=2, **OPTIONS).samples == 2


@pytest.mark.parametrize("tokens", ["visual", "text"])
def test_of_a_run_that_goes_on_only_what_is_left_is_counted(model, run_replays, announced, tmp_path, tokens):
    """Removals first, then token grids, then a whole answer and one more sample."""
    how = {"layers": (0, 3, 5), "streams": (), "probes": ("removal", "information"), "window": 4, "tokens": tokens}
    for size, more in ((2, {"token_samples": 0}), (2, {"token_samples": 1}), (3, {"token_samples": 1, "generate": 2})):
        run_replays.clear()
        vh.run(model, demo_samples(size, "ocr"), tmp_path / "run", **how, **more)
        assert announced() == sum(run_replays) > 0


def test_every_step_of_a_choice_of_layers_says_what_it_adds(model, run_replays, announced, tmp_path):
    how = {"probes": ("removal", "information"), "window": 4, "token_samples": 3, "budget": 5}
    vh.run_adaptive(model, demo_samples(4), tmp_path / "run", **how)
    assert len(announced.counts) > 2
    assert announced() == sum(run_replays)
    assert announced.counts[:-1] == announced.taken[1:]


def test_what_may_be_spared_is_said(model):
    samples = demo_samples(1)
    assert vh.estimate_cost(model, samples, **OPTIONS).less == ()
    cost = vh.estimate_cost(model, samples, only_correct=True, generate=5, coarse=4, **OPTIONS | {"window": 2})
    assert len(cost.less) == 3
    assert str(cost).endswith("; less ".join(("", *cost.less)))
    wrong = vh.estimate_cost(model, samples, targets=("greedy-correct",), **OPTIONS)
    assert wrong.less == ("for samples that the model answers wrong, which have no target",)
    assert vh.estimate_cost(model, samples, n_samples=600, limit=2, **OPTIONS).samples == 2


def test_memory_is_that_of_parts_that_some_sample_takes(model):
    fixed = {"streams": (), "probes": ("removal", "information"), "window": 1, "layers": (0, 5)}
    samples = demo_samples(1)
    removals = vh.estimate_cost(model, samples, **fixed | {"probes": ("removal",)}).memory["replays"]
    assert vh.estimate_cost(model, samples, token_samples=0, **fixed).memory["replays"] == pytest.approx(
        removals, rel=0.1
    )
    assert vh.estimate_cost(model, samples, **fixed).memory["replays"] > 3 * removals
    unchecked = vh.estimate_cost(model, samples, method="gate", gate_checks=0, **fixed).memory
    assert unchecked["replays"] == pytest.approx(removals, rel=0.1)


def test_an_answer_takes_a_forward_pass_and_a_token_at_a_time():
    """Counted by torch while the model writes as many tokens; a model that ends its answers takes less."""
    small = load_model(random_llava(34, attn="eager", dtype=torch.float32), processor=random_processor(), attn="eager")
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    with FlopCounterMode(display=False) as counter:
        answer = vh.generate_answer(small, sample, max_new_tokens=6)
    assert len(answer.ids) == 6
    costs = {
        tokens: vh.estimate_cost(small, [sample] * 3, generate=tokens, probes=("removal",)).operations["answers"]
        for tokens in (1, 6)
    }
    assert costs[6] / 3 == pytest.approx(counter.get_total_flops(), rel=0.03)
    with FlopCounterMode(display=False) as counter:
        vh.generate_answer(small, sample, max_new_tokens=1)
    assert costs[1] / 3 == pytest.approx(counter.get_total_flops(), rel=0.03)


def configured(model, **options):
    config, _ = run_config(RunOptions(**{"window": 1} | options), model, ())
    return config


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "how"),
    [
        (1e-12, {}),
        (1e-2, {}),
        (1.0, {}),
        (1e-12, {"method": "gate"}),
        (1e-2, {"method": "gate"}),
        (1e-2, {"coarse": 2}),
    ],
)
def test_a_machine_of_even_speed_is_predicted_exactly_within_any_budget(budget, how):
    """The clock counts operations, so each part must last as long as the operations that it takes, however few ran."""
    small = load_model(
        random_llava(34, attn="eager", dtype=torch.float32), processor=random_processor(), attn="eager", check=False
    )
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    contexts = ("keep-one", "leave-one-out")
    fixed = {"probes": ("removal", "information"), "streams": (), "contexts": contexts, "batch_size": 16}
    config = configured(small, **fixed | how)
    with FlopCounterMode(display=False) as counter:

        def clock() -> float:
            return counter.get_total_flops() * 1e-9

        subject = meet(small, sample, config, clock)
        every = parts_of(config, Plan(tokens=True, spectra=False, gate_check=True, layers=config.grid_layers()))
        seconds = time_parts(subject, every, budget=budget, clock=clock)
    work = {part: part_work(subject, part).operations for part in every}
    forward, record, *parts = every
    # the first forward also reads off what becomes of the logits
    assert seconds[forward] == pytest.approx(work[forward] * 1e-9, rel=1e-3)
    assert work[record] == 0
    assert len({part.name for part in parts}) == (6 if how else 4)
    for part in parts:
        assert seconds[part] == pytest.approx(work[part] * 1e-9)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [(), ("query", "key", "value", "hidden")])
def test_a_capture_is_as_large_as_its_tensors(model, streams):
    config = configured(model, probes=("removal",), streams=streams, contexts=())
    subject = meet(model, demo_samples(1)[0], config)
    captured = subject.case.captured
    held = [*captured.inputs, captured.final, *captured.keys, *captured.values, captured.log_probs]
    held += captured.visual.states.values()
    parts, formulas = memory_parts(subject, parts_of(config, Plan(tokens=False, spectra=False)))
    assert parts["capture"] == sum(tensor.nbytes for tensor in held)
    assert set(formulas) == set(parts)


def test_the_peak_is_what_stays_and_the_largest_of_what_passes(model):
    cost = vh.estimate_cost(model, demo_samples(1)[0], **OPTIONS)
    passing = max(cost.memory[part] for part in ("forward", "entropies", "replays"))
    assert cost.peak_bytes == cost.memory["resident"] + cost.memory["capture"] + passing


def test_resident_size_grows_by_what_is_held():
    before = resident_bytes(torch.device("cpu"))
    held = np.ones(2**25)
    assert resident_bytes(torch.device("cpu")) - before == pytest.approx(held.nbytes, rel=0.05)


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"probes": ("entropy", "removal"), "streams": ("query",)},
        {"window": 1, "contexts": ("keep-one",), "token_samples": 3, "spectra": 4, "streams": ("hidden", "value")},
    ],
)
def test_a_written_run_is_as_large_as_was_said(model, tmp_path, options):
    samples = demo_samples(8)
    options = {"layers": (6, 7), "targets": ("gold", "greedy")} | options
    cost = vh.estimate_cost(model, samples, **options)
    run = vh.run(model, samples, tmp_path / "run", progress=False, **options)
    written = {file: file.stat().st_size for file in run.path.rglob("*") if file.is_file()}
    assert cost.disk_bytes == pytest.approx(sum(written.values()), rel=0.2)
    spectra = sum(size for file, size in written.items() if file.parent.name == "spectra")
    assert cost.disk["spectra"] == pytest.approx(spectra, rel=0.2)


# --- the line before a run -------------------------------------------------------------------------------------------


def first_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[0]


def test_a_run_says_first_what_is_left_to_do(model, tmp_path, capsys):
    run = {"probes": ("removal",), "layers": (7,), "out": tmp_path / "run"}
    vh.run(model, demo_samples(2, "ocr"), **run)
    said = first_line(capsys)
    assert said.startswith("2 samples: 12 replays, ")  # of each: the cut, four null replays, a witness
    assert all(word in said for word in ("FLOP", "about", "peak", "on disk"))
    vh.run(model, demo_samples(3, "ocr"), **run)
    assert first_line(capsys).startswith("1 sample: 6 replays, ")
    vh.run(model, demo_samples(3, "ocr"), **run)
    assert first_line(capsys) == "nothing is left to measure"


def test_only_what_this_shard_lacks_is_counted(model, tmp_path, capsys):
    run = {"probes": ("information",), "layers": (7,), "window": 8, "out": tmp_path / "run"}
    vh.run(model, demo_samples(3, "ocr"), shard=(0, 3), progress=False, **run)
    capsys.readouterr()
    vh.run(model, demo_samples(3, "ocr"), token_samples=2, **run)
    assert first_line(capsys).startswith("2 samples: ")


def test_a_stream_is_said_to_be_one_and_loses_nothing(model, tmp_path, capsys):
    samples = demo_samples(4)
    run = vh.run(model, iter(samples), tmp_path / "run", probes=("removal",), layers=(7,))
    assert first_line(capsys).startswith("as many samples as there come, each: 6 replays")
    assert run.samples["id"].tolist() == [sample.id for sample in samples]


def test_a_stream_that_ends_soon_or_is_limited_is_counted(model, tmp_path, capsys):
    """The samples of a file, of unknown number; those that were looked at for the cost are measured too."""
    file, run = vh.data_path("demo-samples", "ocr.jsonl"), {"probes": ("removal",), "layers": (7,)}
    short = vh.run(model, vh.read_samples(file, limit=2), tmp_path / "short", **run)
    assert first_line(capsys).startswith("2 samples: 12 replays, ")
    cut = vh.run(model, vh.read_samples(file), tmp_path / "cut", limit=3, **run)
    assert first_line(capsys).startswith("3 samples: 18 replays, ")
    long = vh.run(model, vh.read_samples(file, limit=7), tmp_path / "long", **run)
    assert first_line(capsys).startswith("as many samples as there come, each: 6 replays")
    for found, n in ((short, 2), (cut, 3), (long, 7)):
        assert found.samples["id"].tolist() == [sample.id for sample in demo_samples(n, "ocr")]


def test_a_sample_that_cannot_be_measured_is_passed_over(model, tmp_path, capsys):
    good = demo_samples(2, "ocr")
    bad = replace(good[0], id="bad", answers=(" ",))
    vh.run(model, [bad, *good], tmp_path / "a", probes=("removal",), layers=(7,))
    assert first_line(capsys).startswith("3 samples: 18 replays")
    run = vh.run(model, [bad], tmp_path / "b", probes=("removal",), layers=(7,))
    said = first_line(capsys)
    assert said.startswith("1 samples: what they take is not known, since none of the first 1")
    assert "has no answer" in said
    assert len(run.failed) == 1


def test_without_progress_nothing_is_calibrated(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probes.sweeps.forecast, "announcement", lambda *_: pytest.fail("calibrated"))
    vh.run(model, demo_samples(1, "ocr"), tmp_path / "run", probes=("removal",), layers=(7,), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ("magic",)}, "probe 'magic' is unknown"),
        ({"window": 0}, "window is 0"),
        ({"layers": (9,)}, "layer 9"),
        ({"targets": ("silver",)}, "target 'silver' is unknown"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"kind": "blur"}, "kind 'blur' is unknown; choose from delete, zero, mean"),
        ({"windw": 3}, r"option 'windw' is unknown; did you mean 'window'\?"),
        ({"token_layers": "auto"}, "token_layers 'auto' are not known before they are chosen"),
        ({"probes": ("removal",), "method": "gate"}, "method 'gate' is of token grids: add the probe 'information'"),
        ({"probes": ("entropy",), "coarse": 4}, "coarse 4 is of token grids"),
        ({"max_windows": 4, "window": 2}, "max_windows is 4 and chooses"),
        ({"method": "gate", "kind": "zero"}, "method 'gate' takes tokens away"),
        ({"spectra": -1}, "spectra is -1"),
        ({"generate": 0}, "generate is 0"),
    ],
)
def test_unusable_options_are_named(model, options, message):
    with pytest.raises(vh.HorizonError, match=message):
        vh.estimate_cost(model, demo_samples(1), **options)


def test_without_samples_there_is_nothing_to_estimate(model):
    with pytest.raises(vh.HorizonError, match="there is no sample"):
        vh.estimate_cost(model, [])


@pytest.mark.parametrize(("seconds", "text"), [(0.05, "0.05 s"), (89, "89 s"), (120, "2 min"), (5400, "1.5 h")])
def test_times_read_well(seconds, text):
    assert duration_text(seconds) == text
