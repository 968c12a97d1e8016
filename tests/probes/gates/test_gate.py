"""First-order effects against finite differences of the plain model, and what follows from them by identity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from deletion_oracle import gated_logits, masked_logits, target_log_p, visual_tokens
from demo_data import demo_samples
from planted_models import cut_from
from random_models import GRID, encode, random_image, random_llava, random_processor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import probes.gates.trajectories
import vlm_horizon as vh
from probes.gates.gate import derivatives, gate_effects, log_p_at, sum_windows
from probes.gates.trajectories import closed_trajectory, open_trajectory, path_trajectory
from probes.measures import case as measures
from probes.measures.gate_checks import checked_layers, rank_agreement, top_overlap
from probes.measures.information import GridRequest, information_grids, removal_curves
from probes.models.grids import tile_windows
from probes.models.prompts import encode as encode_prompt
from probes.models.targets import Target
from probes.replay.capture import Capture, capture_prompt

SEED = 34
CONTEXTS = ("keep-one", "leave-one-out")
IDS = (20, 25)  # two of the vocabulary's nouns
N_VISUAL, N_LAYERS = GRID**2, 4
SHUT = -torch.inf


@dataclass(frozen=True)
class Case:
    """One prompt, as the project captures it and as the plain model sees it; the two models share no object."""

    probed: vh.ProbedModel
    captured: Capture
    plain: torch.nn.Module
    inputs: dict
    targets: dict[str, Target]
    step: float  # of finite differences: transformers' eager softmax is in float32

    @property
    def measured(self) -> measures.Case:
        """As measurements take it."""
        return measures.Case(self.probed, self.captured, self.targets)

    def log_p(self, log_gates: torch.Tensor, name: str = "gold") -> float:
        return target_log_p(gated_logits(self.plain, self.inputs, log_gates), self.targets[name].ids)


def double_norms(model: torch.nn.Module) -> torch.nn.Module:
    """With norms in the model's own precision: transformers' are in float32, which finite differences would see."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return model


def random_case(attn: str) -> Case:
    processor = random_processor()
    probed = vh.load_model(
        double_norms(random_llava(SEED, attn=attn)), processor=processor, dtype="float64", attn=attn, check=False
    )
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    captured = capture_prompt(probed, encode_prompt(probed, sample), ())
    targets = {"gold": Target("gold", "", IDS), "greedy": Target("greedy", "", (14,))}
    plain = double_norms(random_llava(SEED, attn=attn))
    inputs = encode(processor, sample.image)
    return Case(probed, captured, plain, inputs, targets, 1e-4 if attn == "sdpa" else 3e-2)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def case(request) -> Case:
    return random_case(request.param)


@pytest.fixture(scope="module")
def sdpa_case() -> Case:
    return random_case("sdpa")


def opened(cut: int = N_LAYERS) -> torch.Tensor:
    """(layer, visual token) log gates, all shut from the cut on."""
    gates = torch.zeros(N_LAYERS, N_VISUAL, dtype=torch.float64)
    gates[cut:] = SHUT
    return gates


def at_one(case: Case) -> torch.Tensor:
    """(target, layer, visual token) derivatives at gates 1."""
    gates = torch.zeros(N_VISUAL, dtype=torch.float64)
    return derivatives(
        case.probed, case.captured, list(case.targets.values()), open_trajectory(case.captured, 0), gates
    )


# --- against finite differences --------------------------------------------------------------------------------------


def test_derivatives_in_each_layer_are_central_differences_of_the_plain_model(case):
    found = at_one(case)
    for at, name in enumerate(case.targets):
        for layer in range(N_LAYERS):
            for token in (0, 11, N_VISUAL - 1):
                ends = []
                for sign in (1, -1):
                    gates = opened()
                    gates[layer, token] = sign * case.step
                    ends.append(case.log_p(gates, name))
                expected = (ends[0] - ends[1]) / (2 * case.step)
                assert float(found[at, layer, token]) == pytest.approx(expected, rel=1e-5, abs=50 * case.step**2)
    assert (found.abs() > 1e-3).double().mean() > 0.5  # there is something to be right about


def test_leave_one_out_of_a_cut_is_the_sum_over_its_layers(case):
    found = gate_effects(case.probed, case.captured, case.targets, "leave-one-out", [1, 3])
    by_layer = at_one(case)
    for at, name in enumerate(case.targets):
        expected = torch.stack([by_layer[at, 1:].sum(0), by_layer[at, 3]])
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-9)


def test_keep_one_is_the_slope_from_deletion_to_a_small_gate(sdpa_case):
    case = sdpa_case
    found = gate_effects(case.probed, case.captured, case.targets, "keep-one", range(N_LAYERS))
    for name in case.targets:
        for cut in range(N_LAYERS):
            none = case.log_p(opened(cut), name)
            for token in (0, 11, N_VISUAL - 1):
                slopes = []
                for gate in (1e-9, 5e-10):
                    gates = opened(cut)
                    gates[cut:, token] = math.log(gate)
                    slopes.append((case.log_p(gates, name) - none) / gate)
                expected = 2 * slopes[1] - slopes[0]  # without the term that is linear in the gate
                assert found[name][cut, token] == pytest.approx(expected, rel=3e-4, abs=1e-5)
        assert np.abs(found[name]).max() > 1


def test_eager_and_sdpa_agree():
    effects = [
        gate_effects(case.probed, case.captured, case.targets, context, range(N_LAYERS))["gold"]
        for context in CONTEXTS
        for case in (random_case("sdpa"), random_case("eager"))
    ]
    for one, other in (effects[:2], effects[2:]):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


# --- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(N_LAYERS))
def test_gates_at_0_are_removal_and_gates_between_are_those_of_the_plain_model(case, cut):
    visual = visual_tokens(case.plain, case.inputs)
    gold = case.targets["gold"]
    tolerance = 1e-9 if case.probed.attn == "sdpa" else 1e-5
    removed = target_log_p(masked_logits(case.plain, case.inputs, cut, visual), IDS)
    closed = closed_trajectory(case.probed, case.captured, cut)
    assert log_p_at(case.probed, gold, closed) == pytest.approx(removed, abs=tolerance)
    gates = opened()
    gates[cut:] = math.log(0.3)
    between = path_trajectory(case.probed, case.captured, cut, math.log(0.3))
    assert log_p_at(case.probed, gold, between) == pytest.approx(case.log_p(gates), abs=tolerance)
    assert abs(removed - case.log_p(gates)) > 1e-3


@pytest.mark.parametrize("rows", [3, 10])
def test_chunks_of_rows_change_nothing(case, monkeypatch, rows):
    whole = [gate_effects(case.probed, case.captured, case.targets, c, [2]) for c in CONTEXTS]
    sizes: list[int] = []
    handle = case.probed.layers[2].register_forward_pre_hook(lambda _m, args: sizes.append(args[0].shape[1]))
    monkeypatch.setattr(probes.gates.trajectories, "CHUNK_PAIRS", rows * case.captured.prompt.n_tokens)
    parts = [gate_effects(case.probed, case.captured, case.targets, c, [2]) for c in CONTEXTS]
    handle.remove()
    if case.probed.attn == "sdpa":
        assert max(sizes) == rows
    for one, other in zip(whole, parts, strict=True):
        for name in case.targets:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-6)


def test_rows_that_see_later_ones_run_together(sdpa_case, monkeypatch):
    """A mask under which the image's rows see each other both ways: differences of replays with gates say the same."""
    case = sdpa_case
    visual = case.captured.prompt.visual
    mask = torch.ones(case.captured.prompt.n_tokens, case.captured.prompt.n_tokens, dtype=torch.bool).tril()
    mask[visual[:, None], visual] = True
    arguments = [{**one, "attention_mask": mask[None, None]} for one in case.captured.arguments]
    both_ways = replace(case.captured, arguments=arguments)
    monkeypatch.setattr(probes.gates.trajectories, "CHUNK_PAIRS", 1)
    gold, step = case.targets["gold"], 1e-4
    path = path_trajectory(case.probed, both_ways, 1, math.log(0.5))
    slope = derivatives(case.probed, both_ways, [gold], path, torch.full((N_VISUAL,), math.log(0.5)).double()).sum()
    ends = [
        log_p_at(case.probed, gold, path_trajectory(case.probed, both_ways, 1, math.log(0.5) + sign * step))
        for sign in (1, -1)
    ]
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
    causal = path_trajectory(case.probed, case.captured, 1, math.log(0.5))
    assert abs(log_p_at(case.probed, gold, path) - log_p_at(case.probed, gold, causal)) > 1e-3


# --- what follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["p", "log_p"])
def test_integrated_derivatives_sum_to_the_removal_effect(measure):
    model = vh.load_model(random_llava(SEED), processor=random_processor(), dtype="float64", check=False)
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    errors = []
    for steps in (6, 18, 54):
        found = vh.integrated_information(model, sample, window=3, layers=[2, 3], measure=measure, steps=steps)
        errors.append(np.abs(found.error).max() / np.abs(found.removal).min())
        assert found.values.shape == (2, 4)
    assert (np.abs(found.placeless) < 1e-12).all()
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-3  # the rest is what the path leaves out below its start


def test_integrated_derivatives_of_a_trained_model_sum_to_the_removal_effect():
    model = vh.load_model(vh.data_path("demo-models", "tiny-8"), dtype="float64", check=False)
    (sample,) = demo_samples(1, "ocr")
    errors = []
    for steps in (20, 160):
        found = vh.integrated_information(model, sample, window=4, layers=[7], measure="log_p", steps=steps)
        errors.append(abs(found.error[0] / found.removal[0]))
    assert found.removal[0] > 1e-3
    assert errors[1] < 2e-3
    assert errors[0] > 10 * errors[1]


def test_windows_sum_their_tokens(sdpa_case):
    case = sdpa_case
    for context in CONTEXTS:
        tokens, windows = (
            information_grids(case.measured, GridRequest(context, w, method="gate"))["gold"] for w in (1, 2)
        )
        single = tokens.effects("log_p").reshape(N_LAYERS, GRID, GRID)
        found = windows.effects("log_p")
        for at, (row, column) in enumerate(zip(windows.windows["row"], windows.windows["column"], strict=True)):
            expected = single[:, row : row + 2, column : column + 2].sum((1, 2))
            np.testing.assert_allclose(found[:, at], expected, rtol=1e-9, atol=1e-9)


def test_effects_in_p_are_linear_too(sdpa_case):
    case = sdpa_case
    for context in CONTEXTS:
        grid = information_grids(case.measured, GridRequest(context, method="gate"))["gold"]
        base = np.exp(grid.removed)[:, None] if context == "keep-one" else np.exp(grid.all)
        np.testing.assert_allclose(grid.values, base * grid.effects("log_p"), rtol=1e-12)
        assert grid.method == "gate"


def test_baselines_are_those_of_exact_removals(sdpa_case):
    case = sdpa_case
    removal = removal_curves(case.measured)["gold"]
    grid = information_grids(case.measured, GridRequest(method="gate"))["gold"]
    np.testing.assert_array_equal(grid.removed, removal.log_p[:-1])
    assert grid.all == removal.log_p_all


@pytest.mark.parametrize("h", [0, 2, 4])
def test_nothing_is_worth_anything_from_a_planted_horizon_on(h):
    plain = random_llava(SEED)
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    probed = vh.load_model(random_llava(SEED), processor=random_processor(), dtype="float64", check=False)
    visual = encode_prompt(probed, sample).visual
    planted = vh.load_model(
        cut_from(plain, h, range(int(visual[0]), int(visual[-1]) + 1)), processor=random_processor(), dtype="float64"
    )
    found = vh.token_information(planted, sample, context="leave-one-out", window=1, method="gate").effects("log_p")
    np.testing.assert_allclose(found[h:], 0.0, atol=1e-12)
    assert all(np.abs(row).max() > 1e-3 for row in found[:h])


def test_estimates_are_exact_values_where_no_token_stands_out():
    """Attention the same everywhere and hardly heard: one token of 30 to 40 leaves, or joins, next to linearly."""
    model = random_llava(SEED)
    for layer in model.get_decoder().layers:
        layer.self_attn.q_proj.weight.data.zero_()
        layer.self_attn.o_proj.weight.data *= 1e-3
    probed = vh.load_model(double_norms(model), processor=random_processor(), dtype="float64", check=False)
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    for context in CONTEXTS:
        exact, estimate = (
            vh.token_information(probed, sample, context=context, window=1, method=method).effects("log_p")
            for method in ("exact", "gate")
        )
        for one, other in zip(estimate, exact, strict=True):
            assert np.abs(one - other).max() < 0.2 * np.abs(other).max()
            assert rank_agreement(one, other) > 0.99


def test_weights_and_gradients_are_left_as_they_were(sdpa_case):
    case = sdpa_case
    parameters = list(case.probed.model.parameters())
    parameters[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in parameters]
    with torch.no_grad():
        gate_effects(case.probed, case.captured, case.targets, "leave-one-out", [0])
    assert [parameter.requires_grad for parameter in parameters] == before
    assert all(parameter.grad is None for parameter in parameters)
    parameters[0].requires_grad_()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precisions_agree(dtype):
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    exact = vh.load_model(random_llava(SEED), processor=random_processor(), dtype="float64", check=False)
    other = vh.load_model(random_llava(SEED), processor=random_processor(), dtype=dtype, check=False)
    for context in CONTEXTS:
        one, two = (
            vh.token_information(model, sample, context=context, window=1, layers=[3], method="gate").effects("log_p")[
                0
            ]
            for model in (exact, other)
        )
        assert rank_agreement(two, one) > (0.9 if dtype == "bfloat16" else 0.999)
        if dtype == "float32":
            np.testing.assert_allclose(two, one, rtol=1e-2, atol=1e-3 * np.abs(one).max())


def test_tokens_that_text_outshines_are_not_lost_in_float32():
    """With queries eight times as sharp some tokens get e^-20 of a row's attention, and float32 ends at e^-87."""
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    found = []
    for dtype in ("float64", "float32"):
        model = random_llava(SEED)
        for layer in model.get_decoder().layers:
            layer.self_attn.q_proj.weight.data *= 8
        probed = vh.load_model(model, processor=random_processor(), dtype=dtype, check=False)
        captured = capture_prompt(probed, encode_prompt(probed, sample), ())
        found.append(gate_effects(probed, captured, {"gold": Target("gold", "", IDS)}, "keep-one", [3])["gold"][0])
    exact, single = found
    assert (np.abs(exact) < 1e-9).sum() >= 2
    np.testing.assert_allclose(single, exact, rtol=0.02)


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_of_ranks_and_tops():
    random = np.random.default_rng(0)
    exact = random.normal(size=40)
    assert rank_agreement(np.exp(exact), exact) == pytest.approx(1.0)
    assert rank_agreement(-exact, exact) == pytest.approx(-1.0)
    assert np.isnan(rank_agreement(np.zeros(40), exact))
    assert top_overlap(exact**3, exact) == 1.0
    assert top_overlap(-exact, exact) == 0.0
    swapped = exact.copy()
    order = np.argsort(exact)
    swapped[order[[-1, 0]]] = exact[order[[0, -1]]]  # the largest of the four goes to the other end
    assert top_overlap(swapped, exact) == 0.75


def test_checked_layers_are_spread():
    assert checked_layers(np.arange(32)) == [0, 10, 21, 31]
    assert checked_layers(np.array([2, 4, 9])) == [2, 4, 9]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_gates_cannot_do_is_refused(sdpa_case, tmp_path):
    sample = vh.Sample("noise", random_image(), "what is shown ?", ("apple",))
    for kind in ("zero", "mean"):
        with pytest.raises(vh.HorizonError, match=f"method 'gate' takes tokens away.*{kind!r}"):
            vh.token_information(sdpa_case.probed, sample, method="gate", kind=kind)
    with pytest.raises(vh.HorizonError, match="method 'guess' is unknown; choose from exact, gate"):
        vh.token_information(sdpa_case.probed, sample, method="guess")
    half = vh.load_model(random_llava(SEED), processor=random_processor(), dtype="float16", check=False)
    with pytest.raises(vh.HorizonError, match="float16"):
        vh.run(half, [sample], tmp_path / "run", method="gate", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(vh.HorizonError, match="steps is 0"):
        vh.integrated_information(sdpa_case.probed, sample, steps=0)
    with pytest.raises(vh.HorizonError, match="measure 'kl' is unknown"):
        vh.integrated_information(sdpa_case.probed, sample, measure="kl")


def test_sums_over_windows_need_no_grid_order():
    grids = vh.capture(
        vh.load_model(random_llava(SEED), processor=random_processor(), dtype="float64", check=False),
        vh.Sample("noise", random_image(), "what is shown ?", ("apple",)),
        streams=("hidden",),
    )
    windows = tile_windows(grids.grids, 2)
    effects = np.arange(N_VISUAL, dtype=float)
    assert sum_windows(effects, grids.positions, windows).sum() == effects.sum()
