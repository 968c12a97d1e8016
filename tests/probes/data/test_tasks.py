"""The benchmarks' entries: complete, found by name, and guessed only where the name leaves no doubt."""

from __future__ import annotations

import pytest

from analyses.scores.scorers import scorer_of
from probes.data.samples import Sample, check_template, fill_template
from probes.data.tasks import TASKS, ends_of_questions, find_task, guess_task

ASKED = (
    "textvqa ocrbench docvqa chartqa mme pope gqa mmbench scienceqa ai2d realworldqa mmstar mmmu infovqa hallusionbench"
)
TYPES = {"ocr", "vqa", "hallucination", "knowledge", "diagram"}
ANSWER_RULES = {"text", "list", "any", "yes-no", "letter", "index"}
SCORERS = {"exact", "relaxed", "vqa", "anls", "ocrbench", "mme", "pope", "letter"}


def test_every_benchmark_has_a_whole_entry():
    assert set(TASKS) == set(ASKED.split())
    for name, task in TASKS.items():
        assert task.name == name
        assert task.task_type in TYPES
        assert task.scorer in SCORERS
        assert task.answer in ANSWER_RULES
        assert task.source
        assert check_template(task.prompt) == task.prompt
        assert guess_task(task.hub.partition(":")[0].rpartition("/")[2]) is not None


def test_what_scores_a_benchmark_is_the_same_on_either_side():
    assert {name: scorer_of(name) for name in TASKS} == {name: task.scorer for name, task in TASKS.items()}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(
            (name, "Answer the question using a single word or phrase.")
            for name in ("textvqa", "docvqa", "mme", "pope", "gqa")
        ),
        *(
            (name, "Answer with the option's letter from the given choices directly.")
            for name in ("mmbench", "scienceqa", "ai2d", "mmstar", "mmmu")
        ),
        ("chartqa", "Answer the question with a single word."),
    ],
)
def test_prompts_end_in_the_official_suffix_once(name, suffix):
    asked = fill_template(TASKS[name].prompt, Sample("1", None, "which?", ("A",), options=("cat",)))
    assert asked.endswith(f"\n{suffix}")
    assert asked.startswith("which?")
    assert suffix in ends_of_questions(TASKS[name])


@pytest.mark.parametrize("name", ["TextVQA", "text-vqa", "MMBench", "mm bench", "ScienceQA", "SQA", "RealWorldQA"])
def test_names_are_found_whatever_their_case_and_hyphens(name):
    assert find_task(name) is not None
    assert find_task(name + "x") is None


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("TextVQA_VAL", "textvqa"),
        ("llava_textvqa_val_v051_ocr", "textvqa"),
        ("TextVQA_0.5.1_val", "textvqa"),
        ("OCRBench", "ocrbench"),
        ("MMBench_DEV_EN_V11", "mmbench"),
        ("AI2D_TEST_NO_MASK", "ai2d"),
        ("coco_pope_adversarial", "pope"),
        ("llava_gqa_testdev_balanced", "gqa"),
        ("ScienceQA_TEST", "scienceqa"),
        ("MMMU_DEV_VAL", "mmmu"),
        ("GQA_TestDev_Balanced", "gqa"),
        # other benchmarks, whose names contain one of ours
        *(
            (name, None)
            for name in ("OCRBench_v2", "Video-MME", "MME-RealWorld", "MMMU_Pro", "ChartQAPro", "MMBench-Video")
        ),
        *((name, None) for name in ("pope_gqa", "val", "", "photos", "mmeval")),
    ],
)
def test_only_unambiguous_names_are_guessed(name, task):
    found = guess_task(name)
    assert (found.name if found else None) == task
