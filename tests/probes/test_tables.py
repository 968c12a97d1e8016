"""The open tables hold the words of the vocabulary, in its order; a new word is one entry more and no other edit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from deletion_oracle import changed_layers, last_logits, masked_logits, target_log_p
from random_models import encode as plain_inputs
from random_models import random_image, random_llava

import probes.gates.gate as gate
from analyses.runs import (
    CONTEXT_TABLE,
    CONTEXTS,
    KINDS,
    METHOD_TABLE,
    METHODS,
    STREAM_WIDTHS,
    STREAMS,
    TARGETS,
    Context,
    HorizonError,
)
from probes.data.samples import Sample
from probes.measures.single import removal_curve, token_information
from probes.models.probed import ATTENTION, ProbedModel
from probes.models.prompts import encode
from probes.models.targets import TARGET_TABLE, Target, TargetRule, gold_target
from probes.replay.ablations import CONTEXT_MASKS
from probes.replay.capture import capture, capture_prompt
from probes.replay.kinds import KIND_TABLE, Kind
from probes.replay.streams import STREAM_TABLE, Stream, TracedStates

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))
TOLERANCE = 1e-9  # nats, in float64


@pytest.fixture(scope="module")
def plain():
    """The model of the fixture `random_model` once more, without the project, and its inputs."""
    return random_llava(34)


@pytest.fixture(scope="module")
def inputs(random_model):
    return plain_inputs(random_model.processor, SAMPLE.image)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (KIND_TABLE, KINDS),
        (STREAM_TABLE, STREAMS),
        (STREAM_WIDTHS, STREAMS),
        (CONTEXT_TABLE, CONTEXTS),
        (CONTEXT_MASKS, CONTEXTS),
        (METHOD_TABLE, METHODS),
        (TARGET_TABLE, TARGETS),
    ],
    ids=["kinds", "streams", "widths", "contexts", "masks", "methods", "targets"],
)
def test_tables_hold_the_words_of_the_vocabulary_in_its_order(table, words):
    assert tuple(table) == words
    assert all(entry.name == name for name, entry in table.items() if hasattr(entry, "name"))


def test_contexts_by_gates_and_kinds_of_attention_are_known_words():
    assert set(gate.GATED_CONTEXTS) <= set(CONTEXTS)
    assert set(ATTENTION) == {"sdpa", "eager", "flash"}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_as_wide_as_its_entry_says(random_model, name):
    states = capture(random_model, SAMPLE, streams=(name,)).states[name]
    assert states.shape[-1] == STREAM_WIDTHS[name](random_model)


def test_effects_and_values_of_a_context_are_each_others_inverse():
    random = np.random.default_rng(0)
    values, removed, everything = random.normal(size=(3, 5)), random.normal(size=3), np.float64(0.7)
    expected = {"keep-one": values - removed[:, None], "leave-one-out": everything - values}
    for name, context in CONTEXT_TABLE.items():
        baseline = context.baseline(removed, everything)
        effects = context.effects(values, baseline)
        np.testing.assert_array_equal(effects, expected[name])
        np.testing.assert_allclose(context.values(effects, baseline), values, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"target": "silver"}, "target 'silver' is unknown; choose from gold, gold-raw"),
        ({"context": "keep-on"}, r"context 'keep-on' is unknown; did you mean 'keep-one'\?"),
        ({"context": "keep-on", "coarse": 4}, "context 'keep-on' is unknown"),
        ({"kind": "blur"}, "removal kind 'blur' is unknown; choose from delete, zero, mean"),
        ({"kind": "blur", "method": "gate"}, "removal kind 'blur' is unknown"),
        ({"tokens": "question"}, "tokens 'question' is unknown; choose from visual, text, all"),
    ],
)
def test_an_unknown_word_is_refused_before_the_model_runs(random_model, monkeypatch, option, reason):
    monkeypatch.setattr("probes.measures.preparing.capture_prompt", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(HorizonError, match=reason):
        token_information(random_model, SAMPLE, **option)


# --- one entry more --------------------------------------------------------------------------------------------------


def doubled_log_p(plain, inputs, layer: int, tokens: torch.Tensor, ids: tuple[int, ...]) -> float:
    """Log p of the plain model whose rows of some tokens are doubled at the input of one layer."""

    def double(hidden, kwargs):
        return torch.where(tokens[:, None], 2 * hidden, hidden), kwargs

    with changed_layers(plain, {layer: double}), torch.no_grad():
        return target_log_p(plain(**inputs).logits[0, -1], ids)


def test_a_kind_that_doubles_rows_is_one_entry(random_model, plain, inputs, monkeypatch):
    with pytest.raises(HorizonError, match="removal kind 'double' is unknown; choose from delete, zero, mean"):
        removal_curve(random_model, SAMPLE, kind="double")
    monkeypatch.setitem(KIND_TABLE, "double", Kind("double", lambda rows, _states, _removable: 2 * rows))
    ids = gold_target(random_model.tokenizer, SAMPLE).ids
    visual = inputs["input_ids"][0] == random_model.visual_token_ids[0]
    curve = removal_curve(random_model, SAMPLE, kind="double")
    expected = [doubled_log_p(plain, inputs, k, visual, ids) for k in range(random_model.n_layers)]
    np.testing.assert_allclose(curve.log_p[:-1], expected, rtol=0, atol=TOLERANCE)
    assert np.abs(curve.effects("log_p")[:-2]).min() > 1e-3  # the last layer's norm undoes a factor before it

    grid = token_information(random_model, SAMPLE, context="leave-one-out", window=3, layers=[1], kind="double")
    places = visual.nonzero()[:, 0].reshape(5, 5)
    window = torch.zeros_like(visual)
    window[places[:3, :3]] = True
    assert grid.log_p[0, 0] == pytest.approx(doubled_log_p(plain, inputs, 1, window, ids), abs=TOLERANCE)
    with pytest.raises(HorizonError, match=r"'gate' takes tokens away as .* has no counterpart of 'double'"):
        token_information(random_model, SAMPLE, kind="double", method="gate")


def test_a_stream_is_one_entry(random_model, monkeypatch):
    def change(_model: ProbedModel, traced: TracedStates, places: torch.Tensor) -> list[torch.Tensor]:
        return [after[places] - before[places] for before, after in pairwise(traced.inputs)]

    monkeypatch.setitem(STREAM_TABLE, "change", Stream("change", change))
    states = capture(random_model, SAMPLE, streams=("hidden", "change", "text:hidden", "text:change")).states
    for tokens in ("", "text:"):
        hidden = states[f"{tokens}hidden"][:-1]
        torch.testing.assert_close(states[f"{tokens}change"], hidden[1:] - hidden[:-1], rtol=0, atol=0)


def test_a_context_is_one_entry_with_its_masks(random_model, plain, inputs, monkeypatch):
    """Every window goes together with the first removable token: what both are worth of the whole."""

    def with_the_first(removable: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        return windows | (removable & (removable.cumsum(0) == 1))

    monkeypatch.setitem(CONTEXT_MASKS, "with-the-first", with_the_first)
    loss = Context("with-the-first", "F_k", lambda _removed, everything: everything, loss=True)
    monkeypatch.setitem(CONTEXT_TABLE, "with-the-first", loss)
    grid = token_information(random_model, SAMPLE, context="with-the-first", window=2, layers=[0, 2])
    ids = gold_target(random_model.tokenizer, SAMPLE).ids
    visual = (inputs["input_ids"][0] == random_model.visual_token_ids[0]).nonzero()[:, 0]
    gone = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    gone[visual.reshape(5, 5)[2:4, :2]] = True  # the window of the second row of windows, at the left
    gone[visual[0]] = True
    everything = target_log_p(last_logits(plain, inputs), ids)
    for at, k in enumerate((0, 2)):
        effect = everything - target_log_p(masked_logits(plain, inputs, k, gone), ids)
        assert grid.effects("log_p")[at, 3] == pytest.approx(effect, abs=TOLERANCE)
    with pytest.raises(HorizonError, match="'gate' has no derivatives for the context 'with-the-first'"):
        token_information(random_model, SAMPLE, context="with-the-first", method="gate")


def test_a_target_is_one_entry(random_model, monkeypatch):
    """Seven, whatever the answer: fixed before the forward pass, read where the prompt ends."""

    def seven(tokenizer, _sample: Sample) -> Target:
        return Target("seven", tokenizer.decode([7]), (7,))

    monkeypatch.setitem(TARGET_TABLE, "seven", TargetRule("seven", seven, lambda _tok, _greedy, fixed: fixed["seven"]))
    curve = removal_curve(random_model, SAMPLE, target="seven")
    captured = capture_prompt(random_model, encode(random_model, SAMPLE), ())
    assert curve.log_p_all == float(captured.log_probs[-1, 7])
    assert curve.target.ids == (7,)
