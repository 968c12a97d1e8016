"""The sample sets that ship: well-formed, true of their pictures, and reproduced by the script that rendered them."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

OCR_KINDS = {"read": 120, "kth": 60, "last": 60}
VQA_KINDS = {"text_color": 120, "color": 30, "shape": 30, "count": 30, "count_all": 30, "exist": 30, "exist_pair": 30}
FIELDS = ["id", "image", "question", "answers", "task", "task_type", "category"]
NUMBERS = ["zero", "one", "two", "three", "four", "five"]
ORDINALS = ["first", "second", "third", "fourth", "fifth"]


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_pixels(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.fixture(scope="module")
def samples(data):
    return {name: read_lines(data / "demo-samples" / f"{name}.jsonl") for name in ("ocr", "vqa")}


@pytest.mark.parametrize(("name", "kinds"), [("ocr", OCR_KINDS), ("vqa", VQA_KINDS)])
def test_every_line_is_a_sample_of_its_set(samples, name, kinds):
    assert Counter(sample["category"] for sample in samples[name]) == kinds
    for sample in samples[name]:
        assert list(sample) == FIELDS
        assert (sample["task"], sample["task_type"]) == (f"demo-{name}", name)
        assert len(sample["answers"]) == 1


def test_ids_are_unique_over_both_sets(samples):
    ids = [sample["id"] for lines in samples.values() for sample in lines]
    assert len(set(ids)) == len(ids) == 540


def test_the_images_are_distinct_pictures_and_none_is_left_over(data, samples):
    folder = data / "demo-samples"
    asked = {name: {sample["image"] for sample in lines} for name, lines in samples.items()}
    assert {f"images/{path.name}" for path in (folder / "images").iterdir()} == asked["ocr"] | asked["vqa"]
    hashes = {}
    for image in asked["ocr"] | asked["vqa"]:
        pixels = read_pixels(folder / image)
        assert pixels.shape == (64, 64, 3)
        hashes[image] = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert len(set(hashes.values())) == len(hashes)
    assert len(asked["ocr"]) >= 200
    assert len(asked["vqa"]) >= 200


def test_pictures_asked_both_ways_are_read_and_named_by_color(samples):
    kinds = {name: {sample["image"]: sample["category"] for sample in lines} for name, lines in samples.items()}
    shared = kinds["ocr"].keys() & kinds["vqa"].keys()
    assert len(shared) == 120
    assert {(kinds["ocr"][image], kinds["vqa"][image]) for image in shared} == {("read", "text_color")}


def test_any_prefix_of_the_sets_holds_the_kinds_in_their_proportions(samples):
    kinds = [sample["category"] for sample in samples["vqa"][:100]]
    assert Counter(kinds) == {kind: count // 3 for kind, count in VQA_KINDS.items()}


def test_rendering_again_gives_the_shipped_sets(data, samples, script):
    rendering = script("render_demo_samples")
    for demo_set, name in zip(rendering.make_sets(), ("ocr", "vqa"), strict=True):
        assert [vars(sample) for sample in demo_set.samples] == samples[name]
        for image, pixels in demo_set.pictures.items():
            np.testing.assert_array_equal(pixels, read_pixels(data / "demo-samples" / image))


def test_a_shortened_rendering_writes_the_first_samples(samples, script, tmp_path):
    rendering = script("render_demo_samples")
    for demo_set, name in zip(rendering.make_sets(rounds=1), ("ocr", "vqa"), strict=True):
        rendering.save_set(demo_set, tmp_path / f"{name}.jsonl")
        written = read_lines(tmp_path / f"{name}.jsonl")
        assert written == samples[name][: len(written)]
        for sample in written:
            np.testing.assert_array_equal(read_pixels(tmp_path / sample["image"]), demo_set.pictures[sample["image"]])


def true_answer(words, kind, picture):
    """The answer worked out from the words of the question alone: an oracle that shares no code with the script."""
    shapes = [(shape.color, shape.name) for shape in picture.shapes]
    string = "" if picture.text is None else picture.text.string
    match kind, words.split():
        case "read", _:
            return " ".join(string)
        case "kth", [_, _, _, ordinal, *_]:
            return string[ORDINALS.index(ordinal)]
        case "last", _:
            return string[-1]
        case "after", [*_, character, "?"]:
            return string[string.index(character) + 1]
        case "text_color", _:
            return picture.text.color
        case "color", [*_, name, "?"]:
            (color,) = [color for color, other in shapes if other == name]
            return color
        case "shape", [*_, color, "object", "?"]:
            (name,) = [name for other, name in shapes if other == color]
            return name
        case "count_all", _:
            return NUMBERS[len(shapes)]
        case "count", ["how", "many", plural, *_]:
            return NUMBERS[sum(plural in (f"{name}s", f"{name}es") for _, name in shapes)]
        case "exist", [*_, name, "?"]:
            return "yes" if name in [other for _, other in shapes] else "no"
        case "exist_pair", [*_, color, name, "?"]:
            return "yes" if (color, name) in shapes else "no"


def test_answers_are_true_of_the_picture(script):
    pictures, questions = script("pictures"), script("questions")
    generator = np.random.default_rng(3)
    asked = Counter()
    for number in range(1500):
        picture = pictures.compose_picture(generator, pictures.CONTENTS[number % 3])
        for kind in questions.kind_weights(picture):
            question = questions.ask(generator, picture, kind)
            if question is not None:
                assert question.answer == true_answer(question.words, kind, picture), (question, picture)
                asked[kind] += 1
    assert min(asked.values()) > 300
    assert asked.keys() == questions.TEXT_WEIGHTS.keys() | questions.SCENE_WEIGHTS.keys()


def test_a_shape_is_painted_in_its_color_at_its_place(script):
    pictures = script("pictures")
    generator = np.random.default_rng(4)
    for _ in range(100):
        picture = pictures.compose_picture(generator, "mixed")
        pixels = pictures.paint(picture, generator).astype(float)
        for shape in picture.shapes:
            row, column = (shape.box.top + shape.box.bottom) // 2, (shape.box.left + shape.box.right) // 2
            tolerance = pictures.COLOR_JITTER + 6 * pictures.NOISE
            assert np.abs(pixels[row, column] - pictures.COLORS[shape.color]).max() < tolerance, shape


def test_text_stands_inside_the_picture_and_apart_from_the_shapes(script):
    pictures = script("pictures")
    generator = np.random.default_rng(5)
    for _ in range(500):
        picture = pictures.compose_picture(generator, "mixed")
        boxes = [picture.text.box, *(shape.box for shape in picture.shapes)]
        covered = np.zeros((64, 64), int)
        for box in boxes:
            covered[box.top : box.bottom, box.left : box.right] += 1
        assert covered.max() == 1
        assert covered.sum() == sum((box.right - box.left) * (box.bottom - box.top) for box in boxes)
