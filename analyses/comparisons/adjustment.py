"""Results of tests, and their p-values adjusted for how many were made together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from analyses.arrays.permutation import adjust_holm


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A result that a permutation test comes with.

    Attributes:
        p_value: of the test, or None. p_adjusted: the same after Holm, over all tests of its family.
    """

    p_value: float | None = None
    p_adjusted: float | None = None


Result = TypeVar("Result", bound=Tested)


def adjusted(results: Sequence[Result], family: Callable[[Result], Hashable] = lambda _: None) -> list[Result]:
    """The same results with p-values adjusted within each family of tests.

    Args:
        results: in any order, which is kept.
        family: result -> a name that all results of its family share; all are one family by default.
    """
    filled = list(results)
    for name in {family(result) for result in results}:
        members = [i for i, result in enumerate(results) if family(result) == name]
        for i, p in zip(members, adjust_holm([results[i].p_value for i in members]), strict=True):
            filled[i] = replace(results[i], p_adjusted=p)
    return filled
