"""The command `cost`: what it prints, and its exit codes; and the first line of the command `run`."""

import base64
import json
from pathlib import Path

import pytest

import vlm_horizon as vh
from vlm_horizon.cli import main

MODEL = str(vh.data_path("demo-models", "tiny-8"))
OCR, VQA = (str(vh.data_path("demo-samples", f"{name}.jsonl")) for name in ("ocr", "vqa"))
QUICK = ("--layers", "6-7", "--streams", "query", "--window", "4")


def call(capsys, *arguments):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


def test_tables_show_work_memory_and_disk(capsys):
    code, out, _ = call(capsys, "cost", MODEL, OCR, VQA, "--token-samples", "10", *QUICK)
    assert code == 0
    assert out.splitlines()[0].split(": ", 1)[1].startswith("540 samples: ")
    assert "Work: 540 samples, 20 of them with token grids" in out
    for words in ("keep-one", "noise floor", "Peak memory", "73 tokens x (9 x 128 + 2 x 8 x 128)", "Disk"):
        assert words in out


def test_json_holds_the_parts_and_their_sums(capsys):
    code, out, _ = call(capsys, "cost", MODEL, OCR, "--samples", "50", "--format", "json", *QUICK)
    assert code == 0
    record = json.loads(out)
    assert record["samples"] == 50
    assert record["replays"]["removal"] == 50 * 2
    assert record["replays"]["keep-one"] == 50 * 2 * 4
    assert record["total_replays"] == sum(record["replays"].values())
    assert record["total_seconds"] == pytest.approx(sum(record["seconds"].values()))
    assert record["disk_bytes"] == sum(record["disk"].values())
    assert record["peak_bytes"] > record["memory"]["resident"] > 10**8


def test_without_data_a_gray_image_stands_for_it(capsys):
    code, out, err = call(capsys, "cost", MODEL, *QUICK)
    assert code == 0
    assert "no DATA given: counted for a gray image" in err
    assert "100 samples" in out


def test_without_data_a_benchmark_asks_in_its_own_words(capsys):
    plain, asked = (
        call(capsys, "cost", MODEL, "--limit", "7", *task, "--format", "json", *QUICK)[1]
        for task in ((), ("--task", "TextVQA"))
    )
    assert json.loads(plain)["samples"] == json.loads(asked)["samples"] == 7
    assert json.loads(asked)["shape"][1] > json.loads(plain)["shape"][1]  # "... using a single word or phrase."


def test_data_is_chosen_as_in_run(capsys):
    chosen = ("--where", "task=demo-ocr", "--limit", "30", "--seed", "3")
    code, out, _ = call(capsys, "cost", MODEL, OCR, *chosen, "--format", "json", *QUICK)
    assert code == 0
    assert json.loads(out)["samples"] == 30


def test_task_names_the_benchmark_of_a_table(capsys, tmp_path):
    """As in `run`: it says which columns hold what; only our own lines name tasks themselves."""
    record = json.loads(Path(OCR).read_text().splitlines()[0])
    held = base64.b64encode(vh.data_path("demo-samples", record["image"]).read_bytes()).decode()
    table = tmp_path / "mine.tsv"
    rows = [f"{n}\t{held}\t{record['question']}\t{record['answers']}" for n in range(3)]
    table.write_text("\n".join(["index\timage\tquestion\tanswer", *rows]) + "\n")
    code, out, _ = call(capsys, "cost", MODEL, str(table), "--task", "TextVQA", "--format", "json", *QUICK)
    assert code == 0
    assert json.loads(out)["samples"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("/no/such/model",), "no model directory at /no/such/model"),
        ((MODEL, "nowhere.jsonl"), "no sample file at nowhere.jsonl"),
        ((MODEL, OCR, "--where", "task=nothing"), "holds no samples: nothing to estimate"),
        ((MODEL, OCR, "--layer-budget", "3"), "--layer-budget 3 says how --layers auto chooses"),
        ((MODEL, OCR, "--layers", "auto", "--probes", "entropy"), "so the probe information and removal is needed"),
        ((MODEL, "--task", "nothing"), "no benchmark 'nothing' is known (`vlm-horizon tasks` lists them)"),
        ((MODEL, "--where", "split=val"), "--where says how DATA is read, and there is none"),
        ((MODEL, OCR, "--format", "word"), "format 'word' is unknown"),
        ((MODEL, OCR, "--layers", "a-b"), "layers 'a-b' cannot be read"),
        ((MODEL, OCR, "--probes", "magic"), "probe 'magic' is unknown"),
        ((MODEL, OCR, "--window", "0"), "window is 0"),
    ],
)
def test_unusable_arguments_exit_with_two_and_a_sentence(capsys, arguments, message):
    code, out, err = call(capsys, "cost", *arguments)
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert message in err


def test_the_first_line_of_a_run_says_what_it_takes(capsys, tmp_path):
    run = ("run", MODEL, OCR, "--limit", "2", "--probes", "removal", "--layers", "7", "--out", str(tmp_path / "run"))
    code, _, err = call(capsys, *run)
    assert code == 0
    data, model, taken = err.splitlines()[:3]
    assert data.startswith(OCR)
    assert "2 samples -> " in model
    assert taken.startswith("2 samples: 12 replays, ")
    assert call(capsys, *run)[2].splitlines()[2] == "nothing is left to measure"
    quiet = call(capsys, *run[:-1], str(tmp_path / "quiet"), "--quiet")[2]
    assert "replays" not in quiet
