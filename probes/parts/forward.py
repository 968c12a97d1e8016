"""The parts around the model's own forward pass: what it gives, whom it leaves out, and what was on disk before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from analyses.runs import WRONG
from probes.data.samples import pictures_sha256
from probes.directory.columns import FLOORS, sample_entry, thumbnail
from probes.directory.committed import committed_removals
from probes.directory.writer import Record
from probes.measures.calls import AnswerCall, Calls, ForwardCall, PlainCall
from probes.measures.case import Case
from probes.measures.noise import NoiseFloor
from probes.parts.part import Outline, Part, Results, outline_of


@dataclass(frozen=True)
class Forward(Part):
    """The captured forward pass, whose result is the case that all other parts take.

    Attributes:
        call: the call that says what is captured, and for which targets.
        less: when a sample takes less than the calls of its parts, in words, as `Part.less` says.
    """

    call: ForwardCall
    less: str = ""

    name = "forward"

    def calls(self, case: Case) -> Calls:
        return (self.call,)


@dataclass(frozen=True)
class Columns(Part):
    """The columns of the samples table that follow from the forward pass and from the pictures.

    Attributes:
        target: the name of the target by which the table judges the sample.
    """

    target: str

    name = "record"

    def calls(self, case: Case) -> Calls:
        return (
            PlainCall(partial(sample_entry, case.model, case.captured, case.targets.get(self.target))),
            PlainCall(partial(_with_pictures, _pictures(case), Record({}))),
        )

    def run(self, case: Case, results: Results) -> Results:
        entry = sample_entry(case.model, case.captured, case.targets.get(self.target))
        return results.with_columns(entry).and_later(partial(_with_pictures, _pictures(case)))

    def outline(self, case: Case) -> Outline:
        entry = sample_entry(case.model, case.captured, case.targets.get(self.target))
        return Outline(entry | {name: float for name in ("p", "log_p", "output_entropy") if name in entry})


def _pictures(case: Case) -> Sequence[Image.Image]:
    prompt = case.captured.prompt
    return prompt.images or (prompt.image,)


def _with_pictures(pictures: Sequence[Image.Image], record: Record) -> Record:
    columns = {"image_sha256": pictures_sha256(pictures), "thumbnail": thumbnail(pictures[0])}
    return replace(record, sample={**record.sample, **columns})


@dataclass(frozen=True)
class RightAnswers(Part):
    """Excludes a sample that the model answers wrong: nothing after this part is run on it."""

    less = "for samples that the model answers wrong, which end after one forward pass"

    def run(self, case: Case, results: Results) -> Results:
        if _answered_right(case):
            return results
        return results.with_columns({"status": "excluded", "error": WRONG, "probes": []})


def _answered_right(case: Case) -> bool:
    """Whether the most probable token is in the first target that is not the model's own token.

    The target `greedy-correct` is absent where the answer is wrong.
    """
    judge = next((target for name, target in case.targets.items() if name != "greedy"), None)
    return judge is not None and bool(judge.contains(case.captured.log_probs[judge.place].argmax()))


@dataclass(frozen=True)
class CommittedSample(Part):
    """The committed measurement of a sample, to which token grids are added; nothing of it is measured again.

    Attributes:
        parts: the parts whose results the sample's record holds once the grids are added.
        kind: the kind of its removals.
    """

    parts: tuple[Part, ...]
    kind: str

    def run(self, case: Case, results: Results) -> Results:
        if not case.targets:
            return results
        record = results.record
        removals = committed_removals(record, case.targets, self.kind, case.captured.prompt.tokens)
        floor = NoiseFloor(*(record.sample[name] for name in FLOORS))
        return replace(results, removals=removals).with_floor(floor)

    def outline(self, case: Case) -> Outline:
        return outline_of(self.parts, case)


@dataclass(frozen=True)
class Answer(Part):
    """The whole answer, written out after all else, and kept in a table of its own (`generation_row`).

    Attributes:
        tokens: the number of tokens after which it is cut.
    """

    tokens: int

    name = "answers"

    @property
    def less(self) -> str:
        return f"where answers end before {self.tokens} tokens" if self.tokens > 1 else ""

    def calls(self, case: Case) -> Calls:
        return (AnswerCall(self.tokens),)
