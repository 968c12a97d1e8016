"""Scores of a run's answers: aggregates computed by hand, intervals that hold, and what is missing counted."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

import vlm_horizon as vh
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means

L = 4


def answered(path, generations, answers, **more):
    """A run with these generated answers; its effects play no part."""
    effects = {key: np.tile(fade_curve(L, 2), (len(given), 1)) for key, given in generations.items()}
    return write_run(path, effects=effects, generations=generations, answers=answers, **more)


def by_metric(found):
    return {score.metric: score for score in found}


def test_each_task_is_scored_by_its_own_rule(tmp_path):
    run = answered(
        tmp_path / "run",
        {
            "ocr/textvqa": ["Stop", "go"],
            "ocr/docvqa": ["invoise 7", "x"],
            "chart/ChartQA_TEST": ["95", "80"],
            "vqa/mine": ["red", "red"],
        },
        {
            "ocr/textvqa": [["stop"] * 2 + ["halt"] * 8, ["go"] * 10],
            "ocr/docvqa": [["Invoice 7"], ["y"]],
            "chart/ChartQA_TEST": [["100"], ["100"]],
            "vqa/mine": [["red"], ["blue"]],
        },
    )
    chart, doc, mine, text = vh.score_run(run)
    assert (text.scorer, text.metric, text.value) == ("vqa", "accuracy", pytest.approx((0.6 + 1) / 2))
    assert (doc.scorer, doc.metric, doc.value) == ("anls", "ANLS", pytest.approx((8 / 9 + 0) / 2))
    assert (chart.scorer, chart.value) == ("relaxed", 0.5)
    assert (mine.scorer, mine.value) == ("", None)
    assert "no scorer is known for the task mine: name one of exact, relaxed" in mine.reason
    (named,) = vh.score_run(run, by=(), scorer="exact")
    assert (named.n_samples, named.value) == (8, pytest.approx(3 / 8))
    mixed = vh.score_run(run, by=("task_type",))
    assert [(score.group["task_type"], score.scorer) for score in mixed] == [
        *[("chart", "relaxed"), ("ocr", "anls"), ("ocr", "vqa"), ("vqa", "")]
    ]


def test_options_and_categories_reach_the_scorers(tmp_path):
    run = answered(
        tmp_path / "run",
        {"vqa/mmbench": ["a dog", "a cat"], "ocr/OCRBench/HME100k": ["x ^ 2"], "ocr/OCRBench/VQA": ["x ^ 2"]},
        {"vqa/mmbench": [["B"], ["B"]], "ocr/OCRBench/HME100k": [["x^2"]], "ocr/OCRBench/VQA": [["x^2"]]},
        options={"vqa/mmbench": [["a cat", "a dog"]] * 2},
    )
    found = {
        (score.group["task"], score.group["category"]): score.value
        for score in vh.score_run(run, by=("task", "category"))
    }
    assert found == {("mmbench", ""): 0.5, ("OCRBench", "HME100k"): 1.0, ("OCRBench", "VQA"): 0.0}


def test_pope_by_hand(tmp_path):
    """3 true yes, 1 false yes, 2 missed, 4 true no."""
    said = ["Yes", "yes", "Yes, it is", "Yes", "No", "not there", "No", "no", "No.", "There is no cat"]
    true = ["yes", "yes", "yes", "no", "yes", "yes", "no", "no", "no", "no"]
    found = by_metric(vh.score_run(answered(tmp_path / "run", {"h/pope": said}, {"h/pope": [[t] for t in true]})))
    expected = {"accuracy": 0.7, "precision": 3 / 4, "recall": 3 / 5, "F1": 2 * 3 / (2 * 3 + 1 + 2), "yes ratio": 0.4}
    assert {name: score.value for name, score in found.items()} == {k: pytest.approx(v) for k, v in expected.items()}
    harmonic = 2 / (1 / expected["precision"] + 1 / expected["recall"])
    assert found["F1"].value == pytest.approx(harmonic)


def test_a_model_that_never_says_yes_has_no_precision(tmp_path):
    run = answered(tmp_path / "run", {"h/pope": ["No"] * 4}, {"h/pope": [["yes"], ["no"], ["yes"], ["no"]]})
    found = by_metric(vh.score_run(run))
    assert (found["precision"].value, found["precision"].reason) == (None, "the model never says yes")
    assert (found["recall"].value, found["F1"].value, found["yes ratio"].value) == (0.0, 0.0, 0.0)
    assert found["recall"].interval is None
    assert "resamples do not differ" in found["recall"].warning


def test_mme_counts_an_image_when_both_its_questions_are_right(tmp_path):
    """Four images with two questions, one with a single one; an image of two subtasks is a pair in each."""
    run = answered(
        tmp_path / "run",
        {
            "p/MME/color": ["Yes", "No", "Yes", "Yes", "maybe", "No"],
            "p/MME/count": ["Yes", "No", "Yes"],
        },
        {
            "p/MME/color": [["Yes"], ["No"], ["Yes"], ["No"], ["Yes"], ["No"]],
            "p/MME/count": [["Yes"], ["No"], ["Yes"]],
        },
        images={"p/MME/color": ["a", "a", "b", "b", "c", "c"], "p/MME/count": ["a", "a", "d"]},
    )
    scores = vh.score_run(run, by=("category",))
    color, count = by_metric(scores[:3]), by_metric(scores[3:])
    assert color["accuracy"].value == pytest.approx(4 / 6)
    assert color["accuracy+"].value == pytest.approx(1 / 3)
    assert color["score"].value == pytest.approx(100)
    assert "1 answers say neither yes nor no" in color["accuracy"].warning
    assert count["accuracy"].value == 1
    assert count["accuracy+"].value == 1
    assert "1 questions do not come in pairs" in count["accuracy"].warning
    together = by_metric(vh.score_run(run, by=("task",)))
    assert together["accuracy"].value == pytest.approx(7 / 9)
    assert together["accuracy+"].value == pytest.approx(2 / 4)


def test_intervals_are_those_of_resampled_images(tmp_path):
    """Ten questions an image, all right or all wrong: the spread is that of 60 images, not of 600 answers."""
    rng = np.random.default_rng(3)
    right = rng.random(60) < 0.7
    said = ["red" if one else "blue" for one in np.repeat(right, 10)]
    pictures = np.repeat(np.arange(60), 10).tolist()
    run = answered(tmp_path / "run", {"vqa/gqa": said}, {"vqa/gqa": [["red"]] * 600}, images={"vqa/gqa": pictures})
    (found,) = vh.score_run(run)
    assert found.value == pytest.approx(right.mean())
    assert (found.n_samples, found.n_images) == (600, 60)
    half_width = 1.96 * right.std(ddof=1) / np.sqrt(60)
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(half_width, rel=0.15)
    assert found.interval[0] < found.value < found.interval[1]
    (again,) = vh.score_run(run)
    assert again.interval == found.interval


@pytest.mark.parametrize(("n_images", "share"), [(20, 0.5), (40, 0.9), (100, 0.9)])
def test_intervals_of_shares_hold_what_they_promise(n_images, share):
    """Right answers drawn anew 300 times; 0.90 is 3 standard errors below 0.95."""
    counts = draw_counts(n_images, 500)
    drawn = np.random.default_rng(0).random((300, n_images)) < share
    ends = [
        percentile_interval(
            resampled_means(right[:, None].astype(float), np.arange(n_images), counts), n_clusters=n_images
        )
        for right in drawn
    ]
    assert np.mean([low[0] <= share <= high[0] for low, high in ends]) > 0.90


def test_missing_and_cut_answers_are_counted(tmp_path):
    run = answered(
        tmp_path / "run",
        {"vqa/gqa": ["red", None, "blue", "gre"]},
        {"vqa/gqa": [["red"], ["red"], [], ["green"]]},
        cut=[3],
    )
    (found,) = vh.score_run(run)
    assert (found.n_samples, found.n_missing, found.n_cut, found.value) == (2, 2, 1, 0.5)
    assert "1 answers were cut at the limit of tokens" in found.warning


def test_a_run_without_answers_has_no_scores(tmp_path):
    run = write_run(tmp_path / "run", effects={"vqa/gqa": np.tile(fade_curve(L, 2), (3, 1))})
    assert vh.score_run(run) == []
    assert run.generations.empty
    assert run.samples["generation"].isna().all()


def test_a_reference_that_a_scorer_cannot_read_is_named_with_its_sample(tmp_path):
    run = answered(tmp_path / "run", {"h/pope": ["yes"]}, {"h/pope": [["perhaps"]]})
    with pytest.raises(vh.HorizonError, match=r"sample 'h/pope-0': the scorer 'pope' expects"):
        vh.score_run(run)
    with pytest.raises(vh.HorizonError, match="scorer 'rouge' is unknown"):
        vh.score_run(run, scorer="rouge")


def test_scores_of_a_selection_are_of_its_samples(tmp_path):
    """What is excluded is not scored."""
    effects = {"vqa/gqa": np.array([fade_curve(L, 2), fade_curve(L, 2, p_all=0.3)])}
    run = write_run(
        tmp_path / "run",
        effects=effects,
        generations={"vqa/gqa": ["red", "blue"]},
        answers={"vqa/gqa": [["red"], ["red"]]},
    )
    (found,) = vh.score_run(vh.select_samples(run, only_correct=True))
    assert (found.n_samples, found.n_missing, found.value) == (1, 0, 1.0)
