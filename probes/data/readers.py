"""Samples of a benchmark as people have it: any of the known formats, by path or dataset id (no torch here)."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analyses.runs import HorizonError
from probes.data.llava_files import image_folders
from probes.data.reading import ReadingRule, blank, first, to_sample
from probes.data.rows import Condition, Row, parse_conditions
from probes.data.samples import Sample, check_template
from probes.data.sources import Source, find_source, known_task
from probes.data.tasks import Task
from probes.data.video import check_frames


@dataclass
class SampleStream(Iterator[Sample]):
    """The samples of one source, read as they are asked for.

    Attributes:
        source: what they are read from.
        reading: how rows become samples.
        note: one line on both, for the user.
        subset: which of its samples, in words; "" for all.
        left_out: how many rows were left out so far, by reason.
    """

    source: Source
    reading: ReadingRule
    note: str
    subset: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    samples: Iterator[Sample] = field(default_factory=lambda: iter(()), repr=False)

    @property
    def run_options(self) -> dict[str, Any]:
        """The options of `run` that follow from how the samples are read, by name."""
        name = f"{self.source.name} ({self.subset})" if self.subset else self.source.name
        return {"sources": (name,), "with_ocr_tokens": self.reading.with_ocr_tokens}

    def __next__(self) -> Sample:
        """The next sample."""
        return next(self.samples)


def read_samples(
    path: str | Path,
    *,
    task: str | None = None,
    task_type: str | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    seed: int | None = None,
    category: str | Sequence[str] = (),
    where: str | Sequence[str] = (),
    question: str | None = None,
    answer: str | None = None,
    image: str | None = None,
    with_ocr_tokens: bool = False,
    revision: str | None = None,
    images_dir: str | Path | None = None,
    annotations: str | Path | None = None,
    frames: int | None = None,
    fps: float | None = None,
) -> SampleStream:
    """Read the samples of a file, a folder or a dataset of the hub, one at a time; the content tells the format.

    Formats: VLMEvalKit's TSV (base64 images), LLaVA's question files with the annotation files beside them, annotation
    files of TextVQA, POPE, MME, ScienceQA and GQA, parquet shards, our own JSONL, a folder of images with one question.
    Images stay in their files until a sample is measured. A row that cannot be read is yielded as a Sample whose
    `error` says why, with file and line; the others go on.

    Args:
        path: file, folder, or dataset id: owner/name, or owner/name:folder/split.
        task: the benchmark; a known one gives columns, prompt and task type (`vlm-horizon tasks`). Guessed from the
            name where that is unambiguous, except for our own JSONL, whose questions are asked as they stand.
        task_type: overrides the task's or the rows' task type.
        limit: at most so many samples: the first, or with a seed a random subset, in the order of the file.
        prompt: question template with `{question}`, and if you like `{options}`, `{hint}`, `{ocr_tokens}`.
        seed: of the random subset; a smaller limit chooses part of what a larger one does.
        category: only these categories.
        where: only rows that meet all these conditions on columns: "split=val", "n>3", "category!=math".
        question: column of the question; for a folder of images the question itself.
        answer: column of the answers; for a folder of images the answer itself.
        image: column of the image.
        with_ocr_tokens: put the file's reference OCR tokens into the prompt, which lets a model read without looking.
        revision: branch, tag or commit of a dataset id.
        images_dir: folder of relative image paths; by default that of the file, or the one in LLaVA's layout.
        annotations: answers to a LLaVA question file, where they do not lie beside it.
        frames: of videos, so many, spread evenly; 8 by default.
        fps: of videos, so many frames a second instead.

    Returns:
        An iterator of samples; its `note` says what was found.

    Raises:
        HorizonError: there is no such data, it is of no known format, or an argument is unusable.
    """
    if limit is not None and limit < 1:
        raise HorizonError(f"limit is {limit}; it must be at least 1")
    check_template(prompt)
    check_frames(frames, fps)
    conditions = parse_conditions((where,) if isinstance(where, str) else tuple(where))
    source = find_source(
        path, task=task, revision=revision, annotations=annotations, image=image, question=question, answer=answer
    )
    entry, guessed = known_task(source, task)
    if source.kind != "folder of images":
        entry = _with_columns(entry, question, answer, image)
    _check_columns(source, entry, conditions)
    folder = source.folder if images_dir is None else Path(images_dir).expanduser()
    if images_dir is not None and not folder.is_dir():
        raise HorizonError(f"no folder of images at {folder}")
    folders = (folder,) if source.own and images_dir is not None else image_folders(folder, entry.name)
    reading = ReadingRule(
        task=entry,
        name=entry.name or task or source.title,
        named=task is not None,
        task_type=task_type,
        prompt=prompt,
        folders=folders,
        own=source.own and not (question or answer or image),
        with_ocr_tokens=with_ocr_tokens,
        frames=frames,
        fps=fps,
    )
    categories = (category,) if isinstance(category, str) else tuple(category)
    subset = _subset(conditions, categories, limit, seed)
    stream = SampleStream(source, reading, _note(source, entry, guessed, prompt), subset)
    stream.samples = _chosen(_samples(stream, conditions, categories), limit, seed)
    return stream


def _samples(stream: SampleStream, conditions: Sequence[Condition], categories: Sequence[str]) -> Iterator[Sample]:
    """Every sample that meets the conditions; what is left out is counted."""
    questions_by_id: dict[str, set[int]] = {}
    categories_seen: Counter[str] = Counter()
    columns: set[str] = set()
    tokens = False
    for row in stream.source.rows():
        columns.update(row.columns)
        tokens = tokens or not blank(row.columns.get("ocr_tokens"))
        unmet = next((condition for condition in conditions if row.columns and not condition.holds(row)), None)
        if unmet is not None:
            stream.left_out[f"{unmet.column}{unmet.sign}{unmet.value}"] += 1
            continue
        if stream.reading.task.blind and not row.error and blank(first(row.columns, stream.reading.task.image)):
            stream.left_out["questions without an image"] += 1
            continue
        sample = to_sample(row, stream.reading)
        categories_seen[sample.category] += 1
        if categories and sample.category not in categories and (sample.category or not sample.error):
            stream.left_out["other categories"] += 1
            continue
        yield sample if stream.source.own else _with_own_id(sample, row, questions_by_id)
    _check_seen(stream, conditions, categories, columns, set(categories_seen), tokens)


def _with_own_id(sample: Sample, row: Row, questions_by_id: dict[str, set[int]]) -> Sample:
    """A sample whose id no other has: some ids name images rather than questions (MME), and some rows repeat."""
    if sample.error:
        return sample
    questions, question = questions_by_id.setdefault(sample.id, set()), hash(sample.question)
    if question in questions:
        reason = f"{row.where}: id {sample.id!r} and its question were there before"
        return Sample(row.name, None, "", (), sample.task, sample.task_type, sample.category, error=reason)
    questions.add(question)
    return sample if len(questions) == 1 else replace(sample, id=f"{sample.id}#{len(questions)}")


def _check_seen(
    stream: SampleStream,
    conditions: Sequence[Condition],
    categories: Sequence[str],
    columns: set[str],
    categories_seen: set[str],
    tokens: bool,
) -> None:
    """At the end of the rows: what was asked for must have been there."""
    name = stream.source.name
    if not columns:
        return
    for condition in conditions:
        if condition.column not in columns:
            raise HorizonError(f"no row of {name} has a column {condition.column!r}; there are {sorted(columns)}")
    absent = [category for category in categories if category not in categories_seen]
    if absent:
        raise HorizonError(f"no row of {name} is of category {absent[0]!r}; there are {sorted(categories_seen)}")
    if stream.reading.with_ocr_tokens and not tokens:
        raise HorizonError(f"no row of {name} carries reference OCR tokens: leave with_ocr_tokens out")


def _chosen(samples: Iterator[Sample], limit: int | None, seed: int | None) -> Iterator[Sample]:
    """The first samples, or a random subset in order: those with the smallest of one random number each."""
    if limit is None:
        yield from samples
        return
    if seed is None:
        for count, sample in enumerate(samples, start=1):
            yield sample
            if count == limit:
                return
        return
    draw = random.Random(seed)
    smallest: list[tuple[float, int, Sample]] = []
    for place, sample in enumerate(samples):
        entry = (-draw.random(), place, sample)
        if len(smallest) < limit:
            heapq.heappush(smallest, entry)
        elif entry > smallest[0]:
            heapq.heapreplace(smallest, entry)
    yield from (sample for _, _, sample in sorted(smallest, key=lambda entry: entry[1]))


def _with_columns(task: Task, question: str | None, answer: str | None, image: str | None) -> Task:
    return replace(
        task,
        question=task.question if question is None else (question,),
        answers=task.answers if answer is None else (answer,),
        image=task.image if image is None else (image,),
    )


def _check_columns(source: Source, task: Task, conditions: Sequence[Condition]) -> None:
    """Refuse a source whose columns are known and do not suffice."""
    if not source.columns:
        return
    columns_here = set(source.columns)
    pictures = (*task.image, "image_1", "video", "video_path")
    for name, columns, option in (("question", task.question, "--question"), ("image", pictures, "--image")):
        if not columns_here & set(columns):
            raise HorizonError(
                f"{source.name} has no column of the {name}; its columns are {list(source.columns)}: name it ({option})"
            )
    absent = [condition.column for condition in conditions if condition.column not in columns_here]
    if absent:
        raise HorizonError(f"{source.name} has no column {absent[0]!r}; its columns are {list(source.columns)}")


def _subset(conditions: Sequence[Condition], categories: Sequence[str], limit: int | None, seed: int | None) -> str:
    """Which samples of a source are read, in words; the first ones are all of them so far."""
    parts = [f"{condition.column}{condition.sign}{condition.value}" for condition in conditions]
    parts += [f"category={category}" for category in categories]
    if limit is not None and seed is not None:
        parts.append(f"at random, seed {seed}")
    return ", ".join(parts)


def _note(source: Source, entry: Task, guessed: bool, prompt: str | None) -> str:
    how = " (guessed from its name)" if guessed else ""
    benchmark = "no known task"
    if entry.name:
        benchmark = f"task {entry.name}{how}, type {entry.task_type}, scorer {entry.scorer}"
    question = "your prompt" if prompt else f"prompt {entry.prompt!r}" if entry.name else "questions as they stand"
    parts = [benchmark, question, source.remark]
    return f"{source.name} ({source.kind}): {'; '.join(part for part in parts if part)}"
