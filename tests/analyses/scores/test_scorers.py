"""Every rule against the examples its authors publish, and values computed by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vlm_horizon as vh
from analyses.scores.normalization import evalai_answer, plain_answer
from analyses.scores.scorers import SCORERS, TASK_SCORERS, option_letter, pope_label, scorer_of

PLAIN = ("exact", "relaxed", "vqa", "anls", "ocrbench")  # scorers that take any text as a reference
words = st.text(alphabet="abcdeXYZ '.,-0123456789", max_size=12)


# --- VQA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The Beatles.", "beatles"),
        ("two", "2"),
        ("None", "0"),
        ("ten men", "10 men"),
        ("eleven", "eleven"),  # the table ends at ten
        ("dont", "don't"),
        ("wouldntve", "wouldntve"),  # not in the table
        ("couldnt've", "couldn't've"),
        ("1,000", "1000"),
        ("3.5", "3.5"),  # a period before a digit stays
        ("p.m.", "pm"),
        ("no.", "no"),
        ("top-left", "top left"),  # a sign inside a word is a space
        ("top - left", "top left"),  # beside a space it goes
        ("yes/no", "yes no"),
        ("what?", "what"),
        ("McDonald's", "mcdonald 's"),  # the possessive is cut off
        ("a", ""),
        (" Two\nThe\tsigns ", "2 signs"),
        ("$5", "$5"),  # the dollar is no punctuation of theirs
        ("3:45", "3:45"),
        ("red & blue", "red & blue"),
        ("@home", "home"),
    ],
)
def test_evalai_normalization(answer, normalized):
    assert evalai_answer(answer) == normalized


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_annotators_that_agree(agreeing, score):
    """Ten answers, one left out at a time: the values that follow from min(1, others that agree / 3)."""
    answers = ["stop"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vh.score_answer("vqa", "Stop", answers) == pytest.approx(score)


def test_vqa_accuracy_is_the_mean_over_leave_one_out_sets_spelled_out():
    answers = ["nokia", "Nokia", "nokia.", "the nokia", "samsung", "samsung", "lg", "phone", "unanswerable", "nokia 3"]
    for prediction in {*answers, "Samsung!"}:
        sets = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
        each = [min(1, sum(evalai_answer(a) == evalai_answer(prediction) for a in others) / 3) for others in sets]
        assert vh.score_answer("vqa", prediction, answers) == pytest.approx(sum(each) / 10)


@pytest.mark.parametrize(("n", "score"), [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.25)])
def test_vqa_accuracy_with_few_answers(n, score):
    """Below four, three others cannot agree: one match is then whole. Of four, one that agrees gives 3/4 of 1/3."""
    assert vh.score_answer("vqa", "a cat", ["cat", *(f"dog {i}" for i in range(n - 1))]) == pytest.approx(score)


# --- exact, relaxed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [("Light blue", "light blue", 1), ("light-blue", "lightblue", 1), ("the blue", "blue", 0), ("", "blue", 0)],
)
def test_exact_ignores_case_and_punctuation_only(prediction, answer, score):
    assert vh.score_answer("exact", prediction, [answer]) == score


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("105", "100", 1),  # the tolerance is part of the rule
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("2011.5", "2011", 1),
        ("42%", "0.42", 1),
        ("42", "42%", 0),  # 42 against 0.42
        ("41%", "42%", 1),
        ("0", "0", 1),
        ("0.0", "0", 0),  # no share of 0: matched as text
        ("0.001", "0", 0),
        ("1,000", "1000", 0),  # a comma makes it text
        ("Yes", "yes", 1),
        ("yes.", "yes", 0),
        ("nan", "NaN", 1),
        ("inf", "5", 0),
        ("India", "Indiana", 0),
    ],
)
def test_relaxed_accuracy(prediction, answer, score):
    assert vh.score_answer("relaxed", prediction, [answer]) == score


# --- ANLS ------------------------------------------------------------------------------------------------------------


def edit_distance(a: str, b: str) -> int:
    """By the textbook's table."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        row, above = [i], row
        for j, right in enumerate(b, start=1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (left != right)))
    return row[-1]


@given(words, words)
def test_anls_is_one_minus_the_edits_over_the_longer_text(prediction, answer):
    said, wanted = (" ".join(text.lower().split()) for text in (prediction, answer))
    longest = max(len(said), len(wanted))
    similarity = 1 - edit_distance(said, wanted) / longest if longest else 1.0
    found = vh.score_answer("anls", prediction, [answer])
    assert found == pytest.approx(similarity if similarity >= 0.5 else 0.0)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7),  # three edits
        ("0.28", ["0.28"], 1.0),
        ("TarGet", ["target"], 1.0),
        ("john  smith", ["john smith"], 1.0),
        ("johnsmith", ["john smith"], 0.9),  # a space counts as a character
        ("ab", ["ax"], 0.5),  # one half is kept, as in the official evaluation
        ("abc", ["axy"], 0.0),
        ("paris", ["london", "Pari"], 0.8),  # the nearest
        ("", ["x"], 0.0),
    ],
)
def test_anls_by_hand(prediction, answers, score):
    assert vh.score_answer("anls", prediction, answers) == pytest.approx(score)


# --- OCRBench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answers", "category", "score"),
    [
        ("The word is CENTRE.", ["Centre"], "Regular Text Recognition", 1),
        ("cent re", ["centre"], "Regular Text Recognition", 0),
        ("line one\nline two", ["one line two"], "", 1),
        ("b", ["a", "b"], "", 1),
        ("\\frac { a } { b }", ["\\frac{a}{b}"], "Handwritten Mathematical Expression Recognition", 1),
        ("\\frac { a } { b }", ["\\frac{a}{b}"], "HME100k", 1),
        ("\\frac { a } { b }", ["\\frac{a}{b}"], "Key Information Extraction", 0),
        ("X+Y", ["x+y"], "HME100k", 0),  # case counts in a formula
        ("X+Y", ["x+y"], "Scene Text-centric VQA", 1),
    ],
)
def test_ocrbench_containment(prediction, answers, category, score):
    assert vh.score_answer("ocrbench", prediction, answers, category=category) == score


# --- yes or no -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("no, there is none", "no"),
        ("There is not a dog in the image.", "no"),
        ("Yes. There is no cat.", "yes"),  # the first sentence alone
        ("There is a dog.", "yes"),
        ("Nothing", "yes"),  # only whole words deny
        ("NO", "yes"),  # and only in these spellings
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(prediction, label):
    assert pope_label(prediction) == label
    for truth in ("yes", "no"):
        assert vh.score_answer("pope", prediction, [truth]) == (label == truth)


@pytest.mark.parametrize(
    ("prediction", "label"),
    [("Yes", "yes"), (" yes.", "yes"), ("No, it", "no"), ("NO", "no"), ("It is not", "other"), ("know", "no")],
)
def test_mme_reads_the_first_four_characters(prediction, label):
    for truth in ("Yes", "No"):
        assert vh.score_answer("mme", prediction, [truth]) == (label == truth.lower())


@pytest.mark.parametrize("scorer", ["pope", "mme"])
def test_yes_or_no_scorers_refuse_other_references(scorer):
    with pytest.raises(vh.HorizonError, match=rf"the scorer '{scorer}' expects the answer yes or no, not \['maybe'\]"):
        vh.score_answer(scorer, "yes", ["maybe"])


# --- option letters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "named"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B. a dog", "B"),
        ("B: a dog", "B"),
        ("The answer is C.", "C"),
        ("The answer is A.", "A"),  # four words, yet no article
        ("answer is: (D)", "D"),
        ("A", "A"),
        ("A dog runs on the grass", "B"),  # an article, and an option's text
        ("A horse runs on the grass", None),
        ("A a cat", "A"),
        ("B or C", None),
        ("a white dog", "B"),  # the only option told
        ("a cat and a dog", None),
        ("E", None),  # not an option of this question
        ("I think so", None),
        ("", None),
    ],
)
def test_option_letters(prediction, named):
    options = ["a cat", "dog", "bird", "fish"]
    assert option_letter(prediction, "ABCD", options) == named
    for right in "ABCD":
        assert vh.score_answer("letter", prediction, [right], options=options) == (named == right)


def test_a_rambling_answer_is_not_searched_for_options():
    assert option_letter("there might well be a dog somewhere", "AB", ["cat", "dog"]) is None


def test_letters_without_known_options():
    assert vh.score_answer("letter", "(C) something", ["C"]) == 1
    assert vh.score_answer("letter", "J", ["(J)"]) == 1
    with pytest.raises(vh.HorizonError, match=r"expects an option letter as the answer, not \['a dog'\]"):
        vh.score_answer("letter", "B", ["a dog"])


# --- what all share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", PLAIN)
@given(st.lists(words, min_size=1, max_size=5), words)
def test_scores_lie_between_0_and_1_and_do_not_depend_on_the_order_of_answers(scorer, answers, prediction):
    score = vh.score_answer(scorer, prediction, answers)
    assert 0 <= score <= 1
    assert score == pytest.approx(vh.score_answer(scorer, prediction, answers[::-1]))


@pytest.mark.parametrize("scorer", PLAIN)
@given(words.filter(str.strip))
def test_an_answer_scores_1_against_itself(scorer, answer):
    assert vh.score_answer(scorer, answer, [answer]) == 1


@pytest.mark.parametrize("scorer", PLAIN)
def test_no_reference_scores_0(scorer):
    assert vh.score_answer(scorer, "x", []) == 0


def test_normalizing_twice_changes_nothing_more():
    """Not so for EvalAI's rule: "the a-b" becomes "a b", and that "b"."""
    for text in ("The  Cat.", "Light-Blue", "3.5 %", ""):
        assert plain_answer(plain_answer(text)) == plain_answer(text)


@pytest.mark.parametrize(
    ("task", "scorer"),
    [
        ("textvqa", "vqa"),
        ("TextVQA_VAL", "vqa"),
        ("text-vqa", "vqa"),
        ("DocVQA_VAL", "anls"),
        ("ChartQA_TEST", "relaxed"),
        ("OCRBench", "ocrbench"),
        ("MME", "mme"),
        ("pope/adversarial", "pope"),
        ("GQA_TestDev_Balanced", "exact"),
        ("MMBench_DEV_EN", "letter"),
        ("AI2D_TEST_NO_MASK", "letter"),
        ("ScienceQA_IMG", "letter"),
        ("MME-RealWorld", None),  # other benchmarks, whose names begin alike
        ("OCRBench_v2", None),
        ("popeye", None),
        ("ocr", None),
        ("", None),
    ],
)
def test_the_scorer_of_a_benchmark_by_its_name(task, scorer):
    assert scorer_of(task) == scorer


def test_every_benchmark_names_a_scorer_that_exists():
    assert set(TASK_SCORERS.values()) <= set(SCORERS)
    with pytest.raises(vh.HorizonError, match="scorer 'bleu' is unknown; choose from exact, relaxed"):
        vh.score_answer("bleu", "a", ["a"])


def test_scores_are_plain_floats():
    for scorer, answer in itertools.product(PLAIN, ("5", "a")):
        assert type(vh.score_answer(scorer, "5", [answer])) is float
    assert math.isfinite(vh.score_answer("relaxed", "1e400", ["5"]))
