"""What one formula says of a batch of replays, and another of a backward pass, is what their tensors take."""

from __future__ import annotations

import pytest
from demo_data import demo_model, demo_samples
from random_models import random_image, random_llava, random_processor
from tensor_memory import TensorMemory

from probes.batching import batch_bytes
from probes.capture import Capture
from probes.gate import gate_effects
from probes.grids import tile_windows
from probes.information import prepare, window_ablations
from probes.models import ProbedModel, load_model
from probes.operations import make_batches
from probes.passes import gate_passes, pass_bytes
from probes.replay import replay, shape_of
from probes.samples import Sample
from probes.targets import Target

CONTEXTS = ("keep-one", "leave-one-out")


@pytest.fixture(scope="module", params=["shipped", "grouped heads", "eager"])
def measured(request) -> tuple[ProbedModel, Capture, dict[str, Target]]:
    if request.param == "shipped":
        model, (sample,) = demo_model(), demo_samples(1, "ocr")
    else:
        attn = "eager" if request.param == "eager" else "sdpa"
        model = load_model(random_llava(34, attn=attn), processor=random_processor(), dtype="float32", attn=attn)
        sample = Sample("noise", random_image(), "what is shown ?", ("apple",))
    return model, *prepare(model, sample, ("gold", "greedy"))


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
