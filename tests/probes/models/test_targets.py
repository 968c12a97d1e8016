"""Targets: which answer counts, which tokens stand for it, and what their log probability is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from analyses.runs import TARGETS
from probes.data.samples import Sample, SampleError
from probes.models.targets import (
    Target,
    forced_ids,
    gold_answer,
    gold_target,
    normalize_answer,
    resolve_targets,
    split_answer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def merges_of(*words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merges that build each word from its pieces, left to right."""
    return [("".join(word[:end]), word[end]) for word in words for end in range(1, len(word))]


def bpe(alphabet: list[str], *words: tuple[str, ...]) -> Tokenizer:
    """Byte-pair encoding of single characters and the given words, without a token for what is unknown."""
    merges = list(dict.fromkeys(merges_of(*words)))
    pieces = dict.fromkeys(["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)])
    return Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, merges))


def finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama's: a space is put before the text; no digit is merged with it."""
    alphabet = ["▁", *LETTERS, *"0123456789"]
    tokenizer = bpe(alphabet, tuple("▁red"), tuple("▁Red"), tuple("▁Blue"), tuple("▁blu"), ("▁", "A"), ("▁", "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return finished(tokenizer)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: bytes, a space belongs to the word after it, and none is put before the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (("Ġ", "R"), "red", ("Ġ", "red"), "Red", "ĠA", "Ġa", "ĠÑ", "blu", "Blue", ("Ġ", "Blue"), "ĠBLUE")
    tokenizer = bpe(alphabet, *map(tuple, words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return finished(tokenizer)


@pytest.fixture(scope="module")
def latin() -> PreTrainedTokenizerFast:
    """Knows letters and a space, and drops everything else."""
    return finished(bpe([" ", *LETTERS]))


def asked(*answers: str, options: tuple[str, ...] = ()) -> Sample:
    return Sample("s-7", None, "?", answers, options=options)


def pieces(tokenizer: PreTrainedTokenizerFast, ids) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens(list(ids)))


def log_probs(places: int, vocabulary: int, best: int) -> torch.Tensor:
    """Random, with `best` the most probable token at the first place."""
    logits = torch.randn(places, vocabulary, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, best] = logits.max() + 1
    return logits.log_softmax(-1)


# --- the gold answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "gold"),
    [
        (("blue", "red", "red"), "red"),
        (("blue", "The Red.", "red", "blue", "RED"), "The Red."),  # most frequent once normalized, as first spelled
        (("two", "one", "one", "two"), "two"),  # a tie: what appears first
        (("", "  ", "  cat "), "cat"),
        (("A.", "B", "B", "a", "A"), "A."),  # an option is no article
        (("$", "$", "%"), "$"),
    ],
)
def test_gold_is_the_most_frequent_normalized_answer(answers, gold):
    assert gold_answer(asked(*answers)) == gold


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        (" The  Cat.", "cat"),
        ("an apple a day", "apple day"),
        ("theory", "theory"),
        ("A", "a"),
        ("(a)", "a"),
        ("?!", "?!"),
        ("Straße", "strasse"),
        ("3.5", "35"),
        ("", ""),
    ],
)
def test_normalizing_drops_case_articles_punctuation_and_spaces(answer, normalized):
    assert normalize_answer(answer) == normalized


@given(st.text())
def test_nothing_normalizes_to_nothing_but_blanks(text):
    assert bool(normalize_answer(text)) == bool(text.split())


# --- gold tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "pooled"),
    [
        ("red", {"▁red", "▁Red"}),  # RED begins with another piece
        ("Red", {"▁red", "▁Red"}),
        ("5", {"5"}),  # not the bare space before it
        ("57", {"5"}),
        ("Blue", {"▁Blue"}),  # blue begins with blu
        ("a", {"▁a", "▁A", "a", "A"}),  # with and without the space before it
    ],
)
def test_gold_pools_cases_that_sentencepiece_spells_alike(sentencepiece, answer, pooled):
    target = gold_target(sentencepiece, asked(answer))
    assert pieces(sentencepiece, target.ids) == pooled
    assert target.answer == answer


@pytest.mark.parametrize(
    ("answer", "pooled"),
    [
        ("red", {"red", "Ġred", "Red"}),  # " Red" begins with " R"
        ("Blue", {"Blue", "ĠBlue", "ĠBLUE"}),  # blue begins with blu, BLUE with B
        ("5", {"5"}),  # " 5" begins with a bare space, which says nothing
        ("A", {"A", "a", "ĠA", "Ġa"}),
        ("я", {"Ñ", "ĠÑ"}),  # Я begins with another byte, and pieces of characters decode alike
    ],
)
def test_gold_pools_cases_and_a_leading_space_that_bytes_spell_alike(byte_level, answer, pooled):
    assert pieces(byte_level, gold_target(byte_level, asked(answer)).ids) == pooled


def test_option_letters_pool_the_space_only(sentencepiece, byte_level):
    question = asked("A", options=("a cat", "a dog"))
    assert pieces(byte_level, gold_target(byte_level, question).ids) == {"A", "ĠA"}
    assert pieces(sentencepiece, gold_target(sentencepiece, question).ids) == {"▁A", "A"}


def test_the_answer_as_it_stands_comes_first(byte_level):
    for answer in ("red", "Red"):
        assert pieces(byte_level, gold_target(byte_level, asked(answer)).ids[:1]) == {answer}


def test_answers_split_after_spaces_and_special_tokens(sentencepiece, byte_level):
    for tokenizer, answer, before, rest in (
        (sentencepiece, "57", ["▁"], ["5", "7"]),
        (sentencepiece, "red", [], ["▁red"]),
        (byte_level, "5 5", [], ["5", "Ġ", "5"]),
        (byte_level, "<s>red", ["<s>"], ["red"]),
    ):
        prefix, ids = split_answer(tokenizer, answer, asked())
        assert [tokenizer.convert_ids_to_tokens(list(part)) for part in (prefix, ids)] == [before, rest]


def test_a_target_after_a_bare_space_is_forced_and_read_behind_it(sentencepiece):
    """ "▁" is what the model says first; "5" is what carries the answer, one place later."""
    own = log_probs(3, len(sentencepiece), best=3)
    space, five, seven = sentencepiece.encode("57", add_special_tokens=False)
    gold = resolved("gold", sentencepiece, asked("57"), own)
    assert (gold.prefix, gold.ids, gold.place, gold.forced) == ((space,), (five,), 1, (space, five))
    assert gold.log_p(own).item() == own[1, five].item()
    answer = resolved("answer", sentencepiece, asked("57"), own)
    assert answer.forced == (space, five, seven)
    assert answer.log_p(own).item() == pytest.approx((own[1, five] + own[2, seven]).item() / 2)


def test_what_is_forced_is_what_some_target_needs(sentencepiece):
    digit, word = asked("57"), asked("red")
    space, five, seven = sentencepiece.encode("57", add_special_tokens=False)
    assert forced_ids(["gold"], sentencepiece, digit) == (space, five)
    assert forced_ids(["greedy", "gold-raw"], sentencepiece, digit) == ()
    assert forced_ids(["gold", "answer"], sentencepiece, digit) == (space, five, seven)
    assert forced_ids(["gold"], sentencepiece, word) == ()
    assert forced_ids(["greedy"], sentencepiece, asked()) == ()


@pytest.mark.parametrize(("says", "right"), [("▁5", True), ("▁6", False), ("55", False)])
def test_greedy_correct_follows_the_bare_space(sentencepiece, says, right):
    own = log_probs(2, len(sentencepiece), best=3)
    for place, piece in enumerate(says):
        own[place, sentencepiece.convert_tokens_to_ids(piece)] = 1.0
    found = resolve_targets(["greedy-correct"], sentencepiece, asked("57"), own)
    assert bool(found) == right
    if right:
        assert found["greedy-correct"].place == 1


def test_an_answer_that_begins_with_an_unknown_token_is_named():
    words = Tokenizer(WordLevel({"<unk>": 0, "red": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(SampleError, match="tokenizes to nothing"):
        gold_target(tokenizer, asked("zebra red"))
    assert gold_target(tokenizer, asked("red")) == Target("gold", "red", (1,))


# --- every target ----------------------------------------------------------------------------------------------------


def resolved(name: str, tokenizer, sample: Sample, own: torch.Tensor):
    return resolve_targets([name], tokenizer, sample, own)[name]


def test_gold_raw_is_the_first_id_even_of_a_bare_space(sentencepiece):
    own = log_probs(1, len(sentencepiece), best=3)
    target = resolved("gold-raw", sentencepiece, asked("57"), own)
    assert pieces(sentencepiece, target.ids) == {"▁"}
    assert target.log_p(own).item() == own[0, target.ids[0]].item()


def test_gold_adds_up_the_probabilities_of_its_spellings(byte_level):
    own = log_probs(2, len(byte_level), best=3)
    target = resolved("gold", byte_level, asked("red"), own)
    ids = byte_level.convert_tokens_to_ids(["red", "Ġred", "Red"])
    assert target.log_p(own).item() == pytest.approx(math.log(sum(own[0, i].exp().item() for i in ids)), abs=1e-12)


def test_greedy_is_the_models_own_first_token(byte_level):
    best = byte_level.convert_tokens_to_ids("Ġred")
    own = log_probs(2, len(byte_level), best)
    target = resolved("greedy", byte_level, asked(), own)  # it needs no answer
    assert target.ids == (best,)
    assert target.answer == " red"
    assert target.log_p(own).item() == own[0].max().item()


@pytest.mark.parametrize(("best", "right"), [("Red", True), ("Ġred", True), ("ĠR", False), ("5", False)])
def test_greedy_correct_is_absent_where_the_model_is_wrong(byte_level, best, right):
    best_id = byte_level.convert_tokens_to_ids(best)
    own = log_probs(1, len(byte_level), best_id)
    found = resolve_targets(["gold", "greedy-correct"], byte_level, asked("red"), own)
    assert ("greedy-correct" in found) == right
    assert bool(found["gold"].contains(own[0].argmax())) == right
    assert not right or found["greedy-correct"].ids == (best_id,)


def test_answer_is_the_mean_over_its_tokens_each_at_its_place(sentencepiece):
    own = torch.stack([log_probs(4, len(sentencepiece), best) for best in (3, 9)])  # two ablations
    target = resolved("answer", sentencepiece, asked("57 red"), own[0])
    tokens = ["5", "7", "▁red"]
    assert sentencepiece.convert_ids_to_tokens(list(target.ids)) == tokens
    ids = sentencepiece.convert_tokens_to_ids(tokens)
    expected = [sum(float(each[place, i]) for place, i in enumerate(ids, start=1)) / 3 for each in own]  # behind "▁"
    assert target.log_p(own).tolist() == pytest.approx(expected, abs=1e-12)
    assert target.contains(torch.tensor(ids)).tolist() == [True, False, False]  # only its first token is a first token


def test_all_targets_resolve_at_once(byte_level):
    own = log_probs(2, len(byte_level), byte_level.convert_tokens_to_ids("red"))
    assert tuple(resolve_targets(TARGETS, byte_level, asked("red"), own)) == TARGETS


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [(), ("",), (" ", "\n")])
@pytest.mark.parametrize("name", ["gold", "gold-raw", "answer", "greedy-correct"])
def test_a_sample_without_an_answer_is_named(byte_level, name, answers):
    with pytest.raises(SampleError, match="sample 's-7' has no answer"):
        resolve_targets([name], byte_level, asked(*answers), log_probs(1, len(byte_level), 3))


@pytest.mark.parametrize("answer", ["漢", "</s>"])
@pytest.mark.parametrize("name", ["gold", "answer", "greedy-correct"])
def test_an_answer_that_tokenizes_to_nothing_is_named(sentencepiece, name, answer):
    own = log_probs(1, len(sentencepiece), 3)
    with pytest.raises(SampleError, match=f"sample 's-7': answer '{answer}' tokenizes to nothing that carries inform"):
        resolve_targets([name], sentencepiece, asked(answer), own)


def test_an_answer_without_any_id_has_no_raw_target(latin):
    with pytest.raises(SampleError, match="sample 's-7': answer '漢' tokenizes to nothing"):
        resolve_targets(["gold-raw"], latin, asked("漢"), log_probs(1, len(latin), 3))
