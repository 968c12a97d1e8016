"""What is planted in a demo model is found, through run, load and find: horizons, collapses, and nothing else."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deletion_oracle import ablated_logits, recorded_states, target_log_p, visual_tokens
from planted_models import collapsed_at, cut_from, plane_of, unrotated_from
from random_models import encode
from scipy.stats import norm, t
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_horizon as vh

DATA = Path(__file__).resolve().parents[3] / "data"
VISUAL = range(2, 66)  # 64 patches after the two tokens of "USER:"
N_LAYERS = 8
PER_TASK = 12
WITH_GRIDS = {"probes": ("removal", "information"), "window": 4}
UNROTATED = ("query", "key")
COLLAPSED = ("hidden", "value", "query_raw", "key_raw")


@pytest.fixture(scope="module")
def samples() -> list[vh.Sample]:
    files = [DATA / "demo-samples" / f"{task}.jsonl" for task in ("ocr", "vqa")]
    return [sample for file in files for sample in vh.read_samples(file, limit=PER_TASK)]


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DATA / "demo-models" / "tiny-8")


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(DATA / "demo-models" / "tiny-8", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def inputs(processor, samples) -> list:
    return [encode(processor, sample.load_image(), sample.question) for sample in samples]


def measured(model, processor, samples, out: Path, *, name: str | None = None, **arguments) -> vh.Run:
    """Run, then read from disk what was written. No self-test: here it is the numbers that tell."""
    probed = vh.load_model(model, processor=processor, name=name, dtype="float32", check=False)
    vh.run(probed, samples, out, progress=False, **arguments)
    return vh.load_run(out)


# --- horizon ---------------------------------------------------------------------------------------------------------


def removal_p(run: vh.Run) -> np.ndarray:
    """(sample, layer) p of the gold answer with all visual tokens removed from each layer 0..L on."""
    _, layers, log_p = run.matrix("log_p", context="removal", target="gold")
    assert list(layers) == list(range(N_LAYERS + 1))
    return np.exp(log_p)


@pytest.fixture(scope="module")
def uncut(model, processor, samples, tmp_path_factory) -> vh.Run:
    return measured(model, processor, samples, tmp_path_factory.mktemp("uncut"), name="uncut", **WITH_GRIDS)


@pytest.fixture(scope="module", params=range(N_LAYERS + 1))
def cut(request, model, processor, samples, tmp_path_factory) -> tuple[int, vh.Run]:
    planted = cut_from(model, request.param, VISUAL)
    out = tmp_path_factory.mktemp("cut")
    return request.param, measured(planted, processor, samples, out, name="cut", **WITH_GRIDS)


def effects_by_identity(p: np.ndarray, h: int) -> np.ndarray:
    """(sample, layer) R'_k = R_k - R_h for k < h and 0 from h on, from the uncut model's (sample, layer) p."""
    removal = p[:, -1:] - p
    return np.where(np.arange(N_LAYERS + 1) < h, removal - removal[:, h : h + 1], 0.0)


def lower_bound(values: np.ndarray, images: np.ndarray, all_images: np.ndarray) -> float:
    """Of a mean: 2.5th percentile over resamples of the run's images, as far out as Student's t asks for so few."""
    random = np.random.default_rng(0)
    names = np.unique(all_images)
    members = [values[images == image] for image in names]
    drawn = [np.concatenate([members[i] for i in random.integers(0, len(names), len(names))]) for _ in range(4000)]
    n = len(np.unique(images))
    share = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1))
    return float(np.quantile([draw.mean() for draw in drawn if len(draw)], share))


def horizon_of(effects: np.ndarray, images: np.ndarray, inside: np.ndarray, floor: float) -> int | None:
    """The definition, written down once more: where the mean effect settles below its threshold, if there is one."""
    if lower_bound(effects[inside, 0], images[inside], images) <= floor + 0.01:
        return None
    mean = np.abs(effects[inside].mean(axis=0))
    threshold = max(0.05 * mean[0], floor + 0.01)
    return next(k for k in range(N_LAYERS + 1) if (mean[k:] < threshold).all())


@pytest.fixture(scope="module")
def exact(model, processor, samples, inputs):
    """The uncut model in float64, one prompt, its target, and log p with the visual tokens gone from k on."""
    exact, x = deepcopy(model).double(), inputs[1]
    visual = visual_tokens(exact, x)
    assert visual.nonzero()[:, 0].tolist() == list(VISUAL)
    probed = vh.load_model(exact, processor=processor, dtype="float64", check=False)
    target = vh.removal_curve(probed, samples[1], layers=[0]).target.ids
    removed = [target_log_p(ablated_logits(exact, x, k, visual), target) for k in range(N_LAYERS + 1)]
    return exact, x, target, np.array(removed)


@pytest.mark.parametrize("h", range(N_LAYERS + 1))
def test_the_cut_holds_in_the_plain_model_and_under_replays(exact, processor, samples, h):
    """In float64, where no rounding blurs the identity: m'(removed from k) = m(removed from min(k, h))."""
    model, x, target, removed = exact
    planted = cut_from(model, h, VISUAL)
    probed = vh.load_model(cut_from(model, h, VISUAL), processor=processor, dtype="float64")
    curve = vh.removal_curve(probed, samples[1])
    assert tuple(curve.target.ids) == tuple(target)

    uncut = removed[np.minimum(curve.layers, h)]
    visual = visual_tokens(model, x)
    plain = [target_log_p(ablated_logits(planted, x, k, visual), target) for k in curve.layers]
    np.testing.assert_allclose(plain, uncut, rtol=0, atol=1e-9)
    np.testing.assert_allclose(curve.log_p, uncut, rtol=0, atol=1e-9)
    assert h == 0 or np.ptp(np.exp(uncut)) >= 0.01


def test_the_cut_curve_is_the_uncut_one_less_its_value_at_the_cut(cut, uncut):
    h, run = cut
    assert len(run.failed) == 0
    assert len(run.ok) == 2 * PER_TASK
    p = removal_p(run)
    effects, expected = p[:, -1:] - p, effects_by_identity(removal_p(uncut), h)
    np.testing.assert_allclose(effects, expected, rtol=0, atol=4e-6)  # each of four values is rounded
    np.testing.assert_allclose(effects.mean(axis=0), expected.mean(axis=0), rtol=0, atol=1e-6)


def test_the_cut_horizon_is_the_one_that_the_uncut_curve_implies(cut, uncut):
    h, run = cut
    expected = effects_by_identity(removal_p(uncut), h)
    images = uncut.ok["image_sha256"].to_numpy()
    found = vh.find_horizon(run, by=("task_type",), criterion="removal")
    assert [horizon.group["task_type"] for horizon in found] == ["ocr", "vqa"]
    for horizon in found:
        inside = (run.ok["task_type"] == horizon.group["task_type"]).to_numpy()
        layer = horizon_of(expected, images, inside, horizon.noise_floor)
        assert horizon.layer == layer, horizon.reason
        assert (horizon.reason == "") == (layer is not None)
        np.testing.assert_allclose(horizon.effect, expected[inside].mean(axis=0), rtol=0, atol=1e-6)
        assert np.abs(horizon.effect[h:]).max() <= horizon.noise_floor


def test_the_cuts_cover_horizons_at_many_layers_and_none(uncut):
    images = uncut.ok["image_sha256"].to_numpy()
    everyone = np.ones(len(images), dtype=bool)
    implied = {
        horizon_of(effects_by_identity(removal_p(uncut), h), images, everyone, 1e-6) for h in range(N_LAYERS + 1)
    }
    assert None in implied
    assert len(implied) >= 5


def test_no_criterion_sees_anything_from_the_cut_on(cut):
    """Whatever it looks at: nothing is left to be lost at h, so no horizon lies deeper."""
    h, run = cut
    found = vh.find_horizon(run, by=("task_type",))
    assert {horizon.criterion for horizon in found} == {"removal", "information", "spread", "accuracy", "kl", "vtw"}
    for horizon in found:
        assert np.abs(horizon.effect[h:]).max() <= max(1e-5, horizon.noise_floor if horizon.measure == "p" else 0)
        assert (horizon.layer is None) == bool(horizon.reason)
        assert horizon.layer is None or horizon.layer <= h


def test_accuracy_falls_as_the_uncut_model_says(cut, uncut):
    h, run = cut
    right = uncut.matrix("correct", context="removal", target="gold")[2]
    expected = right[:, np.minimum(np.arange(N_LAYERS + 1), h)]
    np.testing.assert_array_equal(run.matrix("correct", context="removal", target="gold")[2], expected)
    for horizon in vh.find_horizon(run, by=(), criterion="accuracy"):
        np.testing.assert_allclose(horizon.effect, (expected[:, -1:] - expected).mean(axis=0), atol=1e-12)


def test_the_cut_model_is_compared_to_the_uncut_one_as_the_identity_says(cut, uncut):
    h, run = cut
    comparison = vh.compare_horizons([uncut, run], between="model", permutations=200)
    half = [d for d in comparison.differences if (d.quantity, d.unit, d.paired) == ("half_depth", "layers", True)]
    (difference,) = half
    assert (difference.a, difference.b) == ("uncut", "cut")
    whole, cut_short = (half_depth_of(effects_by_identity(removal_p(uncut), n).mean(axis=0)) for n in (N_LAYERS, h))
    if difference.value is None:
        assert comparison.groups[1].half_depth is None
        return
    assert difference.value == pytest.approx(whole - cut_short, abs=1e-4)
    if h == N_LAYERS:
        assert (difference.value, difference.p_value) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=0.01))
    elif h <= 5:
        assert difference.interval[0] > 0
        assert difference.p_value < 0.05


def half_depth_of(effect: np.ndarray) -> float:
    """The definition, written down once more: interpolated after the last layer with half of the effect left."""
    last = max((k for k in range(N_LAYERS + 1) if effect[k] >= effect[0] / 2), default=0)
    if last == N_LAYERS:
        return float(N_LAYERS)
    return last + (effect[last] - effect[0] / 2) / (effect[last] - effect[last + 1])


def test_a_set_against_itself_does_not_differ(model, processor, samples, tmp_path):
    twice = [replace(sample, task=task) for sample in samples[:PER_TASK] for task in ("once", "again")]
    run = measured(model, processor, twice, tmp_path, probes=("removal",))
    differences = vh.compare_horizons(run, between="task", permutations=200).differences
    half = [d for d in differences if d.quantity == "half_depth"]
    assert len(half) == 4
    assert all(d.value == pytest.approx(0, abs=1e-9) for d in half)
    assert all(d.p_value == 1 for d in half)


# --- collapse --------------------------------------------------------------------------------------------------------


def entropy(states: torch.Tensor) -> np.ndarray:
    """(layer,) of (layer, token, dim): Shannon entropy of the squared singular values of centered unit rows."""
    rows = states.double() - states.double().mean(dim=1, keepdim=True)
    share = torch.linalg.svdvals(rows / rows.norm(dim=2, keepdim=True)) ** 2
    share = share / share.sum(dim=1, keepdim=True)
    return torch.special.entr(share).sum(dim=1).numpy()


@pytest.fixture(scope="module")
def planted_collapse(model, inputs):
    """Layer -> the model whose visual rows at that layer's input lie in one plane."""
    references = inputs[:4] + inputs[PER_TASK : PER_TASK + 4]
    hidden = torch.cat([recorded_states(model, x)["hidden"] for x in references], dim=1)
    return lambda layer: collapsed_at(model, layer, VISUAL, plane_of(hidden[layer]))


def found_layers(run: vh.Run) -> dict[tuple[str, str], int | None]:
    return {(found.group["task_type"], found.stream): found.layer for found in vh.find_collapse_layer(run)}


@pytest.mark.parametrize("layer", [1, 4, 7])
def test_the_planted_states_collapse_in_the_plain_model(model, planted_collapse, inputs, layer):
    before = recorded_states(model, inputs[0])
    after = recorded_states(planted_collapse(layer), inputs[0])
    for stream in COLLAPSED:
        free, planted = entropy(before[stream]), entropy(after[stream])
        np.testing.assert_allclose(planted[:layer], free[:layer], atol=1e-6)
        assert planted[layer] <= math.log(2) + 1e-6
        assert planted[layer] < planted[layer - 1] - 0.3

    unrotated = recorded_states(unrotated_from(model, layer), inputs[0])
    for stream in UNROTATED:
        free, planted = entropy(before[stream]), entropy(unrotated[stream])
        np.testing.assert_allclose(planted[:layer], free[:layer], atol=1e-6)
        assert planted[layer] < planted[layer - 1] - 0.8
        np.testing.assert_allclose(planted[layer:], entropy(unrotated[f"{stream}_raw"])[layer:], atol=0.02)


@pytest.mark.parametrize("layer", range(1, N_LAYERS))
def test_a_collapse_planted_in_the_visual_rows_is_found(planted_collapse, processor, samples, tmp_path, layer):
    run = measured(planted_collapse(layer), processor, samples, tmp_path, probes=("entropy",), streams=COLLAPSED)
    assert found_layers(run) == {(task, stream): layer for task in ("ocr", "vqa") for stream in COLLAPSED}


@pytest.mark.parametrize("layer", range(1, N_LAYERS))
def test_a_collapse_planted_under_the_rotation_is_found(model, processor, samples, tmp_path, layer):
    planted = unrotated_from(model, layer)
    run = measured(planted, processor, samples, tmp_path, probes=("entropy",), streams=UNROTATED)
    assert found_layers(run) == {(task, stream): layer for task in ("ocr", "vqa") for stream in UNROTATED}


@pytest.mark.parametrize("name", ["tiny-8", "tiny-12"])
def test_unplanted_demo_models_have_no_collapse(samples, tmp_path, name):
    probed = vh.load_model(DATA / "demo-models" / name, dtype="float32")
    streams = COLLAPSED + UNROTATED
    run = vh.run(probed, samples, tmp_path, probes=("entropy",), streams=streams, progress=False)
    for by in ((), ("task_type",)):
        for found in vh.find_collapse_layer(run, by=by):
            assert found.layer is None, found
            assert found.reason
