"""A run measures what single calls measure, resumes, shards, records failures, and loses nothing."""

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from demo_data import demo_model, demo_samples
from PIL import Image

import probes.directory.writer
import probes.sweeps.commits
import probes.sweeps.stages
import vlm_horizon as vh
from probes.models.prompts import encode

STAGES = ("encode_sample", "measure", "finish")


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Eight samples with everything."""
    return vh.run(
        model,
        demo_samples(4),
        tmp_path_factory.mktemp("runs") / "whole",
        streams=("query", "hidden"),
        targets=("gold", "greedy", "answer"),
        contexts=("keep-one", "leave-one-out"),
        window=4,
        spectra=1,
        progress=False,
    )


def test_removal_curves_are_those_of_single_calls(whole, model):
    for row, sample in enumerate(demo_samples(4)):
        for target in ("gold", "greedy", "answer"):
            single = vh.removal_curve(model, sample, target=target)
            for measure in ("log_p", "kl", "correct", "same"):
                rows, layers, values = whole.matrix(measure, context="removal", target=target)
                np.testing.assert_array_equal(layers, single.layers)
                stored = values[rows.tolist().index(row)]
                np.testing.assert_allclose(stored, getattr(single, measure).astype(float), atol=2e-5)


def test_token_grids_are_those_of_single_calls(whole, model):
    sample = demo_samples(4)[5]
    for context in ("keep-one", "leave-one-out"):
        single = vh.token_information(model, sample, context=context, window=4)
        stored = whole.tokens(sample.id, context=context)
        assert stored.windows.equals(single.windows)
        np.testing.assert_array_equal(stored.layers, single.layers)
        np.testing.assert_allclose(stored.log_p, single.log_p, atol=1e-4)
        np.testing.assert_allclose(stored.information("p"), single.values, atol=2e-5)


def test_entropies_and_spectra_are_those_of_single_calls(whole, model):
    states = vh.capture(model, demo_samples(4)[0], streams=("query", "hidden")).states
    for stream in ("query", "hidden"):
        rows, layers, values = whole.matrix("entropy", stream=stream)
        expected = vh.matrix_entropy(states[stream]).numpy()
        np.testing.assert_array_equal(layers, np.arange(len(expected)))
        np.testing.assert_allclose(values[rows.tolist().index(0)], expected, atol=1e-6)
        spectra = whole.spectra(stream)
        assert sorted(spectra) == [0, 4]  # the first sample of each task
        np.testing.assert_allclose(spectra[0], vh.matrix_spectrum(states[stream]).numpy(), atol=1e-6)


def test_sample_rows_say_what_the_model_did(whole):
    first = whole.samples.loc[0]
    assert first["id"] == "ocr-000"
    assert (first["n_visual"], first["n_placeless"]) == (64, 0)
    assert first["p"] == pytest.approx(np.exp(first["log_p"]))
    assert first["status"] == "ok"
    crop = first["crops"][0]
    assert (crop["rows"], crop["columns"], crop["right"]) == (8, 8, 1.0)
    assert 0 <= first["noise_floor_p"] < 1e-4
    assert first["answer_tokens"] == len(first["answers"][0].split())
    assert 0 <= first["output_entropy"] < np.log(whole.config.vocab_size)
    assert whole.ok["output_entropy"].corr(whole.ok["p"], method="spearman") < -0.5
    greedy = whole.matrix("log_p", context="removal", target="greedy")[2][:, -1]
    gold = whole.matrix("log_p", context="removal", target="gold")[2][:, -1]
    assert (greedy >= gold - 1e-6).all()
    same_token = whole.ok["correct"].to_numpy(bool)
    np.testing.assert_allclose(greedy[same_token], gold[same_token], atol=0.05)


def test_run_records_its_conventions(whole):
    record = json.loads((whole.path / "run.json").read_text())
    assert record["n_layers"] == 8
    assert record["targets"] == ["gold", "greedy", "answer"]
    question = whole.samples.loc[0, "question"]
    assert record["prompt_example"] == f"USER: <image> {question} ASSISTANT:"
    assert "input of 0-based decoder layer k" in record["conventions"]["layer"]
    assert set(record["versions"]) >= {"torch", "transformers", "nnsight"}


def assert_no_threads_of_a_run():
    assert [thread.name for thread in threading.enumerate() if "vlm-horizon" in thread.name] == []


def removal_run(model, out, samples=None, **options):
    options = {"probes": ("removal",), "progress": False} | options
    return vh.run(model, demo_samples(3) if samples is None else samples, out, **options)


def test_resume_skips_what_is_committed(model, tmp_path, monkeypatch):
    removal_run(model, tmp_path / "run", limit=2)
    measured = []
    original = probes.sweeps.stages.measure

    def noting(m, encoded, *how):
        measured.append(encoded.entry["row"])
        return original(m, encoded, *how)

    monkeypatch.setattr(probes.sweeps.stages, "measure", noting)
    run = removal_run(model, tmp_path / "run")
    assert measured == [2, 3, 4, 5]
    assert run.samples.index.tolist() == [0, 1, 2, 3, 4, 5]
    removal_run(model, tmp_path / "run")
    assert measured == [2, 3, 4, 5]


@pytest.mark.parametrize("overlap", [True, False])
def test_interrupted_run_keeps_what_was_finished(model, tmp_path, monkeypatch, overlap):
    original = probes.sweeps.stages.measure

    def interrupt(m, encoded, *how):
        if encoded.entry["row"] == 3:
            raise KeyboardInterrupt
        return original(m, encoded, *how)

    monkeypatch.setattr(probes.sweeps.stages, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        removal_run(model, tmp_path / "run", overlap=overlap)
    monkeypatch.undo()
    assert_no_threads_of_a_run()
    assert vh.load_run(tmp_path / "run").samples.index.tolist() == [0, 1, 2]
    resumed = removal_run(model, tmp_path / "run")
    straight = removal_run(model, tmp_path / "straight")
    for measure in ("log_p", "kl"):
        np.testing.assert_allclose(
            resumed.matrix(measure, context="removal", target="gold")[2],
            straight.matrix(measure, context="removal", target="gold")[2],
            atol=1e-6,
        )


@pytest.mark.parametrize("probes_", [("entropy",), ("entropy", "removal", "information")])
def test_threads_change_nothing_of_the_results(model, tmp_path, probes_):
    options = {"probes": probes_, "streams": ("query", "hidden"), "window": 4, "token_samples": 2, "spectra": 1}
    bad = replace(demo_samples(1, "ocr")[0], id="bad", image=tmp_path / "nowhere.png")
    samples = [*demo_samples(3, "ocr"), bad, *demo_samples(3, "vqa")]
    one, three = (removal_run(model, tmp_path / str(on), samples, overlap=on, **options) for on in (False, True))
    assert_no_threads_of_a_run()
    assert three.failed["id"].tolist() == ["bad"]
    pd.testing.assert_frame_equal(one.curves, three.curves, check_exact=True)
    timed = ["seconds"]
    pd.testing.assert_frame_equal(one.samples.drop(columns=timed), three.samples.drop(columns=timed), check_exact=True)
    for row, values in one.spectra("hidden").items():
        np.testing.assert_array_equal(values, three.spectra("hidden")[row])
    assert one.token_rows() == three.token_rows() == ([0, 1, 4, 5] if "information" in probes_ else [])
    for row in one.token_rows():
        name = one.samples.loc[row, "id"]
        np.testing.assert_array_equal(one.tokens(name).log_p, three.tokens(name).log_p)


def test_samples_are_encoded_and_finished_beside_the_thread_that_measures(model, tmp_path, monkeypatch):
    """At most two encoded samples and one measured sample wait, whatever takes longest."""
    events = []

    def noting(name, row_of, slow):
        original = getattr(probes.sweeps.stages, name)

        def stage(*args):
            events.append((name, "begins", row_of(args), threading.current_thread()))
            time.sleep(0.02 * slow)
            done = original(*args)
            events.append((name, "ends", row_of(args), threading.current_thread()))
            return done

        monkeypatch.setattr(probes.sweeps.stages, name, stage)

    for slow in ("encode_sample", "measure", "finish"):
        events.clear()
        noting("encode_sample", lambda args: args[1], slow == "encode_sample")
        noting("measure", lambda args: args[1].entry["row"], slow == "measure")
        noting("finish", lambda args: args[0].entry["row"], slow == "finish")
        removal_run(model, tmp_path / slow)
        monkeypatch.undo()
        began = {name: [row for stage, what, row, _ in events if (stage, what) == (name, "begins")] for name in STAGES}
        assert list(began.values()) == 3 * [[0, 1, 2, 3, 4, 5]]
        threads = {name: {thread for stage, *_, thread in events if stage == name} for name in STAGES}
        assert threads["measure"] == {threading.main_thread()}
        assert len({thread for found in threads.values() for thread in found}) == 3
        order = {event[:3]: at for at, event in enumerate(events)}
        for row in range(3, 6):
            assert order["encode_sample", "begins", row] > order["measure", "begins", row - 3]
        for row in range(2, 6):
            assert order["measure", "begins", row] > order["finish", "ends", row - 2]


def test_an_error_in_the_thread_that_writes_ends_the_run(model, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(probes.sweeps.commits, "FLUSH_SAMPLES", 2)
    monkeypatch.setattr(probes.directory.writer, "_write_table", refuse)
    with pytest.raises(OSError, match="no space left"):
        removal_run(model, tmp_path / "run")
    monkeypatch.undo()
    assert_no_threads_of_a_run()
    assert removal_run(model, tmp_path / "run").ok["id"].tolist() == [sample.id for sample in demo_samples(3)]


def test_samples_that_stop_coming_leave_what_came_before(model, tmp_path):
    def breaking():
        yield from demo_samples(2, "ocr")
        raise ConnectionError("the samples' source is gone")

    with pytest.raises(ConnectionError, match="source is gone"):
        removal_run(model, tmp_path / "run", breaking())
    assert_no_threads_of_a_run()
    assert len(vh.load_run(tmp_path / "run").ok) == 2


def test_shards_add_up_to_the_run(model, tmp_path):
    for shard in ((0, 2), (1, 2)):
        removal_run(model, tmp_path / "sharded", shard=shard)
    sharded, straight = vh.load_run(tmp_path / "sharded"), removal_run(model, tmp_path / "straight")
    assert sharded.samples["id"].tolist() == straight.samples["id"].tolist()
    np.testing.assert_allclose(
        sharded.matrix("log_p", context="removal", target="gold")[2],
        straight.matrix("log_p", context="removal", target="gold")[2],
        atol=1e-6,
    )


def test_token_grids_go_to_the_first_samples_of_each_task_and_can_be_added_later(model, tmp_path):
    run = removal_run(model, tmp_path / "run", probes=("removal", "information"), window=8, token_samples=1)
    assert run.token_rows() == [0, 3]
    with pytest.raises(vh.HorizonError, match="ocr-001"):
        run.tokens("ocr-001")
    more = removal_run(model, tmp_path / "run", probes=("removal", "information"), window=8, token_samples=2)
    assert more.token_rows() == [0, 1, 3, 4]
    assert len(more.samples) == 6
    assert more.tokens("ocr-001").log_p.shape == (8, 1)


def test_what_was_measured_stays_when_a_row_is_measured_again(model, tmp_path):
    """Grids and spectra that a later call does not ask for are measured again rather than lost."""
    probes_ = ("entropy", "removal", "information")
    options = {"probes": probes_, "streams": ("hidden",), "window": 8}
    removal_run(model, tmp_path / "run", demo_samples(2, "ocr"), **options)
    run = removal_run(model, tmp_path / "run", demo_samples(2, "ocr"), token_samples=0, spectra=2, **options)
    assert run.token_rows() == [0, 1]
    assert sorted(run.spectra("hidden")) == [0, 1]


def test_a_failure_later_keeps_the_earlier_measurement(model, tmp_path):
    sample = replace(demo_samples(1, "ocr")[0], image=tmp_path / "there.png")
    demo_samples(1, "ocr")[0].load_image().save(tmp_path / "there.png")
    options = {"probes": ("removal", "information"), "window": 8}
    removal_run(model, tmp_path / "run", [sample], token_samples=0, **options)
    (tmp_path / "there.png").unlink()
    run = removal_run(model, tmp_path / "run", [sample], **options)
    assert run.ok["id"].tolist() == ["ocr-000"]
    assert len(run.curves) > 0


def test_another_question_to_the_same_row_is_refused(model, tmp_path):
    sample = demo_samples(1, "ocr")[0]
    removal_run(model, tmp_path / "run", [sample])
    with pytest.raises(vh.HorizonError, match=r"the question of row 0 is 'what does the text say \?' there"):
        removal_run(model, tmp_path / "run", [replace(sample, question="what is the last character ?")])
    with pytest.raises(vh.HorizonError, match="the answers of row 0"):
        removal_run(model, tmp_path / "run", [replace(sample, answers=("A",))])
    with pytest.raises(vh.HorizonError, match="the task_type of row 0 is 'ocr' there and 'vqa' now"):
        removal_run(model, tmp_path / "run", [replace(sample, task_type="vqa")])


def test_all_layers_by_number_are_all_layers_and_the_seed_changes_nothing(model, tmp_path):
    samples = demo_samples(1, "ocr")
    removal_run(model, tmp_path / "run", samples, layers=range(8))
    again = removal_run(model, tmp_path / "run", samples, seed=3)
    assert again.config.layers is None
    assert len(again.ok) == 1


def test_a_changed_processor_is_another_configuration(tmp_path):
    changed = vh.load_model(vh.data_path("demo-models", "tiny-8"), check=False)
    removal_run(changed, tmp_path / "run", demo_samples(1, "ocr"))
    changed.processor.image_processor.image_mean = [0.4, 0.4, 0.4]
    with pytest.raises(vh.HorizonError, match=r"another configuration \(processor"):
        removal_run(changed, tmp_path / "run", demo_samples(1, "ocr"))


def test_entropies_alone_need_no_answer(model, tmp_path):
    sample = replace(demo_samples(1, "ocr")[0], answers=())
    run = removal_run(model, tmp_path / "run", [sample], probes=("entropy",))
    assert len(run.ok) == 1
    assert run.matrix("entropy", stream="query")[2].shape == (1, 8)


def test_bad_samples_are_recorded_and_the_others_measured(model, tmp_path):
    good = demo_samples(1, "ocr")[0]
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    bad = {
        "no-file": replace(good, id="no-file", image=tmp_path / "nowhere.png"),
        "broken": replace(good, id="broken", image=tmp_path / "broken.png"),
        "no-answer": replace(good, id="no-answer", answers=(" ",)),
        "no-token": replace(good, id="no-token", answers=("~~~",)),
        "unread": vh.Sample("unread", None, "", (), error="set.jsonl line 7: not valid JSON"),
    }
    run = removal_run(model, tmp_path / "run", [*bad.values(), good])
    assert run.ok["id"].tolist() == [good.id]
    reasons = run.failed.set_index("id")["error"]
    assert set(reasons.index) == set(bad)
    assert "nowhere.png does not exist" in reasons["no-file"]
    assert "broken.png cannot be decoded" in reasons["broken"]
    assert "has no answer" in reasons["no-answer"]
    assert "tokenizes to nothing" in reasons["no-token"]
    assert reasons["unread"] == "set.jsonl line 7: not valid JSON"


def test_failures_are_skipped_unless_asked_to_be_tried_again(model, tmp_path):
    good = demo_samples(1, "ocr")[0]
    late = replace(good, id="late", image=tmp_path / "late.png")
    assert len(removal_run(model, tmp_path / "run", [late]).failed) == 1
    good.load_image().save(tmp_path / "late.png")
    assert len(removal_run(model, tmp_path / "run", [late]).failed) == 1
    assert removal_run(model, tmp_path / "run", [late], retry_failed=True).ok["id"].tolist() == ["late"]


def test_model_that_gives_nan_fails_by_sample(tmp_path):
    broken = vh.load_model(vh.data_path("demo-models", "tiny-8"), check=False)
    broken.head.weight.data[0, 0] = float("nan")
    run = removal_run(broken, tmp_path / "run", demo_samples(1, "ocr"))
    assert "not finite" in run.failed["error"].iloc[0]


def test_greedy_correct_is_measured_on_right_answers_only(model, tmp_path):
    wrong = replace(demo_samples(1, "ocr")[0], id="wrong", answers=("zero",))
    run = removal_run(model, tmp_path / "run", [*demo_samples(1, "ocr"), wrong], targets=("greedy-correct",))
    assert run.matrix("log_p", context="removal", target="greedy-correct")[0].tolist() == [0]
    assert len(run.ok) == 2
    assert run.samples["correct"].tolist() == [True, None]
    assert np.isnan(run.samples.loc[1, "p"])


def test_columns_of_the_first_target_are_null_where_it_is_absent(model, tmp_path):
    wrong = replace(demo_samples(1, "ocr")[0], id="wrong", answers=("zero",))
    options = {"targets": ("greedy-correct", "gold"), "probes": ("information",), "window": 8}
    run = removal_run(model, tmp_path / "run", [*demo_samples(1, "ocr"), wrong], **options)
    assert np.isnan(run.samples.loc[1, "p"])
    assert run.token_rows() == [0]
    assert run.token_rows(target="gold") == [0, 1]
    assert [found.n_samples for found in vh.find_horizon(run, criterion="information")] == [1]


def test_the_length_of_a_prompt_is_that_without_a_forced_answer(model, tmp_path):
    """To read a whole answer its first tokens are put behind the prompt, which is no longer for it."""
    sample = demo_samples(1, "ocr")[0]
    plain = removal_run(model, tmp_path / "plain", [sample])
    forced = removal_run(model, tmp_path / "forced", [sample], targets=("gold", "answer"))
    assert len(model.tokenizer.tokenize(sample.answers[0])) > 1
    length = encode(model, sample).n_tokens
    assert plain.samples["n_prompt"].tolist() == forced.samples["n_prompt"].tolist() == [length]
    assert forced.samples["n_visual"].tolist() == plain.samples["n_visual"].tolist()


def test_prompt_template_changes_the_question_and_the_hash(model, tmp_path):
    sample = replace(demo_samples(1, "ocr")[0], question="what is the last character ?")
    changed = removal_run(model, tmp_path / "a", [sample], prompt="{question} {question}")
    plain = removal_run(model, tmp_path / "b", [sample])
    assert changed.samples.loc[0, "question"] == "what is the last character ? what is the last character ?"
    assert changed.samples.loc[0, "n_prompt"] == plain.samples.loc[0, "n_prompt"] + 6
    assert changed.config.hash != plain.config.hash


def test_same_picture_under_two_names_is_one_cluster(model, tmp_path):
    first = demo_samples(1, "ocr")[0]
    first.load_image().save(tmp_path / "copy.bmp")
    copy = replace(first, id="copy", image=tmp_path / "copy.bmp")
    other = replace(first, id="other", image=Image.new("RGB", (64, 64)))
    run = removal_run(model, tmp_path / "run", [first, copy, other])
    assert run.samples["image_sha256"].nunique() == 2


def test_other_samples_in_the_same_directory_are_refused(model, tmp_path):
    removal_run(model, tmp_path / "run", demo_samples(2, "ocr"))
    with pytest.raises(vh.HorizonError, match=r"the id of row 0 is 'ocr-000' there and 'vqa-000' now"):
        removal_run(model, tmp_path / "run", demo_samples(2, "vqa"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ("entropy", "magic")}, "probe 'magic' is unknown"),
        ({"streams": ("querry",)}, "stream 'querry' is unknown"),
        ({"targets": ("silver",)}, "target 'silver' is unknown"),
        ({"contexts": ("keep-two",)}, "context 'keep-two' is unknown"),
        ({"window": 0}, "window is 0"),
        ({"layers": (3, 8)}, "layer 8: .* has cuts 0 to 7"),
        ({"kind": "blur"}, "kind 'blur' is unknown; choose from delete, zero, mean"),
        ({"shard": (2, 2)}, "shard 2/2 is unusable"),
        ({"limit": 0}, "limit is 0"),
        ({"alpha": 0.0, "probes": ("entropy",)}, "alpha is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"streams": (), "probes": ("entropy",)}, "needs at least one stream"),
        ({"contexts": (), "probes": ("information",)}, "needs at least one context"),
        ({"prompt": "Answer:"}, "has no {question}"),
    ],
)
def test_unusable_arguments_are_named_before_anything_is_written(model, tmp_path, options, message):
    with pytest.raises(vh.HorizonError, match=message):
        removal_run(model, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
