"""Options on the command line: all that are declared, read as their types say, refused at once, completed by shells."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import typer

import vlm_horizon as vh
from analyses.runs import AdaptiveOptions, RunOptions, SweepOptions
from analyses.runs.options import hints_of, options_of, plain_type
from figures.paper import METADATA
from figures.style import WIDTHS
from vlm_horizon.cli import app, main
from vlm_horizon.commands import figures
from vlm_horizon.commands.arguments import (
    DataOptions,
    Loading,
    Measuring,
    completion,
    parse_layers,
    parse_shard,
    spelled_out,
)

MODEL = str(vh.data_path("demo-models", "tiny-8"))
OCR = str(vh.data_path("demo-samples", "ocr.jsonl"))
MEASURING = {  # flag -> default, as it is typed
    "--probes": "entropy,removal,information",
    "--tokens": "visual",
    "--streams": None,
    "--targets": "gold",
    "--contexts": "keep-one",
    "--window": None,
    "--max-windows": None,
    "--coarse": None,
    "--layers": None,
    "--kind": "delete",
    "--method": "exact",
    "--alpha": 1.0,
    "--only-correct": False,
    "--batch-size": None,
    "--token-samples": None,
    "--gate-checks": 2,
    "--spectra": 0,
    "--generate": None,
    "--shard": "0/1",
    "--layer-budget": None,
}
LOADING = {"--revision": None, "--dtype": "auto", "--attn": "sdpa", "--device-map": None, "--quantization": None}
READING = {
    "--task": None,
    "--task-type": None,
    "--prompt": None,
    "--limit": None,
    "--seed": None,
    "--category": None,
    "--where": None,
    "--question": None,
    "--answer": None,
    "--image": None,
    "--images": None,
    "--annotations": None,
    "--with-ocr-tokens": False,
    "--data-revision": None,
    "--frames": None,
    "--fps": None,
}


def flags_of(command: str) -> dict[str, object]:
    """Flag -> default of a command's options."""
    parameters = typer.main.get_command(app).commands[command].params
    return {each.opts[0]: each.default for each in parameters if each.opts[0].startswith("--")}


@pytest.mark.parametrize(
    ("command", "own", "groups"),
    [
        ("run", {"--out", "--retry-failed", "--quiet"}, (LOADING, READING, MEASURING)),
        ("cost", {"--samples", "--format"}, (LOADING, READING, MEASURING)),
        ("check", {"--json"}, (LOADING,)),
    ],
)
def test_commands_take_the_options_of_their_groups(command, own, groups):
    shared = {flag: default for group in groups for flag, default in group.items()}
    flags = flags_of(command)
    assert set(flags) - own == set(shared)
    assert {flag: flags[flag] for flag in shared} == shared


def test_help_says_what_every_option_of_a_run_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for heading in ("Model", "Data", "Measurement"):
        assert f"─ {heading} ─" in shown
    for flag in {**LOADING, **READING, **MEASURING}:
        assert f"{flag} " in shown
    assert "what stands in the place of tokens that are taken away. One of delete, zero, mean." in shown
    assert "Any of entropy, removal, information. Separated by commas." in shown
    assert "in a sample, instead of --window." in shown
    assert "in parts of their own. Written as i/n." in shown


@pytest.mark.parametrize(("group", "call"), [(Loading, vh.load_model), (DataOptions, vh.read_samples)])
def test_groups_pass_on_what_a_function_takes_by_the_same_names(group, call):
    parameters = inspect.signature(call).parameters
    assert {field.name for field in fields(group)} <= set(parameters)
    for field in fields(group):
        assert field.default is None or field.default == parameters[field.name].default


REFUSED = [
    (("--kind", "delte"), "kind 'delte' is unknown; did you mean 'delete'? choose from delete, zero, mean"),
    (("--probes", "entropy,remove"), "probe 'remove' is unknown; did you mean 'removal'? choose from entropy, removal"),
    (("--streams", "text:querry"), "stream 'text:querry' is unknown; did you mean 'text:query'?"),
    (("--targets", "gold,gredy"), "target 'gredy' is unknown; did you mean 'greedy'?"),
    (("--contexts", "leave-one"), "context 'leave-one' is unknown; did you mean 'leave-one-out'?"),
    (("--tokens", "visuals"), "tokens 'visuals' is unknown; did you mean 'visual'?"),
    (("--method", "gates"), "method 'gates' is unknown; did you mean 'gate'?"),
    (("--layers", "atuo"), "layers 'atuo' cannot be read; write them as 0,4,8 or 0-7"),
    (("--layers", "7-"), "layers '7-' cannot be read"),
    (("--shard", "0-4"), "shard '0-4' cannot be read; write it as i/n"),
    (("--shard", "4/4"), "shard 4/4 is unusable"),
    (("--window", "0"), "window is 0"),
    (("--batch-size", "0"), "batch_size is 0; it must be at least 1"),
    (("--window", "2", "--coarse", "3"), "coarse is 3 and window 2: coarse must be a larger multiple"),
    (("--method", "gate", "--tokens", "all"), "method 'gate' has gates on visual tokens only"),
    (("--probes", "removal", "--coarse", "4"), "coarse 4 is of token grids"),
    (("--layer-budget", "3"), "--layer-budget 3 says how --layers auto chooses"),
    (("--attn", "spda"), "attn 'spda' is unknown; did you mean 'sdpa'? choose from sdpa, eager, flash"),
    (("--dtype", "float23"), "dtype 'float23' is unknown; did you mean 'float32'?"),
    (("--quantization", "4-bit"), "quantization '4-bit' is unknown; did you mean '4bit'? choose from 4bit, 8bit"),
]


@pytest.mark.parametrize("command", ["run", "cost"])
@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_a_typo_is_refused_before_data_is_looked_for(capsys, command, options, message):
    """The data is not there either, and that is not said."""
    with pytest.raises(SystemExit) as left:
        main([command, MODEL, "nowhere.jsonl", *options])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((OCR, "nowhere.jsonl"), "nowhere.jsonl"),
        ((OCR, "--category", "maps"), "is of category 'maps'"),
        ((OCR, "--limit", "0"), "limit is 0; it must be at least 1"),
        ((OCR, "--annotations", "nowhere.json"), "annotations"),
        ((OCR, "--prompt", "no place"), "{question}"),
        ((OCR, "--dtype", "half"), "dtype 'half' is unknown; choose from auto, float32, bfloat16, float16, float64"),
        ((OCR, "--layers", "auto", "--probes", "removal"), "the probe information is needed"),
        ((OCR, "--layers", "auto", "--layer-budget", "0"), "budget is 0; it must be at least 1"),
    ],
)
@pytest.mark.parametrize("command", ["run", "cost"])
def test_what_needs_no_model_is_refused_before_one_is_loaded(capsys, monkeypatch, command, arguments, message):
    monkeypatch.setattr("probes.loading.loading.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit) as left:
        main([command, MODEL, *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_typo_and_help_import_no_torch():
    script = """
import json, sys
from vlm_horizon.cli import main
for arguments in (["run", "m", "d", "--kind", "delte"], ["cost", "m", "--window", "0"], ["run", "--help"]):
    try:
        main(arguments)
    except SystemExit:
        pass
print(json.dumps([name for name in ("torch", "transformers", "nnsight") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "did you mean 'delete'" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def completed(monkeypatch, capsys, *words: str) -> list[str]:
    """What bash is offered for the last of the words."""
    monkeypatch.setattr(sys, "argv", ["vlm-horizon"])
    monkeypatch.setenv("_VLM_HORIZON_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(("vlm-horizon", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("run", "m", "d", "--kind", "de"), ["delete"]),
        (("run", "m", "d", "--tokens", "t"), ["text"]),
        (("cost", "m", "--method", "g"), ["gate"]),
        (("run", "m", "d", "--probes", "entropy,"), ["entropy,removal", "entropy,information"]),
        (("run", "m", "d", "--targets", "gold,greedy-"), ["gold,greedy-correct"]),
        (("run", "m", "d", "--streams", "key,query_"), ["key,query_raw"]),
        (("check", "m", "--attn", "e"), ["eager"]),
        (("check", "m", "--quantization", "8"), ["8bit"]),
        (("cost", "m", "--format", "j"), ["json"]),
        (("figures", "r", "--names", "spectrum,token-"), ["spectrum,token-information", "spectrum,token-heatmap"]),
        (("figures", "r", "--formats", "p"), ["pdf", "png"]),
        (("run", "m", "d", "--gate"), ["--gate-checks"]),
    ],
)
def test_shells_complete_words_and_the_last_one_of_a_list(monkeypatch, capsys, words, offered):
    assert completed(monkeypatch, capsys, *words) == offered


def test_formats_and_widths_of_figures_are_those_that_can_be_drawn():
    assert tuple(METADATA) == figures.FORMATS
    assert tuple(WIDTHS) == figures.WIDTHS


def test_completion_can_be_installed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--install-completion" in capsys.readouterr().out


def test_a_single_word_is_completed_whole():
    assert completion(("keep-one", "leave-one-out"))("keep-one,le") == []
    assert completion(("keep-one", "leave-one-out"), several=True)("keep-one,le") == ["keep-one,leave-one-out"]


def test_layers_and_shards_are_read_from_text():
    assert parse_layers("0, 4,8-10") == [0, 4, 8, 9, 10]
    assert parse_layers(" auto ") == "auto"
    assert parse_shard("2/4") == (2, 4)


def test_a_group_gives_run_what_it_takes():
    measuring = Measuring(layers="auto", budget=3, window=1)
    assert measuring.auto
    options = measuring.options()
    assert RunOptions(**options) == RunOptions(window=1)
    assert options.keys() == spelled_out(Measuring).keys() - {"budget"}
    assert not Measuring(layers=(1, 2)).auto


# --- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "declaration", "without"),
    [
        (vh.run, SweepOptions, set()),
        (vh.run_adaptive, AdaptiveOptions, {"layers", "token_layers"}),
        (vh.estimate_cost, RunOptions, set()),
    ],
)
def test_functions_show_the_options_that_they_take(call, declaration, without):
    shown = inspect.signature(call).parameters
    document = inspect.getdoc(call)
    for name in options_of(declaration).keys() - without:
        assert shown[name].default == getattr(declaration, name)
        assert shown[name].annotation == plain_type(hints_of(declaration)[name])
        assert f"\n    {name}: " in document
    assert not without & shown.keys()
    assert "options" not in shown


def test_run_takes_options_by_name_only_and_refuses_other_names(tmp_path):
    with pytest.raises(vh.HorizonError, match=r"option 'windw' is unknown; did you mean 'window'\? choose from probes"):
        vh.run(None, [], tmp_path / "run", windw=1)
    with pytest.raises(vh.HorizonError, match="option 'budget' is unknown"):
        vh.run(None, [], tmp_path / "run", budget=1)
    with pytest.raises(vh.HorizonError, match=r"option 'retry_faild' is unknown; did you mean 'retry_failed'\?"):
        vh.run_adaptive(None, [], tmp_path / "run", retry_faild=True)
    with pytest.raises(vh.HorizonError, match="option 'progress' is unknown"):
        vh.estimate_cost(None, [], progress=False)
    with pytest.raises(TypeError, match="positional"):
        vh.run(None, [], tmp_path / "run", ("entropy",))
    assert list(tmp_path.iterdir()) == []
