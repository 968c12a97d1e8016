"""Log-probabilities as the model itself gives them, whatever it does to the values of its output embedding."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from random_models import random_image, random_llava, random_processor
from transformers import LlavaForConditionalGeneration

from analyses.runs import HorizonError
from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.models.probed import Readout
from probes.models.prompts import encode
from probes.replay.capture import capture_prompt
from probes.replay.readout import read_out

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))


def changed(settings: dict[str, float], applied) -> LlavaForConditionalGeneration:
    """A model whose configuration says one thing of its logits, and whose class does another."""
    plain = random_llava(34)
    for name, value in settings.items():
        setattr(plain.config.text_config, name, value)

    class Changed(LlavaForConditionalGeneration):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = applied(output.logits)
            return output

    plain.__class__ = Changed
    return plain


@pytest.mark.parametrize(
    ("settings", "applied", "expected"),
    [
        ({}, lambda x: x, Readout()),
        ({"final_logit_softcapping": 3.0}, lambda x: torch.tanh(x / 3.0) * 3.0, Readout(cap=3.0)),
        ({"final_logit_softcapping": 3.0}, lambda x: x, Readout()),  # a class that does not follow its configuration
        ({"logit_scale": 0.25}, lambda x: x * 0.25, Readout(scale=0.25)),
        ({"logits_scaling": 8.0}, lambda x: x / 8.0, Readout(scale=0.125)),
        (
            {"logit_scale": 0.5, "final_logit_softcapping": 2.0},
            lambda x: torch.tanh(x * 0.5 / 2.0) * 2.0,
            Readout(scale=0.5, cap=2.0),
        ),
    ],
)
def test_what_a_model_does_to_its_logits_is_read_off_its_own_forward(settings, applied, expected):
    model = load_model(changed(settings, applied), processor=random_processor(), check=False)
    captured = capture_prompt(model, encode(model, SAMPLE), ())
    inside = captured.final[captured.prompt.readout]
    torch.testing.assert_close(read_out(model, inside), applied(model.head(model.norm(inside))).log_softmax(-1))
    assert model.readout == expected


@pytest.mark.parametrize(
    ("settings", "applied"),
    [({}, lambda x: x + x**2), ({}, lambda x: x / 8.0), ({"final_logit_softcapping": 3.0}, lambda x: x.clamp(-3, 3))],
)
def test_logits_that_no_known_form_explains_are_refused_when_the_model_is_loaded(settings, applied):
    with pytest.raises(
        HorizonError, match=r"the logits of 'odd' are not what its output embedding gives, nor that sca"
    ):
        load_model(changed(settings, applied), processor=random_processor(), name="odd", check=False)


def test_a_forward_pass_that_fails_is_named_when_the_model_is_loaded():
    def fails(_logits):
        raise ValueError("no logits today")

    with pytest.raises(HorizonError, match=r"the forward pass of 'odd' fails .*ValueError: no logits today"):
        load_model(changed({}, fails), processor=random_processor(), name="odd", check=False)


def test_a_probed_model_holds_nothing_that_measuring_changes(random_model):
    """Frozen all through: what is found of a model is found when it is loaded."""
    before = {name: vars(random_model)[name] for name in vars(random_model)}
    capture_prompt(random_model, encode(random_model, SAMPLE), ("query", "key_raw"))
    after = vars(random_model)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert not any(isinstance(value, dict | list | set) for value in after.values())
    with pytest.raises(FrozenInstanceError):
        random_model.readout = Readout(cap=1.0)
