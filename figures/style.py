"""The look of every figure: fonts, widths, and colors, markers and dashes by name.

Nothing here touches the global rcParams: figures are built, and written, inside `paper_style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import matplotlib

from analyses.runs import check_choice, split_stream, tokens_text

WIDTHS = {"column": 3.25, "page": 6.75}  # inches: one column and the full page of the usual two-column styles
FONT_SIZE = 7.5  # points, at the printed size
SMALL = 6.5  # points, the smallest text of any figure
GRAY = "0.35"

RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure on every machine
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "figure.titlesize": FONT_SIZE,
    "figure.labelsize": FONT_SIZE,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.labelpad": 2.5,
    "axes.titlepad": 4.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "savefig.bbox": None,  # the width asked for is the width written
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vlm-horizon",
}

# Okabe and Ito, without the yellow that vanishes on white; neighbors contrast most
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B6B6B")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

# names that keep their slot whatever else a figure shows
FIXED_SLOTS = {"ocr": 0, "vqa": 1, "query": 0, "key": 1, "value": 2, "hidden": 3, "query_raw": 4, "key_raw": 5}

STREAM_TITLES = {
    "query": "Query, post-RoPE",
    "key": "Key, post-RoPE",
    "query_raw": "Query, pre-RoPE",
    "key_raw": "Key, pre-RoPE",
    "value": "Value",
    "hidden": "Hidden state",
}


def stream_title(stream: str) -> str:
    """A stream as a panel names it; its tokens are said where they are not the visual ones."""
    tokens, plain = split_stream(stream)
    return STREAM_TITLES[plain] if tokens == "visual" else f"{STREAM_TITLES[plain]}, {tokens} tokens"


@dataclass(frozen=True)
class Look:
    """How one task type, model or stream is drawn, in every figure."""

    color: str
    marker: str
    linestyle: Any


@contextmanager
def paper_style() -> Iterator[None]:
    """Hold the settings of a publication figure for the body of a `with`, or of a decorated function."""
    with matplotlib.rc_context(RC):
        yield


def assign_looks(names: Iterable[str]) -> dict[str, Look]:
    """Give every name a color, marker and dash pattern that does not depend on the order of the names.

    Known names (`FIXED_SLOTS`, in any case) keep their slot; the others take the free slots by alphabet. When the
    colors are used up they come again with another dash pattern.

    >>> assign_looks(["vqa", "charts", "ocr"])["ocr"] == assign_looks(["OCR"])["OCR"]
    True
    """
    ordered = sorted(set(names))
    slots: dict[str, int] = {}
    for name in ordered:
        slot = FIXED_SLOTS.get(name.casefold())
        if slot is not None and slot not in slots.values():
            slots[name] = slot
    occupied = set(slots.values())
    free = (slot for slot in count() if slot not in occupied)
    slots |= {name: next(free) for name in ordered if name not in slots}
    n = len(PALETTE)
    return {
        name: Look(PALETTE[slot % n], MARKERS[slot % n], DASHES[slot // n % len(DASHES)])
        for name, slot in slots.items()
    }


def group_label(group: dict[str, str], tokens: str = "visual") -> str:
    """The values of a group, as a legend shows them, and the removed tokens where these are not the visual ones.

    >>> group_label({"task_type": "ocr"}), group_label({"task_type": "ocr"}, "text")
    ('ocr', 'ocr, text tokens')
    """
    label = ", ".join(group.values()) or "all samples"
    return label if "tokens" in group else tokens_text(label, tokens)


def figure_width(width: str) -> float:
    """Inches of a named width.

    Raises:
        HorizonError: the name is not one of `WIDTHS`.
    """
    check_choice("figure width", width, WIDTHS)
    return WIDTHS[width]
