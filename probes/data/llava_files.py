"""Files of LLaVA's evaluation and the annotation files that belong to it (no torch here).

LLaVA's question files (JSON Lines: question_id, image, text, category) hold prompts and no answers; those come from the
benchmark's own files: TextVQA_*.json, coco_pope_*.json, MME's directory, ScienceQA's problems.json, GQA's questions.
Each of these can also be read by itself. Annotation files are read whole; images stay where they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses.runs import HorizonError
from probes.data.jsonl import json_rows
from probes.data.rows import Row

PICTURE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TOKENS = re.compile(r"\n?Reference OCR token:[ \t]*([^\n]*)")
_CHOSEN = re.compile(r"(?:The answer is )?\(?([A-Z])\)?\.?", re.IGNORECASE)
_ENDING = re.compile(r"\.\w+$")
_SETS = ("adversarial", "popular", "random")


@dataclass(frozen=True)
class FolderLayout:
    """Where the files of a benchmark lie in LLaVA's folder of it.

    Attributes:
        annotations: patterns of the annotation files, relative to the question file; the first that matches holds.
        images: folders of images, relative to the question or annotation file.
    """

    annotations: tuple[str, ...]
    images: tuple[str, ...]


LAYOUTS = {
    "textvqa": FolderLayout(("TextVQA_*.json",), ("train_images", "test_images", "images")),
    "pope": FolderLayout(("coco/coco_pope_*.json", "coco_pope_*.json"), ("val2014", "coco/val2014", "images")),
    "mme": FolderLayout(("MME_Benchmark_release_version",), ("MME_Benchmark_release_version", "images")),
    "scienceqa": FolderLayout(("problems.json",), ("images/test", "images", "test")),
    "gqa": FolderLayout(("data/*_questions.json", "*_questions.json"), ("data/images", "images")),
}

_ANY = FolderLayout((), ("images",))


def image_folders(folder: Path, task: str) -> tuple[Path, ...]:
    """Where the images that a file names may lie."""
    return (folder, *(folder / name for name in LAYOUTS.get(task, _ANY).images))


def find_annotations(path: Path, task: str) -> tuple[Path, ...]:
    """The annotation files beside a question file; none where the layout is another."""
    for pattern in LAYOUTS.get(task, _ANY).annotations:
        files = tuple(sorted(file for file in path.parent.glob(pattern) if file != path))
        if files:
            return files
    return ()


def is_question_line(record: dict[str, Any]) -> bool:
    """Whether a line is of a LLaVA question file, or of POPE's label files."""
    return "text" in record and "question" not in record and ("question_id" in record or "label" in record)


def question_rows(path: Path, annotations: Iterable[Path] = ()) -> Iterator[Row]:
    """The lines of a question file, each with what the annotation files say about it.

    The prompt's reference OCR tokens become a column, and the annotation's bare question goes before the prompt.

    Raises:
        HorizonError: an annotation file is of no known format.
    """
    answers: dict[str, Row] = {}
    has_annotations = False
    for annotation in annotations:
        has_annotations = True
        answers.update((_key(row.columns), row) for row in annotation_rows(annotation))
    for row in json_rows(path):
        yield _joined(row, answers, has_annotations) if not row.error else row


def _joined(row: Row, answers: dict[str, Row], has_annotations: bool) -> Row:
    columns = dict(row.columns)
    text = str(columns.get("text") or "")
    tokens = _TOKENS.search(text)
    if tokens:
        columns["text"] = _TOKENS.sub("", text)
        columns["ocr_tokens"] = [token for token in tokens[1].split(", ") if token]
    category = next((name for name in _SETS if "label" in columns and name in row.where), None)
    if category:
        columns.setdefault("category", category)
    if not has_annotations:
        return Row(row.where, row.name, columns)
    annotation = answers.get(_key(columns))
    if annotation is None:
        return Row(row.where, row.name, columns, "the annotation files hold no answer to it")
    # the line says which sample it is; the annotation where its image lies and what was asked
    line_columns = {name: value for name, value in columns.items() if name not in ("text", "image")}
    return Row(row.where, row.name, {**annotation.columns, **line_columns}, annotation.error)


def _key(columns: Any) -> str:
    """What tells a question in both files: image and wording; ids do not (TextVQA's differ, POPE's repeat)."""
    question = columns.get("question") or str(columns.get("text") or "").partition("\n")[0]
    picture = _ENDING.sub("", str(columns.get("image") or "")).replace("/images/", "/")
    return f"{picture}\n{' '.join(str(question).lower().removesuffix('please answer yes or no.').split())}"


def annotation_rows(path: Path) -> Iterator[Row]:
    """The questions of an annotation file: TextVQA, POPE, GQA, ScienceQA, or MME's directory.

    Raises:
        HorizonError: it is of none of these formats.
    """
    if path.is_dir():
        yield from mme_rows(path)
        return
    content = load_json(path)
    kind = annotation_kind(content)
    if kind == "textvqa":
        yield from _textvqa(path, content["data"])
    elif kind == "gqa":
        yield from _gqa(path, content)
    elif kind == "problems":
        yield from _problems(path, content)
    elif kind == "conversations":
        yield from _conversations(path, content)
    elif content is None or (isinstance(content, dict) and is_question_line(content)):
        yield from question_rows(path)
    else:
        raise HorizonError(f"{path} is no annotation file of TextVQA, POPE, GQA or ScienceQA")


def load_json(path: Path) -> Any:
    """A file that is one JSON value; None for JSON Lines, and for what does not parse."""
    with path.open("rb") as file:
        begins, more = _value(file.readline()), file.readline().strip()
        if begins is not None:
            return None if more else begins
        file.seek(0)
        return _value(file.read())


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def annotation_kind(content: Any) -> str:
    """Format of an annotation file by its content: textvqa, gqa, problems, conversations; "" for another."""
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        return "textvqa"
    entries = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    first_entry = next(iter(entries), None)
    if not isinstance(first_entry, dict):
        return ""
    if isinstance(content, list):
        return "conversations" if "conversations" in first_entry else ""
    return "gqa" if "imageId" in first_entry else "problems" if "choices" in first_entry else ""


def _textvqa(path: Path, entries: list[Any]) -> Iterator[Row]:
    for place, entry in enumerate(entries):
        picture = entry.get("image_id") if isinstance(entry, dict) else None
        yield _row(path, f"entry {place}", str(place), entry, {"image": f"{picture}.jpg"} if picture else {})


def _gqa(path: Path, entries: dict[str, Any]) -> Iterator[Row]:
    for name, entry in entries.items():
        picture = entry.get("imageId") if isinstance(entry, dict) else None
        more = {"question_id": name} | ({"image": f"{picture}.jpg"} if picture else {})
        yield _row(path, f"question {name}", name, entry, more)


def _problems(path: Path, entries: dict[str, Any]) -> Iterator[Row]:
    """ScienceQA's problems; `splits` lists those of pid_splits.json, which lies beside."""
    splits: dict[str, list[str]] = {}
    beside = path.with_name("pid_splits.json")
    if beside.is_file():
        for split, ids in load_json(beside).items():
            for name in ids:
                splits.setdefault(str(name), []).append(split)
    for name, entry in entries.items():
        more: dict[str, Any] = {"question_id": name}
        if name in splits:
            more["splits"] = splits[name]
        if isinstance(entry, dict) and entry.get("image"):
            more["image"] = f"{entry.get('split', 'test')}/{name}/{entry['image']}"
        yield _row(path, f"problem {name}", name, entry, more)


def _conversations(path: Path, entries: list[Any]) -> Iterator[Row]:
    """ScienceQA in LLaVA's conversations, with the problems beside where there are any."""
    problems = path.with_name("problems.json")
    rows = annotation_rows(problems) if problems.is_file() else ()
    problem_rows = {str(row.columns["question_id"]): row for row in rows}
    for place, entry in enumerate(entries):
        turns = entry.get("conversations") if isinstance(entry, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) and "value" in turn for turn in turns):
            yield Row(f"{path.name} entry {place}", f"{path.stem}:{place}", {}, "no conversations with values")
            continue
        name = str(entry.get("id", place))
        more: dict[str, Any] = {"question_id": name}
        if name in problem_rows:
            more = {**problem_rows[name].columns, "question_id": name}
        else:
            more["question"] = turns[0]["value"] if turns else ""
            if len(turns) > 1:
                letter = _CHOSEN.match(str(turns[1]["value"]).strip())
                more["answer"] = letter[1].upper() if letter else turns[1]["value"]
        more["image"] = entry.get("image")
        yield _row(path, f"entry {name}", name, {}, more)


def mme_rows(path: Path) -> Iterator[Row]:
    """MME's directory: a folder a category, with images and one text file an image, "question<tab>answer" a line."""
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        texts = folder / "questions_answers_YN" if (folder / "questions_answers_YN").is_dir() else folder
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        files = [file for file in sorted(pictures.iterdir()) if file.suffix.lower() in PICTURE_FILES]
        names = {file.stem: file.name for file in files}
        for file in sorted(texts.glob("*.txt")):
            picture = names.get(file.stem)
            image = (pictures / picture).relative_to(path).as_posix() if picture else None
            yield from _mme_lines(file, folder.name, image)


def _mme_lines(file: Path, category: str, image: str | None) -> Iterator[Row]:
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where, name = f"{category}/{file.name} line {number}", f"{category}/{file.stem}:{number}"
        question, tab, answer = line.decode(errors="replace").partition("\t")
        if "\ufffd" in question + answer:
            yield Row(where, name, {"category": category}, "not UTF-8")
        elif not tab:
            yield Row(where, name, {"category": category}, "no tab between question and answer")
        else:
            yield Row(where, name, {"category": category, "image": image, "question": question, "answer": answer})


def _row(path: Path, place: str, name: str, entry: Any, more: dict[str, Any]) -> Row:
    where = f"{path.name} {place}"
    if not isinstance(entry, dict):
        return Row(where, f"{path.stem}:{name}", {}, f"a JSON {type(entry).__name__} where an object is expected")
    return Row(where, f"{path.stem}:{name}", {**entry, **more})
