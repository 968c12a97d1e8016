"""Tables about answers: how much targets vary, and what the generated answers score."""

from __future__ import annotations

from collections.abc import Sequence

from analyses.scores import Score
from analyses.tables import Table, group_text, interval_text, number_text, warnings_of
from analyses.targets import TargetShare


def target_table(results: Sequence[TargetShare]) -> Table:
    """One row a group: how many targets there are, and how many samples share the most common one."""
    rows = [
        (
            r.model,
            group_text(r.group),
            r.target,
            str(r.n_samples),
            str(r.n_targets),
            r.most_common,
            number_text(100 * r.share, 0),
            str(r.n_blank),
        )
        for r in results
    ]
    columns = ("model", "group", "target", "samples", "targets", "most common", "share (%)", "bare spaces")
    return Table("How much the target varies", columns, rows, warnings_of(results))


def score_table(results: Sequence[Score]) -> Table:
    """One row a group, scorer and metric: the number, or why there is none."""
    rows = [
        (
            r.model,
            group_text(r.group),
            r.scorer or "-",
            r.metric,
            f"none: {r.reason}" if r.value is None else number_text(r.value, 1 if r.metric == "score" else 3),
            interval_text(r.interval, 1 if r.metric == "score" else 3),
            str(r.n_samples),
            str(r.n_images),
            str(r.n_missing),
            str(r.n_cut),
        )
        for r in results
    ]
    columns = ("model", "group", "scorer", "metric", "value", "interval", "answers", "images", "missing", "cut")
    return Table("Scores of the generated answers", columns, rows, warnings_of(results))
