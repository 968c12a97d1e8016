"""How much the target varies: one that hardly does measures nothing, however deep its curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analyses.runs import Run, split_groups

LARGEST_SHARE = 0.5  # of the samples that one target may stand for without a warning
FEWEST = 3  # distinct targets, below which a constant guess is right too often
BLANK = "(a bare space)"


@dataclass(frozen=True)
class TargetShare:
    """How many samples of one group share one target.

    Attributes:
        model: short name of the model.
        group: column -> value of its samples.
        target: the run's first target, the one whose token ids the samples table holds.
        n_samples: measured samples that have it.
        n_targets: distinct targets among them; spellings pooled into one target are one.
        most_common: text of the most frequent one.
        share: share of the samples that have that one; NaN without samples.
        n_blank: samples whose target is a bare space, which says nothing about the answer.
        warning: what is wrong with such a target; "" where nothing is.
    """

    model: str
    group: dict[str, str]
    target: str
    n_samples: int
    n_targets: int
    most_common: str
    share: float
    n_blank: int
    warning: str


def target_shares(run: Run, *, by: Sequence[str] = ("task",)) -> list[TargetShare]:
    """Count how many samples share one target token.

    A probability of the same token on every sample moves with the prompt, not with what the image shows: its removal
    effect is then one number repeated. Bare spaces before digits (targets `gold-raw` and `greedy` with a SentencePiece
    tokenizer) are the usual case, yes/no questions the harmless one.

    Args:
        run: a run as it was loaded.
        by: columns that define the groups.

    Returns:
        One result a group with at least one target; empty for a run that measured none.

    Raises:
        HorizonError: a column that samples cannot be grouped by.
    """
    samples = run.ok[run.ok["target_ids"].map(_has_target).astype(bool)]
    return [_counted(run, group, samples.loc[rows]) for group, rows in split_groups(samples, by) if len(rows)]


def _has_target(ids: object) -> bool:
    return ids is not None and not isinstance(ids, float)


def _counted(run: Run, group: dict[str, str], samples: pd.DataFrame) -> TargetShare:
    target = run.config.targets[0]
    # the pooled spellings of one target have no order; the tokens of a whole answer do
    key = tuple if target == "answer" else frozenset
    keys = samples["target_ids"].map(lambda ids: key(map(int, ids)))
    (commonest, count), *_ = Counter(keys).most_common(1)
    texts = samples["target_text"].fillna("(not recorded)").map(lambda text: text if text.strip() else BLANK)
    text = str(texts[keys[keys == commonest].index[0]])
    n_blank = int((texts == BLANK).sum())
    share, n_targets = count / len(samples), int(keys.nunique())
    return TargetShare(
        model=run.model,
        group=group,
        target=target,
        n_samples=len(samples),
        n_targets=n_targets,
        most_common=text,
        share=share,
        n_blank=n_blank,
        warning=_warning(n_targets, len(samples), share, text, n_blank),
    )


def _warning(n_targets: int, n_samples: int, share: float, text: str, n_blank: int) -> str:
    reasons = []
    if n_blank:
        reasons.append(
            f"the target of {n_blank} of {n_samples} samples is a bare space, which carries no information: "
            "measure gold or greedy-correct"
        )
    if share > LARGEST_SHARE:
        reasons.append(
            f"{share:.0%} of the samples share the target token {text!r}: on these it hardly measures the answer"
        )
    if n_targets < FEWEST:
        targets = "one target covers" if n_targets == 1 else f"{n_targets} targets cover"
        reasons.append(f"{targets} all samples: a constant guess is right on {share:.0%} of them")
    return "; ".join(reasons)
