"""Arguments of the command line that several commands read."""

from __future__ import annotations

from analyses.runs import HorizonError
from vlm_horizon.conclude import words


def parse_layers(text: str | None) -> list[int] | None:
    """Read "0,4,8" or "0-7" as layers."""
    if text is None:
        return None
    layers: list[int] = []
    for word in words(text):
        first, dash, last = word.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise HorizonError(f"layers {text!r} cannot be read; write them as 0,4,8 or 0-7")
        layers += range(int(first), int(last if dash else first) + 1)
    return layers
