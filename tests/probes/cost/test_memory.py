"""What one formula says of a batch of replays, and another of a backward pass, is what their tensors take."""

from __future__ import annotations

import itertools

import pytest
from demo_data import demo_model, demo_samples
from random_models import random_image, random_llava, random_processor
from tensor_memory import TensorMemory

from probes.cost.operations import make_batches
from probes.cost.passes import gate_passes, pass_bytes
from probes.data.samples import Sample
from probes.gates.gate import gate_effects
from probes.loading.loading import load_model
from probes.measures.preparing import prepare
from probes.models.grids import tile_windows
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.ablations import window_ablations
from probes.replay.batching import CHUNK_BYTES, batch_bytes, rows_at_once
from probes.replay.capture import Capture
from probes.replay.replay import replay, shape_of
from vlm_horizon.shipped import data_path

CONTEXTS = ("keep-one", "leave-one-out")


@pytest.fixture(scope="module", params=["shipped", "grouped heads", "eager"])
def measured(request) -> tuple[ProbedModel, Capture, dict[str, Target]]:
    if request.param == "shipped":
        model, (sample,) = demo_model(), demo_samples(1, "ocr")
    else:
        attn = "eager" if request.param == "eager" else "sdpa"
        model = load_model(random_llava(34, attn=attn), processor=random_processor(), dtype="float32", attn=attn)
        sample = Sample("noise", random_image(), "what is shown ?", ("apple",))
    case = prepare(model, sample, ("gold", "greedy"))
    return model, case.captured, case.targets


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("together", [4, 20])
def test_a_batch_takes_what_its_formula_says(measured, context, together):
    model, captured, _ = measured
    windows = tile_windows(captured.prompt.grids, 1)[:together]
    ablations = window_ablations(captured, windows, context, [0])
    (batch,) = make_batches(model, captured, ablations, batch_size=together)
    with TensorMemory() as memory:
        list(replay(model, captured, ablations, batch_size=together))
    said = batch_bytes(model, shape_of(captured, batch.rows, batch.columns), together)
    assert memory.peak == pytest.approx(said, rel=0.2)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "keys first"])
@pytest.mark.parametrize("share", [4, 16])
def test_rows_in_parts_take_what_is_said_of_a_part(attn, in_order, share, monkeypatch):
    """The wide shipped model; not in order, as if some rows saw later ones, keys and values are computed first."""
    model = load_model(data_path("demo-models", "tiny-8"), attn=attn, check=False)
    captured = prepare(model, demo_samples(1, "ocr")[0], ("gold",)).captured
    captured.__dict__["in_order"] = in_order
    windows = tile_windows(captured.prompt.grids, 1)[:20]
    ablations = window_ablations(captured, windows, "leave-one-out", [0])
    (batch,) = make_batches(model, captured, ablations, batch_size=20)
    shape = shape_of(captured, batch.rows, batch.columns)
    whole, part = batch_bytes(model, shape, 20), batch.rows // share
    for chunk in itertools.count(1, 256):
        monkeypatch.setitem(CHUNK_BYTES, attn, chunk)
        if rows_at_once(model, shape, 20) >= part:
            break
    with TensorMemory() as memory:
        list(replay(model, captured, ablations, batch_size=20))
    said = batch_bytes(model, shape, 20)
    assert memory.peak == pytest.approx(said, rel=0.25)
    assert said < 0.8 * whole


def test_the_forward_of_a_backward_pass_runs_in_parts_of_its_own(measured, monkeypatch):
    """Not in those that the masks of a batch of replays would allow."""
    model, captured, targets = measured
    (one,) = gate_passes(captured, "keep-one", [0])
    before = pass_bytes(model, captured, one, len(targets))[0]
    monkeypatch.setitem(CHUNK_BYTES, model.attn, 1)
    assert pass_bytes(model, captured, one, len(targets))[0] == before


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("cut", [0, 3])
def test_a_backward_pass_takes_what_its_formula_says(measured, context, cut):
    model, captured, targets = measured
    (one,) = gate_passes(captured, context, [cut])
    with TensorMemory() as memory:
        gate_effects(model, captured, targets, context, [cut])
    said, formula = pass_bytes(model, captured, one, len(targets))
    assert memory.peak == pytest.approx(said, rel=0.2)
    assert f"{model.n_layers - cut} layers" in formula
