"""Tables with base64 images: what a row gives, what a broken one costs, and what is held in memory."""

from __future__ import annotations

import base64
import csv
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import base64_png, color_of, png, write_table
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import probes.data.tsv
from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample, SampleError
from probes.data.tsv import table_columns, table_rows

RED, GREEN, BLUE = (base64_png(color) for color in ("red", "green", "blue"))
CHOICES = "index image question hint A B C D answer category l2-category split"


def read(path: Path, **how) -> list[Sample]:
    return list(read_samples(path, **how))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_multiple_choice_row_gives_every_field(tmp_path):
    row = ["241", RED, "Which one?", "Look at it.", "cat", "dog", "nan", "fox", "B", "animals", "nature", "dev"]
    (sample,) = read(write_table(tmp_path / "MMBench_DEV_EN.tsv", CHOICES, row))
    assert (sample.id, sample.answers, sample.category) == ("241", ("B",), "animals")
    assert (sample.task, sample.task_type, sample.hint) == ("mmbench", "vqa", "Look at it.")
    assert sample.options == ("cat", "dog")  # the first blank option ends the list
    assert sample.raw_question == "Which one?"
    assert sample.question == (
        "Look at it.\nWhich one?\nA. cat\nB. dog\nAnswer with the option's letter from the given choices directly."
    )
    assert color_of(sample.load_image()) == "red"


def test_lists_of_answers_are_python_literals(tmp_path):
    path = write_table(
        tmp_path / "OCRBench.tsv",
        "index image question answer category",
        ["0", RED, "what is written?", "['it\\'s', \"50 km\"]", "Regular Text Recognition"],
        ["1", GREEN, "which word?", "['CENTRE']", "Irregular Text Recognition"],
    )
    samples = read(path)
    assert [sample.answers for sample in samples] == [("it's", "50 km"), ("CENTRE",)]
    assert [sample.question for sample in samples] == ["what is written?", "which word?"]  # OCRBench adds nothing
    assert {(sample.task, sample.task_type) for sample in samples} == {("ocrbench", "ocr")}


def test_literals_are_parsed_and_never_evaluated(tmp_path):
    """Benchmarks' own code calls eval on this column."""
    trap = tmp_path / "trap"
    bombs = [f"[open({str(trap)!r}, 'w')]", f"['a', open({str(trap)!r}, 'w').name]", "[" * 5000 + "1" + "]" * 5000]
    rows = [[str(n), RED, "what?", bomb] for n, bomb in enumerate([*bombs, "['a']"])]
    samples = read(write_table(tmp_path / "OCRBench.tsv", "index image question answer", *rows))
    assert not trap.exists()
    assert ["is no list that can be read" in sample.error for sample in samples] == [True, True, True, False]


def test_text_in_brackets_is_an_answer_like_any_other(tmp_path):
    rows = [["0", RED, "what?", "[2012, 2014]"], ["1", RED, "who?", "[unclear]"], ["2", RED, "how?", "['Yes']"]]
    for name, last in (("ChartQA_TEST.tsv", ("['Yes']",)), ("mine.tsv", ("Yes",))):
        samples = read(write_table(tmp_path / name, "index image question answer", *rows))
        assert [sample.answers for sample in samples] == [("[2012, 2014]",), ("[unclear]",), last]


def test_an_alias_shares_the_image_of_another_row_before_or_after_it(tmp_path):
    path = write_table(
        tmp_path / "POPE.tsv",
        "index question answer image",
        ["0", "is there a cat?", "Yes", "7"],  # of a row that comes later
        ["7", "is there a dog?", "no", RED],
        ["8", "is there a fox? Please answer yes or no.", "No.", "7"],
        ["9", "is there an owl?", "yes", GREEN],
    )
    samples = read(path)
    assert [color_of(sample.load_image()) for sample in samples] == ["red", "red", "red", "green"]
    assert [sample.answers for sample in samples] == [("Yes",), ("no",), ("No",), ("yes",)]
    suffix = "\nAnswer the question using a single word or phrase."
    assert samples[2].question == f"is there a fox?{suffix}"  # in place of the file's own instruction


def test_several_images_in_a_cell_and_their_alias(tmp_path):
    path = write_table(
        tmp_path / "pairs.tsv",
        "index image question answer",
        ["0", f"['{RED}', '{GREEN}']", "which?", "a"],
        ["1", "0", "and now?", "b"],
        ["2", f'["{BLUE}", "{RED}"]', "else?", "c"],  # doubled quotes in the file
        ["3", f"data:image/png;base64,{BLUE}", "one?", "d"],
    )
    samples = read(path)
    assert [[color_of(image) for image in sample.load_images()] for sample in samples] == [
        ["red", "green"],
        ["red", "green"],
        ["blue", "red"],
        ["blue"],
    ]


def test_paths_instead_of_base64(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png("blue"))
    rows = [["0", "images/a.png", "what?", "a"], ["1", "a.png", "what now?", "b"]]
    for column in ("image_path", "image"):
        samples = read(write_table(tmp_path / "mine.tsv", f"index {column} question answer", *rows))
        assert [color_of(sample.load_image()) for sample in samples] == ["blue", "blue"]
    named = read(write_table(tmp_path / "mine.tsv", "n pic q a", *rows), question="q", answer="a", image="pic")
    assert [(sample.raw_question, sample.answers) for sample in named] == [("what?", ("a",)), ("what now?", ("b",))]
    assert [color_of(sample.load_image()) for sample in named] == ["blue", "blue"]


def test_tables_of_commas_are_tables_too(tmp_path):
    path = write_table(
        tmp_path / "mine.csv", "index image question answer", ["0", RED, 'a, b or "c"?', "a"], separator=","
    )
    (sample,) = read(path)
    assert (sample.question, color_of(sample.load_image())) == ('a, b or "c"?', "red")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=8),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_cells_are_what_the_csv_module_writes(tmp_path_factory, cells):
    """The reader of our own, which knows where a cell lies, against the standard library's writer."""
    cells = [[f"{n}{first}", *rest] for n, (first, *rest) in enumerate(cells)]
    path = tmp_path_factory.mktemp("cells") / "any.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([["one", "two", "three"], *cells])
    rows = list(table_rows(path))
    assert [[row.columns[name] for name in ("one", "two", "three")] for row in rows] == cells
    assert not any(row.error for row in rows)


# --- broken rows -----------------------------------------------------------------------------------------------------

HEADER = "index image question A B answer"
GOOD = [["1", RED, "first?", "cat", "dog", "A"], ["9", GREEN, "last?", "cat", "dog", "B"]]
CUT = RED[:81]  # base64 that ends inside a group of four
BROKEN = {
    "truncated base64": (["5", CUT, "q?", "cat", "dog", "A"], "its image is not base64, or was cut off"),
    "no base64": (["5", RED[:80] + "<html>", "q?", "cat", "dog", "A"], r"its image is not base64: b'<html>'"),
    "image of nobody": (["5", "77", "q?", "cat", "dog", "A"], "its image is '77', which is neither base64 nor the ind"),
    "no image": (["5", "", "q?", "cat", "dog", "A"], "no image among the columns"),
    "list of no images": (["5", f"[{RED}", "q?", "cat", "dog", "A"], "begins like a list and is no list of base64"),
    "missing column": (["5", RED, "q?", "cat", "dog"], "5 cells in a table of 6 columns"),
    "too many columns": (["5", RED, "q?", "cat", "dog", "A", "B"], "7 cells in a table of 6 columns"),
    "wrong literal": (["5", RED, "q?", "", "", "['cat', 'dog"], r"\"\['cat', 'dog\" is no list that can be read"),
    "empty answer": (
        ["5", RED, "q?", "cat", "dog", ""],
        r"its answer \(column 'answer'\) is empty|none of the options",
    ),
    "empty answer, no options": (["5", RED, "q?", "", "", " "], r"its answer \(column 'answer'\) is empty"),
    "empty question": (["5", RED, " ", "cat", "dog", "A"], "no question among the columns"),
    "duplicated index": (["1", RED, "q?", "cat", "dog", "A"], "index '1' is that of line 2 again"),
    "NaN option": (["5", RED, "q?", "cat", "nan", "B"], r"its answer 'B' is none of the options A: \['cat'\]"),
    "no UTF-8": (f"5\t{RED}\tcaf".encode() + b"\xe9?\tcat\tdog\tA", "question is not UTF-8 .* at byte 3"),
    "no UTF-8 in the index": (b"\xff\t" + f"{RED}\tq?\tcat\tdog\tA".encode(), "index is not UTF-8"),
    "open quote": (f'5\t{RED}\t"q?\tcat\tdog\tA'.encode(), "a quote opens a cell and never closes"),
}


@pytest.mark.parametrize(("row", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_named_and_the_others_are_kept(tmp_path, row, reason):
    first, broken, last = read(write_table(tmp_path / "mine.tsv", HEADER, GOOD[0], row, GOOD[1]))
    assert [(sample.id, sample.answers, sample.error) for sample in (first, last)] == [
        ("1", ("A",), ""),
        ("9", ("B",), ""),
    ]
    assert [color_of(sample.load_image()) for sample in (first, last)] == ["red", "green"]
    assert broken.id == "mine:3"
    with pytest.raises(SampleError, match=f"^mine.tsv line 3: .*(?:{reason})"):
        raise SampleError(broken.error)


def test_a_whole_base64_text_of_half_an_image_is_found_when_it_is_decoded(tmp_path):
    held = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(held, "JPEG")
    half = base64.b64encode(held.getvalue()[: len(held.getvalue()) // 2]).decode()
    (sample,) = read(write_table(tmp_path / "mine.tsv", "index image question answer", ["0", half, "q?", "a"]))
    with pytest.raises(SampleError, match=r"sample '0': image at byte \d+ of mine.tsv cannot be decoded .*truncated"):
        sample.load_image()


def test_a_stray_quote_swallows_no_row(tmp_path, monkeypatch):
    """Neither to the next quote, nor to the end of the file, nor beyond what a row may be long."""
    stray = f'2\t{RED}\t"5 inch\tcat\tdog\tA'.encode()
    path = write_table(tmp_path / "mine.tsv", HEADER, GOOD[0], stray, GOOD[1], ["10", RED, 'say "a"?', "x", "y", "B"])
    samples = read(path)
    assert [sample.id for sample in samples] == ["1", "mine:3", "9", "10"]
    assert samples[3].question.startswith('say "a"?')
    monkeypatch.setattr(probes.data.tsv, "LONGEST_ROW", 2000)
    many = [[str(n), RED, "q?", "cat", "dog", "A"] for n in range(10, 40)]
    samples = read(write_table(tmp_path / "long.tsv", HEADER, GOOD[0], stray, *many))
    assert [sample.id for sample in samples] == ["1", "long:3", *(str(n) for n in range(10, 40))]


def test_a_row_longer_than_any_is_named_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(probes.data.tsv, "LONGEST_ROW", 2000)
    path = write_table(tmp_path / "mine.tsv", HEADER, GOOD[0], ["5", "A" * 9000, "q?", "x", "y", "A"], GOOD[1])
    samples = read(path)
    assert [bool(sample.error) for sample in samples] == [False, True, False]
    assert samples[1].error.endswith("or the row exceeds 2000 bytes")


def test_line_ends_marks_and_blank_lines(tmp_path):
    path = tmp_path / "mine.tsv"
    lines = ["index\timage\tquestion\tanswer", f"0\t{RED}\tq?\ta", "", '1\t0\t"two\nlines?"\tb']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())  # no line end after the last row
    assert table_columns(path) == ("index", "image", "question", "answer")
    samples = read(path)
    assert [(sample.id, sample.question, sample.answers) for sample in samples] == [
        ("0", "q?", ("a",)),
        ("1", "two\nlines?", ("b",)),
    ]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            "index image answer",
            r"has no column of the question; its columns are \['index', 'image', 'answer'\]: name it",
        ),
        ("index question answer", r"has no column of the image; .*\(--image\)"),
        ("index index image question", "has the column 'index' more than once"),
    ],
)
def test_a_table_that_cannot_do_is_refused_at_once(tmp_path, header, reason):
    with pytest.raises(HorizonError, match=reason):
        read_samples(write_table(tmp_path / "mine.tsv", header))


def test_a_table_without_answers_gives_none(tmp_path):
    """Test splits keep them secret; the model's own answer can still be the target."""
    (sample,) = read(write_table(tmp_path / "MMBench_TEST_EN.tsv", "index image question A B", GOOD[0][:5]))
    assert (sample.answers, sample.options, sample.error) == ((), ("cat", "dog"), "")


# --- memory ----------------------------------------------------------------------------------------------------------


def test_no_more_than_one_row_is_held(tmp_path):
    """Samples of a whole file, kept in a list, stay small: their images are places in the file."""
    held = base64.b64encode(np.random.default_rng(0).bytes(1_500_000)).decode()
    rows = [[str(n), held, "q?", "a"] for n in range(12)]
    path = write_table(tmp_path / "mine.tsv", "index image question answer", *rows, ["12", "5", "q?", "a"])
    assert path.stat().st_size > 20e6
    del rows
    tracemalloc.start()
    samples = read(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 13
    assert not any(sample.error for sample in samples)
    assert kept < 1e6
    assert peak < 6 * len(held)  # a few copies of one row of 2 MB, not 24 MB
