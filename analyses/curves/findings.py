"""What results on groups of samples have in common: whose they are, what they rest on, and why a number is missing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result on one group of samples of one model, whole also where there is nothing to name.

    Attributes:
        model: short name of the model.
        group: column -> value of the samples; empty for all samples together.
        n_samples: samples that the result rests on.
        n_images: distinct images among them.
        reason: in words, why the layer or the number that the result is about is None; "" where it is given.
    """

    model: str
    group: dict[str, str]
    n_samples: int
    n_images: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RemovalFinding(Finding):
    """A result on the effect of removing tokens from one group of samples.

    Attributes:
        tokens: whose removal it is about: "visual", "text" or "all".
    """

    tokens: str = "visual"
