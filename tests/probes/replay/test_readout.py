"""Log-probabilities as the model itself gives them, whatever it does to the values of its output embedding."""

from __future__ import annotations

import pytest
import torch
from random_models import random_image, random_llava, random_processor
from transformers import LlavaForConditionalGeneration

from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.models.probed import Readout
from probes.models.prompts import encode
from probes.replay.capture import capture_prompt
from probes.replay.readout import read_out

SAMPLE = Sample("noise", random_image(), "what is shown ?", ("apple",))


@pytest.mark.parametrize(
    ("settings", "applied", "expected"),
    [
        ({}, lambda x: x, Readout()),
        ({"final_logit_softcapping": 3.0}, lambda x: torch.tanh(x / 3.0) * 3.0, Readout(cap=3.0)),
        ({"final_logit_softcapping": 3.0}, lambda x: x, Readout()),  # a class that does not follow its configuration
        ({"logit_scale": 0.25}, lambda x: x * 0.25, Readout(scale=0.25)),
        ({"logits_scaling": 8.0}, lambda x: x / 8.0, Readout(scale=0.125)),
    ],
)
def test_what_a_model_does_to_its_logits_is_read_off_its_own_forward(settings, applied, expected):
    plain = random_llava(34)
    for name, value in settings.items():
        setattr(plain.config.text_config, name, value)

    class Changed(LlavaForConditionalGeneration):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = applied(output.logits)
            return output

    plain.__class__ = Changed
    model = load_model(plain, processor=random_processor(), check=False)
    captured = capture_prompt(model, encode(model, SAMPLE), ())
    inside = captured.final[captured.prompt.readout]
    torch.testing.assert_close(read_out(model, inside), applied(model.head(model.norm(inside))).log_softmax(-1))
    assert model.readout == expected
