"""The command `check`: facts, properties and a verdict; exit code 0 where a model can be measured, else 1."""

from __future__ import annotations

import json

import pytest

import probes.loading.check
import vlm_horizon as vh
from probes.loading.check import Property
from vlm_horizon.cli import main

MODEL = str(vh.data_path("demo-models", "tiny-8"))


def outcome(capsys, *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments])
    return ended.value.code or 0, capsys.readouterr().out


def test_a_model_that_can_be_measured(capsys):
    code, said = outcome(capsys, MODEL)
    assert code == 0
    for words in ("llava", "8 x 8", "64 of them visual", "every layer repeats alone", "holds", "Verdict: supported"):
        assert words in said
    assert "FAILS" not in said


def test_the_same_as_json(capsys):
    code, said = outcome(capsys, MODEL, "--json", "--attn", "eager")
    found = json.loads(said)
    assert code == 0
    assert (found["passed"], found["n_layers"], found["grids"], found["refusal"]) == (True, 8, [[8, 8]], "")
    assert all(tested["error"] <= tested["tolerance"] for tested in found["properties"])


def broken(*_) -> Property:
    return Property("an unablated replay is the model", 1.75, 0.005, "nats", "describe it in probes/models/families.py")


def test_a_model_that_cannot_is_refused_with_property_error_and_remedy(capsys, monkeypatch):
    monkeypatch.setattr(probes.loading.check, "_null_replay", broken)
    code, said = outcome(capsys, MODEL)
    assert code == 1
    assert "FAILS" in said
    assert "fails the self-test 'an unablated replay is the model' by 1.8 nats (rounding explains 5e-03)" in said


def test_loading_such_a_model_is_refused_with_the_same_sentence(capsys, monkeypatch):
    monkeypatch.setattr(probes.loading.check, "_null_replay", broken)
    with pytest.raises(vh.HorizonError, match=r"fails the self-test 'an unablated replay is the model' by 1\.8 nats"):
        vh.load_model(MODEL)
    assert vh.load_model(MODEL, check=False).n_layers == 8


def test_a_model_that_is_not_there_is_an_unusable_argument(capsys):
    code, _ = outcome(capsys, "./nowhere")
    assert code == 2
