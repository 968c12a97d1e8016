"""The whole answer is greedy, begins with the token that is measured, and leaves no trace in the model or the run."""

import json
from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest
import torch
from demo_data import demo_model, demo_samples
from family_processors import PAIRS
from PIL import Image

import vlm_horizon as vh
from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.measures.generation import generate_answer
from probes.measures.information import removal_curves
from probes.models.prompts import encode
from probes.replay.capture import capture_prompt

# transformers' PaliGemma processor makes its (unused) labels in a way that numpy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(params=PAIRS, ids=lambda pair: pair.name)
def family_model(request):
    """With a drawn model, an end that is never reached, and settings that would change the answer if they counted."""
    model, processor = request.param.build()
    settings = model.generation_config
    settings.update(do_sample=True, temperature=5.0, repetition_penalty=30.0, min_new_tokens=3, max_new_tokens=2)
    return load_model(model, processor=processor, check=False)


def argmax_chain(model, sample, forced) -> list[int]:
    """The most probable token behind the prompt and behind each token of a continuation, by one forward pass."""
    captured = capture_prompt(model, encode(model, sample, (*forced, 0)), ())
    return captured.log_probs.argmax(-1).tolist()


def test_every_token_is_the_most_probable_one(family_model):
    """Against one forward of the whole sequence, in every family: no cache, no settings, no sampling."""
    pixels = np.random.default_rng(0).integers(0, 256, (117, 185, 3), dtype=np.uint8)
    sample = Sample("s", Image.fromarray(pixels), "is shown ?", ("apple",))
    settings = family_model.model.generation_config
    before = json.dumps(settings.to_dict(), sort_keys=True, default=str)
    with torch.random.fork_rng(devices=[]):
        found = generate_answer(family_model, sample, max_new_tokens=4)
    # a random model may say an image token, which no forward accepts without an image
    said = list(takewhile(lambda token: token not in family_model.visual_token_ids, found.ids[:-1]))
    assert argmax_chain(family_model, sample, said) == list(found.ids[: len(said) + 1])
    assert len(found.ids) == 4 or found.finished
    assert family_model.model.generation_config is settings
    assert json.dumps(settings.to_dict(), sort_keys=True, default=str) == before


def test_the_demo_model_answers_in_full(model):
    """It was trained to end its answers; the tokens are its own argmaxes, the end included."""
    for sample in demo_samples(3):
        found = generate_answer(model, sample)
        assert found.finished
        assert found.text == model.tokenizer.decode(found.ids[:-1])
        assert argmax_chain(model, sample, found.ids[:-1]) == list(found.ids)


def test_the_limit_cuts(model):
    sample = demo_samples(1, "ocr")[0]
    whole, short = (generate_answer(model, sample, max_new_tokens=n) for n in (16, 2))
    assert (len(short.ids), short.finished) == (2, False)
    assert short.ids == whole.ids[:2]
    with pytest.raises(vh.HorizonError, match="max_new_tokens is 0"):
        generate_answer(model, sample, max_new_tokens=0)


# --- in a run --------------------------------------------------------------------------------------------------------


def removal_run(model, out, samples=None, **options):
    options = {"probes": ("removal",), "layers": (0,), "progress": False} | options
    return vh.run(model, demo_samples(2) if samples is None else samples, out, **options)


def test_answers_can_be_added_to_a_run_that_is_there(model, tmp_path, monkeypatch):
    plain = removal_run(model, tmp_path / "run")
    assert plain.samples["generation"].isna().all()
    curves = plain.curves
    monkeypatch.setattr("probes.sweeps.stages.measure", None)  # nothing is measured again
    run = removal_run(model, tmp_path / "run", generate=8)
    assert run.ok["generation"].tolist() == [generate_answer(model, sample).text for sample in demo_samples(2)]
    assert run.curves.equals(curves)
    assert run.config.hash == plain.config.hash
    assert run.generations["finished"].all()
    assert vh.score_run(run)[0].scorer == "exact"


def test_answers_are_written_once_and_longer_where_they_were_cut(model, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "probes.measures.generation.generate_answer",
        lambda m, sample, max_new_tokens: (
            written.append(sample.id) or generate_answer(m, sample, max_new_tokens=max_new_tokens)
        ),
    )
    samples = demo_samples(2)
    short = removal_run(model, tmp_path / "run", samples, generate=2)
    ended = short.samples["id"][short.generations["finished"]].tolist()
    assert written == [sample.id for sample in samples]
    assert 0 < len(ended) < 4
    written.clear()
    removal_run(model, tmp_path / "run", samples, generate=2)
    removal_run(model, tmp_path / "run", samples, generate=1)
    assert written == []
    run = removal_run(model, tmp_path / "run", samples, generate=9)
    assert written == [sample.id for sample in samples if sample.id not in ended]
    assert run.generations["finished"].all()
    assert len(run.generations) == 4


def test_answers_follow_the_prompt_template(model, tmp_path):
    """The stored answer is to the question that was asked."""
    sample = demo_samples(1, "vqa")[0]
    run = removal_run(model, tmp_path / "run", [sample], prompt="{question} {question}", generate=6)
    asked = replace(sample, question=f"{sample.question} {sample.question}")
    assert run.samples.loc[0, "generation"] == generate_answer(model, asked).text
    assert run.samples.loc[0, "question"] == asked.question


def test_an_answer_that_cannot_be_written_is_recorded_and_tried_again_on_request(model, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("probes.measures.generation.generate_answer", broken)
    run = removal_run(model, tmp_path / "run", generate=4)
    assert len(run.ok) == 4
    assert run.generations["error"].unique().tolist() == ["RuntimeError: out of memory"]
    assert run.samples["generation"].isna().all()
    monkeypatch.undo()
    assert removal_run(model, tmp_path / "run", generate=4).samples["generation"].isna().all()
    assert removal_run(model, tmp_path / "run", generate=4, retry_failed=True).samples["generation"].notna().all()


def test_shards_write_answers_side_by_side(model, tmp_path):
    for shard in ((0, 2), (1, 2)):
        run = removal_run(model, tmp_path / "run", shard=shard, generate=4)
    assert run.generations.index.tolist() == [0, 1, 2, 3]


# --- samples that the model answers wrong ----------------------------------------------------------------------------


def with_wrong(n: int) -> list:
    right = demo_samples(n, "ocr")
    return [right[0], replace(right[1], id="wrong", answers=("zero",)), *right[2:]]


def test_wrong_answers_are_excluded_before_ablations_and_counted(model, tmp_path, monkeypatch):
    ablated = []
    monkeypatch.setattr(
        "probes.parts.removals.removal_curves", lambda *a, **k: ablated.append(1) or removal_curves(*a, **k)
    )
    run = removal_run(model, tmp_path / "run", with_wrong(3), only_correct=True, generate=4)
    assert len(ablated) == 2
    assert (run.ok["id"].tolist(), run.excluded["id"].tolist()) == (["ocr-000", "ocr-002"], ["wrong"])
    assert vh.exclusions(run) == {"answered wrong": 1}
    excluded = run.samples.loc[1]
    assert (excluded["correct"], excluded["error"]) == (False, "answered wrong")
    assert 0 < excluded["p"] < 0.5
    assert excluded["prediction"]
    assert run.generations.index.tolist() == [0, 2]
    ablated.clear()
    assert len(removal_run(model, tmp_path / "run", with_wrong(3), only_correct=True).excluded) == 1
    assert ablated == []


def test_what_is_excluded_is_not_measured_again_with_what_failed(model, tmp_path):
    """`retry_failed` is for samples that could not be measured; a wrong answer was looked at, and stays wrong."""
    late = replace(demo_samples(3, "ocr")[2], id="late", image=tmp_path / "late.png")
    samples = [*with_wrong(2), late]
    first = removal_run(model, tmp_path / "run", samples, only_correct=True)
    assert (first.excluded["id"].tolist(), first.failed["id"].tolist()) == (["wrong"], ["late"])
    demo_samples(3, "ocr")[2].load_image().save(tmp_path / "late.png")
    again = removal_run(model, tmp_path / "run", samples, only_correct=True, retry_failed=True)
    assert (again.excluded["id"].tolist(), again.failed["id"].tolist()) == (["wrong"], [])
    parts = again.samples.set_index("id")["part"]
    assert parts["wrong"] == parts[samples[0].id] != parts["late"]


def test_excluding_while_measuring_or_afterwards_is_the_same_choice(model, tmp_path):
    samples = with_wrong(4)
    during = removal_run(model, tmp_path / "during", samples, only_correct=True)
    after = vh.select_samples(removal_run(model, tmp_path / "after", samples), only_correct=True)
    assert during.ok["id"].tolist() == after.ok["id"].tolist()
    assert vh.exclusions(during) == vh.exclusions(after)
    for measure in ("log_p", "kl"):
        first, second = (run.matrix(measure, context="removal", target="gold") for run in (during, after))
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_allclose(first[2], second[2], atol=1e-6)


def test_the_two_populations_are_never_mixed(model, tmp_path):
    removal_run(model, tmp_path / "run", limit=1)
    with pytest.raises(vh.HorizonError, match=r"another configuration \(only_correct False there, True now\)"):
        removal_run(model, tmp_path / "run", only_correct=True)


def test_entropies_can_be_of_right_answers_only(model, tmp_path):
    run = removal_run(model, tmp_path / "run", with_wrong(2), probes=("entropy",), layers=None, only_correct=True)
    assert run.matrix("entropy", stream="query")[0].tolist() == [0]
    assert vh.exclusions(run) == {"answered wrong": 1}


def test_the_models_own_token_is_always_right(model, tmp_path):
    with pytest.raises(vh.HorizonError, match="only_correct needs a target that says what is right"):
        removal_run(model, tmp_path / "run", targets=("greedy",), only_correct=True)
    assert not (tmp_path / "run").exists()
    run = removal_run(model, tmp_path / "run", with_wrong(2), targets=("greedy", "gold"), only_correct=True)
    assert run.excluded["id"].tolist() == ["wrong"]
    run = removal_run(model, tmp_path / "other", with_wrong(2), targets=("greedy-correct",), only_correct=True)
    assert run.excluded["id"].tolist() == ["wrong"]


def test_a_run_records_what_its_target_tokens_say(model, tmp_path):
    samples = [replace(sample, options=("x", "y")) for sample in demo_samples(2, "vqa")]
    run = removal_run(model, tmp_path / "run", samples, targets=("gold", "answer"))
    assert run.samples["target_text"].tolist() == [sample.answers[0].split()[0] for sample in samples]
    assert [list(options) for options in run.samples["options"]] == [["x", "y"]] * 2
    whole = removal_run(model, tmp_path / "whole", demo_samples(1, "ocr"), targets=("answer",))
    assert whole.samples.loc[0, "target_text"] == demo_samples(1, "ocr")[0].answers[0]


def test_wrong_answers_stay_excluded_where_token_grids_are_added_to_what_is_on_disk(model, tmp_path):
    """Chosen layers take several sweeps: each adds grids to right answers only, and no answer is written twice."""
    samples = with_wrong(4)
    run = vh.run_adaptive(model, samples, tmp_path / "run", only_correct=True, generate=4, progress=False, window=4)
    assert vh.exclusions(run) == {"answered wrong": 1}
    assert run.token_rows("keep-one") == [0, 2, 3]
    assert run.config.chosen_layers
    assert run.generations.index.tolist() == [0, 2, 3]
    assert len(list((run.path / "samples").glob("*.parquet"))) > 1
    assert len(list((run.path / "generations").glob("*.parquet"))) == 1
    held = run.samples.loc[[0, 2, 3]]
    assert held["target_text"].str.len().gt(0).all()
    assert list(run.samples.loc[1, "probes"]) == []
    assert run.samples.loc[1, "image_sha256"]


def test_exclusions_and_answers_are_the_same_without_threads(model, tmp_path):
    runs = [
        removal_run(model, tmp_path / str(overlap), with_wrong(4), only_correct=True, generate=4, overlap=overlap)
        for overlap in (True, False)
    ]
    columns = ["id", "status", "error", "image_sha256", "generation", "target_text", "answer_tokens", "correct"]
    together, alone = (run.samples[columns] for run in runs)
    assert together.equals(alone)
    assert together["image_sha256"].notna().all()
    assert together["answer_tokens"].notna().all()
