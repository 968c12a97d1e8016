"""Scores of one predicted answer by the rule of each benchmark, as pure functions of text.

Every scorer takes the prediction and the reference answers and gives a number in 0..1. Which one a benchmark uses
stands in `TASK_SCORERS`; the aggregates of MME and POPE are made from single answers in `analyses/scores/scores.py`.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence

from rapidfuzz.distance import Levenshtein

from analyses.runs import HorizonError, check_choice
from analyses.scores.normalization import evalai_answer, plain_answer, spaced_answer

RELAXED = 0.05  # ChartQA's tolerance, relative to the reference
ANLS_THRESHOLD = 0.5
FEWEST_VOTES = 4  # annotators, below which three others can never agree
FORMULAS = ("Handwritten Mathematical Expression Recognition", "HME100k")  # of OCRBench, in its two publications
LETTERS = 8  # options a question may have where it does not say how many
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"\banswer is:? *\(?([A-Z])\b")


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals an answer apart from case, punctuation and spacing.

    Source: GQA as lmms-eval scores it (exact match that ignores case and punctuation).

    >>> exact("Light blue.", ["light blue"]), exact("blue", ["light blue"])
    (1.0, 0.0)
    """
    return float(plain_answer(prediction) in map(plain_answer, answers))


def relaxed(prediction: str, answers: Sequence[str]) -> float:
    """1 if a number lies within 5 % of an answer, or a text equals one apart from case.

    "7%" is read as 0.07. A reference of 0 has no 5 %, so it must be matched as text, as everything that is no number.

    Source: relaxed accuracy of ChartQA (Masry et al., Findings of ACL 2022; Methani et al., WACV 2020).

    >>> relaxed("95.1", ["100"]), relaxed("94.9", ["100"]), relaxed("Yes", ["yes"]), relaxed("7%", ["0.07"])
    (1.0, 0.0, 1.0, 1.0)
    """
    return float(any(_close(prediction.strip(), answer.strip()) for answer in answers))


def _close(prediction: str, answer: str) -> bool:
    value, target = _number(prediction), _number(answer)
    if value is None or not target:
        return prediction.lower() == answer.lower()
    return abs(value - target) / abs(target) <= RELAXED


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None  # "nan" and "inf" are words


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy: min(1, annotators that agree / 3), averaged over the sets that leave one annotator out.

    With ten annotators one that agrees gives 0.3, two 0.6, three 0.9 and four 1. Both sides are normalized by EvalAI's
    rules. With fewer than four answers three others can never agree; then any match counts whole, which is our own.

    Source: Antol et al., ICCV 2015, and TextVQA (Singh et al., CVPR 2019), as EvalAI computes it.

    >>> [round(vqa("stop", ["Stop"] * n + ["halt"] * (10 - n)), 2) for n in (0, 1, 2, 3, 4)]
    [0.0, 0.3, 0.6, 0.9, 1.0]
    """
    normalized = evalai_answer(prediction)
    agree = [evalai_answer(answer) == normalized for answer in answers]
    if len(agree) < FEWEST_VOTES:
        return float(any(agree))
    return sum(min(1.0, (sum(agree) - vote) / 3) for vote in agree) / len(agree)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the nearest answer, 0 where it is below one half; case does not count.

    The paper's formula drops a similarity of exactly one half as well, the official evaluation keeps it; so do we.

    Source: ANLS (Biten et al., ICCV 2019), as DocVQA and InfographicVQA use it.

    >>> anls("helo", ["hello"]), anls("ab", ["ax"]), anls("abc", ["axy"])
    (0.8, 0.5, 0.0)
    """
    text = spaced_answer(prediction)
    best = max((Levenshtein.normalized_similarity(text, spaced_answer(answer)) for answer in answers), default=0.0)
    return best if best >= ANLS_THRESHOLD else 0.0


def ocrbench(prediction: str, answers: Sequence[str], *, formula: bool = False) -> float:
    """1 if the prediction contains an answer, apart from case; formulae keep their case and lose their spaces.

    Args:
        prediction: the model's answer.
        answers: any of them may be contained.
        formula: the question is of a category in `FORMULAS`.

    Source: OCRBench (Liu et al., arXiv 2305.07895).

    >>> ocrbench("It says STOP!", ["stop"]), ocrbench("x ^ 2", ["x^2"]), ocrbench("x ^ 2", ["x^2"], formula=True)
    (1.0, 0.0, 1.0)
    """

    def comparable(text: str) -> str:
        flat = text.strip().replace("\n", " ")
        return flat.replace(" ", "") if formula else flat.lower()

    return float(any(comparable(answer) in comparable(prediction) for answer in answers))


def mme(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first four characters say the reference's yes or no; what says neither is wrong.

    Source: MME's `calculation.py` (Fu et al., arXiv 2306.13394).

    >>> mme("Yes, it is", ["Yes"]), mme("It is not", ["No"])
    (1.0, 0.0)
    """
    return float(mme_label(prediction) == truth(answers, "mme"))


def mme_label(prediction: str) -> str:
    """The "yes" or "no" at the beginning of a prediction, or "other"."""
    start = prediction.strip().lower()[:4]
    return next((label for label in ("yes", "no") if label in start), "other")


def pope(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first sentence says the reference's yes or no; what does not deny is a yes.

    Source: POPE's `evaluate.py` (Li et al., EMNLP 2023).

    >>> pope("There is not.", ["no"]), pope("A dog.", ["yes"])
    (1.0, 1.0)
    """
    return float(pope_label(prediction) == truth(answers, "pope"))


def pope_label(prediction: str) -> str:
    """A "no" if the first sentence holds "No", "no" or "not" as a word, else a "yes"."""
    words = prediction.split(".")[0].replace(",", "").split()
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def truth(answers: Sequence[str], scorer: str) -> str:
    """The reference's yes or no.

    Raises:
        HorizonError: it is neither.
    """
    reference = plain_answer(answers[0]) if answers else ""
    if reference not in ("yes", "no"):
        raise HorizonError(f"the scorer {scorer!r} expects the answer yes or no, not {list(answers)!r}")
    return reference


def letter(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the prediction names the reference's option letter, see `option_letter`.

    Args:
        prediction: the model's answer.
        answers: the first is the letter, with or without brackets.
        options: the options' texts, A first.

    Raises:
        HorizonError: the reference is no letter.

    >>> letter("(B) a dog", ["B"]), letter("a dog", ["B"], options=["a cat", "a dog"]), letter("A or B", ["B"])
    (1.0, 1.0, 0.0)
    """
    right = answers[0].translate(_MARKS).strip().upper() if answers else ""
    if len(right) != 1 or right not in string.ascii_uppercase:
        raise HorizonError(f"the scorer 'letter' expects an option letter as the answer, not {list(answers)!r}")
    known = len(options) or max(LETTERS, string.ascii_uppercase.index(right) + 1)
    return float(option_letter(prediction, string.ascii_uppercase[:known], options) == right)


def option_letter(prediction: str, letters: str, options: Sequence[str] = ()) -> str | None:
    """The option that a prediction names, or None where it names none or several.

    A single letter; "the answer is B"; the only option letter among the words ("A" in a longer sentence may be an
    article and counts as none); the only option whose text is contained.

    Source: MMBench's heuristic matching in VLMEvalKit (`can_infer`), and LLaVA's ScienceQA script for "the answer is".
    A lone letter in lower case counts too, which is our own.

    Args:
        prediction: the model's answer.
        letters: option letters that the question has, for example "ABCD".
        options: their texts, in this order.
    """
    words = prediction.translate(_MARKS).split()
    if len(words) == 1 and words[0].upper() in letters:
        return words[0].upper()
    if (match := _ANSWER_IS.search(prediction)) and match[1] in letters:
        return match[1]
    present = [letter for letter in letters if letter in words]
    if len(present) == 1 and not (present == ["A"] and len(words) > 3):
        return present[0]
    return _option_by_text(prediction.lower(), letters, options)


def _option_by_text(prediction: str, letters: str, options: Sequence[str]) -> str | None:
    """The only option whose text a prediction contains, unless it rambles."""
    if len(prediction) > 2 * sum(map(len, options)):
        return None
    matches = [letter for letter, text in zip(letters, options, strict=False) if text.strip().lower() in prediction]
    return matches[0] if len(matches) == 1 else None


SCORERS: dict[str, Callable[..., float]] = {
    "exact": exact,
    "relaxed": relaxed,
    "vqa": vqa,
    "anls": anls,
    "ocrbench": ocrbench,
    "mme": mme,
    "pope": pope,
    "letter": letter,
}

# the words of a benchmark's name, joined -> its scorer
TASK_SCORERS = {
    **dict.fromkeys(("textvqa", "vqav2", "okvqa", "vizwiz"), "vqa"),
    **dict.fromkeys(("docvqa", "infovqa", "infographicvqa", "stvqa"), "anls"),
    **dict.fromkeys(("gqa", "demoocr", "demovqa"), "exact"),
    **dict.fromkeys(("mmbench", "scienceqa", "ai2d", "mmstar", "mmmu", "realworldqa", "seedbench"), "letter"),
    "chartqa": "relaxed",
    "ocrbench": "ocrbench",
    "mme": "mme",
    **dict.fromkeys(("pope", "hallusionbench"), "pope"),
}

_OTHERS = ("ocrbenchv2", "mmerealworld", "mmmupro", "chartqapro", "gqaood")  # their own rules


def scorer_of(task: str) -> str | None:
    """The scorer of a task by the name of its benchmark, whatever split follows it; None if none is known.

    >>> scorer_of("TextVQA_VAL"), scorer_of("MMBench_DEV_EN"), scorer_of("my-task"), scorer_of("MME-RealWorld")
    ('vqa', 'letter', None, None)
    """
    words = re.findall(r"[a-z0-9]+", task.lower())
    starts = ["".join(words[:end]) for end in range(len(words), 0, -1)]
    if any(start in _OTHERS for start in starts):
        return None
    return next((TASK_SCORERS[start] for start in starts if start in TASK_SCORERS), None)


def score_answer(
    scorer: str, prediction: str, answers: Sequence[str], *, options: Sequence[str] = (), category: str = ""
) -> float:
    """Score one prediction by the rule of a benchmark.

    Args:
        scorer: a key of `SCORERS`: exact, relaxed, vqa, anls, ocrbench, mme, pope, letter.
        prediction: the model's whole answer.
        answers: the references.
        options: texts of the option letters, for "letter".
        category: of the sample, for "ocrbench", which treats formulae apart.

    Returns:
        0..1.

    Raises:
        HorizonError: the scorer is unknown, or the references are not what it expects.
    """
    check_choice("scorer", scorer, SCORERS)
    if scorer == "letter":
        return letter(prediction, answers, options=options)
    if scorer == "ocrbench":
        return ocrbench(prediction, answers, formula=category in FORMULAS)
    return SCORERS[scorer](prediction, answers)
