"""Targets: which token ids count as the answer whose probability is measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from analyses.runs import check_choices
from probes.data.samples import Sample, SampleError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s]")
SPACE = "▁"  # SentencePiece's
_PARTIAL = "\ufffd"  # what a token that holds only some bytes of a character decodes to


@dataclass(frozen=True)
class Target:
    """What is measured of the next-token distributions at a prompt's readout positions.

    Attributes:
        name: one of `TARGETS`.
        answer: its text.
        ids: token ids pooled at one readout place; for `answer`, one id a place.
        prefix: ids that come before them and carry no information (a bare space before a digit, in SentencePiece);
            they are teacher-forced, and the target is read after them.
    """

    name: str
    answer: str
    ids: tuple[int, ...]
    prefix: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is read at every token of the answer, one id a place; else at one place, ids pooled."""
        return self.name in TARGET_TABLE and TARGET_TABLE[self.name].whole

    @property
    def place(self) -> int:
        """Readout place at which the target begins; 0 is the end of the prompt."""
        return len(self.prefix)

    @property
    def forced(self) -> tuple[int, ...]:
        """The continuation to force, so that the target can be read: it is read up to the last of these ids."""
        return (*self.prefix, *(self.ids if self.whole else self.ids[:1]))

    def log_p(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Log probability of the target in nats.

        Args:
            log_probs: (..., place, vocabulary) log-softmax at the readout positions.

        Returns:
            (...) pooled over `ids` by log-sum-exp; for `answer`, the mean over the answer's tokens.
        """
        ids = torch.tensor(self.ids, device=log_probs.device)
        if self.whole:
            places = torch.arange(self.place, self.place + len(ids), device=log_probs.device)
            return log_probs[..., places, ids].mean(-1)
        return log_probs[..., self.place, ids].logsumexp(-1)

    def contains(self, token: torch.Tensor) -> torch.Tensor:
        """Whether tokens at the target's place are right: (...) ids -> (...) bool."""
        first = self.ids[:1] if self.whole else self.ids
        return torch.isin(token, torch.tensor(first, device=token.device))


def check_targets(names: Sequence[str]) -> None:
    """Raise HorizonError unless every name is known and there is at least one."""
    check_choices("target", names, TARGET_TABLE)


def normalize_answer(answer: str) -> str:
    """Lower case, no articles, no punctuation, single spaces.

    >>> normalize_answer(" The  Cat.")
    'cat'
    """
    folded = answer.casefold()
    plain = _PUNCTUATION.sub("", folded)
    # an answer of nothing but an article (option A) keeps it, one of nothing but signs keeps these
    return next((" ".join(text.split()) for text in (_ARTICLES.sub(" ", plain), plain, folded) if text.split()), "")


def gold_answer(sample: Sample) -> str:
    """The most frequent normalized answer, in the spelling in which it appears first; ties by first appearance.

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
    """The gold answer's first token that carries information, pooled over its spellings.

    Case and a leading space may vary, as long as the first token spells the same characters otherwise; for option
    letters only the space may. Which of the spellings a model uses depends on what its chat template ends with, so
    both tokenizers' ways to write no space are pooled: "Yes" of byte-level pieces, "Yes" beside SentencePiece's "▁Yes".

    Raises:
        SampleError: no answer, or it tokenizes to nothing.
    """
    answer = gold_answer(sample)
    prefix, (first, *_) = split_answer(tokenizer, answer, sample)
    spelled = _spelling(tokenizer, first)
    fixed = sample.options or _PARTIAL in spelled  # pieces of different characters decode alike
    cases = [answer] if fixed else [answer, answer.lower(), answer.upper(), answer.capitalize()]
    ids = [first]
    for variant in dict.fromkeys(lead + case for lead in ("", " ") for case in cases):
        before, found = _split(tokenizer, variant)
        if before == prefix:  # read at another place, it would be another event
            spellings = [token for first in found[:1] for token in (first, *_without_space(tokenizer, first))]
            exact = bool(sample.options)
            ids += [token for token in spellings if _same(_spelling(tokenizer, token), spelled, exact=exact)]
    return Target("gold", answer, tuple(dict.fromkeys(ids)), prefix)


def split_answer(tokenizer: Any, answer: str, sample: Sample) -> tuple[tuple[int, ...], list[int]]:
    """Token ids of an answer: those before the first that carries information, and the rest.

    Raises:
        SampleError: none does, or what comes first is unknown to the tokenizer.
    """
    prefix, ids = _split(tokenizer, answer)
    if not ids:
        raise SampleError(f"sample {sample.id!r}: answer {answer!r} tokenizes to nothing that carries information")
    return prefix, ids


def _split(tokenizer: Any, text: str) -> tuple[tuple[int, ...], list[int]]:
    """Bare spaces and special tokens carry no information; after an unknown token nothing is known."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    start = next((at for at, token in enumerate(ids) if token not in special and _spelling(tokenizer, token)), None)
    if start is None or ids[start] == tokenizer.unk_token_id:
        return (), []
    return tuple(ids[:start]), ids[start:]


def _spelling(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token]).strip()


def _without_space(tokenizer: Any, token: int) -> list[int]:
    """The piece of SentencePiece that spells the same without the space before it; no text alone encodes to it."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if not piece.startswith(SPACE) or piece == SPACE:
        return []
    found = tokenizer.convert_tokens_to_ids(piece.removeprefix(SPACE))
    return [] if found is None or found == tokenizer.unk_token_id else [found]


def _same(a: str, b: str, *, exact: bool) -> bool:
    return a == b if exact else a.casefold() == b.casefold()


def answer_target(tokenizer: Any, sample: Sample) -> Target:
    """The whole gold answer, teacher-forced."""
    answer = gold_answer(sample)
    prefix, ids = split_answer(tokenizer, answer, sample)
    return Target("answer", answer, tuple(ids), prefix)


def answer_length(tokenizer: Any, sample: Sample) -> int | None:
    """Tokens of the gold answer from the first that carries information on; None where there is no such answer."""
    if not any(answer.strip() for answer in sample.answers):
        return None
    return len(_split(tokenizer, gold_answer(sample))[1]) or None


def forced_ids(names: Sequence[str], tokenizer: Any, sample: Sample) -> tuple[int, ...]:
    """The continuation to force after the prompt, so that every target can be read; () where the prompt's end does.

    Raises:
        SampleError: an answer is needed and missing, or tokenizes to nothing.
    """
    forced = [ids for target in fixed_targets(names, tokenizer, sample).values() if (ids := _needed_ids(target))]
    longest = max(forced, key=len, default=())
    if any(ids != longest[: len(ids)] for ids in forced):
        raise SampleError(f"sample {sample.id!r}: targets {', '.join(names)} need different words before them")
    return longest


def _needed_ids(target: Target) -> tuple[int, ...]:
    """What a target must be read after: nothing where it begins, and ends, at the end of the prompt."""
    return target.forced if target.whole or target.prefix else ()


def fixed_targets(names: Sequence[str], tokenizer: Any, sample: Sample) -> dict[str, Target]:
    """The targets that need no forward pass, by name; with those that others of the names are judged by.

    Raises:
        SampleError: an answer is needed and missing, or tokenizes to nothing.
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
    """Every target of a sample; `greedy-correct` is left out where the model answers wrong.

    Args:
        names: subset of `TARGETS`.
        tokenizer: the model's.
        sample: with its answers; `greedy` alone needs none.
        own_log_probs: (place, vocabulary), of the model's own forward.
        fixed: its `fixed_targets`, if they are there already.

    Raises:
        SampleError: an answer is needed and missing, or tokenizes to nothing.
    """
    greedy = own_log_probs.argmax(-1).tolist()
    fixed = fixed_targets(names, tokenizer, sample) if fixed is None else fixed
    resolved = {name: TARGET_TABLE[name].resolve(tokenizer, greedy, fixed) for name in names}
    return {name: target for name, target in resolved.items() if target is not None}


def _says(greedy: Sequence[int], gold: Target) -> bool:
    """Whether the model's own most probable tokens are the gold answer's beginning."""
    return tuple(greedy[: gold.place]) == gold.prefix and greedy[gold.place] in gold.ids


def _gold_raw(tokenizer: Any, sample: Sample) -> Target:
    """The released code's rule: first id of the answer as it stands, informative or not."""
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
        fixed: from the tokenizer and the sample, what is known before the forward pass; None where nothing is.
        resolve: from the tokenizer, the most probable token at every readout place and the fixed targets by name, the
            target; None where this sample has none.
        whole: whether it is read at every token of the answer.
    """

    name: str
    fixed: Callable[[Any, Sample], Target] | None
    resolve: Callable[[Any, Sequence[int], Fixed], Target | None]
    whole: bool = False


def _as_fixed(name: str) -> Callable[[Any, Sequence[int], Fixed], Target]:
    """The rule of a target that the forward pass adds nothing to."""
    return lambda _tokenizer, _greedy, fixed: fixed[name]


def _greedy(tokenizer: Any, greedy: Sequence[int], _fixed: Fixed) -> Target:
    """The model's own first token."""
    return Target("greedy", tokenizer.decode([greedy[0]]), (greedy[0],))


def _greedy_correct(tokenizer: Any, greedy: Sequence[int], fixed: Fixed) -> Target | None:
    """The model's own token where the gold answer is read; None where it is another answer."""
    gold = fixed["gold"]
    if not _says(greedy, gold):
        return None
    token = greedy[gold.place]
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
