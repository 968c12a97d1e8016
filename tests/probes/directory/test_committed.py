"""What is on disk of a sample comes back as it was given, and new layers find their place among it."""

from __future__ import annotations

import numpy as np
import pytest
from demo_data import demo_model, demo_samples

import vlm_horizon as vh
from probes.directory.committed import committed_removals, merge_grids, read_record
from probes.directory.writer import Record, RunWriter, record_choice
from probes.measures.information import removal_curves
from probes.measures.preparing import prepare


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return vh.run(
        demo_model(),
        demo_samples(1),
        tmp_path_factory.mktemp("runs") / "run",
        streams=("query",),
        targets=("gold", "greedy"),
        window=4,
        token_layers=[0, 5],
        spectra=1,
        progress=False,
    )


def test_a_record_is_read_as_it_was_written(run, tmp_path):
    """Written once more, every file holds the same."""
    with RunWriter(tmp_path / "copy", run.config) as writer:
        for row in run.samples.index:
            writer.add(read_record(run.path, run.samples["part"][row], row, run.token_layers(row)))
    copy = vh.load_run(tmp_path / "copy")
    assert copy.curves.equals(run.curves)
    assert copy.samples.drop(columns="part").astype(str).equals(run.samples.drop(columns="part").astype(str))
    for row in run.samples.index:
        assert copy.thumbnail(row) == run.thumbnail(row)
        for target in ("gold", "greedy"):
            ours, theirs = copy.tokens(row, target=target), run.tokens(row, target=target)
            np.testing.assert_array_equal(ours.log_p, theirs.log_p)
            np.testing.assert_array_equal(ours.layers, [0, 5])
    np.testing.assert_array_equal(copy.spectra("query")[0], run.spectra("query")[0])


def test_removal_curves_come_back_whole(run):
    sample = demo_samples(1)[0]
    case = prepare(demo_model(), sample, ("gold", "greedy"))
    measured = removal_curves(case)
    held = committed_removals(read_record(run.path, run.samples["part"][0], 0, ()), case.targets, "delete")
    for name, curve in measured.items():
        np.testing.assert_array_equal(held[name].layers, curve.layers)
        np.testing.assert_allclose(held[name].log_p, curve.log_p, atol=1e-5)
        np.testing.assert_allclose(held[name].kl, curve.kl, atol=1e-5)
        np.testing.assert_array_equal(held[name].correct, curve.correct)
        np.testing.assert_array_equal(held[name].same, curve.same)


def test_new_layers_are_put_in_order():
    def arrays(layers):
        rows = np.array(layers, dtype=float)
        return {"t/c": rows[:, None] * [1, 10], "t/c/removed": rows, "t/c/all": np.array([-1.0])}

    empty = merge_grids(Record({"row": 3}), arrays([2, 6]), [2, 6])
    merged = merge_grids(empty, arrays([0, 4]), [0, 4])
    assert merged.token_layers == (0, 2, 4, 6)
    np.testing.assert_array_equal(merged.tokens["t/c"], [[0, 0], [2, 20], [4, 40], [6, 60]])
    np.testing.assert_array_equal(merged.tokens["t/c/removed"], [0, 2, 4, 6])
    np.testing.assert_array_equal(merged.tokens["t/c/all"], [-1])


def test_rows_of_one_part_may_differ_in_their_layers(run, tmp_path):
    first = read_record(run.path, run.samples["part"][0], 0, run.token_layers(0))
    second = read_record(run.path, run.samples["part"][1], 1, run.token_layers(1))
    more = {key: value + (0 if key.endswith("all") else -1) for key, value in first.tokens.items()}
    with RunWriter(tmp_path / "copy", run.config) as writer:
        writer.add(merge_grids(first, more, [1, 7]))
        writer.add(second)
    copy = vh.load_run(tmp_path / "copy")
    assert copy.samples["part"].nunique() == 1
    assert [copy.token_layers(row) for row in (0, 1)] == [(0, 1, 5, 7), (0, 5)]
    grids = copy.tokens(0)
    assert grids.layers.tolist() == [0, 1, 5, 7]
    np.testing.assert_array_equal(grids.log_p[[0, 2]], run.tokens(0).log_p)
    np.testing.assert_allclose(grids.log_p[[1, 3]], run.tokens(0).log_p - 1, atol=1e-6)
    # together they have the layers that both have
    curves = vh.find_horizon(copy, by=(), criterion="information")[0]
    assert curves.layers.tolist() == [0, 5, 8]
    assert curves.skipped.tolist() == [1, 2, 3, 4, 6, 7]


def test_a_choice_is_added_to_what_was_chosen_and_changes_no_hash(run):
    before = run.config
    record_choice(run.path, layers={"ocr": [3, 1]}, pilot=[4])
    record_choice(run.path, layers={"ocr": [2, 3], "vqa": [0]}, pilot=[1, 4])
    after = vh.load_run(run.path).config
    assert after.chosen_layers == {"ocr": [1, 2, 3], "vqa": [0]}
    assert after.pilot_rows == (1, 4)
    assert after.hash == before.hash
