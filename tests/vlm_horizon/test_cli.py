"""The command line: what it prints, what it writes, and its exit codes."""

import base64
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import fade_curve, step_curve, write_run

import vlm_horizon as vh
from vlm_horizon.cli import main

MODEL = str(vh.data_path("demo-models", "tiny-8"))
OCR, VQA = (str(vh.data_path("demo-samples", f"{name}.jsonl")) for name in ("ocr", "vqa"))


def call(capsys, *arguments):
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    return exit_.value.code or 0, out, err


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run whose OCR effect half-fades at layer 6 and VQA at layer 3, with a collapse of queries at layer 2."""
    rng = np.random.default_rng(0)
    images = {"ocr": range(60), "vqa": range(60)}
    effects = {
        name: 0.05 + 0.9 * fade_curve(8, half, 0.4) + rng.normal(0, 0.01, (60, 9))
        for name, half in (("ocr", 6), ("vqa", 3))
    }
    entropy = {name: np.tile(step_curve(8, 2, 3.5, 2.5), (60, 1)) + rng.normal(0, 0.01, (60, 8)) for name in effects}
    path = tmp_path_factory.mktemp("cli") / "planted"
    write_run(path, effects=effects, entropies={"query": entropy}, images=images)
    return path


def test_run_measures_and_resumes(capsys, tmp_path):
    out = tmp_path / "run"
    options = ("--probes", "removal", "--limit", "2", "--out", str(out), "--layers", "0,4-6")
    code, _, err = call(capsys, "run", MODEL, OCR, VQA, *options)
    assert code == 0
    assert "4 samples measured" in err
    assert "4/4" in err
    run = vh.load_run(out)
    assert run.matrix("log_p", context="removal", target="gold")[1].tolist() == [0, 4, 5, 6, 8]
    code, _, err = call(capsys, "run", MODEL, OCR, VQA, *options)
    assert code == 0
    assert "4 skipped" in err


def test_a_first_order_run_says_what_it_is_worth(capsys, tmp_path):
    out = tmp_path / "run"
    options = ("--probes", "removal,information", "--limit", "1", "--layers", "6,7", "--window", "4", "--out", str(out))
    code, _, err = call(capsys, "run", MODEL, OCR, "--method", "gate", "--gate-checks", "1", *options)
    assert code == 0
    assert "gate against exact values on 1 samples, mean over layers: keep-one: rank correlation" in err
    _, shown, err = call(capsys, "show", str(out))
    assert "token grids are first order (method gate)" in shown
    assert "First-order token information (method gate) against exact values" in shown
    assert "carries nothing for the section gate" not in err
    code, _, err = call(capsys, "run", MODEL, OCR, "--method", "gate", "--kind", "zero", "--out", str(tmp_path / "no"))
    assert code == 2
    assert "has no counterpart of 'zero'" in err


def test_a_run_on_text_says_so_wherever_it_is_shown(capsys, tmp_path):
    out = tmp_path / "text"
    code, _, _ = call(
        *(capsys, "run", MODEL, OCR, "--out", str(out), "--limit", "2", "--tokens", "text", "--layers", "0,7"),
        *("--probes", "entropy,removal", "--quiet"),
    )
    assert code == 0
    assert vh.load_run(out).config.streams == ("text:query", "text:key", "text:hidden")
    assert "; effects are of text tokens" in call(capsys, "show", str(out))[1].splitlines()[0]
    assert json.loads(call(capsys, "show", str(out), "--json")[1])[0]["tokens"] == "text"
    code, _, err = call(capsys, "run", MODEL, OCR, "--out", str(out), "--tokens", "words")
    assert code == 2
    assert "tokens 'words'" in err


def test_failed_samples_are_listed_and_exit_with_one(capsys, tmp_path):
    lines = Path(OCR).read_text().splitlines()[:2]
    lines = [line.replace("images/", f"{vh.data_path('demo-samples')}/images/") for line in lines]
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join([lines[0], '{"id": 1, "image": ', lines[1]]))
    code, _, err = call(capsys, "run", MODEL, str(file), "--probes", "removal", "--out", str(tmp_path / "run"))
    assert code == 1
    assert "set.jsonl line 2: not valid JSON" in err
    assert "1 samples failed; all others are kept" in err
    assert len(vh.load_run(tmp_path / "run").ok) == 2


def test_a_benchmarks_table_is_measured_by_its_task(capsys, tmp_path):
    """Guessed task, official suffix, exact first prompt, conditions, a bad row: all of it said and stored."""
    records = [json.loads(line) for line in Path(OCR).read_text().splitlines()[:4]]
    held = [base64.b64encode(vh.data_path("demo-samples", r["image"]).read_bytes()).decode() for r in records]
    rows = [f"{n}\t{held[n]}\t{r['question']}\t{r['answers']}\t{'ab'[n % 2]}" for n, r in enumerate(records)]
    table = tmp_path / "TextVQA_VAL.tsv"
    table.write_text("\n".join(["index\timage\tquestion\tanswer\tpart", *rows, "4\t0\twhat?\t['a\tb"]) + "\n")
    out = tmp_path / "run"
    code, _, err = call(
        capsys, *("run", MODEL, str(table), "--out", str(out), "--probes", "removal", "--where", "part=b", "--quiet")
    )
    assert code == 1
    assert "task textvqa (guessed from its name), type ocr, scorer vqa" in err
    assert "2 rows left out: part=b" in err
    assert 'TextVQA_VAL.tsv line 6: "[\'a" is no list that can be read' in err
    run = vh.load_run(out)
    asked = f"{records[1]['question']}\nAnswer the question using a single word or phrase."
    assert run.config.prompt_example == f"USER: <image> {asked} ASSISTANT:"
    assert run.config.sources == (f"{table} (part=b)",)
    assert run.ok[["id", "task", "task_type", "question"]].values.tolist()[0] == ["1", "textvqa", "ocr", asked]
    assert len(run.ok) == 2
    other = ("--out", str(tmp_path / "other"), "--probes", "entropy", "--limit", "1", "--seed", "3")
    code, _, err = call(capsys, "run", MODEL, str(table), *other, "--prompt", "Q: {question}", "--where", "index<4")
    assert code == 0
    run = vh.load_run(tmp_path / "other")
    assert run.config.prompt_example == f"USER: <image> {run.ok['question'].iloc[0]} ASSISTANT:"
    assert f"first prompt: {run.config.prompt_example!r}" in err
    assert run.ok["question"].iloc[0] in {f"Q: {record['question']}" for record in records}


def test_tasks_lists_the_benchmarks(capsys):
    code, out, _ = call(capsys, "tasks")
    assert code == 0
    for name in ("textvqa", "mmmu", "lmms-lab-encoder/POPE:test", "anls"):
        assert name in "".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", MODEL, OCR, "--where", "split"), "condition 'split' cannot be read"),
        (("run", MODEL, OCR, "--frames", "4", "--fps", "1"), "choose frames by count or by rate"),
        (("run", "/no/such/model", OCR), "no model directory at /no/such/model"),
        (("run", MODEL, "nowhere.jsonl"), "no sample file at nowhere.jsonl"),
        (("run", MODEL, OCR, "--probes", "magic"), "probe 'magic' is unknown"),
        (("run", MODEL, OCR, "--layers", "a-b"), "layers 'a-b' cannot be read"),
        (("run", MODEL, OCR, "--layers", "99"), "layer 99"),
        (("run", MODEL, OCR, "--window", "0"), "window is 0"),
        (("run", MODEL, OCR, "--shard", "1"), "shard '1' cannot be read"),
        (("run", MODEL, OCR, "--dtype", "int7"), "dtype 'int7' is unknown"),
        (("run", MODEL, OCR, "--attn", "magic"), "attn 'magic' is unknown; choose from sdpa, eager, flash"),
        (("show", "/no/such/run", "--format", "word"), "format 'word' is unknown"),
        (("show", "/no/such/run"), "is not a run directory"),
        (("compare", "/no/such/run"), "is not a run directory"),
    ],
)
def test_unusable_arguments_exit_with_two_and_a_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert err.count("error: ") == 1
    assert message in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("show",), ("run", MODEL), ("run", MODEL, OCR, "--window", "two"), ("fly",)])
def test_usage_errors_exit_with_two(capsys, arguments):
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "Usage" in err


@pytest.mark.parametrize("command", ["demo", "run", "tasks", "show", "compare", "plan", "figures"])
def test_every_command_has_help(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "Usage" in out


def test_show_prints_layers_and_reasons(capsys, planted):
    code, out, _ = call(capsys, "show", str(planted))
    assert code == 0
    assert "Entropy collapse layer" in out
    assert "Information horizon" in out
    (ecl,) = {found.layer for found in vh.find_collapse_layer(vh.load_run(planted))}
    assert ecl == 2
    assert "collapses at layer 2" in out


def test_show_json_holds_what_the_functions_return(capsys, planted):
    code, out, _ = call(capsys, "show", str(planted), "--json")
    assert code == 0
    (record,) = json.loads(out)
    horizons = vh.find_horizon(vh.load_run(planted))
    assert [found["half_depth"] for found in record["horizons"]] == [h.half_depth for h in horizons]
    assert [found["layer"] for found in record["collapse"]] == [2, 2]
    assert record["measured"] == 120


def test_compare_says_that_ocr_lies_deeper(capsys, planted):
    code, out, _ = call(capsys, "compare", str(planted), "--json")
    assert code == 0
    differences = json.loads(out)["differences"]
    half = [d for d in differences if d["quantity"] == "half_depth" and d["unit"] == "layers"]
    assert {d["paired"] for d in half} == {True, False}
    for difference in half:
        assert difference["value"] == pytest.approx(3, abs=0.2)
        assert difference["interval"][0] > 2
    code, out, _ = call(capsys, "compare", str(planted))
    assert "Differences between levels of task_type" in out


@pytest.mark.parametrize(
    ("sections", "titles"),
    [
        ("collapse,joint", ["Entropy collapse layer", "One entropy collapse layer for all streams and tasks"]),
        ("criteria", ["Where the criteria of the horizon disagree"]),
        ("agreement", ["Entropy collapse layer against information horizon"]),
        ("covariates", ["Half depth against covariates"]),
    ],
)
def test_sections_are_shown_when_asked_for(capsys, planted, sections, titles):
    options = ("--covariates", "answer_characters,p", "--format", "markdown")
    code, out, _ = call(capsys, "show", str(planted), "--sections", sections, *options)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("**")] == [f"**{title}**" for title in titles]


def test_a_terminal_shows_what_stands_in_brackets(capsys, planted, monkeypatch):
    monkeypatch.setattr(
        "vlm_horizon.commands.conclude.Console", lambda: Console(force_terminal=True, width=250, color_system=None)
    )
    _, out, _ = call(capsys, "show", str(planted), "--sections", "horizons", "--criterion", "removal")
    for horizon in vh.find_horizon(vh.load_run(planted), criterion="removal"):
        low, high = ("end" if end == 8 else str(end) for end in horizon.interval)
        assert f"[{low}, {high}]" in out
        assert f"[{horizon.half_depth_interval[0]:.2f}, {horizon.half_depth_interval[1]:.2f}]" in out


def test_csv_of_several_runs_is_one_table(capsys, planted):
    options = ("--sections", "horizons", "--criterion", "removal", "--format", "csv")
    one = call(capsys, "show", str(planted), *options)[1].splitlines()
    two = call(capsys, "show", str(planted), str(planted), *options)[1].splitlines()
    assert two == [*one, *one[1:]]


def test_the_votes_of_a_joint_collapse_layer_are_rows_of_json(capsys, planted):
    code, out, _ = call(capsys, "show", str(planted), "--sections", "joint", "--json")
    assert code == 0
    (joint,) = json.loads(out)[0]["joint"]
    assert joint["votes"] == [{"stream": "query", "task": task, "layer": 2} for task in ("ocr", "vqa")]


def test_sections_that_a_run_cannot_carry_are_named(capsys, tmp_path):
    write_run(tmp_path / "run", effects={"ocr": np.tile(fade_curve(8, 5), (6, 1))})
    code, _, err = call(capsys, "show", str(tmp_path / "run"), "--sections", "horizons,agreement")
    assert code == 0
    assert "carries nothing for the section agreement" in err


def test_split_scores_the_layer_on_other_images(capsys, planted):
    code, out, _ = call(capsys, "show", str(planted), "--sections", "horizons", "--split", "0.5", "--json")
    assert code == 0
    (record,) = json.loads(out)
    assert {found["split"] for found in record["split"]} == {0.5}
    assert all(found["held_out"] is not None for found in record["split"])


def test_csv_is_one_table_that_reads_back(capsys, planted):
    code, out, _ = call(
        capsys, "show", str(planted), "--sections", "horizons", "--criterion", "removal", "--format", "csv"
    )
    assert code == 0
    rows = list(csv.DictReader(out.splitlines()))
    found = vh.find_horizon(vh.load_run(planted), criterion="removal")
    assert [float(row["half_depth"]) for row in rows if row["model"]] == [horizon.half_depth for horizon in found]


def test_plan_says_how_many_more_images(capsys, planted):
    code, out, _ = call(capsys, "plan", str(planted), "--width", "0.005", "--json")
    assert code == 0
    plans = json.loads(out)
    assert [one["group"]["task_type"] for one in plans] == ["ocr", "vqa"]
    assert all(one["more_images"] > 0 for one in plans)
    narrower = json.loads(call(capsys, "plan", str(planted), "--width", "0.002", "--json")[1])
    assert all(few["images"] < many["images"] for few, many in zip(plans, narrower, strict=True))


def test_compare_prints_p_values(capsys, planted):
    code, out, _ = call(capsys, "compare", str(planted), "--permutations", "200", "--json")
    assert code == 0
    half = [d for d in json.loads(out)["differences"] if d["quantity"] == "half_depth" and d["unit"] == "layers"]
    assert all(d["p_value"] < 0.02 and d["p_adjusted"] >= d["p_value"] for d in half)


def test_an_empty_file_is_nothing_to_measure(capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    code, _, err = call(capsys, "run", MODEL, str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "holds no samples" in err
    assert not (tmp_path / "run").exists()


def test_a_run_without_samples_yet_is_said_to_be_one(capsys, planted, tmp_path):
    """As a kill before the first flush leaves it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes((planted / "run.json").read_bytes())
    run = str(tmp_path / "run")
    assert call(capsys, "show", run)[0] == 0
    for command in ("compare", "plan"):
        code, _, err = call(capsys, command, run)
        assert code == 2
        assert "measured no sample" in err
    code, out, err = call(capsys, "figures", run, "--formats", "svg", "--widths", "column")
    assert (code, out) == (0, "")
    assert err.count("was not drawn") == 6
    assert err.count("no sample was measured") == 3  # the others had not been asked for to begin with


def test_a_place_that_cannot_be_written_is_a_sentence(capsys):
    code, _, err = call(capsys, "run", MODEL, OCR, "--limit", "1", "--out", "/proc/nowhere/run")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out.startswith("vlm-horizon 0.")


def test_unknown_criterion_is_named(capsys, planted):
    code, _, err = call(capsys, "show", str(planted), "--criterion", "feeling")
    assert code == 2
    assert "feeling" in err
    assert "removal" in err


def test_figures_are_written_and_the_missing_ones_explained(capsys, planted, tmp_path):
    code, out, err = call(
        capsys, "figures", str(planted), "--out", str(tmp_path), "--formats", "svg", "--widths", "column"
    )
    assert code == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {"entropy-curves_column.svg", "removal-curves_column.svg", "horizon-comparison_column.svg"} <= written
    assert {line.rsplit("/", 1)[-1] for line in out.split()} == written
    assert "figure token-heatmap was not drawn" in err
    assert call(capsys, "figures", str(planted), "--names", "mona-lisa")[0] == 2


INTERRUPTED = """
import os, signal, sys
import torch
import probes.sweeps.commits
import probes.sweeps.stages
from vlm_horizon.cli import main

place, row, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
original = probes.sweeps.stages.measure

def measure(model, encoded, config, batches):
    if encoded.entry["row"] == row:
        if place == "before":
            os.kill(os.getpid(), signal.SIGINT)
        else:  # in the middle of the traced forward
            model.layers[2].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT))
    return original(model, encoded, config, batches)

probes.sweeps.stages.measure = measure
probes.sweeps.commits.FLUSH_SAMPLES = 4
main(arguments)
"""


@pytest.mark.parametrize("place", ["before", "inside"])
def test_interrupt_leaves_what_was_finished(tmp_path, place):
    """Ctrl-C at a known sample of a real run: exit code 130, a sentence, and every finished sample on disk."""
    file = tmp_path / "set.jsonl"
    images = vh.data_path("demo-samples")
    line = Path(OCR).read_text().splitlines(keepends=True)[0].replace("images/", f"{images}/images/")
    file.write_text("".join(line.replace("ocr-000", f"s{n}") for n in range(12)))
    out = tmp_path / "run"
    command = ["run", MODEL, str(file), "--probes", "removal", "--layers", "7", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, place, "6", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 130, done.stderr
    assert "the same command goes on from there" in done.stderr
    run = vh.load_run(out)
    assert len(list(out.glob("samples/part-*"))) == 2  # one that was full, and one of what was finished since then
    assert run.ok.index.tolist() == run.samples.index.tolist() == list(range(6))


def test_python_dash_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "vlm_horizon", "--help"], capture_output=True, text=True, check=True)
    assert "compare" in done.stdout


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """120 samples: 60 of ocr, 20 of them answered wrong and 10 of those without an effect; 60 of vqa; whole answers."""
    effects = {"ocr/textvqa": np.tile(fade_curve(8, 6), (60, 1)), "vqa/gqa": np.tile(fade_curve(8, 3), (60, 1))}
    effects["ocr/textvqa"][40:50] = fade_curve(8, 6, p_all=0.4)
    effects["ocr/textvqa"][50:] = 0.2
    path = tmp_path_factory.mktemp("cli") / "answered"
    write_run(
        path,
        effects=effects,
        entropies={"query": {key: np.tile(step_curve(8, 2), (60, 1)) for key in effects}},
        generations={key: ["stop"] * 45 + ["go"] * 15 for key in effects},
        answers={key: [["stop"] * 10] * 60 for key in effects},
    )
    return path


def test_show_scores_each_task_by_its_rule(capsys, answered):
    code, out, _ = call(capsys, "show", str(answered), "--sections", "scores", "--json")
    assert code == 0
    scores = {score["group"]["task"]: score for score in json.loads(out)[0]["scores"]}
    assert (scores["textvqa"]["scorer"], scores["textvqa"]["value"]) == ("vqa", 0.75)
    assert (scores["gqa"]["scorer"], scores["gqa"]["value"]) == ("exact", 0.75)
    code, out, _ = call(capsys, "show", str(answered), "--scorer", "anls")
    assert code == 0
    assert "Scores of the generated answers" in out
    assert "ANLS" in out
    code, _, err = call(capsys, "show", str(answered), "--scorer", "bleu")
    assert code == 2
    assert "scorer 'bleu' is unknown" in err


def test_show_says_that_a_target_does_not_vary(capsys, answered):
    code, out, _ = call(capsys, "show", str(answered), "--sections", "targets")
    assert code == 0
    assert "How much the target varies" in out
    assert "one target covers all samples: a constant guess is right on 100% of them" in out


def test_show_counts_what_a_selection_leaves_out(capsys, answered):
    options = ("--only-correct", "--balance", "task_type")
    code, out, _ = call(capsys, "show", str(answered), *options)
    assert code == 0
    assert "80 of 120 samples: 20 answered wrong, 20 drawn out to balance task_type" in out
    assert "(removal criterion, 40 images)" in out
    code, out, _ = call(capsys, "show", str(answered), *options, "--json")
    (record,) = json.loads(out)
    assert record["excluded"] == {"answered wrong": 20, "drawn out to balance task_type": 20}
    assert (record["measured"], record["caution"]) == (80, "")
    assert {found["n_samples"] for found in record["horizons"]} == {40}


def test_a_selection_by_the_effect_is_said_to_be_circular(capsys, answered):
    code, out, err = call(capsys, "compare", str(answered), "--only-effective", "--permutations", "0", "--json")
    assert code == 0
    assert "110 of 120 samples: 10 without a removal effect at layer 0 above the noise floor" in err
    assert "that there is an effect is then no finding" in err
    record = json.loads(out)
    assert record["runs"][0]["excluded"] == {"without a removal effect at layer 0 above the noise floor": 10}
    assert all("chosen by their removal effect" in found["warning"] for found in record["groups"])
    code, out, _ = call(capsys, "compare", str(answered), "--only-effective", "--permutations", "0")
    assert "chosen by their removal effect" in out
    code, _, err = call(capsys, "plan", str(answered), "--only-effective")
    assert "that there is an effect is then no finding" in err


def test_figures_are_drawn_from_a_selection(capsys, answered, tmp_path):
    options = ("--names", "removal-curves", "--formats", "svg", "--widths", "column", "--out", str(tmp_path))
    code, out, err = call(capsys, "figures", str(answered), *options, "--only-correct")
    assert code == 0
    assert "100 of 120 samples: 20 answered wrong" in err
    assert out.splitlines() == [str(tmp_path / "removal-curves_column.svg")]


def test_run_generates_excludes_and_remarks(capsys, tmp_path):
    lines = [json.loads(line) for line in Path(VQA).read_text().splitlines()[:3]]
    for line in lines:
        line["image"] = f"{vh.data_path('demo-samples')}/{line['image']}"
    lines[1]["answers"] = [lines[0]["answers"][0]]  # wrong: another color
    lines[2] |= {name: lines[0][name] for name in ("image", "question", "answers")}
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = (
        "--probes",
        "removal",
        "--layers",
        "0",
        "--only-correct",
        "--generate",
        "6",
        "--out",
        str(tmp_path / "run"),
    )
    code, _, err = call(capsys, "run", MODEL, str(file), *options)
    assert code == 0
    assert "1 samples excluded: answered wrong" in err
    assert "target gold of demo-vqa: 100% of the samples share the target token 'green'" in err
    assert "2 samples measured" in err
    run = vh.load_run(tmp_path / "run")
    assert run.ok["generation"].tolist() == ["green", "green"]
    code, out, _ = call(capsys, "show", str(tmp_path / "run"), "--sections", "scores")
    assert code == 0
    assert "2 of 3 samples: 1 answered wrong" in out
