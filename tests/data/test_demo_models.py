"""The models that ship: what they answer, with and without the image, and the script that trains them."""

import json
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

MODELS = ("tiny-8", "tiny-12")


@pytest.fixture(scope="module")
def measuring(script):
    return script("measure_demo_models")


@pytest.fixture(scope="module")
def loaded(measuring):
    """Both models, loaded while any connection would fail."""

    def refuse(*_):
        raise AssertionError("a demo model asked for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return {name: measuring.load(name) for name in MODELS}


@pytest.fixture(scope="module")
def record(data):
    return json.loads((data / "demo-models.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def right(measuring, loaded):
    """Which first tokens are right, by model, set and whether the model sees the image."""
    measured = {}
    for name, (model, processor) in loaded.items():
        for task_type in ("ocr", "vqa"):
            samples = measuring.read_set(task_type)
            for sight, answers in (("first", measuring.answer), ("blind", measuring.answer_blind)):
                measured[name, task_type, sight] = measuring.first_token_right(
                    processor, samples, partial(answers, model)
                )
    return measured


@pytest.mark.parametrize("task_type", ["ocr", "vqa"])
def test_the_main_model_gets_nine_first_tokens_in_ten_right(right, task_type):
    assert right["tiny-8", task_type, "first"].mean() >= 0.9


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task_type", ["ocr", "vqa"])
def test_without_visual_tokens_only_the_question_is_left(right, record, name, task_type):
    known = record[name][task_type]["all"]["question_only"]
    blind = right[name, task_type, "blind"]
    sampling_error = np.sqrt(known * (1 - known) / len(blind))
    assert abs(blind.mean() - known) < 3 * sampling_error
    assert right[name, task_type, "first"].mean() > known + 0.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("task_type", ["ocr", "vqa"])
def test_the_recorded_accuracies_are_those_measured(measuring, right, record, name, task_type):
    recorded = record[name][task_type]
    kinds = np.array([sample.category for sample in measuring.read_set(task_type)])
    assert set(recorded) == {"all", *kinds}
    for kind, row in recorded.items():
        rows = kinds == kind if kind != "all" else np.full(len(kinds), True)
        assert row["n"] == rows.sum()
        for sight in ("first", "blind"):
            # another machine may round one near tie the other way
            assert abs(right[name, task_type, sight][rows].mean() - row[sight]) < 1.5 / rows.sum()


def test_the_recorded_question_baseline_is_that_of_a_simulation(measuring, record):
    priors = measuring.question_priors(["count", "exist", "text_color"], n_simulated=1500)
    samples = [sample for sample in measuring.read_set("vqa") if sample.category in {"count", "exist", "text_color"}]
    for kind in ("count", "exist", "text_color"):
        simulated = np.mean([priors[kind, sample.question] for sample in samples if sample.category == kind])
        # the commonest of few is a little above the commonest of many
        assert -0.03 < simulated - record["tiny-8"]["vqa"][kind]["question_only"] < 0.06


@pytest.mark.parametrize("name", MODELS)
def test_generate_begins_with_the_measured_token(measuring, loaded, name):
    model, processor = loaded[name]
    samples = measuring.read_set("ocr")[:8] + measuring.read_set("vqa")[:8]
    for rows, inputs in measuring.encode(processor, samples):
        first = measuring.answer(model, inputs)
        generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        torch.testing.assert_close(generated[:, 0], first)
        for row, ids in zip(rows, generated, strict=True):
            words = processor.decode(ids, skip_special_tokens=True).split()
            n_expected = len(samples[row].answers[0].split())
            # reading a text may go wrong, but the answer ends where an answer of its kind ends
            assert len(words) == n_expected or samples[row].category == "read"


def test_both_models_fit_the_room_that_they_are_given(data):
    n_bytes = sum(path.stat().st_size for path in (data / "demo-models").rglob("*") if path.is_file())
    assert n_bytes < 16e6


@pytest.fixture(scope="module")
def packed(script):
    """Three pictures with their packed questions."""
    return script("batches").packed_batch(np.random.default_rng(6), n_pictures=3, lengths=(2, 4))


def packed_questions(batch):
    """Row and token places of every packed question."""
    for row, segments in enumerate(batch.segments):
        for segment in range(int(segments.max()) + 1):
            yield row, torch.nonzero(segments == segment).flatten()


def test_a_packed_question_is_answered_as_if_it_were_alone(script, loaded, packed):
    batches, training = script("batches"), script("training")
    model, _ = loaded["tiny-8"]
    everywhere = torch.ones_like(packed.segments, dtype=torch.bool)
    with torch.no_grad():
        logits = training.answer_logits(model, packed, ~everywhere, everywhere).unflatten(0, everywhere.shape)
        for row, places in packed_questions(packed):
            ids = torch.cat([torch.tensor(batches.PREFIX), packed.token_ids[row, places]])[None]
            alone = model(input_ids=ids, pixel_values=packed.pixels[row : row + 1]).logits[0, len(batches.PREFIX) :]
            torch.testing.assert_close(logits[row, places], alone, atol=1e-4, rtol=1e-4)
            labels = packed.labels[row, places]
            # the label of a token is the next one, up to the end of the answer
            torch.testing.assert_close(labels[labels >= 0][:-1], ids[0, 1 - sum(labels >= 0) :])
            assert labels[-1] == 2


def test_a_blind_question_is_answered_as_if_there_were_no_image(script, loaded, packed):
    batches, training = script("batches"), script("training")
    model, _ = loaded["tiny-8"]
    everywhere = torch.ones_like(packed.segments, dtype=torch.bool)
    with torch.no_grad():
        logits = training.answer_logits(model, packed, everywhere, everywhere).unflatten(0, everywhere.shape)
        seen = training.answer_logits(model, packed, ~everywhere, everywhere).unflatten(0, everywhere.shape)
        for row, places in packed_questions(packed):
            ids = torch.cat([torch.tensor(batches.LEAD), packed.token_ids[row, places]])[None]
            positions = torch.cat([torch.arange(2), len(batches.PREFIX) + torch.arange(len(places))])[None]
            alone = model.model.language_model(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False
            ).last_hidden_state[0, 2:]
            torch.testing.assert_close(logits[row, places], model.lm_head(alone), atol=1e-4, rtol=1e-4)
    assert (logits - seen).abs().median() > 0.1


def test_patch_labels_lie_where_the_picture_differs_from_its_background(script):
    batch = script("batches").patch_batch(np.random.default_rng(7), n_pictures=32)
    patches = batch.pixels.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).permute(0, 2, 1, 3, 4).flatten(2)
    contrast = patches.std(-1)
    assert contrast[batch.things > 0].median() > 4 * contrast[batch.things == 0].median()
    torch.testing.assert_close(batch.things > 0, batch.colors > 0)


def test_the_schedule_warms_up_and_decays(script):
    stage = script("training").Stage(steps=100, schedule_steps=200, warmup=0.1, curriculum=((0.1, 2), (0.3, 3)))
    rates = [stage.rate(step) for step in range(200)]
    assert int(np.argmax(rates)) == 19
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.02)
    assert [stage.lengths(step) for step in (0, 19, 20, 59, 60)] == [(1, 2), (1, 2), (1, 3), (1, 3), (2, 4)]


def printed_loss(capsys):
    (line,) = capsys.readouterr().out.splitlines()
    return float(line.split("loss ")[1].split(",")[0])


def test_a_few_steps_beat_guessing(script, capsys):
    batches, checkpoint, training = script("batches"), script("checkpoint"), script("training")
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = checkpoint.build_model(layers=1)
    training.train_tower(model, training.TowerStage(steps=25, pictures=4, warmup_steps=10), generator)
    guessing = np.log(batches.N_THINGS) + 0.5 * np.log(batches.N_PATCH_COLORS)
    assert printed_loss(capsys) < guessing - 0.7
    training.train(model, training.Stage(steps=12, schedule_steps=12, pictures=4), generator, name="all")
    assert printed_loss(capsys) < np.log(len(batches.VOCABULARY)) - 0.7


def test_the_training_script_runs_from_end_to_end(data, loaded, tmp_path):
    command = [sys.executable, "-W", "error", data / "make" / "train_demo_model.py", "tiny-8"]
    command += ["--out", tmp_path / "model", "--steps", "1", "--threads", "1"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "stage 3 of 3: step 1 of 1" in printed
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    shipped_model, shipped_processor = loaded["tiny-8"]
    for part in ("text_config", "vision_config"):
        assert getattr(model.config, part).to_diff_dict() == getattr(shipped_model.config, part).to_diff_dict()
    assert model.state_dict().keys() == shipped_model.state_dict().keys()
    assert processor.tokenizer.get_vocab() == shipped_processor.tokenizer.get_vocab()
    assert processor.chat_template == shipped_processor.chat_template
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what does the text say ?"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (64, 64)), text=prompt, return_tensors="pt")
    answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert 1 <= len(answer) <= 8
