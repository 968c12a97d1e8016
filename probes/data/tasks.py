"""Benchmarks: one small entry each says its columns, prompt, task type, answer rule, scorer and source (no torch here).

A row's columns are looked up under several names, since the ecosystems (VLMEvalKit's tables, LLaVA's question files,
the parquet sets of lmms-eval) name them differently. Prompts carry the suffix of the benchmark's own protocol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
YES_NO = "Please answer yes or no."
CHOICE = f"{{hint}}\n{{question}}\n{{options}}\n{LETTER}"
OCR_TOKENS = "Reference OCR token: {ocr_tokens}"


@dataclass(frozen=True)
class Task:
    """What is known of a benchmark before its file is opened.

    Attributes:
        name: as runs carry it, for example "textvqa".
        task_type: what kind of seeing it asks for: ocr, vqa, hallucination, knowledge, diagram.
        prompt: question template; see `probes.data.samples.fill_template` for its fields.
        answer: how the answer column reads: `text`, as it stands; `list`, in tables written as a Python literal; `any`,
            a text, a list or the literal of one; `yes-no`; `letter` or text of an option; `index`, letter or 0-based
            number of an option. Where a row has options, its answer is one of them under every rule.
        scorer: the rule by which predictions are scored.
        source: paper or protocol.
        hub: dataset id in which the columns were found, with folder or split after a colon.
        hub_images: folders of that dataset which hold the images where the questions' files do not.
        titles: names, in small letters and digits, by which files and dataset ids tell the benchmark.
        open_prompt: template of questions without options; the same as the others' by default.
        question: names of the column, the first that is there holds; so for the following.
        answers: of the answer, or answers.
        image: of the image.
        id: of what tells samples apart.
        category: of the finer division.
        options: of a list of options; columns A, B, C, ... are found by themselves.
        hint: of context that goes with the question.
        closing: phrases at the end of the file's questions that the template replaces.
        blind: some of its questions have no image, and are left out.
    """

    name: str
    task_type: str
    prompt: str
    answer: str
    scorer: str
    source: str = ""
    hub: str = ""
    hub_images: str = ""
    titles: tuple[str, ...] = ()
    open_prompt: str = ""
    question: tuple[str, ...] = ("question", "text", "query")
    answers: tuple[str, ...] = ("answers", "answer", "label", "gt_answer")
    image: tuple[str, ...] = ("image", "images", "image_path", "img")
    id: tuple[str, ...] = ("index", "question_id", "questionId", "id", "qid")
    category: tuple[str, ...] = ("category", "question_type", "type")
    options: tuple[str, ...] = ("options", "choices")
    hint: tuple[str, ...] = ("hint",)
    closing: tuple[str, ...] = ()
    blind: bool = False


UNKNOWN = Task("", "", "{hint}\n{question}\n{options}", "any", "exact")

_ENTRIES = (
    Task(
        "textvqa",
        "ocr",
        f"{{question}}\n{OCR_TOKENS}\n{SHORT}",
        "list",
        "vqa",
        source="arXiv 1904.08920",
        hub="lmms-lab-encoder/textvqa:validation",
        category=("category",),
    ),
    Task(
        "ocrbench",
        "ocr",
        "{question}",
        "list",
        "ocrbench",
        source="arXiv 2305.07895",
        hub="echo840/OCRBench:test",
        category=("question_type", "category"),
    ),
    Task(
        "docvqa",
        "ocr",
        f"{{question}}\n{SHORT}",
        "list",
        "anls",
        source="arXiv 2007.00398",
        hub="lmms-lab-encoder/DocVQA:DocVQA/validation",
        category=("category",),
    ),
    Task(
        "infovqa",
        "ocr",
        f"{{question}}\n{SHORT}",
        "list",
        "anls",
        source="arXiv 2104.12756",
        hub="lmms-lab-encoder/DocVQA:InfographicVQA/validation",
        titles=("infovqa", "infographicvqa"),
        category=("category",),
    ),
    Task(
        "chartqa",
        "ocr",
        "{question}\nAnswer the question with a single word.",
        "text",
        "relaxed",
        source="arXiv 2203.10244",
        hub="lmms-lab-encoder/ChartQA:test",
        category=("type", "split", "category"),
    ),
    Task(
        "mme",
        "vqa",
        f"{{question}}\n{SHORT}",
        "yes-no",
        "mme",
        source="arXiv 2306.13394",
        hub="lmms-lab-encoder/MME:test",
        closing=(YES_NO,),
    ),
    Task(
        "pope",
        "hallucination",
        f"{{question}}\n{SHORT}",
        "yes-no",
        "pope",
        source="arXiv 2305.10355",
        hub="lmms-lab-encoder/POPE:test",
        id=("index", "id", "question_id"),
        closing=(YES_NO,),
    ),
    Task(
        "gqa",
        "vqa",
        f"{{question}}\n{SHORT}",
        "text",
        "exact",
        source="arXiv 1902.09506",
        hub="lmms-lab-encoder/GQA:testdev_balanced_instructions",
        hub_images="testdev_balanced_images",
        category=("category",),
    ),
    Task(
        "mmbench",
        "vqa",
        CHOICE,
        "letter",
        "letter",
        source="arXiv 2307.06281",
        hub="lmms-lab-encoder/MMBench:en/dev",
    ),
    Task(
        "scienceqa",
        "knowledge",
        f"Context: {{hint}}\n{{question}}\n{{options}}\n{LETTER}",
        "index",
        "letter",
        source="arXiv 2209.09513",
        hub="lmms-lab-encoder/ScienceQA:ScienceQA-IMG/test",
        titles=("scienceqa", "sqa"),
        blind=True,
        category=("subject", "category"),
    ),
    Task(
        "ai2d",
        "diagram",
        CHOICE,
        "index",
        "letter",
        source="arXiv 1603.07396",
        hub="lmms-lab-encoder/ai2d:test",
    ),
    Task(
        "realworldqa",
        "vqa",
        CHOICE,
        "letter",
        "letter",
        source="x.ai, Grok-1.5 Vision preview (2024)",
        hub="lmms-lab-encoder/RealWorldQA:test",
        open_prompt="{question}",  # its questions hold options and instruction
    ),
    Task(
        "mmstar",
        "vqa",
        CHOICE,
        "letter",
        "letter",
        source="arXiv 2403.20330",
        hub="Lin-Chen/MMStar:val",
    ),
    Task(
        "mmmu",
        "knowledge",
        CHOICE,
        "letter",
        "letter",
        source="arXiv 2311.16502",
        hub="lmms-lab-encoder/MMMU:validation",
        open_prompt=f"{{question}}\n{SHORT}",
        category=("category", "subfield"),
    ),
    Task(
        "hallusionbench",
        "hallucination",
        f"{{question}}\n{SHORT}",
        "yes-no",
        "pope",
        source="arXiv 2310.14566",
        hub="lmms-lab-encoder/HallusionBench:image",
        category=("subcategory", "category"),
        closing=(YES_NO,),
    ),
)

TASKS = {entry.name: replace(entry, titles=entry.titles or (entry.name,)) for entry in _ENTRIES}
# words of file names that say which part of a benchmark a file holds, or who wrote it
_NEUTRAL = re.compile(
    r"llava|coco|img|image|eval|val|validation|dev|test|testdev|train|balanced|instructions|questions|question|en|cn|ocr|"
    r"random|popular|adversarial|no|mask|mini|tiny|lite|subset|sample|data|dataset|\d+|v051|v11"
)


def find_task(name: str) -> Task | None:
    """The entry of a benchmark, by name or title, whatever its case and hyphens; None where there is none.

    >>> find_task("TextVQA").task_type
    'ocr'

    Args:
        name: for example "textvqa", "MMBench" or "ScienceQA".
    """
    folded = "".join(_words(name))
    return next((task for task in TASKS.values() if folded in (task.name, *task.titles)), None)


def guess_task(name: str) -> Task | None:
    """The benchmark that a file name or dataset id means; None unless its other words only say which part it holds.

    >>> guess_task("llava_textvqa_val_v051_ocr").name, guess_task("Video-MME"), guess_task("OCRBench_v2")
    ('textvqa', None, None)

    Args:
        name: a file's name without its ending, or the last part of a dataset id.
    """
    words = _words(name)
    named = [task for task in TASKS.values() if set(task.titles) & set(words)]
    known = {title for task in named for title in task.titles}
    rest = [word for word in words if word not in known and not _NEUTRAL.fullmatch(word)]
    return named[0] if len(named) == 1 and not rest else None


def ends_of_questions(task: Task) -> tuple[str, ...]:
    """Phrases that a file's questions may end with and the template adds or replaces."""
    last = [prompt.rpartition("\n")[2] for prompt in (task.prompt, task.open_prompt)]
    return (*task.closing, *(line for line in last if line and "{" not in line))


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
