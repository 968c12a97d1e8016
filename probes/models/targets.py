"""Targets: the token ids that count as the answer whose probability is measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probes.data.samples import Sample, SampleError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s]")
SPACE = "▁"  # how SentencePiece writes a space
_PARTIAL = "\ufffd"  # what a token that holds only some bytes of a character decodes to


@dataclass(frozen=True)
class Target:
    """The answer whose probability is read from the next-token distributions at a prompt's readout positions.

    Attributes:
        name: one of `TARGETS`.
        answer: the text of the answer.
        ids: token ids pooled at one readout place; for `answer`, one id for each place.
        prefix: ids that come before `ids` and carry no information (a bare space before a digit, in SentencePiece);
            they are teacher-forced, and the target is read after them.
    """

    name: str
    answer: str
    ids: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the target is read at every token of the answer; else at one place, with its ids pooled."""
        return self.name in TARGET_TABLE and TARGET_TABLE[self.name].whole

    @property
    def place(self) -> int:
        """The readout place at which the target begins; 0 is the end of the prompt."""
        return len(self.prefix)

    @property
    def forced(self) -> tuple[int, ...]:
        """The token ids to force after the prompt so that the target, which ends with the last of them, can be read."""
        return (*self.prefix, *(self.ids if self.whole else self.ids[:1]))

    def log_p(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Return the log probability of the target in nats, (...).

        It is pooled over `ids` by log-sum-exp; for `answer` it is the mean over the answer's tokens.

        Args:
            log_probs: (..., place, vocabulary) log-softmax at the readout positions.
        """
        ids = torch.tensor(self.ids, device=log_probs.device)
        if self.whole:
            places = torch.arange(self.place, self.place + len(ids), device=log_probs.device)
            return log_probs[..., places, ids].mean(-1)
        return log_probs[..., self.place, ids].logsumexp(-1)

    def contains(self, token: torch.Tensor) -> torch.Tensor:
        """Return whether token ids at the target's place are right, (...) bool from (...) long."""
        first = self.ids[:1] if self.whole else self.ids
        return torch.isin(token, torch.tensor(first, device=token.device))


def normalize_answer(answer: str) -> str:
    """Return the answer in lower case, without articles and punctuation, with single spaces.

    >>> normalize_answer(" The  Cat.")
    'cat'
    """
    folded = answer.casefold()
    plain = _PUNCTUATION.sub("", folded)
    # an answer of nothing but an article (option A) keeps it, one of nothing but signs keeps these
    return next((" ".join(text.split()) for text in (_ARTICLES.sub(" ", plain), plain, folded) if text.split()), "")


def gold_answer(sample: Sample) -> str:
    """Return the most frequent normalized answer, in the spelling in which it appears first.

    Of equally frequent answers the first counts.

    Raises:
        SampleError: the sample has no answer that is not blank.
    """
    answers = [answer.strip() for answer in sample.answers if answer.strip()]
    if not answers:
        raise SampleError(f"sample {sample.id!r} has no answer (answers: {list(sample.answers)!r})")
    counts = Counter(map(normalize_answer, answers))
    best = max(counts.values())
    return next(answer for answer in answers if counts[normalize_answer(answer)] == best)


def gold_target(tokenizer: Any, sample: Sample) -> Target:
    """Return the target of the gold answer's first token that carries information, pooled over its spellings.

    Case and a leading space may vary, as long as the first token spells the same characters otherwise; for option
    letters only the space may. Which of the spellings a model uses depends on what its chat template ends with, so
    both tokenizers' ways to write no space are pooled: "Yes" of byte-level pieces, "Yes" beside SentencePiece's "▁Yes".

    Raises:
        SampleError: the sample has no answer, or its answer tokenizes to nothing.
    """
    answer = gold_answer(sample)
    prefix, (first, *_) = split_answer(tokenizer, answer, sample)
    spelled = _spelling(tokenizer, first)
    one_case = sample.options or _PARTIAL in spelled  # pieces of different characters decode alike
    cases = [answer] if one_case else [answer, answer.lower(), answer.upper(), answer.capitalize()]
    fold = str if sample.options else str.casefold
    ids = [first]
    for variant in dict.fromkeys(lead + case for lead in ("", " ") for case in cases):
        variant_prefix, variant_ids = _split(tokenizer, variant)
        if variant_prefix == prefix:  # read at another place, it would be another event
            spellings = [token for first in variant_ids[:1] for token in (first, *_without_space(tokenizer, first))]
            ids += [token for token in spellings if fold(_spelling(tokenizer, token)) == fold(spelled)]
    return Target("gold", answer, tuple(dict.fromkeys(ids)), prefix)


def split_answer(tokenizer: Any, answer: str, sample: Sample) -> tuple[tuple[int, ...], list[int]]:
    """Return the token ids of an answer: those before the first that carries information, and the rest.

    Raises:
        SampleError: no token carries information, or the first that does is unknown to the tokenizer.
    """
    prefix, ids = _split(tokenizer, answer)
    if not ids:
        raise SampleError(f"sample {sample.id!r}: answer {answer!r} tokenizes to nothing that carries information")
    return prefix, ids


def _split(tokenizer: Any, text: str) -> tuple[tuple[int, ...], list[int]]:
    """Return the ids before the first that carries information, and the rest; both are empty if that one is unknown.

    Bare spaces and special tokens carry no information.
    """
    ids = tokenizer.encode(text, add_special_tokens=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    start = next((at for at, token in enumerate(ids) if token not in special and _spelling(tokenizer, token)), None)
    if start is None or ids[start] == tokenizer.unk_token_id:
        return (), []
    return tuple(ids[:start]), ids[start:]


def _spelling(tokenizer: Any, token: int) -> str:
    """Return the text of one token id without the spaces around it."""
    return tokenizer.decode([token]).strip()


def _without_space(tokenizer: Any, token: int) -> list[int]:
    """Return the id, if any, of SentencePiece's piece without the space before it, to which no plain text encodes."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if not piece.startswith(SPACE) or piece == SPACE:
        return []
    bare_id = tokenizer.convert_tokens_to_ids(piece.removeprefix(SPACE))
    return [] if bare_id is None or bare_id == tokenizer.unk_token_id else [bare_id]


def answer_target(tokenizer: Any, sample: Sample) -> Target:
    """Return the target of the whole gold answer, which is teacher-forced."""
    answer = gold_answer(sample)
    prefix, ids = split_answer(tokenizer, answer, sample)
    return Target("answer", answer, tuple(ids), prefix)


def answer_length(tokenizer: Any, sample: Sample) -> int | None:
    """Return the number of tokens of the gold answer, from the first that carries information on; None if none does."""
    if not any(answer.strip() for answer in sample.answers):
        return None
    return len(_split(tokenizer, gold_answer(sample))[1]) or None


def forced_ids(names: Sequence[str], tokenizer: Any, sample: Sample) -> tuple[int, ...]:
    """Return the token ids to force after the prompt so that every target can be read; () where its end suffices.

    Raises:
        SampleError: a target needs an answer and the sample has none, or the answer tokenizes to nothing.
    """
    targets = fixed_targets(names, tokenizer, sample).values()
    forced = [target.forced for target in targets if target.whole or target.prefix]  # else the prompt's end suffices
    longest = max(forced, key=len, default=())
    if any(ids != longest[: len(ids)] for ids in forced):
        raise SampleError(f"sample {sample.id!r}: targets {', '.join(names)} need different words before them")
    return longest


def fixed_targets(names: Sequence[str], tokenizer: Any, sample: Sample) -> dict[str, Target]:
    """Return the targets that need no forward pass, by name, and those that other named targets are compared to.

    Raises:
        SampleError: a target needs an answer and the sample has none, or the answer tokenizes to nothing.
    """
    rules = (TARGET_TABLE[name] for name in names)
    makers = dict.fromkeys(rule.fixed for rule in rules if rule.fixed is not None)
    return {target.name: target for target in (make(tokenizer, sample) for make in makers)}


def resolve_targets(
    names: Sequence[str],
    tokenizer: Any,
    sample: Sample,
    own_log_probs: torch.Tensor,
    fixed: Mapping[str, Target] | None = None,
) -> dict[str, Target]:
    """Return every target of a sample by name; `greedy-correct` is left out where the model answers wrong.

    Args:
        names: names of targets, out of `TARGETS`.
        tokenizer: the model's tokenizer.
        sample: the sample with its answers; `greedy` alone needs none.
        own_log_probs: (place, vocabulary) log-softmax of the model's own forward.
        fixed: the sample's `fixed_targets`; None to compute them here.

    Raises:
        SampleError: a target needs an answer and the sample has none, or the answer tokenizes to nothing.
    """
    greedy = own_log_probs.argmax(-1).tolist()
    fixed = fixed_targets(names, tokenizer, sample) if fixed is None else fixed
    resolved = {name: TARGET_TABLE[name].resolve(tokenizer, greedy, fixed) for name in names}
    return {name: target for name, target in resolved.items() if target is not None}


def _gold_raw(tokenizer: Any, sample: Sample) -> Target:
    """Return the target by the rule of the released code: the first id of the answer, informative or not."""
    answer = gold_answer(sample)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if not ids:
        raise SampleError(f"sample {sample.id!r}: answer {answer!r} tokenizes to nothing")
    return Target("gold-raw", answer, (int(ids[0]),))


Fixed = Mapping[str, Target]


@dataclass(frozen=True)
class TargetRule:
    """How one kind of target comes about. A new kind is one entry of `TARGET_TABLE`.

    Attributes:
        name: one of `TARGETS`.
        fixed: the function that makes, from the tokenizer and the sample, the target that needs no forward pass; None
            where there is none.
        resolve: the function that makes the target from the tokenizer, the most probable token at every readout place
            and the fixed targets by name; it returns None where the sample has no such target.
        whole: whether the target is read at every token of the answer.
    """

    name: str
    fixed: Callable[[Any, Sample], Target] | None
    resolve: Callable[[Any, Sequence[int], Fixed], Target | None]
    whole: bool = False


def _as_fixed(name: str) -> Callable[[Any, Sequence[int], Fixed], Target]:
    """Return the rule of a target that needs no forward pass."""
    return lambda _tokenizer, _greedy, fixed: fixed[name]


def _greedy(tokenizer: Any, greedy: Sequence[int], _fixed: Fixed) -> Target:
    """Return the target of the model's own first token."""
    return Target("greedy", tokenizer.decode([greedy[0]]), (greedy[0],))


def _greedy_correct(tokenizer: Any, greedy: Sequence[int], fixed: Fixed) -> Target | None:
    """Return the target of the model's own token where it gives the gold answer; None where it gives another."""
    gold = fixed["gold"]
    token = greedy[gold.place]
    if tuple(greedy[: gold.place]) != gold.prefix or token not in gold.ids:
        return None
    return Target("greedy-correct", tokenizer.decode([token]), (token,), gold.prefix)


TARGET_TABLE = {
    rule.name: rule
    for rule in (
        TargetRule("gold", gold_target, _as_fixed("gold")),
        TargetRule("gold-raw", _gold_raw, _as_fixed("gold-raw")),
        TargetRule("greedy", None, _greedy),
        TargetRule("greedy-correct", gold_target, _greedy_correct),
        TargetRule("answer", answer_target, _as_fixed("answer"), whole=True),
    )
}
