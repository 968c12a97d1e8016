"""Parquet shards as lmms-eval's tasks have them: columns, images read again when needed, joins, broken rows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import IMAGE, color_of, png, stored, write_shard

from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample, SampleError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def read(path: Path, **how) -> list[Sample]:
    return list(read_samples(path, **how))


def test_textvqa(tmp_path):
    write_shard(
        tmp_path / "textvqa" / "validation-00000-of-00001.parquet",
        {
            "question_id": [34602, 34603, 34604],
            "question": ["what is the brand?", "what is the time?", "who?"],
            "answers": [["nokia"] * 9 + ["toshiba"], ["10:10"] * 10, ["dakota"] * 10],
            "ocr_tokens": [["NOKIA", "6"], [], ["DAKOTA"]],
        },
        image=[stored("red"), stored("green"), stored("blue")],
    )
    samples = read(tmp_path / "textvqa")
    assert [sample.id for sample in samples] == ["34602", "34603", "34604"]
    assert samples[0].question == f"what is the brand?\n{SHORT}"
    assert samples[0].answers == ("nokia",) * 9 + ("toshiba",)
    assert {(sample.task, sample.task_type, sample.ocr_tokens) for sample in samples} == {("textvqa", "ocr", ())}
    assert [color_of(sample.load_image()) for sample in samples] == ["red", "green", "blue"]
    told = read(tmp_path / "textvqa", with_ocr_tokens=True)
    assert told[0].question == f"what is the brand?\nReference OCR token: NOKIA, 6\n{SHORT}"
    assert told[0].ocr_tokens == ("NOKIA", "6")
    assert told[1].question == f"what is the time?\n{SHORT}"  # nothing was read in that image


BENCHMARKS = {
    "ocrbench": (
        {"question": "what?", "answer": ["CENTRE"], "question_type": "Regular"},
        "what?",
        ("CENTRE",),
        "Regular",
    ),
    "docvqa": (
        {"questionId": 7, "question": "how much?", "answers": ["$5", "5"]},
        f"how much?\n{SHORT}",
        ("$5", "5"),
        "",
    ),
    "chartqa": (
        {"question": "which year?", "answer": "[2012, 2014]", "type": "human_test"},
        "which year?\nAnswer the question with a single word.",
        ("[2012, 2014]",),
        "human_test",
    ),
    "mme": (
        {
            "question_id": "code/1.png",
            "question": "Is it C? Please answer yes or no.",
            "answer": "No",
            "category": "c",
        },
        f"Is it C?\n{SHORT}",
        ("No",),
        "c",
    ),
    "pope": (
        {"id": "0", "question_id": "1", "question": "Is there a cat?", "answer": "yes", "category": "popular"},
        f"Is there a cat?\n{SHORT}",
        ("yes",),
        "popular",
    ),
    "mmbench": (
        {"index": 3, "question": "which?", "hint": None, "A": "cat", "B": "dog", "C": "nan", "answer": "B"},
        f"which?\nA. cat\nB. dog\n{LETTER}",
        ("B",),
        "",
    ),
    "scienceqa": (
        {"question": "which?", "choices": ["cat", "dog"], "answer": 1, "hint": "pets", "subject": "natural science"},
        f"Context: pets\nwhich?\nA. cat\nB. dog\n{LETTER}",
        ("B",),
        "natural science",
    ),
    "ai2d": (
        {"question": "how many?", "options": ["1", "2", "3", "4"], "answer": "2"},
        f"how many?\nA. 1\nB. 2\nC. 3\nD. 4\n{LETTER}",
        ("C",),  # a number from 0, although an option spells it
        "",
    ),
    "realworldqa": (
        {"question": "A. up\nB. down\nSay a letter.", "answer": "A"},
        "A. up\nB. down\nSay a letter.",
        ("A",),
        "",
    ),
    "mmstar": (
        {"index": 1, "question": "which? Options: A: up, B: down", "answer": "B", "category": "math"},
        f"which? Options: A: up, B: down\n{LETTER}",
        ("B",),
        "math",
    ),
    "hallusionbench": (
        {"question": "Is it?", "gt_answer": "0", "subcategory": "map"},
        f"Is it?\n{SHORT}",
        ("No",),
        "map",
    ),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_columns_of_each_benchmark(tmp_path, name):
    record, question, answers, category = BENCHMARKS[name]
    path = write_shard(
        tmp_path / name / "test-00000-of-00001.parquet",
        {column: [value] for column, value in record.items()},
        image=[stored("green")],
    )
    (sample,) = read(path.parent)
    assert sample.error == ""
    assert (sample.task, sample.question, sample.answers, sample.category) == (name, question, answers, category)
    assert color_of(sample.load_image()) == "green"
    (named,) = read(path, task=name)  # the file's own name says nothing
    assert named == sample


def test_mmmu_shows_the_images_that_its_text_mentions(tmp_path):
    write_shard(
        tmp_path / "mmmu" / "validation-00000-of-00001.parquet",
        {
            "id": ["a", "b", "c", "d"],
            "question": ["<image 1> or <image 3>?", "plain?", "<image 2>?", "how much is <image 1>?"],
            "options": ["['one', 'two']", "['x', '<image 2>']", "['x', 'y']", "[]"],
            "answer": ["A", "B", "A", "['24/7', '3.43']"],
        },
        image_1=[stored("red"), stored("red"), stored("red"), stored("white")],
        image_2=[stored("green"), stored("green"), None, None],
        image_3=[stored("blue"), None, None, None],
    )
    both, plain, missing, open_ = read(tmp_path / "mmmu")
    assert [color_of(image) for image in both.load_images()] == ["red", "blue"]
    assert both.question == f"<image 1> or <image 3>?\nA. one\nB. two\n{LETTER}"
    assert [color_of(image) for image in plain.load_images()] == ["green"]
    assert missing.error.endswith("row 2: its text mentions image 2, which is not there")
    assert (open_.question, open_.answers) == (f"how much is <image 1>?\n{SHORT}", ("24/7", "3.43"))


def test_gqa_joins_images_by_id(tmp_path):
    folder = tmp_path / "gqa"
    write_shard(
        folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet",
        {
            "id": ["q1", "q2", "q3", "q4"],
            "imageId": ["n2", "n1", "n9", "n2"],
            "question": ["one?", "two?", "three?", "four?"],
            "answer": ["yes", "dog", "no", "left"],
        },
    )
    images = folder / "testdev_balanced_images"
    write_shard(images / "testdev-00000-of-00002.parquet", {"id": ["n1"]}, image=[stored("red")])
    write_shard(images / "testdev-00001-of-00002.parquet", {"id": ["n2"]}, image=[stored("blue")])
    samples = read(folder)
    assert [sample.answers for sample in samples] == [("yes",), ("dog",), (), ("left",)]
    assert samples[2].error == "testdev-00000-of-00001.parquet row 2: no image has the id 'n9'"
    shown = [color_of(sample.load_image()) for sample in samples if not sample.error]
    assert shown == ["blue", "red", "blue"]


def test_lists_of_images_plain_bytes_and_paths(tmp_path):
    write_shard(
        tmp_path / "lists" / "a.parquet",
        {"question": ["two?", "none?", "null?"], "answer": ["a", "b", "c"]},
        images=[[stored("red"), stored("blue")], [], None],
    )
    two, none, null = read(tmp_path / "lists")
    assert [color_of(image) for image in two.load_images()] == ["red", "blue"]
    assert "no image among the columns" in none.error
    assert "no image among the columns" in null.error
    table = {"question": ["one?", "two?"], "answer": ["a", "b"], "image": [png("green"), png("white")]}
    samples = read(write_shard(tmp_path / "plain.parquet", table))
    assert [color_of(sample.load_image()) for sample in samples] == ["green", "white"]
    table |= {"image": [[png("green"), png("red")], [png("white")]]}
    samples = read(write_shard(tmp_path / "listed.parquet", table))
    assert [[color_of(image) for image in sample.load_images()] for sample in samples] == [["green", "red"], ["white"]]
    (tmp_path / "beside.png").write_bytes(png("blue"))
    path = write_shard(tmp_path / "path.parquet", {"question": ["q?"]}, image=[{"bytes": None, "path": "beside.png"}])
    assert color_of(read(path)[0].load_image()) == "blue"
    (sample,) = read(write_shard(tmp_path / "named.parquet", {"question": ["q?"], "image_path": ["beside.png"]}))
    assert color_of(sample.load_image()) == "blue"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 0, 5, 5, 1, 7, 2], [3, 6, 0, 8]])
def test_images_are_found_in_any_order_over_shards_and_row_groups(tmp_path, order):
    colors = ["red", "green", "blue", "white", "blue", "red", "white", "green", "red"]
    for shard, rows in enumerate((colors[:7], colors[7:])):
        write_shard(
            tmp_path / f"test-0000{shard}-of-00002.parquet",
            {"question": [f"{shard}-{n}?" for n in range(len(rows))]},
            row_group_size=3,
            image=[stored(color) for color in rows],
        )
    samples = read(tmp_path)
    assert [color_of(samples[place].load_image()) for place in order] == [colors[place] for place in order]


def test_broken_rows_are_named_and_the_others_go_on(tmp_path):
    cut, empty = {"bytes": png("red")[:60], "path": None}, {"bytes": None, "path": None}
    path = write_shard(
        tmp_path / "mine.parquet",
        {
            "question": ["good?", None, "no answer?", "null image?", "cut image?", "empty image?", "good too?"],
            "answer": ["a", "b", "", "d", "e", "f", "g"],
        },
        image=[
            stored("red"),
            stored("red"),
            stored("red"),
            None,
            cut,
            empty,
            stored("blue"),
        ],
    )
    samples = read(path)
    assert [sample.error.partition(": ")[2][:24] for sample in samples] == [
        *("", "no question among the co", "its answer (column 'answ", "no image among the colum"),
        *("", "", ""),
    ]
    for place, reason in ((4, "cannot be decoded"), (5, r"cannot be decoded \(there is none in the row\)")):
        with pytest.raises(SampleError, match=f"image in column 'image' of row {place} of mine.parquet {reason}"):
            samples[place].load_image()
    assert [color_of(samples[place].load_image()) for place in (0, 6)] == ["red", "blue"]


def test_shards_that_cannot_do_are_refused(tmp_path):
    no_parquet = tmp_path / "a.parquet"
    no_parquet.write_bytes(b"PAR1 and no more")
    with pytest.raises(HorizonError, match=r"a.parquet cannot be read as parquet"):
        read_samples(no_parquet)
    for split in ("train", "test"):
        write_shard(tmp_path / "set" / f"{split}-00000-of-00001.parquet", {"question": ["q?"]}, image=[stored("red")])
    with pytest.raises(HorizonError, match=r"holds several sets \(test, train\): give the folder or the files of one"):
        read_samples(tmp_path / "set")
    path = write_shard(tmp_path / "blind.parquet", {"question": ["q?"], "answer": ["a"]})
    with pytest.raises(HorizonError, match=r"no column of the image; its columns are \['question', 'answer'\]"):
        read_samples(path)


def test_images_are_not_held(tmp_path):
    """Rows cost no image; decoding in order holds a few pages of a shard, not its row group."""
    held = [{"bytes": np.random.default_rng(n).bytes(400_000), "path": None} for n in range(40)]
    table = pa.table({"question": [f"{n}?" for n in range(40)], "image": pa.array(held, IMAGE)})
    path = tmp_path / "large.parquet"
    pq.write_table(table, path, row_group_size=40, write_batch_size=1)  # pages of about a megabyte
    del held, table
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    samples = read(path)
    _, peak = tracemalloc.get_traced_memory()
    assert peak < 2e6
    assert pa.total_allocated_bytes() - before < 2e6
    most = 0
    for sample in samples:
        with pytest.raises(SampleError, match="cannot be decoded"):  # it is noise
            sample.load_image()
        most = max(most, pa.total_allocated_bytes() - before)
    tracemalloc.stop()
    assert 400_000 < most < 8e6  # of 16 MB in the row group
