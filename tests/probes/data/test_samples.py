"""Sample files: what a line gives, what a broken one costs, and when two pictures are one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analyses.runs import HorizonError
from probes.data.readers import read_samples
from probes.data.samples import Sample, SampleError, fill_template, image_sha256, pictures_sha256, with_template

LINE = {"id": "a", "image": "images/a.png", "question": "what?", "answers": ["cat"]}


def written(folder: Path, *lines: dict | str | bytes, name: str = "pets.jsonl") -> Path:
    """A file with one line each: objects as JSON, text and bytes as they are."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path = folder / name
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read(folder: Path, *lines: dict | str | bytes, **how) -> list[Sample]:
    return list(read_samples(written(folder, *lines), **how))


def picture(size: tuple[int, int] = (12, 8), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_gives_every_field(tmp_path):
    full = LINE | {"task": "pets-2", "task_type": "vqa", "category": "color", "options": ["cat", "dog"]}
    assert read(tmp_path, full) == [
        Sample("a", tmp_path / "images/a.png", "what?", ("cat",), "pets-2", "vqa", "color", ("cat", "dog"))
    ]


def test_several_images_and_frames_are_read_in_order(tmp_path):
    bare = {"id": "a", "question": "what?", "answers": ["cat"]}
    names = ["x/b.png", "a.png"]
    several, video, empty = read(
        tmp_path, bare | {"images": names}, bare | {"frames": names, "fps": 2}, LINE | {"images": []}
    )
    paths = tuple(tmp_path / name for name in names)
    assert (several.image, several.images, several.frames, several.error) == (None, paths, (), "")
    assert (video.image, video.images, video.frames, video.fps) == (None, (), paths, 2.0)
    assert (empty.image, empty.images, empty.error) == (tmp_path / "images/a.png", (), "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ["b.png"]}, "image and images are given; one of them is expected"),
        ({"image": None, "images": "b.png"}, "images are 'b.png'; a list of paths is expected"),
        ({"image": None, "frames": ["b.png", 3]}, r"frames are \['b.png', 3\]; a list of paths is expected"),
        ({"image": None, "images": []}, "no image among the keys"),
        ({"fps": 0}, "fps is 0; a number above 0 is expected"),
        ({"fps": "fast"}, "fps is 'fast'; a number above 0 is expected"),
    ],
)
def test_pictures_that_cannot_be_meant_are_named(tmp_path, changes, reason):
    (found,) = read(tmp_path, LINE | changes)
    assert re.fullmatch(f"pets.jsonl line 1: {reason}.*", found.error)


def test_pictures_are_decoded_in_order(tmp_path):
    first, second = picture(seed=1), picture(size=(5, 7), seed=2)
    second.save(tmp_path / "b.png")
    sample = Sample("a", None, "?", (), images=(first, tmp_path / "b.png"))
    assert [image.tobytes() for image in sample.load_images()] == [first.tobytes(), second.tobytes()]
    assert sample.load_image().tobytes() == first.tobytes()
    assert [image.size for image in Sample("a", first, "?", ()).load_images()] == [(12, 8)]
    with pytest.raises(SampleError, match="sample 'a': give one of image, images and frames, not 2 of them"):
        Sample("a", first, "?", (), frames=(second,)).load_images()


def test_the_digest_of_several_pictures_is_of_all_in_order():
    first, second = picture(seed=1), picture(seed=2)
    assert pictures_sha256([first]) == image_sha256(first)
    digests = {pictures_sha256(images) for images in ([first], [second], [first, second], [second, first])}
    assert len(digests) == 4
    assert pictures_sha256([first, second]) == pictures_sha256([first.copy(), second.copy()])


def test_fields_that_are_left_out_have_defaults(tmp_path):
    bare = {"image": "a.png", "question": "what?", "answers": ["cat"]}
    first, second = read(tmp_path, bare, bare | {"id": None})
    assert first == Sample("pets:1", tmp_path / "a.png", "what?", ("cat",), task="pets")
    assert second.id == "pets:2"


@pytest.mark.parametrize(
    ("given", "answers"),
    [
        ({"answer": "cat"}, ("cat",)),
        ({"answers": "cat"}, ("cat",)),
        ({"answers": ["cat", 3, 1.5]}, ("cat", "3", "1.5")),
        ({"answer": 3}, ("3",)),
        ({"answers": []}, ()),  # the sample says so where an answer is needed
    ],
)
def test_answers_are_texts_or_numbers_one_or_many(tmp_path, given, answers):
    (sample,) = read(tmp_path, {"id": 7, "image": "a.png", "question": "what?"} | given)
    assert (sample.id, sample.answers, sample.error) == ("7", answers, "")


def test_arguments_override_the_lines_task_and_type(tmp_path):
    named = LINE | {"task": "mine", "task_type": "ocr"}
    (kept,) = read(tmp_path, named)
    assert (kept.task, kept.task_type) == ("mine", "ocr")
    (changed,) = read(tmp_path, named, task="theirs", task_type="vqa")
    assert (changed.task, changed.task_type) == ("theirs", "vqa")
    (broken,) = read(tmp_path, "{", task="theirs", task_type="vqa")
    assert (broken.task, broken.task_type) == ("theirs", "vqa")


def test_the_template_takes_the_question(tmp_path):
    (sample,) = read(tmp_path, LINE | {"question": "why {x}?"}, prompt="{question} One word. {question}")
    assert sample.question == "why {x}? One word. why {x}?"
    assert sample.raw_question == "why {x}?"


def test_a_second_template_replaces_the_first(tmp_path):
    """A run's --prompt goes before what the samples were read with: neither is put around the other."""
    (sample,) = read(tmp_path, LINE, prompt="{question} One word.")
    assert with_template(sample, "Say: {question}").question == "Say: what?"
    assert with_template(sample, None) == sample


def test_template_lines_with_nothing_in_them_fall_away():
    template = "Context: {hint}\n{question} ({hint})\n{options}\nText: {ocr_tokens}\nAnswer."
    bare = Sample("a", None, "{options}?", ())
    assert fill_template(template, bare) == "{options}? ()\nAnswer."
    full = Sample("a", None, "which?", (), options=("cat", "dog"), hint="pets", ocr_tokens=("STOP", "50 km"))
    assert fill_template(template, full) == ("Context: pets\nwhich? (pets)\nA. cat\nB. dog\nText: STOP, 50 km\nAnswer.")


@pytest.mark.parametrize(("limit", "ids"), [(1, ["0"]), (2, ["0", "1"]), (9, ["0", "1", "2"]), (None, ["0", "1", "2"])])
def test_the_limit_counts_samples_not_lines(tmp_path, limit, ids):
    lines = [item for i in range(3) for item in ("", LINE | {"id": i})]
    assert [sample.id for sample in read(tmp_path, *lines, limit=limit)] == ids


def test_image_paths_are_relative_to_the_file_unless_absolute(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    relative, absolute = read(folder, LINE, LINE | {"image": str(tmp_path / "b.png")})
    assert relative.image == folder / "images/a.png"
    assert absolute.image == tmp_path / "b.png"


def test_reading_is_lazy(tmp_path):
    """A benchmark of a million lines costs nothing until it is asked for."""
    samples = read_samples(written(tmp_path, LINE, "{"))
    assert next(samples).id == "a"


def test_the_shipped_sets_read_without_an_error(data):
    for name in ("ocr", "vqa"):
        samples = list(read_samples(data / "demo-samples" / f"{name}.jsonl"))
        assert len(samples) >= 200
        assert {sample.task_type for sample in samples} == {name}
        assert not any(sample.error for sample in samples)
        assert all(sample.image.is_file() for sample in samples)


# --- broken lines ----------------------------------------------------------------------------------------------------

BROKEN = {
    "truncated": (json.dumps(LINE)[:-9], "not valid JSON"),
    "not JSON": ("id,image,question", "not valid JSON"),
    "two objects": (json.dumps(LINE) * 2, "not valid JSON"),
    "no UTF-8": (json.dumps(LINE).encode().replace(b"cat", b"caf\xe9"), "not valid JSON"),
    "too deep": ("[" * 100_000, "not valid JSON"),
    "array": ('["a", "b"]', "a JSON list where an object is expected"),
    "text": ('"a"', "a JSON str where an object is expected"),
    "null": ("null", "a JSON NoneType where an object is expected"),
    "no image": ({"id": "a", "question": "what?", "answers": ["cat"]}, "no image among the keys"),
    "neither": ({"id": "a"}, r"no image and no question among the keys \['id'\]"),
    "blank question": (LINE | {"question": ""}, "no question among"),
    "image is a number": (LINE | {"image": 5}, "image is 5; a text is expected"),
    "image is an object": (LINE | {"image": {"bytes": ""}}, "image is .*; a text is expected"),
    "question is a list": (LINE | {"question": ["what?"]}, r"question is \['what\?'\]; a text is expected"),
    "answers are null": (LINE | {"answers": None}, "answers are None; a text or a list of texts is expected"),
    "answers are nested": (LINE | {"answers": [["cat"]]}, "a list of texts is expected"),
    "answers are objects": (LINE | {"answers": {"cat": 1}}, "a list of texts is expected"),
    "no answers": ({key: LINE[key] for key in ("id", "image", "question")}, "answers are None"),
    "options are a number": (LINE | {"options": 5}, "options are 5; a list of texts is expected"),
    "options are a text": (LINE | {"options": "AB"}, "options are 'AB'; a list of texts is expected"),
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named_and_the_others_are_kept(tmp_path, line, reason):
    first, broken, last = read(tmp_path, LINE, "", line, LINE | {"id": "z"})
    assert (first.id, first.error, last.id, last.error) == ("a", "", "z", "")
    assert broken.id == "pets:3"
    assert broken.task == "pets"
    with pytest.raises(SampleError, match=f"^pets.jsonl line 3: .*{reason}"):
        raise SampleError(broken.error)


def test_a_byte_order_mark_and_carriage_returns_are_read_over(tmp_path):
    line = json.dumps(LINE | {"question": "où?"}, ensure_ascii=False).encode()
    samples = read(tmp_path, b"\xef\xbb\xbf" + line + b"\r", line + b"\r")
    assert [sample.error for sample in samples] == ["", ""]
    assert {sample.question for sample in samples} == {"où?"}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"limit": 0}, "limit is 0"),
        ({"limit": -3}, "limit is -3"),
        ({"prompt": "Answer."}, r"'Answer.' has no \{question\}"),
    ],
)
def test_unusable_arguments_are_refused_at_once(tmp_path, how, reason):
    path = written(tmp_path, LINE)
    with pytest.raises(HorizonError, match=reason):
        read_samples(path, **how)


def test_a_file_that_is_missing_or_of_another_kind_is_refused_at_once(tmp_path):
    with pytest.raises(HorizonError, match=r"no sample file at .*none.jsonl: give a sample file \(TSV, JSONL, parquet"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(HorizonError, match=r"no sample file at .* holds neither parquet files nor images"):
        read_samples(tmp_path)
    words = written(tmp_path, "just words", name="words.doc")
    with pytest.raises(HorizonError, match=r"words.doc is of no known format \(its name ends in '.doc'\)"):
        read_samples(words)
    misnamed = written(tmp_path, LINE, name="table.csv")
    assert [sample.id for sample in read_samples(misnamed)] == ["a"]  # the content tells


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_an_image_is_decoded_to_rgb(tmp_path, mode):
    stored = picture().convert(mode)
    stored.save(tmp_path / "a.png")
    expected = np.asarray(stored.convert("RGB"))
    for image in (tmp_path / "a.png", stored):
        loaded = Sample("a", image, "?", ()).load_image()
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), expected)


def test_a_sample_without_an_image_or_with_a_missing_one_is_named(tmp_path):
    with pytest.raises(SampleError, match="sample 'a' has no image"):
        Sample("a", None, "?", ()).load_image()
    with pytest.raises(SampleError, match=r"sample 'a': image .*none.png does not exist"):
        Sample("a", tmp_path / "none.png", "?", ()).load_image()
    with pytest.raises(SampleError, match=r"sample 'a': image .* cannot be decoded"):
        Sample("a", tmp_path, "?", ()).load_image()


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp"])
@pytest.mark.parametrize("kept", [0, 4, 20, 0.5])
def test_a_broken_file_is_named(tmp_path, kind, kept):
    path = tmp_path / f"a.{kind}"
    picture((60, 40)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(SampleError, match=rf"sample 'a': image .*a.{kind} cannot be decoded"):
        Sample("a", path, "?", ()).load_image()


def test_text_in_an_image_file_and_an_image_too_large_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("<html>not found</html>")
    with pytest.raises(SampleError, match="cannot be decoded"):
        Sample("a", path, "?", ()).load_image()
    picture().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(SampleError, match=r"cannot be decoded .*decompression bomb"):
        Sample("a", path, "?", ()).load_image()


def test_the_same_picture_in_two_formats_is_one(tmp_path):
    hashes = set()
    for kind in ("png", "bmp", "tiff"):
        picture().save(tmp_path / f"a.{kind}")
        hashes.add(image_sha256(Sample("a", tmp_path / f"a.{kind}", "?", ()).load_image()))
    assert hashes == {image_sha256(picture())}
    assert len(hashes.pop()) == 64


def test_other_pixels_or_another_size_are_another_picture():
    tall, wide = picture((8, 12)), picture((12, 8))
    same_bytes = Image.frombytes("RGB", wide.size, tall.tobytes())
    hashes = [image_sha256(image) for image in (tall, wide, same_bytes, picture((12, 8), seed=1), wide.resize((6, 4)))]
    assert hashes[1] == hashes[2]  # one picture, made in two ways
    assert len(set(hashes)) == 4


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_wide_pixels_are_scaled_not_clipped(tmp_path, mode):
    """A 16-bit picture reads as the 8-bit one that it is 257 times."""
    narrow = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = Image.fromarray(narrow.astype(np.uint16) * 257).convert(mode)
    wide.save(tmp_path / "wide.tiff")
    read = Sample("s", tmp_path / "wide.tiff", "?", ("a",)).load_image()
    assert read.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(read)[..., 0], narrow)
    narrow_in_wide = Sample("s", Image.fromarray(narrow.astype(np.int32)), "?", ("a",)).load_image()
    np.testing.assert_array_equal(np.asarray(narrow_in_wide)[..., 2], narrow)


def test_pixels_of_unknown_range_are_named():
    for pixels, reason in ((np.zeros((4, 4), np.float32), "holds floats"), (np.full((4, 4), -1, np.int32), "-1 to -1")):
        with pytest.raises(SampleError, match=f"sample 'odd': the image {reason}|sample 'odd': .*{reason}"):
            Sample("odd", Image.fromarray(pixels), "?", ("a",)).load_image()


def test_one_json_array_is_refused(tmp_path):
    file = tmp_path / "set.json"
    file.write_text('[\n{"id": 1}]')
    with pytest.raises(HorizonError, match="holds one JSON array; write one object a line"):
        read_samples(file)
