"""What a user names as data: a file, a folder or a dataset of the hub; its format is told by its content (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from analyses.runs import HorizonError
from probes.data import llava_files
from probes.data.hub import HubDataset, file_sets, is_dataset_id, open_dataset
from probes.data.jsonl import first_record, json_rows
from probes.data.parquet import read_shard, shard_rows
from probes.data.rows import Row
from probes.data.tasks import UNKNOWN, Task, find_task, guess_task
from probes.data.tsv import table_columns, table_rows

HINT = "give a sample file (TSV, JSONL, parquet), a folder, or a dataset id of the hub"


@dataclass(frozen=True)
class Source:
    """Rows, and what is known of them before they are read.

    Attributes:
        name: as the run records it.
        kind: the format, in words.
        title: what names the benchmark: a file's stem, the last part of a dataset id.
        rows: reads them, from the beginning each time it is called.
        folder: of relative paths.
        columns: names, where the format fixes them before the rows.
        own: rows have our own keys.
        remark: what a user should know about it.
    """

    name: str
    kind: str
    title: str
    rows: Callable[[], Iterator[Row]]
    folder: Path
    columns: tuple[str, ...] = ()
    own: bool = False
    remark: str = field(default="", compare=False)


def find_source(
    data: str | Path,
    *,
    task: str | None = None,
    revision: str | None = None,
    annotations: str | Path | None = None,
    image: str | None = None,
    question: str | None = None,
    answer: str | None = None,
) -> Source:
    """Find out what a user's name for data means.

    Args:
        data: path of a file or folder, or dataset id of the hub.
        task: the benchmark, which says where LLaVA's layout and the hub keep things.
        revision: of a dataset id.
        annotations: answers to a LLaVA question file.
        image: name of the image column of a table.
        question: asked about every image of a folder.
        answer: to it.

    Raises:
        HorizonError: there is no such thing, it is of no known format, or an argument does not belong to it.
    """
    path = Path(data).expanduser()
    if not path.exists():
        if is_dataset_id(str(data)):
            return _hub(str(data), task, revision)
        raise HorizonError(f"no sample file at {path}: {HINT}")
    if revision is not None:
        raise HorizonError(f"revision {revision!r} belongs to a dataset of the hub, and {path} is a path")
    if path.is_dir():
        return _folder(path, question, answer)
    kind = _sniff(path)
    if kind == "parquet":
        return _shards((path,), path.name, _title(path), path.parent)
    if kind == "table":
        columns = table_columns(path)
        return Source(
            str(path), "table", _title(path), partial(table_rows, path, image or "image"), path.parent, columns
        )
    if kind == "lines":
        return _lines(path, task, annotations)
    return _annotation(path, kind)


def known_task(source: Source, task: str | None) -> tuple[Task, bool]:
    """The description in force, and whether it was guessed from the source's name."""
    if task is not None:
        return find_task(task) or UNKNOWN, False
    guess = None if source.own else guess_task(source.title)
    return guess or UNKNOWN, guess is not None


def _sniff(path: Path) -> str:
    """What a file holds: parquet, table, lines, or a kind of annotation file."""
    with path.open("rb") as file:
        head = file.read(2**16)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith((b"{", b"[")):
        content = llava_files.load_json(path) if path.suffix.lower() != ".jsonl" or text.startswith(b"[") else None
        kind = llava_files.annotation_kind(content)
        if isinstance(content, list) and not kind:
            raise HorizonError(f"{path} holds one JSON array; write one object a line (JSONL)")
        return kind or "lines"
    line = text.partition(b"\n")[0]
    if path.suffix.lower() in (".jsonl", ".json") or not text:
        return "lines"
    if b"\0" not in line and (b"\t" in line or b"," in line):
        return "table"
    raise HorizonError(f"{path} is of no known format (its name ends in {path.suffix!r}): {HINT}")


def _title(path: Path) -> str:
    return path.stem.partition("-0000")[0]


def _lines(path: Path, task: str | None, annotations: str | Path | None) -> Source:
    record = first_record(path)
    if not llava_files.is_question_line(record):
        if annotations is not None:
            raise HorizonError(f"annotations {annotations} belong to a LLaVA question file, and {path} is none")
        return Source(str(path), "JSON Lines", path.stem, partial(json_rows, path), path.parent, own=True)
    benchmark = find_task(task) if task else guess_task(path.stem)
    annotation_files: tuple[Path, ...] = ()
    if annotations is not None:
        annotation_files = (Path(annotations).expanduser(),)
        if not annotation_files[0].exists():
            raise HorizonError(f"no annotation file at {annotation_files[0]}")
    elif benchmark and "label" not in record and "answer" not in record:
        annotation_files = llava_files.find_annotations(path, benchmark.name)
    answered = annotation_files or "label" in record or "answer" in record
    names = ", ".join(file.name for file in annotation_files)
    remark = f"answers from {names}" if annotation_files else "" if answered else "no answers: give --annotations"
    rows = partial(llava_files.question_rows, path, annotation_files)
    return Source(str(path), "LLaVA question file", path.stem, rows, path.parent, remark=remark)


def _annotation(path: Path, kind: str) -> Source:
    benchmark = {"textvqa": "textvqa", "gqa": "gqa", "problems": "scienceqa", "conversations": "scienceqa"}[kind]
    remark = "all its splits; choose with --where split=test" if kind == "problems" else ""
    rows = partial(llava_files.annotation_rows, path)
    return Source(str(path), f"annotation file ({kind})", benchmark, rows, path.parent, remark=remark)


def _folder(path: Path, question: str | None, answer: str | None) -> Source:
    shards = tuple(sorted(path.rglob("*.parquet")))
    if shards:
        return _shards(shards, str(path), path.name, path)
    if (path / "problems.json").is_file():
        return _annotation(path / "problems.json", "problems")
    if any(path.glob("*/*.txt")) or any(path.glob("*/questions_answers_YN/*.txt")):
        return Source(str(path), "directory of MME", "mme", partial(llava_files.mme_rows, path), path)
    pictures = [file for file in sorted(path.iterdir()) if file.suffix.lower() in llava_files.PICTURE_FILES]
    if not pictures:
        raise HorizonError(f"no sample file at {path}: the folder holds neither parquet files nor images")
    if question is None:
        raise HorizonError(f"{path} is a folder of images: give the question to ask about each (--question)")
    columns = {"question": question} | ({} if answer is None else {"answer": answer})

    def rows() -> Iterator[Row]:
        for picture in pictures:
            yield Row(picture.name, picture.stem, {**columns, "image": picture.name})

    return Source(str(path), "folder of images", path.name, rows, path, ("image", *columns))


def _shards(paths: tuple[Path, ...], name: str, title: str, folder: Path) -> Source:
    """Local shards of one set, and of the images that its questions name by id."""
    shards = [read_shard(path) for path in paths]
    only_images = [s.path for s in shards if len(shards) > 1 and s.images and set(s.texts) == {"id"}]
    asking = [shard for shard in shards if shard.path not in only_images]
    sets = file_sets([shard.path.relative_to(folder).as_posix() for shard in asking])
    if len(sets) > 1:
        raise HorizonError(f"{name} holds several sets ({', '.join(sets[:20])}): give the folder or the files of one")
    columns = (*asking[0].texts, *asking[0].images, *(("image",) if only_images else ()))
    rows = partial(shard_rows, [shard.path for shard in asking], only_images)
    return Source(name, f"parquet, {sum(shard.n_rows for shard in asking)} rows", title, rows, folder, columns)


def _hub(name: str, task: str | None, revision: str | None) -> Source:
    title = name.partition(":")[0].rpartition("/")[2]
    benchmark = (find_task(task) if task else guess_task(title)) or UNKNOWN
    dataset = open_dataset(name, default=benchmark.hub.partition(":")[2], revision=revision)
    folder = benchmark.hub_images
    pictures = tuple(file for file in dataset.others if folder and folder in file.split("/"))
    return Source(
        f"{name}@{dataset.commit}",
        f"dataset of the hub, {len(dataset.files)} parquet files at {dataset.commit[:12]}",
        title,
        partial(_hub_rows, dataset, pictures),
        Path(),
    )


def _hub_rows(dataset: HubDataset, pictures: tuple[str, ...]) -> Iterator[Row]:
    yield from shard_rows(dataset.fetch(dataset.files), list(dataset.fetch(pictures)))
