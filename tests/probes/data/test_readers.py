"""What is read of a source: formats by content, the task and its prompt, random subsets, conditions, categories."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from benchmark_files import base64_png, color_of, write_images, write_lines, write_shard, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.rows import Row, parse_conditions
from probes.data.samples import Sample

RED = base64_png("red")
SHORT = "Answer the question using a single word or phrase."


def read(path: Path, **how) -> list[Sample]:
    return list(read_samples(path, **how))


def ids(path: Path, **how) -> list[str]:
    return [sample.id for sample in read_samples(path, **how)]


@pytest.fixture
def ten(tmp_path) -> Path:
    """Ten rows: n counts, kind alternates, every third lies in the split val."""
    rows = [[str(n), RED, f"{n}?", "a", "ab"[n % 2], str(n * 1.5), "val" if n % 3 == 0 else "train"] for n in range(10)]
    return write_table(tmp_path / "mine.tsv", "index image question answer category n split", *rows)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_the_content_tells_the_format_not_the_name(tmp_path):
    table = write_table(tmp_path / "table.jsonx", "index image question answer", ["0", RED, "q?", "a"])
    shard = write_shard(tmp_path / "shard.bin", {"question": ["q?"], "answer": ["a"]}, image=[None])
    lines = write_lines(tmp_path / "lines.txt", {"id": 1, "image": "a.png", "question": "q?", "answers": ["a"]})
    kinds = [read_samples(path).source.kind for path in (table, shard, lines)]
    assert kinds == ["table", "parquet, 1 rows", "JSON Lines"]


def test_a_folder_of_images_with_one_question(tmp_path):
    write_images(tmp_path / "photos", b="green", a="red")
    (tmp_path / "photos" / "notes.md").write_text("no image")
    samples = read(tmp_path / "photos", question="what color?", answer="red")
    assert [(sample.id, sample.question, sample.answers, sample.task) for sample in samples] == [
        ("a", "what color?", ("red",), "photos"),
        ("b", "what color?", ("red",), "photos"),
    ]
    assert [color_of(sample.load_image()) for sample in samples] == ["red", "green"]
    assert [sample.answers for sample in read(tmp_path / "photos", question="what?")] == [(), ()]
    with pytest.raises(HorizonError, match=r"photos is a folder of images: give the question .* \(--question\)"):
        read_samples(tmp_path / "photos")


def test_paths_that_are_no_data(tmp_path):
    for name in ("a/b/c", "no such file", "data/textvqa.tsv", "./owner/name"):
        with pytest.raises(HorizonError, match="no sample file at"):
            read_samples(name)
    with pytest.raises(HorizonError, match=r"revision 'main' belongs to a dataset of the hub, and .* is a path"):
        read_samples(write_lines(tmp_path / "a.jsonl", {}), revision="main")
    with pytest.raises(HorizonError, match="no folder of images at"):
        read_samples(tmp_path / "a.jsonl", images_dir=tmp_path / "none")


def test_images_of_a_folder_elsewhere(tmp_path):
    write_images(tmp_path / "elsewhere", a="blue")
    line = {"id": 1, "image": "a.jpg", "question": "q?", "answers": ["a"]}
    (sample,) = read(write_lines(tmp_path / "a.jsonl", line), images_dir=tmp_path / "elsewhere")
    assert color_of(sample.load_image()) == "blue"


# --- task and prompt -------------------------------------------------------------------------------------------------


def test_a_task_is_guessed_and_said_or_given(tmp_path):
    row = ["0", RED, "which year?", "2014"]
    guessed = read_samples(write_table(tmp_path / "ChartQA_TEST.tsv", "index image question answer", row))
    named = read_samples(write_table(tmp_path / "mine.tsv", "index image question answer", row), task="ChartQA")
    neither = read_samples(tmp_path / "mine.tsv")
    assert "task chartqa (guessed from its name), type ocr, scorer relaxed" in guessed.note
    assert "task chartqa, type ocr" in named.note
    assert "no known task; questions as they stand" in neither.note
    for stream in (guessed, named):
        (sample,) = stream
        assert (sample.task, sample.task_type) == ("chartqa", "ocr")
        assert sample.question == "which year?\nAnswer the question with a single word."
    (sample,) = neither
    assert (sample.task, sample.task_type, sample.question) == ("mine", "", "which year?")
    (sample,) = read(tmp_path / "mine.tsv", task="years", task_type="vqa")
    assert (sample.task, sample.task_type, sample.question) == ("years", "vqa", "which year?")


def test_a_prompt_replaces_the_tasks(tmp_path):
    path = write_table(
        tmp_path / "MMBench_DEV_EN.tsv", "index image question A B answer", ["0", RED, "which?", "cat", "dog", "A"]
    )
    (sample,) = read(path, prompt="{question} Choose: {options}")
    assert sample.question == "which? Choose: A. cat\nB. dog"
    assert sample.raw_question == "which?"


def test_a_suffix_that_the_file_has_is_not_doubled(tmp_path):
    path = write_table(tmp_path / "GQA.tsv", "index image question answer", ["0", RED, f"is it? {SHORT}", "yes"])
    assert read(path)[0].question == f"is it?\n{SHORT}"


def test_our_own_lines_are_asked_as_they_stand_unless_a_task_is_given(tmp_path):
    line = {"id": 1, "image": "a.png", "question": "what?", "answers": ["a"], "task": "mine", "ocr_tokens": ["STOP"]}
    path = write_lines(tmp_path / "textvqa.jsonl", line)
    (plain,) = read(path)
    assert (plain.question, plain.task, plain.task_type, plain.ocr_tokens) == ("what?", "mine", "", ())
    (named,) = read(path, task="textvqa")
    assert (named.question, named.task, named.task_type) == (f"what?\n{SHORT}", "textvqa", "ocr")
    (told,) = read(path, task="textvqa", with_ocr_tokens=True)
    assert told.question == f"what?\nReference OCR token: STOP\n{SHORT}"


def test_tokens_that_no_row_has_are_missed(ten):
    with pytest.raises(HorizonError, match=r"no row of .* carries reference OCR tokens"):
        read(ten, with_ocr_tokens=True)


def test_unknown_columns_in_lines(tmp_path):
    line = {"pic": "a.jpg", "q": "what?", "gold": ["x", "y"], "key": 7}
    path = write_lines(tmp_path / "other.jsonl", line, {"pic": "a.jpg", "q": "why?"}, {"pic": "a.jpg", "gold": "z"})
    first, second, third = read(path, question="q", answer="gold", image="pic")
    assert (first.id, first.question, first.answers) == ("other:1", "what?", ("x", "y"))
    assert (second.answers, second.error) == ((), "")
    assert third.error == "other.jsonl line 3: no question among the columns ['gold', 'pic']"


def test_rows_that_repeat_are_named_and_ids_that_repeat_are_numbered(tmp_path):
    path = write_shard(
        tmp_path / "a.parquet",
        {"id": ["x", "x", "x"], "question": ["one?", "two?", "one?"], "image_path": ["a", "a", "a"]},
    )
    samples = read(path)
    assert [sample.id for sample in samples] == ["x", "x#2", "a:2"]
    assert samples[2].error == "a.parquet row 2: id 'x' and its question were there before"


# --- conditions and categories ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("split=val", [0, 3, 6, 9]),
        ("split==val", [0, 3, 6, 9]),
        ("split!=val", [1, 2, 4, 5, 7, 8]),
        ("n>12", [9]),  # as numbers: as texts "3.0" would be more than "12"
        ("n >= 12", [8, 9]),
        ("n<1.5", [0]),
        ("n<=1.50", [0, 1]),
        ("n=3", [2]),
        (["split=val", "n>1"], [3, 6, 9]),
        ("question=4?", [4]),
        ("split<u", [1, 2, 4, 5, 7, 8]),
    ],
)
def test_conditions_on_columns(ten, where, kept):
    stream = read_samples(ten, where=where)
    assert [int(sample.id) for sample in stream] == kept
    assert sum(stream.left_out.values()) == 10 - len(kept)


def test_conditions_on_missing_and_listed_values():
    row = Row("", "", {"list": ["a", "3"], "none": None, "flag": True})
    holds = {
        text: parse_conditions((text,))[0].holds(row) for text in ("list=a", "list=3.0", "list=b", "list!=b", "list>1")
    }
    assert holds == {"list=a": True, "list=3.0": True, "list=b": False, "list!=b": True, "list>1": False}
    holds = {
        text: parse_conditions((text,))[0].holds(row) for text in ("none=", "none!=x", "none<1", "gone!=x", "flag=True")
    }
    assert holds == {"none=": False, "none!=x": True, "none<1": False, "gone!=x": True, "flag=True": True}


def test_what_cannot_be_asked_for_is_said(ten, tmp_path):
    with pytest.raises(HorizonError, match=r"condition 'split' cannot be read; write it as split=val, n>3"):
        read_samples(ten, where="split")
    with pytest.raises(HorizonError, match=r"has no column 'splitt'; its columns are \['index'"):
        read_samples(ten, where="splitt=val")
    with pytest.raises(HorizonError, match=r"no row of .* is of category 'c'; there are \['a', 'b'\]"):
        read(ten, category="c")
    lines = write_lines(tmp_path / "a.jsonl", {"id": 1, "image": "a.png", "question": "q?", "answers": ["a"]})
    with pytest.raises(HorizonError, match=r"no row of .* has a column 'split'; there are \['answers', 'id'"):
        read(lines, where="split!=val")


def test_categories(ten):
    stream = read_samples(ten, category="b")
    assert [int(sample.id) for sample in stream] == [1, 3, 5, 7, 9]
    assert stream.left_out == {"other categories": 5}
    assert ids(ten, category=["a", "b"], where="n<3") == ["0", "1"]


def test_broken_rows_pass_conditions_that_cannot_be_asked_of_them(tmp_path):
    """A row of which nothing is known may be one of those that are wanted."""
    rows = [["0", RED, "q?", "a", "val"], b"1\tbroken", ["2", RED, "q?", "", "train"], ["3", RED, "q?", "", "val"]]
    stream = read_samples(
        write_table(tmp_path / "a.tsv", "index image question answer split", *rows), where="split=val"
    )
    assert [(sample.id, bool(sample.error)) for sample in stream] == [("0", False), ("a:3", True), ("a:5", True)]
    assert stream.left_out == {"split=val": 1}


# --- subsets ---------------------------------------------------------------------------------------------------------


def test_a_limit_takes_the_first_and_a_seed_a_random_subset_in_order(ten):
    assert ids(ten, limit=3) == ["0", "1", "2"]
    drawn = [ids(ten, limit=4, seed=seed) for seed in range(20)]
    assert all(each == sorted(each, key=int) and len(set(each)) == 4 for each in drawn)
    assert drawn == [ids(ten, limit=4, seed=seed) for seed in range(20)]
    assert len({tuple(each) for each in drawn}) > 15
    assert ids(ten, limit=99, seed=0) == ids(ten)
    assert ids(ten, limit=3, seed=1, category="b") == [n for n in ids(ten, limit=3, seed=1, category="b") if int(n) % 2]


def test_a_smaller_subset_is_part_of_a_larger_one(ten):
    for seed in range(5):
        subsets = [set(ids(ten, limit=limit, seed=seed)) for limit in range(1, 11)]
        assert all(small < large for small, large in pairwise(subsets))


def test_every_row_is_drawn_equally_often(ten):
    counts = dict.fromkeys(map(str, range(10)), 0)
    for seed in range(400):
        for name in ids(ten, limit=3, seed=seed):
            counts[name] += 1
    # 400 draws of 3 in 10: 120 expected each, with a standard deviation of 9.2
    assert all(80 < count < 160 for count in counts.values())


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.lists(st.text(max_size=5), max_size=3))
def test_lines_give_back_what_was_written(tmp_path_factory, question, answers):
    line = {"id": 1, "image": "a.png", "question": f"q{question}", "answers": answers}
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(json.dumps(line) + "\n")
    (sample,) = read(path)
    assert (sample.question, sample.answers) == (f"q{question}", tuple(answers))
