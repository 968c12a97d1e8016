"""LLaVA's question files, the annotation files that belong to them, and these by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import color_of, write_images, write_json, write_lines

from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def read(path: Path, **how) -> list[Sample]:
    return list(read_samples(path, **how))


def colors(samples: list[Sample]) -> list[str]:
    return [color_of(sample.load_image()) for sample in samples if not sample.error]


# --- TextVQA ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def textvqa(tmp_path) -> Path:
    """LLaVA's folder of TextVQA: question ids are image ids, prompts carry reference OCR tokens."""
    write_images(tmp_path / "train_images", aa="red", bb="green")
    asked = [("aa", "What is the brand?", "DAKOTA, DIGITAL"), ("aa", "What color?", ""), ("bb", "Who?", "Smith")]
    write_lines(
        tmp_path / "llava_textvqa_val_v051_ocr.jsonl",
        *(
            {
                "question_id": image,
                "image": f"{image}.jpg",
                "text": f"{question}\nReference OCR token: {tokens}\n{SHORT}",
                "category": "default",
            }
            for image, question, tokens in asked
        ),
        {"question_id": "cc", "image": "cc.jpg", "text": f"Unknown?\n{SHORT}", "category": "default"},
        '{"question_id": "aa", ',
    )
    entries = [
        {"question_id": 34602, "image_id": "aa", "question": "what is the brand?", "answers": ["nous les gosses"] * 10},
        {"question_id": 34603, "image_id": "aa", "question": "what color?", "answers": ["red"] * 9 + ["pink"]},
        {"question_id": 34604, "image_id": "bb", "question": "who?", "answers": ["smith"] * 10},
    ]
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": entries})
    return tmp_path


def test_a_question_file_finds_its_answers_and_images(textvqa):
    stream = read_samples(textvqa / "llava_textvqa_val_v051_ocr.jsonl")
    assert "task textvqa (guessed from its name)" in stream.note
    assert "answers from TextVQA_0.5.1_val.json" in stream.note
    samples = list(stream)
    assert [sample.id for sample in samples[:3]] == ["aa", "aa#2", "bb"]  # ids name images, and must name samples here
    assert [sample.question for sample in samples[:3]] == [
        f"what is the brand?\n{SHORT}",
        f"what color?\n{SHORT}",
        f"who?\n{SHORT}",
    ]
    assert [sample.answers[-1] for sample in samples[:3]] == ["nous les gosses", "pink", "smith"]
    assert {(sample.task, sample.task_type) for sample in samples} == {("textvqa", "ocr")}
    assert colors(samples) == ["red", "red", "green"]
    assert [sample.error for sample in samples[3:]] == [
        "llava_textvqa_val_v051_ocr.jsonl line 4: the annotation files hold no answer to it",
        samples[4].error,
    ]
    assert "line 5: not valid JSON" in samples[4].error


def test_reference_ocr_tokens_are_out_unless_asked_for(textvqa):
    path = textvqa / "llava_textvqa_val_v051_ocr.jsonl"
    assert not any("OCR" in sample.question or sample.ocr_tokens for sample in read(path))
    told = read(path, with_ocr_tokens=True)
    assert told[0].question == f"what is the brand?\nReference OCR token: DAKOTA, DIGITAL\n{SHORT}"
    assert [sample.ocr_tokens for sample in told[:3]] == [("DAKOTA", "DIGITAL"), (), ("Smith",)]
    other = read(path, with_ocr_tokens=True, prompt="{question} Text: {ocr_tokens}")
    assert other[2].question == "who? Text: Smith"


def test_annotations_may_lie_elsewhere_or_be_missing(textvqa, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "answers.json"
    (textvqa / "TextVQA_0.5.1_val.json").rename(elsewhere)
    path = textvqa / "llava_textvqa_val_v051_ocr.jsonl"
    stream = read_samples(path)
    assert "no answers: give --annotations" in stream.note
    bare = list(stream)
    assert [sample.answers for sample in bare[:4]] == [(), (), (), ()]
    assert bare[0].question == f"What is the brand?\n{SHORT}"
    assert [sample.answers[0] for sample in read(path, annotations=elsewhere)[:3]] == [
        "nous les gosses",
        "red",
        "smith",
    ]
    with pytest.raises(HorizonError, match="no annotation file at"):
        read_samples(path, annotations=textvqa / "none.json")


def test_the_annotation_file_by_itself(textvqa):
    samples = read(textvqa / "TextVQA_0.5.1_val.json")
    assert [sample.id for sample in samples] == ["34602", "34603", "34604"]
    assert [sample.question for sample in samples][2] == f"who?\n{SHORT}"
    assert colors(samples) == ["red", "red", "green"]


# --- POPE ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pope(tmp_path) -> Path:
    write_images(tmp_path / "val2014", COCO_1="blue", COCO_2="white")
    asked = [
        ("adversarial", "COCO_1", "car", "no"),
        ("popular", "COCO_1", "person", "yes"),
        ("random", "COCO_2", "car", "no"),
    ]
    lines = [
        {
            "question_id": n,
            "image": f"{image}.jpg",
            "text": f"Is there a {thing} in the image?\n{SHORT}",
            "category": set_,
        }
        for n, (set_, image, thing, _) in enumerate(asked)
    ]
    write_lines(tmp_path / "llava_pope_test.jsonl", *lines)
    for set_, image, thing, label in asked:
        question = f"Is there a {thing} in the image?"
        record = {"question_id": 1, "image": f"{image}.jpg", "text": question, "label": label}
        write_lines(tmp_path / "coco" / f"coco_pope_{set_}.json", record)
    return tmp_path


def test_pope_takes_its_labels_by_image_and_wording(pope):
    """Every label file counts its questions from 1."""
    samples = read(pope / "llava_pope_test.jsonl")
    assert [(sample.id, sample.category, sample.answers) for sample in samples] == [
        ("0", "adversarial", ("no",)),
        ("1", "popular", ("yes",)),
        ("2", "random", ("no",)),
    ]
    assert samples[0].question == f"Is there a car in the image?\n{SHORT}"
    assert colors(samples) == ["blue", "blue", "white"]
    assert [sample.id for sample in read(pope / "llava_pope_test.jsonl", category="random")] == ["2"]


def test_a_label_file_by_itself(pope):
    (sample,) = read(pope / "coco" / "coco_pope_popular.json", images_dir=pope / "val2014")
    assert (sample.task, sample.category, sample.answers) == ("pope", "popular", ("yes",))
    assert sample.question == f"Is there a person in the image?\n{SHORT}"
    assert colors([sample]) == ["blue"]


# --- MME -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mme(tmp_path) -> Path:
    """Both layouts that MME's release mixes: with folders of their own for images and texts, and without."""
    release = tmp_path / "MME_Benchmark_release_version"
    write_images(release / "artwork" / "images", **{"16006": "green"})
    write_images(release / "code_reasoning", **{"0020": "red"})
    texts = {
        "artwork/questions_answers_YN/16006": ["Is it a fresco? Please answer yes or no.\tNo", "broken line"],
        "code_reasoning/0020": [
            f"Is {thing} printed? Please answer yes or no.\t{word}" for thing, word in (("a", "Yes"), ("b", "No"))
        ],
    }
    for name, lines in texts.items():
        file = release / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
    asked = [
        ("artwork/16006.jpg", "Is it a fresco?"),
        ("code_reasoning/0020.jpg", "Is a printed?"),
        ("code_reasoning/0020.jpg", "Is b printed?"),
    ]
    write_lines(
        tmp_path / "llava_mme.jsonl",
        *({"question_id": i, "image": i, "text": f"{q}\n{SHORT}", "category": i.split("/")[0]} for i, q in asked),
    )
    return tmp_path


def test_mme_by_its_question_file(mme):
    samples = read(mme / "llava_mme.jsonl")
    assert [(sample.id, sample.category, sample.answers) for sample in samples] == [
        ("artwork/16006.jpg", "artwork", ("No",)),
        ("code_reasoning/0020.jpg", "code_reasoning", ("Yes",)),
        ("code_reasoning/0020.jpg#2", "code_reasoning", ("No",)),
    ]
    assert samples[2].question == f"Is b printed?\n{SHORT}"
    assert colors(samples) == ["green", "red", "red"]


def test_mme_by_its_directory(mme):
    stream = read_samples(mme / "MME_Benchmark_release_version")
    assert "task mme" in stream.note
    samples = list(stream)
    assert [(sample.category, sample.answers) for sample in samples if not sample.error] == [
        ("artwork", ("No",)),
        ("code_reasoning", ("Yes",)),
        ("code_reasoning", ("No",)),
    ]
    (broken,) = (sample for sample in samples if sample.error)
    assert broken.error == "artwork/16006.txt line 2: no tab between question and answer"
    assert colors(samples) == ["green", "red", "red"]


# --- ScienceQA -------------------------------------------------------------------------------------------------------


@pytest.fixture
def scienceqa(tmp_path) -> Path:
    for split, name, color in (("test", "5", "red"), ("train", "8", "blue")):
        write_images(tmp_path / "images" / split / name, image=color)
    problem = {"question": "Which?", "choices": ["cat", "dog"], "answer": 1, "hint": "", "subject": "natural science"}
    write_json(
        tmp_path / "problems.json",
        {
            "5": {**problem, "image": "image.jpg", "split": "test", "hint": "Look."},
            "6": {**problem, "image": None, "split": "test"},
            "7": {**problem, "image": "image.jpg", "split": "test", "answer": 4},
            "8": {**problem, "image": "image.jpg", "split": "train", "answer": 0},
        },
    )
    write_json(tmp_path / "pid_splits.json", {"test": ["5", "6", "7"], "minitest": ["5"], "train": ["8"]})
    turns = [
        {"from": "human", "value": "<image>\nWhich?\nA. cat\nB. dog"},
        {"from": "gpt", "value": "The answer is B."},
    ]
    entries = [{"id": "5", "image": "5/image.jpg", "conversations": turns}, {"id": "6", "conversations": turns}]
    write_json(tmp_path / "llava_test_CQM-A.json", [*entries, {"id": "7"}])
    return tmp_path


def test_scienceqa_by_its_problems(scienceqa):
    stream = read_samples(scienceqa)
    samples = list(stream)
    assert [sample.id for sample in samples] == ["5", "problems:7", "8"]
    assert stream.left_out == {"questions without an image": 1}
    assert samples[0].question == f"Context: Look.\nWhich?\nA. cat\nB. dog\n{LETTER}"
    assert [sample.answers for sample in samples] == [("B",), (), ("A",)]
    assert "its answer 4 is none of the options A, B: ['cat', 'dog']" in samples[1].error
    assert colors(samples) == ["red", "blue"]
    assert [sample.id for sample in read(scienceqa / "problems.json", where="splits=minitest")] == ["5"]
    assert [sample.id for sample in read(scienceqa / "problems.json", where=["split=train"])] == ["8"]


@pytest.mark.parametrize("with_problems", [True, False])
def test_scienceqa_by_llavas_conversations(scienceqa, with_problems):
    if not with_problems:
        (scienceqa / "problems.json").unlink()
    stream = read_samples(scienceqa / "llava_test_CQM-A.json")
    first, broken = list(stream)
    assert stream.left_out == {"questions without an image": 1}
    assert (first.id, first.task, first.task_type, first.answers) == ("5", "scienceqa", "knowledge", ("B",))
    hint = "Context: Look.\n" if with_problems else ""
    assert first.question == f"{hint}Which?\nA. cat\nB. dog\n{LETTER}"
    assert first.options == (("cat", "dog") if with_problems else ())
    assert colors([first]) == ["red"]
    assert broken.error == "llava_test_CQM-A.json entry 2: no conversations with values"


# --- GQA -------------------------------------------------------------------------------------------------------------


def test_gqa(tmp_path):
    write_images(tmp_path / "data" / "images", n1="red", n2="white")
    asked = {"20": ("n1", "Is it red?", "yes"), "21": ("n2", "What is it?", "snow")}
    write_json(
        tmp_path / "data" / "testdev_balanced_questions.json",
        {name: {"imageId": i, "question": q, "answer": a, "fullAnswer": "x"} for name, (i, q, a) in asked.items()},
    )
    write_lines(
        tmp_path / "llava_gqa_testdev_balanced.jsonl",
        *({"question_id": n, "image": f"{i}.jpg", "text": f"{q}\n{SHORT}"} for n, (i, q, _) in asked.items()),
    )
    by_lines = read(tmp_path / "llava_gqa_testdev_balanced.jsonl")
    by_questions = read(tmp_path / "data" / "testdev_balanced_questions.json")
    assert by_lines == by_questions
    assert [(sample.id, sample.question, sample.answers) for sample in by_lines] == [
        ("20", f"Is it red?\n{SHORT}", ("yes",)),
        ("21", f"What is it?\n{SHORT}", ("snow",)),
    ]
    assert colors(by_lines) == ["red", "white"]


def test_annotations_of_another_kind_are_refused(textvqa):
    other = write_json(textvqa / "other.json", {"a": {"b": 1}})
    with pytest.raises(HorizonError, match=r"other.json is no annotation file of TextVQA, POPE, GQA or ScienceQA"):
        read(textvqa / "llava_textvqa_val_v051_ocr.jsonl", annotations=other)
    own = write_lines(textvqa / "own.jsonl", {"id": 1, "image": "aa.jpg", "question": "q?", "answers": ["a"]})
    with pytest.raises(HorizonError, match=r"belong to a LLaVA question file, and .*own.jsonl is none"):
        read_samples(own, annotations=other)
