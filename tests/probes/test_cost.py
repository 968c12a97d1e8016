"""What a run is said to take is what it takes: replays as they run, time by the work done, memory and disk by bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_data import demo_model, demo_samples
from random_models import random_image, random_llava, random_processor
from torch.utils.flop_counter import FlopCounterMode

import probes.information
import probes.noise
import probes.sweep
import vlm_horizon as vh
from probes.calibration import time_parts
from probes.cost import duration_text, planned_config
from probes.memory import memory_parts, resident_bytes
from probes.models import load_model
from probes.workload import FLOORS, meet, sample_work

OPTIONS = {"streams": ("query", "hidden"), "window": 4, "layers": (0, 5)}


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture
def run_replays(monkeypatch) -> list[int]:
    """How many ablations each call of `replay` gets."""
    counts: list[int] = []
    original = probes.information.replay

    def counting(model, captured, ablations, **how):
        counts.append(len(ablations))
        return original(model, captured, ablations, **how)

    for module in (probes.information, probes.noise):
        monkeypatch.setattr(module, "replay", counting)
    return counts


# --- replays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"contexts": ("keep-one", "leave-one-out"), "token_samples": 1},
        {"kind": "zero", "token_samples": 0},
        {"probes": ("removal",), "batch_size": 3},
    ],
)
def test_replays_are_those_that_the_run_makes(model, run_replays, tmp_path, options):
    samples = demo_samples(2)
    cost = vh.estimate_cost(model, samples, **OPTIONS | options)
    run_replays.clear()
    vh.run(model, samples, tmp_path / "run", progress=False, **OPTIONS | options)
    assert cost.total_replays == sum(run_replays)
    assert cost.replays["removal"] == 2 * len(samples)


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


def configured(model, **options):
    fixed = {"targets": ("gold",), "window": 1, "kind": "delete", "alpha": 1.0, "batch_size": None, "prompt": None}
    return planned_config(model, **fixed | options)


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1e-12, 1e-2, 1.0])
def test_a_machine_of_even_speed_is_predicted_exactly_within_any_budget(budget):
    """The clock counts operations, so each part must last as long as the operations that it takes, however few ran."""
    small = load_model(
        random_llava(34, attn="eager", dtype=torch.float32), processor=random_processor(), attn="eager", check=False
    )
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    contexts = ("keep-one", "leave-one-out")
    config = configured(small, probes=("removal", "information"), streams=(), contexts=contexts, batch_size=16)
    with FlopCounterMode(display=False) as counter:

        def clock() -> float:
            return counter.get_total_flops() * 1e-9

        subject = meet(small, sample, config, clock)
        work = sample_work(small, subject, config)
        seconds = time_parts(small, subject, config, work, grids=True, spectra=False, budget=budget, clock=clock)
    assert seconds["forward"] == pytest.approx(
        work.operations["forward"] * 1e-9, rel=1e-3
    )  # the first forward also reads off what becomes of the logits
    for part in ("removal", "keep-one", "leave-one-out"):
        assert seconds[part] == pytest.approx(work.replays[part].operations * 1e-9)
    if budget == 1:  # where it does not pay for a noise floor, this goes by the fastest of the other rates
        for part in FLOORS.values():
            assert seconds[part] == pytest.approx(work.replays[part].operations * 1e-9, rel=0.3)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [(), ("query", "key", "value", "hidden")])
def test_a_capture_is_as_large_as_its_tensors(model, streams):
    config = configured(model, probes=("removal",), streams=streams, contexts=())
    subject = meet(model, demo_samples(1)[0], config)
    captured = subject.captured
    held = [*captured.inputs, captured.final, *captured.keys, *captured.values, captured.log_probs]
    held += captured.visual.states.values()
    parts, formulas = memory_parts(model, subject, config, sample_work(model, subject, config))
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
    monkeypatch.setattr(probes.sweep, "announcement", lambda *_: pytest.fail("calibrated"))
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
        ({"kind": "blur"}, "removal kind 'blur' is unknown"),
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
