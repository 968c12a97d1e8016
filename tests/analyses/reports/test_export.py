"""Tables as CSV, Markdown and LaTeX."""

import csv
import io
import json

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.reports.export import render, to_csv
from analyses.reports.tables import horizon_table
from analyses.reports.text import Table
from analyses.runs import HorizonError
from analyses.verdicts.horizon import find_horizon

TABLE = Table("A title", ("model", "p_0"), [("tiny|8", "100 %"), ("a_b", "none: 5 < 6 & more")])


def test_markdown_has_one_line_a_row_and_escapes_bars():
    lines = render(TABLE, "markdown").splitlines()
    assert lines == [
        "**A title**",
        "",
        "| model | p_0 |",
        "| --- | --- |",
        r"| tiny\|8 | 100 % |",
        "| a_b | none [1] |",
        "",
        "1. 5 < 6 & more",
    ]


def test_latex_has_booktabs_rules_and_escapes():
    text = render(TABLE, "latex")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{ll}"):
        assert text.count(rule) == 1
    assert r"a\_b & none [1] \\" in text
    assert "% [1] 5 < 6 & more" in text
    assert r"model & p\_0 \\" in text
    assert r"100 \%" in text


def test_unknown_formats_are_named():
    with pytest.raises(HorizonError, match="table format 'word' is unknown"):
        render(TABLE, "word")


def test_csv_holds_raw_numbers_that_read_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    effects = {name: fade_curve(8, half) + rng.normal(0, 0.01, (20, 9)) for name, half in (("ocr", 6), ("vqa", 3))}
    found = find_horizon(write_run(tmp_path / "run", effects=effects), criterion="removal")
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 2
    for row, horizon in zip(rows, found, strict=True):
        assert row["group.task_type"] == horizon.group["task_type"]
        assert int(row["layer"]) == horizon.layer
        assert float(row["half_depth"]) == horizon.half_depth
        assert [float(row[f"half_depth_interval.{end}"]) for end in ("low", "high")] == list(
            horizon.half_depth_interval
        )
        assert json.loads(row["effect"]) == horizon.effect.tolist()
    rounded = render(horizon_table(found), "markdown")
    assert f"{found[0].half_depth:.2f}" in rounded
    assert rows[0]["half_depth"] not in rounded


def test_missing_values_are_empty_cells(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": np.full((12, 9), 0.5)})
    (row,) = csv.DictReader(io.StringIO(to_csv(find_horizon(run, criterion="removal"))))
    assert (row["layer"], row["interval.low"], row["half_depth"]) == ("", "", "")
    assert row["reason"]


def test_nothing_to_write_is_an_error():
    with pytest.raises(HorizonError, match="no result"):
        to_csv([])
