"""What a model would write first is in the target: on trained tokenizers of both kinds, after every chat template."""

import itertools

import pytest
import torch
from trained_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

from probes.data.samples import Sample
from probes.models.targets import gold_target, resolve_targets, split_answer

BUILDERS = {"sentencepiece": sentencepiece_tokenizer, "byte-level": byte_level_tokenizer}
SPELLINGS = {
    "sentencepiece": lambda word: {word, f"▁{word}"},
    "byte-level": lambda word: {word, f"Ġ{word}"},
}


@pytest.fixture(scope="module", params=BUILDERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return BUILDERS[kind]()


def asked(*answers: str, options: tuple[str, ...] = ()) -> Sample:
    return Sample("s", None, "?", answers, options=options)


def pieces(tokenizer, ids) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(list(ids)))


def spelled(kind: str, *words: str) -> set[str]:
    return set().union(*(SPELLINGS[kind](word) for word in words))


def first_after(tokenizer, end: str, answer: str) -> int:
    """The id that follows a template's end where the answer is written behind it."""
    before, whole = (tokenizer.encode(text, add_special_tokens=False) for text in (end, end + answer))
    assert whole[: len(before)] == before
    return whole[len(before)]


def test_the_tokenizers_are_of_the_two_kinds(tokenizer, kind):
    expected = {
        "sentencepiece": (["▁Yes"], ["▁", "5", "7"], ["▁", "<0xC3>", "<0xA9>"]),
        "byte-level": (["Yes"], ["5", "7"], ["Ã", "©"]),
    }[kind]
    for text, tokens in zip(("Yes", "57", "é"), expected, strict=True):
        assert tokenizer.tokenize(text) == tokens


@pytest.mark.parametrize("gold", ["yes", "Yes", "YES"])
def test_yes_counts_in_every_case_and_with_or_without_a_space(tokenizer, kind, gold):
    """POPE's labels are lower-case, models answer with a capital, and templates end with a space or without."""
    assert pieces(tokenizer, gold_target(tokenizer, asked(gold)).ids) == spelled(kind, "yes", "Yes", "YES")


def test_yes_and_no_share_no_token(tokenizer):
    yes, no = (set(gold_target(tokenizer, asked(word)).ids) for word in ("yes", "no"))
    assert not yes & no
    own = torch.randn(1, len(tokenizer), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    both = [resolve_targets(["gold"], tokenizer, asked(word), own)["gold"].log_p(own).exp() for word in ("yes", "no")]
    assert float(both[0]) == pytest.approx(sum(own[0, token].exp().item() for token in yes), rel=1e-5)
    assert float(sum(both)) < 1


@pytest.mark.parametrize("end", ["ASSISTANT: ", "assistant\n", "USER: "])
@pytest.mark.parametrize("word", ["yes", "Yes", "NO", "red", "Stop"])
def test_what_follows_the_template_is_in_the_target(tokenizer, end, word):
    """With the space that ends a template taken as the word's, as models are trained, or behind a newline."""
    lead = " " if end.endswith(" ") else ""
    written = first_after(tokenizer, end.rstrip(" "), lead + word)
    assert written in gold_target(tokenizer, asked(word.lower())).ids


@pytest.mark.parametrize("letter", ["A", "B", "D"])
def test_an_option_letter_is_not_the_article_or_a_list_mark_in_small(tokenizer, kind, letter):
    found = gold_target(tokenizer, asked(letter, options=("a cat", "a dog", "red", "blue")))
    assert pieces(tokenizer, found.ids) == spelled(kind, letter)


def test_letters_of_one_question_share_no_token(tokenizer):
    targets = [set(gold_target(tokenizer, asked(letter, options=("w", "x", "y", "z"))).ids) for letter in "ABCD"]
    assert not any(a & b for a, b in itertools.combinations(targets, 2))


@pytest.mark.parametrize("number", ["5", "57", "2015"])
def test_a_number_is_told_by_its_first_digit(tokenizer, kind, number):
    """SentencePiece writes a bare space first, which all numbers share: it is forced, and the digit read behind it."""
    target = gold_target(tokenizer, asked(number))
    assert pieces(tokenizer, target.ids) == {number[0]}
    assert tokenizer.convert_ids_to_tokens(list(target.prefix)) == (["▁"] if kind == "sentencepiece" else [])
    assert len(split_answer(tokenizer, number, asked())[1]) == len(number)


def test_raw_targets_of_numbers_are_one_token_with_sentencepiece(tokenizer, kind):
    """The rule of the released code: what a target that does not vary looks like."""
    own = torch.zeros(1, len(tokenizer)).log_softmax(-1)
    raw = {resolve_targets(["gold-raw"], tokenizer, asked(n), own)["gold-raw"].ids for n in ("5", "12", "37", "99")}
    assert len(raw) == (1 if kind == "sentencepiece" else 4)


def test_a_character_of_bytes_is_told_by_its_first_byte(tokenizer, kind):
    found = gold_target(tokenizer, asked("é"))
    assert pieces(tokenizer, found.ids) >= ({"<0xC3>"} if kind == "sentencepiece" else {"Ã"})


def test_the_models_own_bare_space_is_its_greedy_target(tokenizer, kind):
    """`greedy` is the first token whatever it is; `greedy-correct` reads behind the space."""
    answer = asked("57")
    target = gold_target(tokenizer, answer)
    own = torch.zeros(target.place + 1, len(tokenizer))
    for place, token in enumerate(target.forced):
        own[place, token] = 9.0
    own = own.log_softmax(-1)
    found = resolve_targets(["greedy", "greedy-correct"], tokenizer, answer, own)
    assert pieces(tokenizer, found["greedy"].ids) == ({"▁"} if kind == "sentencepiece" else {"5"})
    assert pieces(tokenizer, found["greedy-correct"].ids) == {"5"}
    assert bool(found["greedy"].answer.strip()) == (kind == "byte-level")  # how a run tells that it is blank


def test_the_answer_is_all_of_its_tokens_but_the_bare_space(tokenizer, kind):
    own = torch.randn(9, len(tokenizer), generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    target = resolve_targets(["answer"], tokenizer, asked("57 red"), own)["answer"]
    tokens = ["5", "7", "▁red"] if kind == "sentencepiece" else ["5", "7", "Ġred"]
    assert tokenizer.convert_ids_to_tokens(list(target.ids)) == tokens
    ids = tokenizer.convert_tokens_to_ids(tokens)
    mean = sum(own[place + target.place, token].item() for place, token in enumerate(ids)) / 3
    assert float(target.log_p(own)) == pytest.approx(mean, rel=1e-5)
