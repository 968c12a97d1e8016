"""From a benchmark's file to numbers: reader, prompt and target on the demo model agree with our own JSONL."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import write_lines, write_shard, write_table

import vlm_horizon as vh
from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample
from probes.models.prompts import encode
from probes.models.targets import gold_target

N = 4


@pytest.fixture(scope="module")
def shipped(data) -> list[dict]:
    """The first lines of the shipped OCR set, with the images' bytes."""
    lines = (data / "demo-samples" / "ocr.jsonl").read_text().splitlines()[:N]
    records = [json.loads(line) for line in lines]
    return [record | {"held": (data / "demo-samples" / record["image"]).read_bytes()} for record in records]


def as_table(folder: Path, shipped: list[dict]) -> Path:
    rows = [
        [str(n), base64.b64encode(r["held"]).decode(), r["question"], repr(r["answers"])] for n, r in enumerate(shipped)
    ]
    return write_table(folder / "OCRBench.tsv", "index image question answer", *rows)


def as_shard(folder: Path, shipped: list[dict]) -> Path:
    columns = {name: [record[name] for record in shipped] for name in ("question", "answers")}
    return write_shard(folder / "set.parquet", columns, image=[{"bytes": r["held"], "path": None} for r in shipped])


def as_lines(folder: Path, shipped: list[dict]) -> Path:
    for n, record in enumerate(shipped):
        (folder / f"{n}.png").write_bytes(record["held"])
    records = [
        {"question_id": n, "image": f"{n}.png", "text": r["question"], "answer": r["answers"]}
        for n, r in enumerate(shipped)
    ]
    return write_lines(folder / "questions.jsonl", *records)


@pytest.mark.parametrize("write", [as_table, as_shard, as_lines])
def test_a_benchmarks_file_gives_the_numbers_of_our_own(demo, data, tmp_path, shipped, write):
    own = list(read_samples(data / "demo-samples" / "ocr.jsonl", limit=N))
    foreign = list(read_samples(write(tmp_path, shipped)))
    assert len(foreign) == N
    for mine, theirs in zip(own, foreign, strict=True):
        assert (theirs.question, theirs.answers) == (mine.question, mine.answers)
        prompts = encode(demo, mine), encode(demo, theirs)
        assert prompts[0].text == prompts[1].text
        for name, value in prompts[0].inputs.items():
            np.testing.assert_array_equal(value, prompts[1].inputs[name], err_msg=name)
        assert gold_target(demo.tokenizer, theirs) == gold_target(demo.tokenizer, mine)
    quiet = {"probes": ("removal",), "progress": False}
    runs = [vh.run(demo, samples, tmp_path / name, **quiet) for name, samples in (("own", own), ("foreign", foreign))]
    np.testing.assert_array_equal(runs[0].samples["p"], runs[1].samples["p"])
    np.testing.assert_array_equal(runs[0].samples["image_sha256"], runs[1].samples["image_sha256"])
    assert (runs[1].samples["p"] > 0.5).any()


def test_a_target_by_hand(demo, tmp_path, shipped):
    """The demo tokenizer has a token a word, so that the target is the most frequent answer's one word."""
    held = base64.b64encode(shipped[0]["held"]).decode()
    path = write_table(
        tmp_path / "a.tsv", "index image question answer", ["0", held, "what?", "['red', 'blue', 'blue']"]
    )
    (sample,) = read_samples(path)
    target = gold_target(demo.tokenizer, sample)
    assert target.answer == "blue"  # the most frequent
    assert {demo.tokenizer.decode([token]).strip().lower() for token in target.ids} == {"blue"}
    prompt = encode(demo, sample)
    assert prompt.text == "USER: <image> what? ASSISTANT:"
    assert prompt.image.size == sample.load_image().size


def test_bad_rows_are_counted_and_the_others_measured(demo, tmp_path, shipped):
    held = [base64.b64encode(record["held"]).decode() for record in shipped]
    rows = [
        ["0", held[0], shipped[0]["question"], repr(shipped[0]["answers"])],
        ["1", held[1][:81], shipped[1]["question"], repr(shipped[1]["answers"])],
        ["2", held[2][: len(held[2]) // 8 * 4], shipped[2]["question"], repr(shipped[2]["answers"])],
        ["3", held[3], shipped[3]["question"], repr(shipped[3]["answers"])[:-1]],
        ["0", held[3], shipped[3]["question"], repr(shipped[3]["answers"])],
    ]
    path = write_table(tmp_path / "OCRBench.tsv", "index image question answer", *rows)
    run = vh.run(demo, read_samples(path), tmp_path / "run", probes=("removal",), progress=False)
    assert run.ok["id"].tolist() == ["0"]
    reasons = ["was cut off", "cannot be decoded", "is no list that can be read", "index '0' is that of line 2 again"]
    assert [reason in error for reason, error in zip(reasons, run.failed["error"], strict=True)] == [True] * 4


def test_the_run_stores_the_first_prompt_and_its_source(demo, data, tmp_path, capsys, shipped):
    path = as_table(tmp_path, [shipped[0] | {"question": "what\ndoes it say?"}, *shipped[1:]])
    path.write_bytes(path.read_bytes().replace(b"\n0\t", b"\nbroken\n0\t", 1))  # the first row cannot be read
    options = {"probes": ("entropy",), "prompt": "Say: {question}", "limit": 2}
    run = vh.run(demo, read_samples(path), tmp_path / "run", **options)
    assert run.config.prompt_example == "USER: <image> Say: what\ndoes it say? ASSISTANT:"
    assert f"first prompt: {run.config.prompt_example!r}" in capsys.readouterr().err
    assert run.config.sources == (str(path),)
    assert run.ok["question"].tolist() == ["Say: what\ndoes it say?"]


def test_reference_tokens_are_recorded_or_refused(demo, tmp_path, shipped):
    path = write_shard(
        tmp_path / "textvqa.parquet",
        {"question": ["what?", "who?"], "answers": [["red"], ["red"]], "ocr_tokens": [[], ["RED"]]},
        image=[{"bytes": shipped[0]["held"], "path": None}] * 2,
    )
    options = {"probes": ("entropy",), "progress": False}
    told = vh.run(demo, read_samples(path, with_ocr_tokens=True), tmp_path / "told", **options)
    assert told.config.with_ocr_tokens
    assert [("Reference" in question) for question in told.samples["question"]] == [False, True]
    untold = vh.run(demo, read_samples(path), tmp_path / "untold", **options)
    assert not untold.config.with_ocr_tokens
    assert untold.config.hash != told.config.hash
    listed = list(read_samples(path, with_ocr_tokens=True))
    with pytest.raises(HorizonError, match=r"carries reference OCR tokens: give run\(\) with_ocr_tokens=True"):
        vh.run(demo, listed, tmp_path / "listed", **options)
    assert vh.run(demo, listed, tmp_path / "said", with_ocr_tokens=True, **options).config.hash == told.config.hash


def test_a_stream_and_its_list_make_the_same_run(demo, data, tmp_path):
    options = {"probes": ("entropy",), "progress": False}
    path = data / "demo-samples" / "vqa.jsonl"
    stream = vh.run(demo, read_samples(path, limit=2), tmp_path / "run", **options)
    again = vh.run(demo, list(read_samples(path, limit=2)), tmp_path / "run", **options)
    assert stream.config.hash == again.config.hash
    assert len(again.samples) == 2


def test_samples_that_all_fail_leave_no_prompt_and_no_error(demo, tmp_path):
    samples = [Sample("1", None, "", (), error="no such row")]
    run = vh.run(demo, iter(samples), tmp_path / "run", probes=("entropy",), progress=False)
    assert run.config.prompt_example == ""
    assert run.failed["error"].tolist() == ["no such row"]
