"""Agreement of first-order token grids with exact ones: read per layer, averaged over samples, and told."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.reports.summary import describe_agreement
from analyses.reports.tables import gate_table
from analyses.runs import CURVES, HorizonError, load_run
from analyses.verdicts.first_order import GateAgreement, gate_agreement

L = 6
MEASURES = ("gate_rank_correlation", "gate_top_overlap", "gate_largest_effect")


def checked_run(path, checks):
    """A run of four samples by the method "gate"; `checks`: (row, layer) -> correlation, overlap, largest effect."""
    p = np.tile(fade_curve(L, 3), (4, 1))
    run = write_run(path, effects={"ocr": p}, grids={"ocr": p[:, :-1, None] + [0.1, 0.2]}, method="gate")
    added = [
        {"row": row, "target": "gold", "context": "keep-one", "layer": k, "stream": "", "measure": name, "value": value}
        for (row, k), values in checks.items()
        for name, value in zip(MEASURES, values, strict=True)
    ]
    file = run.path / "curves" / "part-0-0.parquet"
    tables = pd.concat([pq.read_table(file).to_pandas(), pd.DataFrame(added, columns=CURVES.names)])
    pq.write_table(pa.Table.from_pandas(tables, CURVES, preserve_index=False), file)
    return load_run(run.path)


def test_means_are_over_the_samples_checked_at_a_layer(tmp_path):
    """Where all effects of a sample are the same it has no correlation of ranks, but an overlap."""
    checks = {
        (0, 1): (0.5, 0.25, 0.1),
        (2, 1): (math.nan, 0.75, 0.3),
        (3, 1): (0.9, 0.5, 0.2),
        (2, 4): (math.nan, 1, 0),
    }
    first, last = gate_agreement(checked_run(tmp_path / "run", checks))
    assert (first.context, first.target, first.window, first.layer) == ("keep-one", "gold", 2, 1)
    assert (first.n_samples, last.n_samples, last.layer) == (3, 1, 4)
    values = (first.rank_correlation, first.top_overlap, first.largest_effect)
    assert values == pytest.approx((0.7, 0.5, 0.2))
    assert math.isnan(last.rank_correlation)
    assert (last.top_overlap, last.largest_effect) == (1.0, 0.0)


def test_nothing_checked_and_unknown_targets(tmp_path):
    run = checked_run(tmp_path / "run", {})
    assert gate_agreement(run) == []
    with pytest.raises(HorizonError, match="target 'silver' is unknown; choose from gold"):
        gate_agreement(run, target="silver")
    assert "no sample was checked" in describe_agreement([])


def agreement(context, layer, n_samples, rank, overlap):
    return GateAgreement("m", context, "gold", 2, layer, n_samples, rank, overlap, 0.012)


def test_the_words_are_means_over_layers_context_by_context():
    results = [
        agreement("keep-one", 0, 3, 0.9, 0.5),
        agreement("keep-one", 1, 5, 0.5, 0.7),
        agreement("keep-one", 2, 4, math.nan, 0.3),
        agreement("leave-one-out", 0, 2, math.nan, 1.0),
    ]
    assert describe_agreement(results) == (
        "gate against exact values on 5 samples, mean over layers: keep-one: rank correlation 0.70, top-10 % overlap "
        "50 %; leave-one-out: rank correlation -, top-10 % overlap 100 %"
    )
    table = gate_table(results)
    assert [tuple(row) for row in table.rows] == [
        ("keep-one", "0", "3", "0.90", "0.50", "1.2e-02"),
        ("keep-one", "1", "5", "0.50", "0.70", "1.2e-02"),
        ("keep-one", "2", "4", "-", "0.30", "1.2e-02"),
        ("leave-one-out", "0", "2", "-", "1.00", "1.2e-02"),
    ]
