"""Runs that take away text, or all tokens: written, resumed, extended, read back, concluded from and drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from demo_data import demo_model, demo_samples

import vlm_horizon as vh
from analyses.runs import RunConfig
from figures.overlay import figure_token_heatmap
from probes.measures.information import removal_curves
from probes.measures.noise import noise_floor, null_ablations, removal_witnesses
from probes.measures.preparing import prepare
from probes.replay.replay import most_rows
from vlm_horizon.cli import main
from vlm_horizon.shipped import data_path

N = 2  # samples a task
HOW = {"window": 4, "contexts": ("keep-one", "leave-one-out"), "layers": (0, 1, 5), "progress": False}


@pytest.fixture(scope="module")
def model():
    return demo_model()


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """By tokens; that of the text in three calls: one sample, all of them, token grids for all of them."""
    out = tmp_path_factory.mktemp("tokens")
    samples = demo_samples(N)
    vh.run(model, samples, out / "text", limit=1, token_samples=1, tokens="text", **HOW)
    vh.run(model, samples, out / "text", token_samples=1, tokens="text", **HOW)
    found = {"text": vh.run(model, samples, out / "text", tokens="text", **HOW)}
    return found | {tokens: vh.run(model, samples, out / tokens, tokens=tokens, **HOW) for tokens in ("visual", "all")}


@pytest.mark.parametrize("tokens", ["text", "all"])
def test_a_run_holds_what_single_calls_measure(runs, model, tokens):
    run = vh.load_run(runs[tokens].path)
    assert (run.config.tokens, len(run.ok)) == (tokens, 2 * N)
    rows, _, values = run.matrix("log_p", context="removal", target="gold")
    for row, sample in enumerate(demo_samples(N)):
        curve = vh.removal_curve(model, sample, layers=HOW["layers"], tokens=tokens)
        np.testing.assert_allclose(values[rows.tolist().index(row)], curve.log_p, atol=2e-5)
        for context in HOW["contexts"]:
            stored = run.tokens(sample.id, context=context)
            single = vh.token_information(model, sample, context=context, window=4, layers=HOW["layers"], tokens=tokens)
            assert stored.tokens == single.tokens == tokens
            assert stored.windows.equals(single.windows)
            np.testing.assert_allclose(stored.information("p"), single.values, atol=2e-5)
    effects = values[:, -1:] - values[:, :-1]
    assert np.abs(effects[:, 0]).min() > 1
    visual = runs["visual"].matrix("log_p", context="removal", target="gold")[2]
    assert np.abs(visual[:, 1] - values[:, 1]).min() > 1e-3


def test_windows_of_text_count_on_after_the_image(runs):
    for _, row in runs["all"].ok.iterrows():
        windows = runs["all"].tokens(row["id"]).windows
        placed = windows[windows["crop"] == 0]
        text = windows[windows["crop"] > 0]
        assert (placed["height"] * placed["width"]).sum() == row["n_visual"]
        assert (text["height"] == 1).all()
        assert text["width"].sum() == row["n_prompt"] - row["n_visual"] - 1
        alone = runs["text"].tokens(row["id"]).windows
        assert alone.equals(text.reset_index(drop=True))


def test_entropies_follow_the_tokens_unless_streams_are_given(runs, model, tmp_path):
    assert runs["visual"].config.streams == ("query", "key", "hidden")
    assert runs["text"].config.streams == ("text:query", "text:key", "text:hidden")
    given = vh.run(
        model,
        demo_samples(1)[:1],
        tmp_path / "run",
        streams=("key",),
        tokens="all",
        probes=("entropy",),
        progress=False,
    )
    assert given.config.streams == ("key",)


def test_the_noise_floor_is_that_of_the_tokens_removed(model):
    case = prepare(model, demo_samples(1)[0], ("gold",), tokens="text")
    captured, curve = case.captured, removal_curves(case)["gold"]
    witnesses = removal_witnesses(captured, curve)
    for witness in witnesses:
        assert witness.ablation.removed.nonzero()[:, 1].tolist() == captured.prompt.removable.tolist()
    rows = most_rows(captured, witnesses[0].ablation)
    _, recompute = null_ablations(model, captured, rows)
    assert int(recompute.sum()) == rows == len(captured.prompt.visual) + 1  # text begins before the image
    floor = noise_floor(model, captured, case.targets["gold"], witnesses, rows=rows)
    assert 0 < floor.kl < 1e-3


def test_other_tokens_are_another_configuration(runs, model):
    with pytest.raises(vh.HorizonError, match=r"tokens .text. there, .all. now"):
        vh.run(model, demo_samples(N), runs["text"].path, tokens="all", **HOW)
    with pytest.raises(vh.HorizonError, match="tokens 'words' is unknown"):
        vh.run(model, demo_samples(N), runs["text"].path, tokens="words", **HOW)
    with pytest.raises(vh.HorizonError, match="'gate' has gates on visual tokens only"):
        vh.run(model, demo_samples(N), runs["text"].path, tokens="text", method="gate", progress=False)


def test_a_run_from_before_there_was_a_choice_goes_on(runs, model, tmp_path):
    config = runs["visual"].config
    older = {key: value for key, value in config.to_dict().items() if key != "tokens"}
    assert RunConfig.from_dict(older) == config
    assert RunConfig.from_dict(older).hash == config.hash != replace(config, tokens="text").hash
    out = tmp_path / "older"
    vh.run(model, demo_samples(N), out, limit=1, **HOW)
    record = json.loads((out / "run.json").read_text())
    del record["tokens"]
    (out / "run.json").write_text(json.dumps(record))
    assert len(vh.run(model, demo_samples(N), out, limit=2, **HOW).ok) == 2


def test_layers_chosen_by_the_run_itself_are_measured_exactly(runs, model, tmp_path):
    how = {"probes": ("removal", "information"), "window": 4, "progress": False}
    auto = vh.run_adaptive(model, demo_samples(N), tmp_path / "auto", tokens="text", budget=3, **how)
    compared = 0
    for row in auto.token_rows():
        grids, full = auto.tokens(row), runs["text"].tokens(row)
        shared = np.intersect1d(grids.layers, full.layers)
        ours, theirs = (g.log_p[np.searchsorted(g.layers, shared)] for g in (grids, full))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        compared += ours.size
    assert compared > 0


def test_horizons_and_figures_say_whose_removal_they_are(runs):
    found = vh.find_horizon(runs["text"], criterion="removal")
    assert {one.tokens for one in found} == {"text"}
    fig = vh.figure_removal_curves(list(runs.values()))
    (panel,) = [ax for ax in fig.axes if ax.get_title(loc="left")]
    lines = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
    assert set(lines) == {
        f"{task}{words}" for task in ("ocr", "vqa") for words in ("", ", text tokens", ", all tokens")
    }
    for one in found:
        drawn = lines[f"{one.group['task_type']}, text tokens"]
        np.testing.assert_array_equal(drawn.get_ydata(), one.effect)


def test_the_heat_map_leaves_text_out(runs):
    with pytest.raises(vh.HorizonError, match="the token grids of text are of text, which has no place in the image"):
        figure_token_heatmap(runs["text"])
    fig = figure_token_heatmap([runs["text"], runs["all"]], sample="ocr-000", layers=(1,))
    (panel,) = [ax for ax in fig.axes if ax.get_title(loc="left")]
    grids = runs["all"].tokens("ocr-000")
    placed = (grids.windows["crop"] == 0).to_numpy()
    np.testing.assert_array_equal(panel.collections[0].get_array(), grids.information()[1, placed])
    assert not placed.all()
    assert panel.get_ylabel() == "tiny-8, all tokens"


def test_the_command_line_takes_the_tokens(model, tmp_path, capsys):
    data = ["run", str(data_path("demo-models", "tiny-8")), str(data_path("demo-samples", "ocr.jsonl"))]
    how = ["--limit", "1", "--probes", "removal", "--dtype", "float32", "--quiet", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main([*data, *how, "--tokens", "words"])
    assert ended.value.code == 2
    assert "tokens 'words' is unknown; choose from visual, text, all" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*data, *how, "--tokens", "text"])
    assert ended.value.code == 0
    run = vh.load_run(tmp_path / "run")
    curve = vh.removal_curve(model, demo_samples(1)[0], tokens="text")
    _, _, values = run.matrix("log_p", context="removal", target="gold")
    np.testing.assert_allclose(values[0], curve.log_p, atol=2e-5)
