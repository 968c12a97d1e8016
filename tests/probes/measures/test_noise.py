"""The noise floor: zero in exact arithmetic, what rounding makes of it, and a refusal where it is no rounding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_models import random_image

from probes.data.readers import read_samples
from probes.data.samples import Sample, SampleError
from probes.loading.loading import load_model
from probes.measures.case import Case
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.measures.noise import REPLAY_TOLERANCE, Witness, grid_witness, noise_floor, removal_witness
from probes.measures.preparing import prepare
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.ablations import Ablations, removal_ablations
from probes.replay.capture import Capture
from probes.replay.replay import replay
from vlm_horizon import data_path

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))


def prepared(model: ProbedModel, sample: Sample) -> tuple[Capture, Target]:
    case = prepare(model, sample, ("gold",))
    return case.captured, case.targets["gold"]


@pytest.fixture(scope="module")
def exact(random_model) -> tuple[Capture, Target]:
    return prepared(random_model, SAMPLE)


def shifted(captured: Capture, by: float) -> Capture:
    """The same capture, of a model that does something else between its layers."""
    return replace(captured, inputs=[rows + by for rows in captured.inputs])


def recorded_rows(model: ProbedModel, measure) -> dict[int, int]:
    """Rows (batch x tokens) that each layer sees while `measure` runs, at most."""
    rows: dict[int, int] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _m, args, k=k: rows.update({k: max(rows.get(k, 0), args[0].shape[0] * args[0].shape[1])})
        )
        for k, layer in enumerate(model.layers)
    ]
    measure()
    for handle in handles:
        handle.remove()
    return rows


# --- its size --------------------------------------------------------------------------------------------------------


def test_exact_arithmetic_has_none(random_model, exact):
    captured, target = exact
    removal = removal_curves(Case(random_model, captured, {"gold": target}))["gold"]
    grid = information_grids(Case(random_model, captured, {"gold": target}), GridRequest())["gold"]
    witnesses = [removal_witness(captured, removal), grid_witness(captured, grid, 2, "delete")]
    floor = noise_floor(random_model, captured, target, witnesses, batch_rows=200)
    assert 0 <= max(floor.p, floor.log_p, floor.kl) < 1e-9


def test_float32_has_one_far_below_what_is_measured(demo, demo_samples):
    floors = []
    for sample in demo_samples:
        captured, target = prepared(demo, sample)
        curve = removal_curves(Case(demo, captured, {"gold": target}))["gold"]
        floors.append(noise_floor(demo, captured, target, [removal_witness(captured, curve)], batch_rows=2000))
    largest = np.max([(floor.p, floor.log_p, floor.kl) for floor in floors], axis=0)
    assert largest[0] > 0
    assert (largest < 1e-3).all()


@pytest.mark.parametrize("by", [1e-6, 1e-4])
def test_it_is_the_farthest_unablated_replay_from_four_layers(random_model, exact, by):
    captured, target = exact
    off = shifted(captured, by)
    floor = noise_floor(random_model, off, target, [], batch_rows=1)
    places = torch.arange(captured.prompt.n_tokens, device=random_model.device)
    nothing = Ablations(torch.arange(4, device=places.device), (places < 0).expand(4, -1))
    _, found = next(replay(random_model, off, nothing, recompute=places >= captured.prompt.visual[0]))
    own, again = target.log_p(captured.log_probs), target.log_p(found)
    assert floor.p == pytest.approx((again.exp() - own.exp()).abs().max().item(), rel=1e-6)
    assert floor.log_p == pytest.approx((again - own).abs().max().item(), rel=1e-6)
    assert floor.p > 1e-3 * by


def test_it_is_no_less_than_what_a_witness_strays(random_model, exact):
    captured, target = exact
    curve = removal_curves(Case(random_model, captured, {"gold": target}))["gold"]
    witness = removal_witness(captured, curve)
    for log_p, kl in ((witness.log_p + 0.02, witness.kl), (witness.log_p, witness.kl + 0.3)):
        stray = replace(witness, log_p=log_p, kl=kl)
        floor = noise_floor(random_model, captured, target, [witness, stray], batch_rows=100)
        assert floor.log_p == pytest.approx(log_p - witness.log_p, abs=1e-9)
        assert floor.p == pytest.approx(np.exp(log_p) - np.exp(witness.log_p), abs=1e-9)
        assert floor.kl == pytest.approx(kl - witness.kl, abs=1e-9)


def test_a_witness_without_a_divergence_has_none_to_stray(random_model, exact):
    captured, target = exact
    removal = removal_ablations(captured, [0])
    measured = next(replay(random_model, captured, removal))[1]
    witness = Witness(removal, float(target.log_p(measured)))
    floor = noise_floor(random_model, captured, target, [witness], batch_rows=100)
    assert max(floor.p, floor.log_p, floor.kl) < 1e-9


def test_replays_fill_as_many_rows_as_the_batches_in_use(random_model, exact):
    captured, target = exact
    rows = captured.prompt.n_tokens - int(captured.prompt.visual[0])
    for copies in (1, 5):
        batch_rows = copies * 4 * rows
        seen = recorded_rows(
            random_model, lambda n=batch_rows: noise_floor(random_model, captured, target, [], batch_rows=n)
        )
        unread = batch_rows - 4 * copies  # the last layer is asked for the row that is read apart from the others
        assert seen == {0: batch_rows // 4, 1: batch_rows // 2, 2: batch_rows // 4 * 3, 3: unread}


# --- witnesses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delete", "mean"])
def test_the_removal_witness_is_the_cut_that_rounding_moves_most(random_model, exact, kind):
    captured, target = exact
    curve = removal_curves(Case(random_model, captured, {"gold": target}), layers=[0, 2, 3], kind=kind)["gold"]
    place = min(range(3), key=lambda i: abs(np.exp(curve.log_p[i]) - 0.5))
    witness = removal_witness(captured, curve)
    assert witness.ablation.layers.tolist() == [[0, 2, 3][place]]
    assert witness.ablation.removed.nonzero()[:, 1].tolist() == captured.prompt.visual.tolist()
    assert witness.ablation.kind == kind
    assert (witness.log_p, witness.kl) == (curve.log_p[place], curve.kl[place])


@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
def test_the_grid_witness_is_the_ablation_that_rounding_moves_most(random_model, exact, context):
    captured, target = exact
    case = Case(random_model, captured, {"gold": target})
    grid = information_grids(case, GridRequest(context, layers=(0, 1, 3)))["gold"]
    witness = grid_witness(captured, grid, 2, "delete")
    assert len(witness.ablation) == 1
    assert abs(np.exp(witness.log_p) - 0.5) == np.abs(np.exp(np.asarray(grid.log_p, float)) - 0.5).min()
    alone = next(replay(random_model, captured, witness.ablation))[1]
    assert float(target.log_p(alone)) == pytest.approx(witness.log_p, abs=1e-9)
    others = np.abs(np.asarray(grid.log_p, float) - witness.log_p)
    assert (others < 1e-9).sum() == 1  # no other ablation gives this value


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_floor_holds_what_the_batch_size_does_to_a_grid(dtype):
    """Windows measured alone and in batches differ by rounding; nearly all of them by less than the run's floor.

    In half precision on a CPU most do not differ at all, so that one witness can find a floor of 0.
    """
    model = load_model(data_path("demo-models", "tiny-8"), dtype=dtype, check=False)
    floors, apart, moved = [], [], []
    for sample in list(read_samples(data_path("demo-samples", "ocr.jsonl"), limit=2)):
        captured, target = prepared(model, sample)
        grids = [
            information_grids(Case(model, captured, {"gold": target}), GridRequest(layers=(1, 5), batch_size=size))[
                "gold"
            ]
            for size in (None, 1)
        ]
        witness = grid_witness(captured, grids[0], 2, "delete")
        floors.append(noise_floor(model, captured, target, [witness], batch_rows=2048).p)
        apart.append(np.abs(grids[0].values - grids[1].values))
        moved.append(np.abs(grids[0].values).max())
    assert max(floors) < 0.005
    assert (np.array(apart) <= max(floors)).mean() >= 0.9
    assert np.max(apart) < (1e-5 if dtype == "float32" else 0.005)
    assert np.max(moved) > 0.5


# --- refusal ---------------------------------------------------------------------------------------------------------


def test_replays_that_miss_the_model_are_refused(random_model, exact):
    captured, _ = exact
    greedy = Target("greedy", "", (int(captured.log_probs[0].argmax()),))
    off = shifted(captured, 3.0)
    with pytest.raises(SampleError, match=r"replays of 'LlavaFor.*' miss its own output by .* with nothing removed"):
        noise_floor(random_model, off, greedy, [], batch_rows=100)
    assert noise_floor(random_model, captured, greedy, [], batch_rows=100).p < REPLAY_TOLERANCE


def test_replays_that_are_not_finite_are_refused(random_model, exact):
    captured, target = exact
    with pytest.raises(SampleError, match="miss its own output by nan in p"):
        noise_floor(random_model, shifted(captured, float("nan")), target, [], batch_rows=100)


def test_a_window_witness_with_the_wrong_value_shows(random_model, exact):
    """The floor compares what a batch gave with the same ablation alone, so a batch that mixed them up is seen."""
    captured, target = exact
    grid = information_grids(Case(random_model, captured, {"gold": target}), GridRequest())["gold"]
    witness = grid_witness(captured, grid, 2, "delete")
    mixed_up = replace(witness, log_p=float(grid.log_p[0, 0]))
    floor = noise_floor(random_model, captured, target, [mixed_up], batch_rows=100)
    assert floor.log_p == pytest.approx(abs(float(grid.log_p[0, 0]) - witness.log_p), rel=1e-6)
    assert floor.log_p > 1e-3
