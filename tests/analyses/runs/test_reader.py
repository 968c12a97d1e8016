"""The run directory as it is read back: newest commit, failures, token grids, and sentences for what is broken."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.runs import HorizonError, RunConfig, load_run, load_runs, part_order

L = 6


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    return write_run(
        tmp_path / "run",
        effects={"ocr": rng.uniform(0.1, 0.9, (5, L + 1)), "vqa": rng.uniform(0.1, 0.9, (4, L + 1))},
        entropies={"hidden": {"ocr": rng.uniform(1, 2, (5, L + 1))}, "query": np.arange(L, 0, -1.0)},
        grids={"ocr": rng.uniform(0.1, 0.9, (5, L, 4))},
        spectra={"query": {"vqa": np.sort(rng.dirichlet(np.ones(7), (4, L)), axis=-1)[..., ::-1]}},
        failed={"ocr": 2},
        part_size=4,
    )


def test_samples_and_curves_span_all_parts(run):
    assert list(run.samples.index) == list(range(11))
    assert (len(run.ok), len(run.failed)) == (9, 2)
    assert run.samples["part"].nunique() == 3
    rows, layers, values = run.matrix("log_p", context="removal", target="gold")
    np.testing.assert_array_equal(rows, np.arange(9))
    np.testing.assert_array_equal(layers, np.arange(L + 1))
    np.testing.assert_allclose(np.exp(values[:, -1]), run.ok["p"])
    assert run.matrix("entropy", stream="hidden")[2].shape == (5, L + 1)
    assert run.matrix("entropy", stream="query")[2].shape == (9, L)


def test_token_grids_and_spectra_are_read_sample_by_sample(run):
    assert run.token_rows() == [0, 1, 2, 3, 4]
    assert run.token_rows("leave-one-out") == []
    grids = run.tokens("ocr-3")
    assert grids.log_p.shape == (L, 4)
    p, removed = np.exp(grids.log_p.astype(float)), np.exp(grids.removed.astype(float))
    np.testing.assert_allclose(grids.information(), p - removed[:, None], atol=1e-12)
    np.testing.assert_allclose(grids.information("log_p"), grids.log_p - grids.removed[:, None], atol=1e-6)
    assert grids.all == pytest.approx(run.samples.loc[3, "log_p"], abs=1e-6)
    assert list(grids.weights) == [4, 4, 4, 4]
    spectra = run.spectra("query")
    assert sorted(spectra) == [5, 6, 7, 8]
    assert spectra[5].sum(axis=-1) == pytest.approx(np.ones(L), abs=1e-5)
    assert run.spectra("key") == {}
    with pytest.raises(HorizonError, match="no sample with id 'ocr-99'"):
        run.tokens("ocr-99")
    with pytest.raises(HorizonError, match="'vqa-1' of run run carries no token grid"):
        run.tokens("vqa-1")


def test_rows_with_token_grids_are_those_that_have_the_target(tmp_path):
    """Of two targets the second was measured of samples 1 and 3 only: the other two have grids, but none for it."""
    effects = np.tile(fade_curve(L, 2), (4, 1))
    grids = {"ocr": np.full((4, L, 4), 0.5)}
    run = write_run(tmp_path / "run", effects={"ocr": effects}, grids=grids, targets=("gold", "greedy-correct"))
    assert (run.token_rows(), run.token_rows(target="greedy-correct")) == ([0, 1, 2, 3], [])
    file = run.path / "curves" / "part-0-0.parquet"
    table = pq.read_table(file).to_pandas()
    more = table[table["row"].isin([1, 3])].assign(target="greedy-correct")
    pd.concat([table, more]).to_parquet(file, index=False)
    read = load_run(run.path)
    assert read.token_rows() == read.token_rows(target="gold") == [0, 1, 2, 3]
    assert read.token_rows(target="greedy-correct") == [1, 3]
    assert read.token_rows("leave-one-out", "greedy-correct") == []


def test_the_newest_commit_of_a_row_holds(run, tmp_path):
    """Row 2 was measured again later: the new part replaces its sample and its curves, and nothing else."""
    again = write_run(tmp_path / "again", effects={"ocr": np.tile(fade_curve(L, 2), (3, 1))}, probes=("removal",))
    for folder in ("samples", "curves"):
        table = pq.read_table(again.path / folder / "part-0-0.parquet")
        kept = table.filter([row == 2 for row in table["row"].to_pylist()])
        pq.write_table(kept, run.path / folder / "part-0-10.parquet")
    read = load_run(run.path)
    assert len(read.samples) == 11
    assert read.samples.loc[2, "part"] == "part-0-10"
    before, after = (r.matrix("log_p", context="removal", target="gold")[2] for r in (run, read))
    np.testing.assert_allclose(np.exp(after[2]), fade_curve(L, 2))
    np.testing.assert_array_equal(np.delete(after, 2, axis=0), np.delete(before, 2, axis=0))


def test_parts_are_ordered_by_number_not_by_letters(run):
    names = [run.path / f"part-{shard}-{n}.parquet" for shard, n in ((0, 10), (1, 2), (0, 2), (0, 0))]
    assert [p.stem for p in sorted(names, key=part_order)] == ["part-0-0", "part-0-2", "part-1-2", "part-0-10"]


def test_an_uncommitted_part_does_not_count(run):
    last = sorted((run.path / "samples").iterdir())[-1]
    last.unlink()
    assert list(load_run(run.path).samples.index) == list(range(8))
    assert set(load_run(run.path).curves["row"]) == set(range(8))


def test_what_is_no_run_directory_gets_a_sentence(run, tmp_path):
    with pytest.raises(HorizonError, match=r"has no run\.json"):
        load_run(tmp_path)
    broken = shutil.copytree(run.path, tmp_path / "broken")
    (broken / "run.json").write_text("{")
    with pytest.raises(HorizonError, match="does not parse as JSON"):
        load_run(broken)
    (broken / "run.json").write_text(json.dumps({**run.config.to_dict(), "schema_version": 99}))
    with pytest.raises(HorizonError, match="schema version 99, this vlm-horizon reads"):
        load_run(broken)
    assert load_runs([run, str(run.path)])[0] is run


def test_the_hash_covers_estimands_and_nothing_else(run):
    config = run.config
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    record = config.to_dict()
    for name, value in (("window", 3), ("kind", "mean"), ("dtype", "float16"), ("targets", ["greedy"])):
        assert RunConfig.from_dict({**record, name: value}).hash != config.hash
    for name, value in (("batch_size", 3), ("device", "cuda"), ("versions", {"torch": "9"}), ("sources", ["x"])):
        assert RunConfig.from_dict({**record, name: value}).hash == config.hash
    grouped = RunConfig.from_dict({**record, "n_key_value_heads": 2, "hidden_size": 96})
    assert [grouped.stream_dim(s) for s in ("query_raw", "key", "value", "hidden")] == [128, 64, 64, 96]
