"""The noise floor: zero in exact arithmetic, what rounding makes of it, and a refusal where it is no rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from demo_data import demo_samples
from random_models import random_image, random_llava, random_processor

from probes.data.samples import Sample, SampleError
from probes.loading.loading import load_model
from probes.measures.case import Case
from probes.measures.information import GridRequest, InformationGrid, information_grids, removal_curves
from probes.measures.noise import (
    REPLAY_TOLERANCE,
    Witness,
    grid_witness_layers,
    grid_witnesses,
    noise_floor,
    removal_witness_layers,
    removal_witnesses,
    rounding_bound,
    summation_eps,
)
from probes.measures.preparing import prepare
from probes.models.probed import ProbedModel
from probes.models.targets import Target
from probes.replay.ablations import Ablations, kl_divergence, removal_ablations
from probes.replay.capture import Capture
from probes.replay.replay import most_rows, replay
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
    witnesses = [*removal_witnesses(captured, removal), *grid_witnesses(captured, grid, 2, "delete")]
    floor = noise_floor(random_model, captured, target, witnesses, rows=30)
    assert 0 <= max(floor.p, floor.log_p, floor.kl) < 1e-9


def test_float32_has_one_far_below_what_is_measured(demo, demo_samples):
    floors = []
    for sample in demo_samples:
        captured, target = prepared(demo, sample)
        curve = removal_curves(Case(demo, captured, {"gold": target}))["gold"]
        floors.append(noise_floor(demo, captured, target, removal_witnesses(captured, curve), rows=30))
    largest = np.max([(floor.p, floor.log_p, floor.kl) for floor in floors], axis=0)
    assert largest[0] > 0
    assert (largest < 1e-3).all()


@pytest.mark.parametrize("by", [1e-6, 1e-4])
def test_it_is_the_farthest_unablated_replay_from_four_layers(random_model, exact, by):
    captured, target = exact
    off = shifted(captured, by)
    floor = noise_floor(random_model, off, target, [], rows=7)
    places = torch.arange(captured.prompt.n_tokens, device=random_model.device)
    nothing = Ablations(torch.arange(4, device=places.device), (places < 0).expand(4, -1))
    _, found = next(replay(random_model, off, nothing, recompute=places >= captured.prompt.n_tokens - 7))
    own, again = target.log_p(captured.log_probs), target.log_p(found)
    assert floor.p == pytest.approx((again.exp() - own.exp()).abs().max().item(), rel=1e-6)
    assert floor.log_p == pytest.approx((again - own).abs().max().item(), rel=1e-6)
    assert floor.p > 1e-3 * by


def test_it_is_twice_what_the_worst_witness_strays(random_model, exact):
    captured, target = exact
    curve = removal_curves(Case(random_model, captured, {"gold": target}))["gold"]
    witness, _ = removal_witnesses(captured, curve)
    for log_p, kl in ((witness.log_p + 0.02, witness.kl), (witness.log_p, witness.kl + 0.3)):
        stray = replace(witness, log_p=log_p, kl=kl)
        floor = noise_floor(random_model, captured, target, [witness, stray], rows=30)
        assert floor.log_p == pytest.approx(2 * (log_p - witness.log_p), abs=1e-9)
        assert floor.p == pytest.approx(2 * (np.exp(log_p) - np.exp(witness.log_p)), abs=1e-9)
        assert floor.kl == pytest.approx(2 * (kl - witness.kl), abs=1e-9)


def test_a_witness_without_a_divergence_has_none_to_stray(random_model, exact):
    captured, target = exact
    removal = removal_ablations(captured, [0])
    measured = next(replay(random_model, captured, removal))[1]
    witness = Witness(removal, float(target.log_p(measured)))
    floor = noise_floor(random_model, captured, target, [witness], rows=30)
    assert max(floor.p, floor.log_p, floor.kl) < 1e-9


def test_null_replays_run_as_many_rows_as_the_ablations_in_use(random_model, exact):
    """Four of them, from a layer each; the last layer is asked for the row that is read apart from the others."""
    captured, target = exact
    for rows in (7, 30):
        seen = recorded_rows(random_model, lambda n=rows: noise_floor(random_model, captured, target, [], rows=n))
        assert seen == {0: rows, 1: 2 * rows, 2: 3 * rows, 3: 4 * (rows - 1)}


@pytest.mark.parametrize("kind", ["delete", "zero"])
def test_the_longest_ablation_says_how_many_rows_that_is(random_model, exact, kind):
    captured, _ = exact
    visual = captured.prompt.visual.tolist()
    masks = torch.zeros(2, captured.prompt.n_tokens, dtype=torch.bool)
    masks[0, visual], masks[1, visual[-3:]] = True, True
    ablations = Ablations(torch.tensor([0, 0]), masks, kind)
    gone = 0 if kind == "zero" else 3
    behind = captured.prompt.n_tokens - visual[-3] - gone
    assert most_rows(captured, ablations) == max(behind, captured.prompt.n_tokens - visual[0] - (gone and len(visual)))
    seen = recorded_rows(random_model, lambda: list(replay(random_model, captured, ablations, batch_size=1)))
    assert seen[0] == most_rows(captured, ablations)


def test_the_bound_is_of_the_largest_logit_and_the_depth(random_model, exact):
    captured, _ = exact
    with torch.no_grad():
        logits = random_model.head(random_model.norm(captured.final[captured.prompt.readout]))
    shift = 2.0**-52 * float(logits.abs().max()) * 3  # the square root of 2 sums in each of 4 layers, and the head's
    bound = rounding_bound(random_model, captured, 2.0)
    assert (bound.p, bound.log_p, bound.kl) == pytest.approx((shift / 4, shift, 5 * shift), rel=1e-9, abs=0)


def test_half_precision_is_summed_in_float32():
    eps = [summation_eps(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)]
    assert eps == [2.0**-23, 2.0**-23, 2.0**-23, 2.0**-52]


def test_logits_that_shift_by_no_more_than_the_bound_move_p_log_p_and_kl_by_no_more(random_model, exact):
    """Whatever the ablated logits are, and however each of them is shifted."""
    captured, target = exact
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 5.0):
        own = torch.from_numpy(rng.normal(0, scale, (1, 40))).log_softmax(-1)
        ablated = torch.from_numpy(rng.normal(0, scale, (200, 1, 40)))
        before = ablated.log_softmax(-1)
        kl = kl_divergence(before, own)[:, 0]
        bound = rounding_bound(random_model, captured, float(kl.max()))
        # half of the bound up or down: a common shift of all logits changes nothing
        shift = torch.from_numpy(rng.choice([-0.5, 0.5], ablated.shape)) * bound.log_p * 1e6
        after = (ablated + shift).log_softmax(-1)
        chosen = replace(target, ids=(3, 5))
        moved = (chosen.log_p(after) - chosen.log_p(before)).abs()
        moved_p = (chosen.log_p(after).exp() - chosen.log_p(before).exp()).abs()
        moved_kl = (kl_divergence(after, own)[:, 0] - kl).abs()
        for largest, allowed in ((moved, bound.log_p), (moved_p, bound.p), (moved_kl, bound.kl)):
            assert 1e3 * allowed < float(largest.max()) <= 1e6 * allowed * (1 + 1e-6)


# --- witnesses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delete", "mean"])
def test_the_removal_witnesses_are_the_cut_that_rounding_moves_most_and_the_most_divergent(random_model, exact, kind):
    captured, target = exact
    curve = removal_curves(Case(random_model, captured, {"gold": target}), layers=[0, 2, 3], kind=kind)["gold"]
    first = min(range(3), key=lambda i: abs(np.exp(curve.log_p[i]) - 0.5))
    second = max((i for i in range(3) if i != first), key=lambda i: curve.kl[i])
    witnesses = removal_witnesses(captured, curve)
    assert [witness.ablation.layers.tolist() for witness in witnesses] == [[[0, 2, 3][at]] for at in (first, second)]
    for at, witness in zip((first, second), witnesses, strict=True):
        assert witness.ablation.removed.nonzero()[:, 1].tolist() == captured.prompt.visual.tolist()
        assert witness.ablation.kind == kind
        assert (witness.log_p, witness.kl) == (curve.log_p[at], curve.kl[at])


def test_a_single_cut_has_a_single_witness(random_model, exact):
    captured, target = exact
    curve = removal_curves(Case(random_model, captured, {"gold": target}), layers=[2])["gold"]
    assert len(removal_witnesses(captured, curve)) == 1 == len(removal_witness_layers([2]))
    assert len(removal_witness_layers([0, 1, 2])) == 2


@pytest.mark.parametrize(
    ("cuts", "windows", "layers"),
    [
        ([3], 2, [3, 3]),  # no more than there are ablations
        ([0, 1], 40, [0, 0, 1, 1]),  # no fewer than four
        ([0, 4, 8], 100, [0, 0, 4, 4, 8, 8]),  # one in fifty
        (range(32), 144, [0, 3, 6, 8, 11, 14, 17, 20, 23, 25, 28, 31]),  # no more than twelve
    ],
)
def test_how_many_witnesses_a_grid_has_and_from_which_layers_is_known_before(cuts, windows, layers):
    assert grid_witness_layers(cuts, windows) == layers


def grid_of(grid: InformationGrid, log_p: np.ndarray) -> InformationGrid:
    return replace(grid, log_p=log_p, layers=np.arange(len(log_p)), removed=np.zeros(len(log_p)))


@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
def test_the_grid_witnesses_are_the_ablations_of_their_layers_that_rounding_moves_most(random_model, exact, context):
    captured, target = exact
    grid = information_grids(
        Case(random_model, captured, {"gold": target}), GridRequest(context=context, layers=(0, 1, 3))
    )["gold"]
    witnesses = grid_witnesses(captured, grid, 2, "delete")
    layers = [int(witness.ablation.layers) for witness in witnesses]
    assert layers == grid_witness_layers([0, 1, 3], 9) == [0, 1, 1, 3] or layers == [0, 0, 1, 3]
    for layer in (0, 1, 3):
        away = np.sort(np.abs(np.exp(grid.log_p[list(grid.layers).index(layer)]) - 0.5))
        ours = sorted(abs(np.exp(w.log_p) - 0.5) for w in witnesses if int(w.ablation.layers) == layer)
        np.testing.assert_allclose(ours, away[: layers.count(layer)], rtol=0, atol=1e-15)
    for witness in witnesses:
        alone = next(replay(random_model, captured, witness.ablation))[1]
        assert float(target.log_p(alone)) == pytest.approx(witness.log_p, abs=1e-9)
        assert (np.abs(np.asarray(grid.log_p, float) - witness.log_p) < 1e-9).sum() == 1  # no other gives this value


def test_where_a_layer_reports_nothing_other_layers_give_as_many_witnesses(random_model, exact):
    """As in coarse-to-fine grids, whose unreported windows are NaN."""
    captured, target = exact
    grid = information_grids(Case(random_model, captured, {"gold": target}), GridRequest())["gold"]
    log_p = np.full((4, 9), np.nan)
    log_p[0, :6] = np.log(np.array([0.1, 0.45, 0.9, 0.3, 0.7, 0.95]))
    few = grid_witnesses(captured, grid_of(grid, log_p), 2, "delete")
    assert sorted(round(float(np.exp(witness.log_p)), 6) for witness in few) == [0.1, 0.3, 0.45, 0.7]
    log_p[0, 2:] = np.nan
    assert len(grid_witnesses(captured, grid_of(grid, log_p), 2, "delete")) == 2
    assert grid_witnesses(captured, grid_of(grid, np.full((4, 9), np.nan)), 2, "delete") == []


# --- what it covers --------------------------------------------------------------------------------------------------


@contextmanager
def rounding(model: ProbedModel, unit: float) -> Iterator[None]:
    """Every layer's sums and the head's rounded up or down by up to half a unit, as the shape of the batch has it.

    The model itself is in float64, so that what a processor does to it is a billionth of what is planted.
    """

    def hook(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        seed = int(output.shape[0] * 7919 + output.shape[1]) + int(output.double().abs().sum() * 1e6) % 2**31
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, tuple(output.shape))
        return output * (1 + unit * torch.from_numpy(noise))

    sums = [part for layer in model.layers for part in (layer.self_attn.o_proj, layer)]
    handles = [module.register_forward_hook(hook) for module in (*sums, model.head)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def rounded() -> ProbedModel:
    return load_model(random_llava(34), processor=random_processor(), dtype="float64")


@pytest.mark.parametrize("context", ["keep-one", "leave-one-out"])
@pytest.mark.parametrize("bounded", [True, False])
def test_the_floor_holds_what_the_batch_size_does_to_windows(rounded, monkeypatch, context, bounded):
    """Planted rounding: that of float32, which the bound alone holds; and coarser, which only the witnesses show."""
    unit = 2.0**-23 if bounded else 2.0**-9
    if bounded:
        monkeypatch.setattr("probes.measures.noise.summation_eps", lambda _dtype: unit)
    floors, apart, moved = [], [], []
    for seed in range(4):
        captured, target = prepared(rounded, replace(SAMPLE, image=random_image(seed)))
        request = GridRequest(context, window=1)
        with rounding(rounded, unit):
            batched, alone = (
                information_grids(Case(rounded, captured, {"gold": target}), replace(request, batch_size=size))["gold"]
                for size in (16, 1)
            )
            witnesses = [] if bounded else grid_witnesses(captured, batched, 1, "delete")
            floor = rounding_bound(rounded, captured, 0.0)
            if not bounded:
                floor = noise_floor(rounded, captured, target, witnesses, rows=30)
        floors.append((floor.p, floor.log_p))
        apart.append((np.abs(batched.values - alone.values), np.abs(batched.log_p - alone.log_p)))
        moved.append(np.abs(batched.values).max())
    for largest, differences in zip(np.max(floors, axis=0), np.moveaxis(apart, 1, 0), strict=True):
        assert (differences <= largest).mean() >= 0.95
        assert (differences > 0.01 * largest).mean() > 0.3  # there was something to hold
    assert max(moved) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_floor_is_far_below_what_windows_do_in_any_dtype(dtype):
    model = load_model(data_path("demo-models", "tiny-8"), dtype=dtype, check=False)
    captured, target = prepared(model, demo_samples(1)[0])
    grid = information_grids(Case(model, captured, {"gold": target}), GridRequest(layers=(1, 5)))["gold"]
    floor = noise_floor(model, captured, target, grid_witnesses(captured, grid, 2, "delete"), rows=30)
    assert 0 < floor.p < 0.02 < 0.5 < np.abs(grid.values).max()


# --- refusal ---------------------------------------------------------------------------------------------------------


def test_replays_that_miss_the_model_are_refused(random_model, exact):
    captured, _ = exact
    greedy = Target("greedy", "", (int(captured.log_probs[0].argmax()),))
    off = shifted(captured, 3.0)
    with pytest.raises(SampleError, match=r"replays of 'LlavaFor.*' miss its own output by .* with nothing removed"):
        noise_floor(random_model, off, greedy, [], rows=7)
    assert noise_floor(random_model, captured, greedy, [], rows=7).p < REPLAY_TOLERANCE


def test_replays_that_are_not_finite_are_refused(random_model, exact):
    captured, target = exact
    with pytest.raises(SampleError, match="miss its own output by nan in p"):
        noise_floor(random_model, shifted(captured, float("nan")), target, [], rows=7)


def test_a_window_witness_with_the_wrong_value_shows(random_model, exact):
    """The floor compares what a batch gave with the same ablation alone, so a batch that mixed them up is seen."""
    captured, target = exact
    grid = information_grids(Case(random_model, captured, {"gold": target}), GridRequest())["gold"]
    witness = grid_witnesses(captured, grid, 2, "delete")[-1]
    mixed_up = replace(witness, log_p=float(grid.log_p[0, 0]))
    floor = noise_floor(random_model, captured, target, [mixed_up], rows=7)
    assert floor.log_p == pytest.approx(2 * abs(float(grid.log_p[0, 0]) - witness.log_p), rel=1e-6)
    assert floor.log_p > 1e-3
