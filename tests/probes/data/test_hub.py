"""Datasets of the hub, from a prepared cache without a network and from a local endpoint; in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_files import stored, write_shard
from hub_server import COMMIT, fill_cache, serve

from analyses.runs import HorizonError
from probes.data.hub import choose_files, is_dataset_id
from probes.data.readers import read_samples

ROOT = Path(__file__).resolve().parents[3]
SHORT = "Answer the question using a single word or phrase."
# reads datasets and prints what came of them, one JSON line each
SCRIPT = """
import json, sys
from analyses.runs import HorizonError
from probes.data.readers import read_samples
for name, how in json.loads(sys.argv[1]):
    try:
        stream = read_samples(name, **how)
        samples = list(stream)
        pixels = [sample.load_image().getpixel((0, 0)) for sample in samples]
        found = [[s.id, s.question, s.answers, s.task, s.category, s.error, p] for s, p in zip(samples, pixels)]
        print(json.dumps({"source": stream.source.name, "note": stream.note, "samples": found}))
    except HorizonError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """Three miniature datasets: two splits, configurations in folders, images in shards of their own."""
    root = tmp_path_factory.mktemp("hub")
    textvqa = root / "lmms-lab-encoder" / "textvqa"
    for split, shard, count in (("train", 0, 1), ("validation", 0, 2), ("validation", 1, 2)):
        write_shard(
            textvqa / "data" / f"{split}-0000{shard}-of-0000{count}.parquet",
            {"question_id": [shard], "question": [f"{split} {shard}?"], "answers": [["a"] * 10]},
            image=[stored("green" if shard else "red")],
        )
    (textvqa / "README.md").write_text("# a miniature")
    for config in ("DocVQA", "InfographicVQA"):
        write_shard(
            root / "lmms-lab-encoder" / "DocVQA" / config / "validation-00000-of-00001.parquet",
            {"questionId": ["1"], "question": [f"{config}?"], "answers": [["a", "b"]]},
            image=[stored("white")],
        )
    gqa = root / "lmms-lab-encoder" / "GQA"
    for folder in ("testdev_balanced_instructions", "val_balanced_instructions"):
        write_shard(
            gqa / folder / "testdev-00000-of-00001.parquet",
            {"id": ["q1", "q2"], "imageId": ["n2", "n1"], "question": ["one?", "two?"], "answer": ["yes", "dog"]},
        )
    for folder, color in (("testdev_balanced_images", "blue"), ("val_balanced_images", "green")):
        write_shard(
            gqa / folder / "testdev-00000-of-00001.parquet", {"id": ["n1", "n2"]}, image=[stored("red"), stored(color)]
        )
    (root / "someone" / "text").mkdir(parents=True)
    (root / "someone" / "text" / "data.jsonl").write_text("{}")
    return root


def read_elsewhere(home: Path, wanted: list, **environment: str) -> list[dict]:
    """What a fresh process reads, with an environment and a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted)],
        env=kept | {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


WANTED = [
    ("lmms-lab-encoder/textvqa", {}),
    ("lmms-lab-encoder/textvqa:train", {"limit": 1}),
    ("lmms-lab-encoder/DocVQA", {}),
    ("lmms-lab-encoder/DocVQA:InfographicVQA", {"task": "infovqa", "revision": "main"}),
    ("lmms-lab-encoder/GQA", {}),
]


def check_found(found: list[dict]) -> None:
    textvqa, train, docvqa, infovqa, gqa = found
    assert textvqa["source"] == f"lmms-lab-encoder/textvqa@{COMMIT}"
    assert "task textvqa (guessed from its name)" in textvqa["note"]
    red, green, blue = [255, 0, 0], [0, 128, 0], [0, 0, 255]
    assert textvqa["samples"] == [  # of its splits the one that the benchmark is scored on
        ["0", f"validation 0?\n{SHORT}", ["a"] * 10, "textvqa", "", "", red],
        ["1", f"validation 1?\n{SHORT}", ["a"] * 10, "textvqa", "", "", green],
    ]
    assert [sample[1] for sample in train["samples"]] == [f"train 0?\n{SHORT}"]
    assert [(sample[1], sample[3]) for sample in docvqa["samples"]] == [(f"DocVQA?\n{SHORT}", "docvqa")]
    assert [(sample[1], sample[3]) for sample in infovqa["samples"]] == [(f"InfographicVQA?\n{SHORT}", "infovqa")]
    assert [(sample[2], sample[6]) for sample in gqa["samples"]] == [(["yes"], blue), (["dog"], red)]


def test_a_prepared_cache_is_enough_without_a_network(datasets, tmp_path):
    for name in ("textvqa", "DocVQA", "GQA"):
        fill_cache(tmp_path, f"lmms-lab-encoder/{name}", datasets / "lmms-lab-encoder" / name)
    wanted = [*WANTED, ("lmms-lab-encoder/ai2d", {}), ("lmms-lab-encoder/textvqa", {"revision": "old"})]
    *found, missing, revision = read_elsewhere(tmp_path, wanted, HF_HUB_OFFLINE="1")
    check_found(found)
    assert missing["error"].startswith(
        "lmms-lab-encoder/ai2d is no path here, and its revision main is not in the cache"
    )
    assert "its revision old is not in the cache" in revision["error"]


def test_an_endpoint_serves_lists_and_files(datasets, tmp_path):
    wanted = [
        *WANTED,
        ("lmms-lab-encoder/none", {}),
        ("lmms-lab-encoder/textvqa", {"revision": "v9"}),
        ("lmms-lab-encoder/textvqa:test", {}),
        ("someone/text", {}),
    ]
    with serve(datasets) as (endpoint, requests):
        *found, none, revision, split, text = read_elsewhere(tmp_path, wanted, HF_ENDPOINT=endpoint)
        check_found(found)
        fetched = [request for request in requests if request.startswith("GET /datasets/")]
        assert len(fetched) == len(set(fetched)) == 7  # no shard twice, and none that is not wanted
        assert not any("val_balanced" in request for request in fetched)
        before = len(requests)
        (again,) = read_elsewhere(tmp_path, WANTED[:1], HF_ENDPOINT=endpoint)
        assert again == found[0]
        assert not any(request.startswith("GET /datasets/") for request in requests[before:])
    assert none["error"].startswith("lmms-lab-encoder/none is no path here and no dataset on the hub")
    assert revision["error"] == "the dataset lmms-lab-encoder/textvqa has no revision 'v9' on the hub"
    assert split["error"] == (
        "the dataset lmms-lab-encoder/textvqa has no set 'test': choose one of lmms-lab-encoder/textvqa:data/train, "
        "lmms-lab-encoder/textvqa:data/validation"
    )
    assert text["error"].startswith("the dataset someone/text holds no parquet files (data.jsonl): download it")
    (offline, other) = read_elsewhere(tmp_path, [*WANTED[:1], ("someone/text", {})], HF_HUB_OFFLINE="1")
    assert "is not in the cache" in other["error"]
    assert offline["samples"] == found[0]["samples"]


def test_a_hub_that_does_not_answer_is_named(tmp_path):
    with serve(tmp_path) as (endpoint, _):
        pass
    (found,) = read_elsewhere(tmp_path, WANTED[:1], HF_ENDPOINT=endpoint)
    assert found["error"].startswith("lmms-lab-encoder/textvqa is no path here, and the hub cannot be asked for it: ")
    assert found["error"].endswith("with HF_HUB_OFFLINE=1 the cache is read")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("owner/na-me_1.0:folder/split", True),
        ("owner/name:", True),
        ("name", False),
        ("owner/name.tsv", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("/a/b", False),
        ("../a", False),
        ("C:/a", False),
    ],
)
def test_dataset_ids_are_told_from_paths(name, expected):
    assert is_dataset_id(name) is expected


def test_a_path_that_is_there_goes_before_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "owner" / "name" / "test.parquet", {"question": ["q?"]}, image=[stored("red")])
    assert read_samples("owner/name").source.kind == "parquet, 1 rows"


def test_words_choose_files_by_folder_or_beginning():
    files = ("en/dev-00000-of-00001.parquet", "en/developer.parquet", "cn/dev-00000-of-00001.parquet", "test.parquet")
    assert choose_files("o/n", files, "en/dev") == files[:1]
    assert choose_files("o/n", files, "cn") == files[2:3]
    assert choose_files("o/n", files, "test") == files[3:]
    for words, reason in (
        ("dev", "has several sets for 'dev': choose one of o/n:en/dev, o/n:cn/dev$"),
        ("de", "has no set 'de'"),
    ):
        with pytest.raises(HorizonError, match=reason):
            choose_files("o/n", files, words)
