"""Every ablation equals physical deletion in the plain model, and every captured state the one the model computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch
from deletion_oracle import (
    ablated_logits,
    deleted_logits,
    last_logits,
    masked_logits,
    recorded_states,
    target_log_p,
    visual_tokens,
)
from random_models import GRID, NOUNS, QUESTION, encode, random_image, random_llava, random_processor
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm_horizon as vh
from probes.models.prompts import encode as encode_prompt
from probes.replay.ablations import Ablations
from probes.replay.capture import capture_prompt
from probes.replay.replay import replay

DATA = Path(__file__).resolve().parents[3] / "data"
SEED = 34  # every kind, context and window size has power on this one
KINDS = ("delete", "zero", "mean")
CONTEXTS = ("keep-one", "leave-one-out")
STREAMS = ("query", "key", "query_raw", "key_raw", "value", "hidden")
POWER = 0.01  # an ablation test proves nothing where ablations do nothing


@dataclass(frozen=True)
class Case:
    """One sample, as the project sees it and as the plain model does; the two models share no object."""

    probed: vh.ProbedModel
    sample: vh.Sample
    model: torch.nn.Module
    inputs: dict
    known: dict = field(default_factory=dict)  # logits of the plain model: one forward an ablation, whoever asks

    @property
    def layers(self) -> range:
        return range(len(self.model.get_decoder().layers))

    @property
    def visual(self) -> torch.Tensor:
        return visual_tokens(self.model, self.inputs)

    def log_p(self, layer: int, removed: torch.Tensor, target, kind: str = "delete") -> float:
        key = layer, kind, removed.numpy().tobytes()
        if key not in self.known:
            self.known[key] = ablated_logits(self.model, self.inputs, layer, removed, kind)
        return target_log_p(self.known[key], target)


@cache
def random_case(attn: str = "sdpa", image_seed: int = 0) -> Case:
    """Made once for all tests, none of which changes it."""
    processor, image = random_processor(), random_image(image_seed)
    model = random_llava(SEED, attn=attn)
    inputs = encode(processor, image)
    nouns = processor.tokenizer.convert_tokens_to_ids(list(NOUNS))
    answer = NOUNS[int(last_logits(model, inputs)[nouns].argmax())]
    probed = vh.load_model(random_llava(SEED, attn=attn), processor=processor, dtype="float64", attn=attn, check=False)
    return Case(probed, vh.Sample("random", image, QUESTION, (answer,), "random", "vqa"), model, inputs)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def case(request) -> Case:
    return random_case(request.param)


@pytest.fixture(scope="module")
def sdpa_case() -> Case:
    return random_case()


def tolerance(case: Case) -> float:
    """Transformers' eager attention takes its softmax in float32, whatever the model's precision."""
    return 1e-9 if case.probed.attn == "sdpa" else 1e-5


def side_of(visual: torch.Tensor) -> int:
    """Tokens a side of the square grid."""
    return math.isqrt(int(visual.sum()))


def tiles(size: int, side: int) -> list[tuple[int, int, int, int]]:
    """(row, column, height, width) of windows tiled from the top left."""
    starts = range(0, side, size)
    return [(r, c, min(size, side - r), min(size, side - c)) for r in starts for c in starts]


def tokens_of(window: tuple[int, int, int, int], visual: torch.Tensor) -> torch.Tensor:
    """(token,) bool, true inside the window of the only grid, whose visual tokens are row-major."""
    row, column, height, width = window
    side = side_of(visual)
    grid = torch.zeros(side, side, dtype=torch.bool)
    grid[row : row + height, column : column + width] = True
    mask = torch.zeros_like(visual)
    mask[visual] = grid.flatten()
    return mask


def expected_grid(case: Case, context: str, size: int, target, kind: str, layers) -> np.ndarray:
    """(layer, window) log p under each ablation, one forward of the plain model each."""
    visual = case.visual
    windows = [tokens_of(tile, visual) for tile in tiles(size, side_of(visual))]
    removed = [visual & ~window if context == "keep-one" else window for window in windows]
    return np.array([[case.log_p(layer, rows, target, kind) for rows in removed] for layer in layers])


def removal_of(case: Case, target, kind: str, layers) -> np.ndarray:
    """(layer,) log p with no visual token from each layer on."""
    return np.array([case.log_p(layer, case.visual, target, kind) for layer in layers])


def expected_effects(case: Case, context: str, log_p: np.ndarray, target, kind: str, layers) -> np.ndarray:
    """(layer, window) effect in p: what the kept window gives over nothing, or what the lost one takes from all."""
    if context == "keep-one":
        return np.exp(log_p) - np.exp(removal_of(case, target, kind, layers))[:, None]
    return math.exp(target_log_p(last_logits(case.model, case.inputs), target)) - np.exp(log_p)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_two_oracles_agree(attn):
    model, inputs = random_llava(SEED, attn=attn), encode(random_processor(), random_image())
    visual = visual_tokens(model, inputs)
    own = last_logits(model, inputs)
    chosen = torch.Generator().manual_seed(0)
    moved = []
    for layer in range(4):
        for share in (0.1, 0.5, 0.9, 1.0):
            removed = visual & (torch.rand(len(visual), generator=chosen) < share)
            deleted = deleted_logits(model, inputs, layer, removed)
            masked = masked_logits(model, inputs, layer, removed)
            torch.testing.assert_close(deleted, masked, rtol=0, atol=1e-12 if attn == "sdpa" else 1e-5)
            moved.append(float((deleted.softmax(-1) - own.softmax(-1)).abs().max()))
    assert np.median(moved) >= POWER


@pytest.mark.parametrize("kind", KINDS)
def test_removal_equals_deletion_at_every_layer(case, kind):
    curve = vh.removal_curve(case.probed, case.sample, kind=kind)
    own = last_logits(case.model, case.inputs)
    layers = [*case.layers, len(case.layers)]
    assert list(curve.layers) == layers

    removed = [ablated_logits(case.model, case.inputs, layer, case.visual, kind) for layer in layers]
    log_p = np.array([target_log_p(logits, curve.target.ids) for logits in removed])
    kl = np.array([float((r.softmax(-1) * (r.log_softmax(-1) - own.log_softmax(-1))).sum()) for r in removed])
    best = [int(logits.argmax()) for logits in removed]

    np.testing.assert_allclose(curve.log_p, log_p, rtol=0, atol=tolerance(case))
    np.testing.assert_allclose(np.exp(curve.log_p), np.exp(log_p), rtol=0, atol=tolerance(case))
    np.testing.assert_allclose(curve.kl, kl, rtol=0, atol=tolerance(case))
    assert [bool(flag) for flag in curve.correct] == [token in curve.target.ids for token in best]
    assert [bool(flag) for flag in curve.same] == [token == best[-1] for token in best]
    assert abs(curve.log_p_all - log_p[-1]) <= tolerance(case)
    assert np.median(np.abs(np.exp(log_p[:-1]) - np.exp(log_p[-1]))) >= POWER


# what replaces a row does not depend on how the layers attend: one window size shows that
GRIDS = [
    (attn, context, size, kind)
    for attn, context, size, kind in product(("sdpa", "eager"), CONTEXTS, (1, 2, 3), KINDS)
    if attn == "sdpa" or kind == "delete" or size == 2
]


@pytest.mark.parametrize(("case", "context", "size", "kind"), GRIDS, indirect=["case"])
def test_token_information_equals_deletion_at_every_layer(case, context, size, kind):
    grid = vh.token_information(case.probed, case.sample, context=context, window=size, kind=kind)
    target = vh.removal_curve(case.probed, case.sample).target.ids
    assert list(grid.layers) == list(case.layers)
    assert list(grid.windows[["row", "column", "height", "width"]].itertuples(index=False, name=None)) == tiles(
        size, GRID
    )

    log_p = expected_grid(case, context, size, target, kind, case.layers)
    effects = expected_effects(case, context, log_p, target, kind, case.layers)
    np.testing.assert_allclose(grid.log_p, log_p, rtol=0, atol=tolerance(case))
    np.testing.assert_allclose(np.exp(grid.log_p), np.exp(log_p), rtol=0, atol=tolerance(case))
    np.testing.assert_allclose(grid.removed, removal_of(case, target, kind, case.layers), rtol=0, atol=tolerance(case))
    np.testing.assert_allclose(grid.values, effects, rtol=0, atol=2 * tolerance(case))
    assert abs(grid.all - target_log_p(last_logits(case.model, case.inputs), target)) <= tolerance(case)
    assert np.median(np.abs(effects)) >= POWER


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_the_batch_size_changes_nothing(sdpa_case, context, batch_size):
    target = vh.removal_curve(sdpa_case.probed, sdpa_case.sample).target.ids
    grid = vh.token_information(
        sdpa_case.probed, sdpa_case.sample, context=context, window=1, layers=[2, 0], batch_size=batch_size
    )
    order = list(grid.layers)
    assert sorted(order) == [0, 2]
    expected = expected_grid(sdpa_case, context, 1, target, "delete", order)
    np.testing.assert_allclose(grid.log_p, expected, rtol=0, atol=1e-9)
    assert np.median(np.abs(np.exp(expected) - np.exp(grid.all))) >= POWER


@pytest.mark.parametrize("image_seed", [1, 2])
def test_captured_states_are_those_the_model_computes(image_seed):
    case = random_case(image_seed=image_seed)
    captured = vh.capture(case.probed, case.sample, streams=STREAMS)
    recorded = recorded_states(case.model, case.inputs)
    assert set(captured.states) == set(STREAMS)
    for stream in STREAMS:
        torch.testing.assert_close(captured.states[stream].cpu(), recorded[stream], rtol=0, atol=1e-12, msg=stream)
    assert len(recorded["hidden"]) == len(case.layers) + 1
    assert recorded["key"].shape[-1] == recorded["query"].shape[-1] // 2  # key heads are not repeated
    assert float((recorded["query"] - recorded["query_raw"]).abs().median()) >= POWER


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("recomputed", ["none", "from the image on", "all"])
def test_a_replay_with_everything_kept_gives_the_models_own_output(attn, recomputed):
    case = random_case(attn)
    captured = capture_prompt(case.probed, encode_prompt(case.probed, case.sample), ())
    n = len(case.visual)
    first = {"none": n, "from the image on": int(case.visual.nonzero()[0]), "all": 0}[recomputed]
    layers = torch.arange(len(case.layers))
    null = Ablations(layers, torch.zeros(len(layers), n, dtype=torch.bool))
    own = last_logits(case.model, case.inputs).log_softmax(-1)
    seen = []
    for indices, log_probs in replay(case.probed, captured, null, recompute=torch.arange(n) >= first):
        seen += indices.tolist()
        torch.testing.assert_close(log_probs[:, 0], own.expand(len(indices), -1), rtol=0, atol=tolerance(case))
    assert sorted(seen) == layers.tolist()


@pytest.fixture(scope="module")
def undecided() -> list[Case]:
    """Two samples a task on which the demo model hesitates: where it is sure, one window less changes nothing."""
    path = DATA / "demo-models" / "tiny-8"
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(path)
    probed = vh.load_model(path, dtype="float32", check=False)
    chosen: list[Case] = []
    for task in ("ocr", "vqa"):
        samples = vh.read_samples(DATA / "demo-samples" / f"{task}.jsonl")
        cases = (Case(probed, s, model, encode(processor, s.load_image(), s.question)) for s in samples)
        hesitant = (c for c in cases if 0.3 < float(last_logits(model, c.inputs).softmax(-1).max()) < 0.75)
        chosen += islice(hesitant, 2)
    return chosen


def test_removal_equals_deletion_on_the_demo_model(undecided):
    effects = []
    for case in undecided:
        curve = vh.removal_curve(case.probed, case.sample)
        p = np.exp(removal_of(case, curve.target.ids, "delete", [*case.layers, len(case.layers)]))
        np.testing.assert_allclose(np.exp(curve.log_p), p, rtol=0, atol=2e-5)
        effects += list(p[-1] - p[:-1])
    assert len(undecided) == 4
    assert np.median(np.abs(effects)) >= POWER


@pytest.mark.parametrize(("context", "size"), [("keep-one", 3), ("leave-one-out", 4)])
def test_token_information_equals_deletion_on_the_demo_model(undecided, context, size):
    effects, layers = [], (0, 2, 5, 7)
    for case in undecided:
        grid = vh.token_information(case.probed, case.sample, context=context, window=size, layers=layers)
        target = vh.removal_curve(case.probed, case.sample, layers=[0]).target.ids
        log_p = expected_grid(case, context, size, target, "delete", layers)
        np.testing.assert_allclose(np.exp(grid.log_p), np.exp(log_p), rtol=0, atol=2e-5)
        effects.append(expected_effects(case, context, log_p, target, "delete", layers))
        np.testing.assert_allclose(grid.values, effects[-1], rtol=0, atol=4e-5)
    assert np.median(np.abs(effects)) >= POWER
