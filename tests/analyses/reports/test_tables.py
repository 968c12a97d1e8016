"""Tables for people say what the results say; records survive JSON."""

import json
from dataclasses import fields

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.comparisons.compare import compare_horizons
from analyses.reports.tables import collapse_table, difference_table, horizon_table
from analyses.reports.text import Table, to_record
from analyses.verdicts.collapse import CollapseDetector, CollapseLayer, find_collapse_layer
from analyses.verdicts.horizon import Horizon, HorizonDetector, find_horizon

L = 8
QUICK = HorizonDetector(resamples=200)


@pytest.fixture
def run(tmp_path):
    return write_run(
        tmp_path / "run",
        effects={
            "ocr": np.tile(fade_curve(L, 7.5, 0.3), (9, 1)),
            "vqa": np.tile(fade_curve(L, 3.5, 0.3), (9, 1)),
            "none": np.full((9, L + 1), 0.5),
        },
        entropies={"query": step_curve(L, 3), "key": np.linspace(3, 4, L)},
    )


def rows(table):
    """Rows as dicts; of two columns with one heading, the second is told apart by a prime."""
    names = [name + "'" * table.columns[:i].count(name) for i, name in enumerate(table.columns)]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_horizons_for_people(run):
    found = find_horizon(run, criterion="removal", detector=QUICK)
    by_group = {row["group"]: row for row in rows(horizon_table(found))}
    (vqa,) = (one for one in found if one.group["task_type"] == "vqa")
    assert (vqa.layer, vqa.interval[1]) == (5, 8)
    assert (by_group["vqa"]["horizon"], by_group["vqa"]["interval"]) == ("5", f"[{vqa.interval[0]}, end]")
    low, high = vqa.half_depth_interval
    assert by_group["vqa"]["half depth"] == "3.50"
    assert by_group["vqa"]["interval'"] == f"[{low:.2f}, {high:.2f}]"
    assert (by_group["ocr"]["horizon"], by_group["ocr"]["interval"]) == ("not before the end", "[end, end]")
    assert by_group["none"]["horizon"].startswith("none: removing all visual tokens at layer 0 has no effect")
    assert (by_group["none"]["interval"], by_group["none"]["half depth"]) == ("-", "-")
    assert (by_group["vqa"]["effect at 0"], by_group["vqa"]["below"]) == ("0.800", "0.040")
    assert (by_group["vqa"]["images"], by_group["vqa"]["layers"]) == ("9", "8")


def test_collapses_for_people(run):
    query, key = rows(collapse_table(find_collapse_layer(run, by=(), detector=CollapseDetector(resamples=200))))
    assert (query["stream"], query["group"], query["ECL"], query["interval"]) == ("query", "all", "3", "[3, 3]")
    assert (query["drop (nats)"], query["agree"]) == ("2.000", "100%")
    assert (key["stream"], key["ECL"], key["interval"]) == ("key", "none: the entropy drops nowhere", "-")


def test_differences_for_people(run):
    found = rows(difference_table(compare_horizons(run, detector=QUICK)))
    ocr_vqa = [row for row in found if (row["a"], row["b"], row["images"]) == ("ocr", "vqa", "all")]
    assert [(row["quantity"], row["unit"]) for row in ocr_vqa] == [
        ("half depth", "layers"),
        ("half depth", "fraction"),
        ("horizon", "layers"),
        ("horizon", "fraction"),
    ]
    assert ocr_vqa[0]["interval"].startswith("[+")
    assert ocr_vqa[0]["images of a, b"] == "9, 9"
    assert ocr_vqa[2]["a - b"] == ">= +3"
    shared = next(row for row in found if row["images"] == "shared")
    assert (shared["a - b"], shared["interval"]) == ("none: no image was asked in both", "-")


def test_a_table_prints_aligned():
    text = str(Table("Depth", ("model", "k"), [("tiny-8", "5"), ("x", "11")]))
    assert text.splitlines() == ["Depth", "model   k", "------  --", "tiny-8  5", "x       11"]
    assert str(Table("Nothing", ("a",), [])).splitlines() == ["Nothing", "a", "-"]


def test_records_survive_json_and_lose_nothing(run):
    for results in (
        find_horizon(run, detector=QUICK),
        find_collapse_layer(run, detector=CollapseDetector(resamples=200)),
    ):
        read = json.loads(json.dumps(to_record(results), allow_nan=False))
        for record, result in zip(read, results, strict=True):
            assert set(record) == {f.name for f in fields(Horizon if isinstance(result, Horizon) else CollapseLayer)}
            assert record["layer"] == result.layer
            assert record["group"] == result.group
            assert record["interval"] == (list(result.interval) if result.interval else None)
            assert record["layers"] == result.layers.tolist()
            assert record["detector"]["resamples"] == 200
            np.testing.assert_array_equal(np.array(record["low"], float), result.low)
    comparison = compare_horizons(run, detector=QUICK)
    read = json.loads(json.dumps(to_record(comparison), allow_nan=False))
    assert read["between"] == "task_type"
    assert [d["value"] for d in read["differences"]] == [d.value for d in comparison.differences]


def test_what_is_no_number_becomes_null():
    assert to_record({"a": np.array([1.5, np.nan]), "b": float("inf"), "c": np.float32(2), "d": np.bool_(True)}) == {
        "a": [1.5, None],
        "b": None,
        "c": 2.0,
        "d": True,
    }
    with pytest.raises(TypeError, match="bytes has no place in JSON"):
        to_record([b"png"])


def test_warnings_stand_under_the_table_once(run):
    found = find_horizon(run, criterion="removal", detector=QUICK)
    assert all("9 images" in one.warning for one in found)
    (note,) = horizon_table(found).notes
    assert note.startswith("synthetic, none; synthetic, ocr; synthetic, vqa: only 9 images")
    assert str(horizon_table(found)).endswith(f"[1] {note}")
