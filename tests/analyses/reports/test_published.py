"""Published numbers are found under every name of their model and task, and never for another."""

import csv
import json
from pathlib import Path

import pytest

from analyses.reports.published import load_published
from analyses.runs import HorizonError

DATA = Path(__file__).parents[3] / "data" / "published"
NUMBERS = load_published(DATA / "layers.json")


@pytest.mark.parametrize(
    "model", ["llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b", "LLaVA-1.5-7B", "/m/llava-1.5-7b-hf/"]
)
def test_a_model_is_found_under_every_name(model):
    found = NUMBERS.matching(model, ["textvqa"])
    assert {(number.quantity, number.value) for number in found} == {("collapse layer", 2), ("horizon", 24)}
    assert all(number.source and number.how for number in found)


def test_other_models_and_tasks_match_nothing():
    assert NUMBERS.matching("llava-1.5-13b-hf", ["textvqa"]) == []
    assert [number.task for number in NUMBERS.matching("llava-1.5-7b-hf", ["docvqa"])] == [None]
    assert NUMBERS.matching("tiny-8", ["ocr", "vqa"]) == []


def test_ranges_are_given_when_asked_for():
    ranges = NUMBERS.matching("llava-1.5-7b-hf", quantities=("entropy range, nats",))
    assert {(number.stream, number.value) for number in ranges} == {("query", (3.3, 3.8)), ("key", (2.8, 3.2))}


def test_layers_lie_inside_their_models():
    for number in NUMBERS.numbers:
        assert number.layers in (28, 32)
        if number.quantity != "entropy range, nats":
            assert 0 < number.value < number.layers


def test_files_of_another_form_are_named(tmp_path):
    for content in ("not json", json.dumps({"numbers": [{"quantity": "horizon"}]})):
        file = tmp_path / "layers.json"
        file.write_text(content)
        with pytest.raises(HorizonError, match=r"layers\.json holds no published numbers"):
            load_published(file)


def test_relative_accuracies_are_the_mean_of_ratios():
    """The published Rel. column, recomputed from the published accuracies, to what one decimal leaves open."""
    rows = list(csv.DictReader((DATA / "accuracies.csv").read_text().splitlines()))
    assert len(rows) == 409
    assert all(float(row["value"]) == float(row["value"]) for row in rows)
    table = [row for row in rows if row["table"] in ("Table 1", "Table 7")]
    benchmarks = ["MMBench", "MME", "ScienceQA", "TextVQA", "MMBench-CN", "MM-Vet", "MMStar", "AI2D"]
    values = {}
    for row in table:
        values.setdefault((row["setting"], row["method"]), {})[row["benchmark"]] = float(row["value"])
    full = values[("576 tokens", "full model")]
    checked = 0
    for method in values.values():
        ratio = sum(method[name] / full[name] for name in benchmarks) / len(benchmarks) * 100
        assert method["relative accuracy %"] == pytest.approx(ratio, abs=0.35)
        checked += 1
    assert checked == 19
