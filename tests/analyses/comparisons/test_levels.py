"""Levels across runs: which runs stand against each other, and which samples are the same in both."""

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.depths import half_depths
from analyses.comparisons.compare import compare_horizons
from analyses.comparisons.levels import bare_questions
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector

L = 8
QUICK = {"detector": HorizonDetector(resamples=200), "permutations": 200}


def fades(halves):
    return np.stack([fade_curve(L, half, 0.4) for half in halves])


def write(path, name, halves, *, images=None, key="ocr", **config):
    images = {key: range(len(halves)) if images is None else images}
    return write_run(path / name, effects={key: fades(halves)}, images=images, **config)


def pick(comparison, *, paired, quantity="half_depth"):
    (found,) = [d for d in comparison.differences if (d.quantity, d.unit, d.paired) == (quantity, "layers", paired)]
    return found


@pytest.fixture
def halves():
    return np.random.default_rng(0).normal(4, 0.8, 30)


def test_revisions_are_paired_on_their_samples(tmp_path, halves):
    runs = [write(tmp_path, name, halves + shift, revision=name) for name, shift in (("step-1", 0), ("step-2", 0.5))]
    comparison = compare_horizons(runs, between="revision", **QUICK)
    found = pick(comparison, paired=True)
    assert (found.a, found.b) == ("synthetic: step-1", "synthetic: step-2")
    assert [h.group for h in comparison.groups] == [{"revision": "step-1"}, {"revision": "step-2"}]
    assert found.value == pytest.approx(-0.5, abs=0.05)
    assert found.interval[1] < -0.4
    assert found.p_value == 1 / 201


def test_samples_are_the_same_if_image_and_question_are(tmp_path):
    """Image 0 is asked "x" in both runs and "y" and "z" in one each; image 1 is asked different things only."""
    first = write(tmp_path, "a", [2, 3, 5, 6], images=[0, 0, 1, 2], questions={"ocr": list("xyxx")}, revision="a")
    second = write(tmp_path, "b", [3, 4, 5, 7], images=[2, 0, 0, 1], questions={"ocr": list("xxzy")}, revision="b")
    comparison = compare_horizons([first, second], between="revision", **QUICK)
    found = pick(comparison, paired=True)
    own = [half_depths((p[:, -1:] - p).mean(axis=0), np.arange(L + 1)) for p in (fades([2, 6]), fades([4, 3]))]
    assert (found.n_a, found.n_b) == (2, 2)
    assert found.value == pytest.approx(own[0] - own[1])
    models = compare_horizons([first, second], between="model", **QUICK)
    assert pick(models, paired=True).value == found.value
    # within a run any question on a shared image pairs
    both = {"ocr": fades([2, 3]), "vqa": fades([4, 5])}
    questions = {"ocr": ["x", "x"], "vqa": ["y", "y"]}
    run = write_run(tmp_path / "c", effects=both, images={"ocr": [0, 1], "vqa": [0, 1]}, questions=questions)
    assert pick(compare_horizons(run, **QUICK), paired=True).n_a == 2


def test_prompts_are_paired_on_the_question_within_them(tmp_path, halves):
    asked = [f"what is {i}?" for i in range(30)]
    templates = {"plain": None, "short": "{question} Answer in one word.", "long": "Look closely. " * 5 + "{question}"}
    runs = [
        write(
            tmp_path,
            name,
            halves + 0.3 * i,
            prompt=template,
            questions={"ocr": [(template or "{question}").replace("{question}", text) for text in asked]},
        )
        for i, (name, template) in enumerate(templates.items())
    ]
    comparison = compare_horizons(runs, between="prompt", **QUICK)
    pairs = {
        (d.a, d.b): d
        for d in comparison.differences
        if (d.quantity, d.unit, d.paired) == ("half_depth", "layers", True)
    }
    names = [
        "synthetic: no prompt template",
        "synthetic: {question} Answer in one word.",
        "synthetic: Look closely. Look closely. Look clos...",
    ]
    assert list(pairs) == [(names[0], names[1]), (names[0], names[2]), (names[1], names[2])]
    assert all(d.n_a == 30 for d in pairs.values())
    assert pairs[names[0], names[2]].value == pytest.approx(-0.6, abs=0.05)
    assert pairs[names[0], names[2]].p_adjusted == pytest.approx(3 / 201)


def test_questions_without_their_template():
    template = "First: {question}\nAgain: {question}\n"
    asked = pd.Series(["what color?", "", "{question}"])
    rendered = asked.map(lambda text: template.replace("{question}", text))
    assert bare_questions(rendered, template).to_list() == asked.to_list()
    assert bare_questions(asked, None).to_list() == asked.to_list()


def test_only_one_thing_differs_between_the_runs_of_a_pair(tmp_path, halves):
    """Two revisions with two prompts each, and another model."""
    runs = [
        write(tmp_path, f"{revision}-{i}", halves, revision=revision, prompt=prompt)
        for revision in ("one", "two")
        for i, prompt in enumerate((None, "Q: {question}"))
    ]
    runs.append(write(tmp_path, "other", halves, model="x/other", revision="three"))

    def pairs(between):
        return list(dict.fromkeys((d.a, d.b) for d in compare_horizons(runs, between=between, **QUICK).differences))

    assert pairs("revision") == [
        ("synthetic (one-0): one", "synthetic (two-0): two"),
        ("synthetic (one-1): one", "synthetic (two-1): two"),
    ]
    assert pairs("prompt") == [
        ("synthetic (one-0): no prompt template", "synthetic (one-1): Q: {question}"),
        ("synthetic (two-0): no prompt template", "synthetic (two-1): Q: {question}"),
    ]
    assert len(pairs("model")) == 10


def test_revisions_within_task_types(tmp_path, halves):
    runs = [
        write_run(
            tmp_path / name,
            effects={"ocr": fades(halves), "vqa": fades(halves - 1)},
            images={"ocr": range(30), "vqa": range(30)},
            revision=name,
        )
        for name in ("one", "two")
    ]
    comparison = compare_horizons(runs, between="revision", within=("task_type",), **QUICK)
    assert {(d.a, d.b) for d in comparison.differences} == {
        ("synthetic: one / ocr", "synthetic: two / ocr"),
        ("synthetic: one / vqa", "synthetic: two / vqa"),
    }
    assert comparison.groups[1].group == {"revision": "one", "task_type": "vqa"}
    assert {d.p_value for d in comparison.differences if d.quantity == "half_depth"} == {1}


def test_without_a_common_question_nothing_is_paired(tmp_path, halves):
    runs = [
        write(tmp_path, name, halves, revision=name, questions={"ocr": [name] * len(halves)}) for name in ("one", "two")
    ]
    comparison = compare_horizons(runs, between="revision", **QUICK)
    assert pick(comparison, paired=True).reason == "no question on an image was asked in both"
    assert pick(comparison, paired=False).value == pytest.approx(0)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("model", "a comparison between model levels needs at least 2 runs, got one"),
        ("revision", "needs two runs of one model and prompt at different revisions, got one"),
        ("prompt", "needs two runs of one model and revision with different prompts, got one"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, halves, between, message):
    with pytest.raises(HorizonError, match=message):
        compare_horizons(write(tmp_path, "one", halves), between=between)
    with pytest.raises(HorizonError, match="needs at least 1 run, got no run"):
        compare_horizons([])


def test_two_differences_at_once_are_refused(tmp_path, halves):
    runs = [
        write(tmp_path, "one", halves, revision="one"),
        write(tmp_path, "two", halves, revision="two", prompt="Q: {question}"),
    ]
    with pytest.raises(
        HorizonError, match="needs two runs of one model and prompt at different revisions, got one, tw"
    ):
        compare_horizons(runs, between="revision")


def test_a_run_without_samples_has_no_levels(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": np.zeros((0, L + 1))})
    comparison = compare_horizons(run)
    assert (comparison.groups, comparison.differences) == ([], [])
