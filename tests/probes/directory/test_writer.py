"""The writer commits parts whole, refuses to mix, and resumes after anything."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analyses.runs import HorizonError, RunConfig, load_run
from probes.directory.writer import Record, RunWriter

CONFIG = RunConfig(
    model="some/model",
    revision=None,
    weights="0" * 16,
    family="llava",
    n_layers=3,
    n_heads=2,
    n_key_value_heads=1,
    head_dim=4,
    hidden_size=8,
    vocab_size=11,
    dtype="float32",
    attn="sdpa",
)


def record(row, value=1.0, **sample):
    return Record(
        {"row": row, "id": f"s{row}", "status": "ok", "error": "", "probes": ["removal"], **sample},
        curves=[("gold", "removal", 0, "", "log_p", value)],
        tokens={"gold/keep-one": np.full((3, 2), value), "gold/keep-one/removed": np.zeros(3)},
        spectra={"hidden": np.full((4, 5), value)},
    )


def failed(row):
    return Record({"row": row, "id": f"s{row}", "status": "failed", "error": "why", "probes": None})


def value_of(run, row):
    rows, _, values = run.matrix("log_p", context="removal", target="gold")
    return values[rows.tolist().index(row), 0]


def test_what_was_flushed_is_read_back_exactly(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.add(record(0, 0.25))
        writer.add(record(1, -3.5, question="what?", answers=["a", "b"]))
    run = load_run(tmp_path / "run")
    assert run.config == CONFIG
    assert value_of(run, 0) == 0.25
    assert value_of(run, 1) == -3.5
    assert run.samples.loc[1, "question"] == "what?"
    assert list(run.samples.loc[1, "answers"]) == ["a", "b"]
    np.testing.assert_array_equal(run.spectra("hidden")[1], np.full((4, 5), -3.5, np.float32))


def test_nothing_pending_writes_no_part(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.flush()
    assert list((tmp_path / "run" / "samples").iterdir()) == []


def test_samples_part_is_the_commit_record(tmp_path):
    """Parts of an interrupted flush, which no samples part lists, are neither read nor kept."""
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.add(record(0))
    committed = tmp_path / "run" / "curves" / "part-0of1-00000.parquet"
    orphans = [
        tmp_path / "run" / "curves" / "part-0of1-00001.parquet",
        tmp_path / "run" / "tokens" / ".part-0of1-00001.safetensors",
        tmp_path / "run" / "samples" / ".part-0of1-00001.parquet",
    ]
    other_shard = tmp_path / "run" / "curves" / "part-1of2-00001.parquet"
    for file in [*orphans, other_shard]:
        file.write_bytes(committed.read_bytes())
    assert len(load_run(tmp_path / "run").curves) == 1
    with RunWriter(tmp_path / "run", CONFIG):
        pass
    assert not any(file.exists() for file in orphans)
    assert committed.exists()
    assert other_shard.exists()


def test_reopened_writer_knows_what_is_committed(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.add(record(4))
        writer.add(failed(5))
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        committed = writer.committed
    assert set(committed) == {4, 5}
    assert committed[4]["id"] == "s4"
    assert list(committed[4]["probes"]) == ["removal"]
    assert committed[5]["status"] == "failed"


def test_newest_commit_of_a_row_holds(tmp_path):
    for value in (1.0, 2.0):
        with RunWriter(tmp_path / "run", CONFIG) as writer:
            writer.add(record(0, value))
    run = load_run(tmp_path / "run")
    assert len(run.samples) == 1
    assert len(run.curves) == 1
    assert value_of(run, 0) == 2.0
    assert run.spectra("hidden")[0][0, 0] == 2.0


def test_a_failure_never_replaces_a_measurement(tmp_path):
    for one in (record(0, 2.0), failed(0)):
        with RunWriter(tmp_path / "run", CONFIG) as writer:
            writer.add(one)
    run = load_run(tmp_path / "run")
    assert run.samples["status"].tolist() == ["ok"]
    assert value_of(run, 0) == 2.0


def test_one_process_at_a_time_writes_a_shard(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.add(record(0))
        with pytest.raises(HorizonError, match=r"another process is writing shard 0/1"):
            RunWriter(tmp_path / "run", CONFIG)
        with RunWriter(tmp_path / "run", CONFIG, shard=(1, 2)) as other:
            other.add(record(1))
    assert load_run(tmp_path / "run").samples.index.tolist() == [0, 1]


START = """
import sys
sys.path.insert(0, {tests!r})
from test_writer import CONFIG, RunWriter, record
index = int(sys.argv[1])
with RunWriter({path!r}, CONFIG, shard=(index, 6)) as writer:
    writer.add(record(index))
"""


def test_shards_that_start_together_make_one_directory(tmp_path):
    code = START.format(tests=str(Path(__file__).parent), path=str(tmp_path / "run"))
    started = [subprocess.Popen([sys.executable, "-c", code, str(n)], stderr=subprocess.PIPE) for n in range(6)]
    assert [(process.communicate()[1], process.returncode) for process in started] == [(b"", 0)] * 6
    assert load_run(tmp_path / "run").samples.index.tolist() == list(range(6))
    assert not list((tmp_path / "run").glob(".run.json*"))


def test_every_part_is_as_readable_as_the_others(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG) as writer:
        writer.add(record(0))
    modes = {file.stat().st_mode for file in (tmp_path / "run").glob("*/part-*")}
    assert modes == {(tmp_path / "run" / "run.json").stat().st_mode}


def test_parts_of_shards_lie_beside_each_other(tmp_path):
    for shard, row in (((0, 2), 0), ((1, 2), 1)):
        with RunWriter(tmp_path / "run", CONFIG, shard=shard) as writer:
            writer.add(record(row, float(row)))
    run = load_run(tmp_path / "run")
    assert run.samples.index.tolist() == [0, 1]
    assert [value_of(run, 0), value_of(run, 1)] == [0.0, 1.0]


def test_other_configuration_is_refused_naming_what_differs(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG):
        pass
    with pytest.raises(HorizonError, match=r"another configuration \(window 2 there, 3 now\)"):
        RunWriter(tmp_path / "run", replace(CONFIG, window=3))


@pytest.mark.parametrize(
    "change", [{"batch_size": 7}, {"device": "elsewhere"}, {"sources": ("x",)}, {"versions": {"torch": "9"}}]
)
def test_what_changes_no_value_is_not_in_the_hash(change):
    assert replace(CONFIG, **change).hash == CONFIG.hash


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"processor": "2" * 16},
        {"revision": "abc"},
        {"weights": "1" * 16},
        {"dtype": "bfloat16"},
        {"prompt": "Q: {question}"},
        {"targets": ("greedy",)},
        {"kind": "zero"},
        {"alpha": 2.0},
        {"center": False},
        {"layers": (1,)},
        {"streams": ("key",)},
    ],
)
def test_every_estimand_is_in_the_hash(change):
    assert replace(CONFIG, **change).hash != CONFIG.hash


def test_a_moved_model_directory_is_the_same_model():
    assert replace(CONFIG, model="/elsewhere/some/model/").hash == CONFIG.hash


def test_config_survives_json():
    config = replace(CONFIG, layers=(0, 2), targets=("gold", "greedy"))
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_directory_of_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(HorizonError, match="is not a run directory"):
        RunWriter(tmp_path, CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_newer_schema_is_refused(tmp_path):
    with RunWriter(tmp_path / "run", CONFIG):
        pass
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    with pytest.raises(HorizonError, match="schema version 99"):
        load_run(tmp_path / "run")
