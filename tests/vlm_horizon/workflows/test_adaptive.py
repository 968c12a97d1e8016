"""Chosen layers give the verdicts of the full sweep, with fewer replays; what is on disk is never measured twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from demo_data import demo_model, demo_samples
from planted_models import cut_from
from random_models import QUESTION, random_image, random_llava, random_processor

import probes.parts.grids
import probes.sweeps.stages
import probes.sweeps.sweep
import vlm_horizon as vh
from vlm_horizon.cli import main

PROBES = {"probes": ("removal", "information"), "window": 4, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def verdicts(run, criterion):
    return {h.group["task_type"]: h for h in vh.find_horizon(run, criterion=criterion)}


@pytest.fixture(scope="module", params=["tiny-8", "tiny-12"])
def both(request, tmp_path_factory):
    """The full sweep and the adaptive run of one demo model; 16 samples, enough for a pilot."""
    model, samples, out = demo_model(request.param), demo_samples(8), tmp_path_factory.mktemp(request.param)
    return vh.run(model, samples, out / "full", **PROBES), vh.run_adaptive(model, samples, out / "auto", **PROBES)


def test_the_horizons_of_the_full_sweep_are_found(both):
    full, auto = both
    for criterion in ("removal", "information"):
        for task, expected in verdicts(full, criterion).items():
            found = verdicts(auto, criterion)[task]
            assert (found.layer, found.reason) == (expected.layer, "")
            assert found.half_depth == (None if expected.half_depth is None else pytest.approx(expected.half_depth))
    replays = vh.count_replays(auto)
    assert replays.all == vh.count_replays(full).run
    assert replays.run < 0.9 * replays.all


def test_removal_curves_are_whole_and_token_grids_exact(both):
    full, auto = both
    for ours, theirs in zip(
        auto.matrix("log_p", context="removal", target="gold"),
        full.matrix("log_p", context="removal", target="gold"),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for row in auto.token_rows():
        ours, theirs = auto.tokens(row), full.tokens(row)
        chosen = auto.config.grid_layers(row, auto.samples.loc[row, "task_type"])
        np.testing.assert_array_equal(ours.layers, chosen)
        assert ours.windows.equals(theirs.windows)
        np.testing.assert_allclose(ours.information(), theirs.information()[list(chosen)], atol=2e-5)
        np.testing.assert_allclose(ours.removed, theirs.removed[list(chosen)], atol=2e-5)


def test_pilots_carry_every_layer_and_groups_the_layers_they_share(both):
    _, auto = both
    n_layers = auto.config.n_layers
    for row in auto.config.pilot_rows:
        np.testing.assert_array_equal(auto.tokens(row).layers, np.arange(n_layers))
    for task, found in verdicts(auto, "information").items():
        np.testing.assert_array_equal(found.layers, [*auto.config.chosen_layers[task], n_layers])
        np.testing.assert_array_equal(found.skipped, np.setdiff1d(np.arange(n_layers), found.layers))
    (pooled,) = vh.find_horizon(auto, by=(), criterion="information")
    shared = set.intersection(*map(set, auto.config.chosen_layers.values()))
    assert pooled.layers.tolist() == [*sorted(shared), n_layers]


def test_everything_that_reads_a_run_reads_this_one(both, tmp_path):
    _, auto = both
    assert vh.summarize([auto])
    assert {d.criterion for d in vh.compare_criteria(auto)} >= {"removal", "information"}
    table = vh.sample_depths(auto, criterion="information")
    assert set(table.loc[table["eligible"], "horizon"].dropna()) <= set(range(auto.config.n_layers + 1))
    saved = vh.save_figures(
        [auto], tmp_path, ["token-information", "token-heatmap"], formats=("png",), widths=("column",)
    )
    assert saved.written
    assert not saved.skipped


def blind_from(layer, n_layers):
    """A random model whose text no longer looks at the image from that layer on, in float64.

    So many random layers would blow up the last digit of float64; with quieter blocks they do not.
    """
    plain = random_llava(34, layers=n_layers)
    for block in plain.get_decoder().layers:
        block.self_attn.o_proj.weight.data *= 0.3
        block.mlp.down_proj.weight.data *= 0.3
    model = cut_from(plain, layer, range(2, 27))
    return vh.load_model(model, processor=random_processor(), dtype="float64", check=False)


def test_a_horizon_planted_in_32_layers_takes_less_than_a_quarter_of_the_replays(tmp_path, capsys):
    samples = [
        vh.Sample(f"s{i}", random_image(i), QUESTION, ("apple",), task="noise", task_type="noise") for i in range(16)
    ]
    how = {**PROBES, "window": 2, "targets": ("greedy",), "progress": True}
    run = vh.run_adaptive(blind_from(13, 32), samples, tmp_path / "run", **how)
    found = verdicts(run, "information")["noise"]
    assert (found.layer, found.interval[0] <= 13) == (13, True)
    assert verdicts(run, "removal")["noise"].layer <= 13
    replays = vh.count_replays(run)
    assert replays.all == 16 * 9 * 32
    assert 4 * replays.run <= replays.all
    said = capsys.readouterr().err
    assert "removal sweep done: noise horizon" in said
    assert "token grids at every layer on 1 pilot samples" in said
    assert f"{replays.run} replays for token grids" in said
    assert "information noise horizon 13" in said


# --- budget, interruption, shards ------------------------------------------------------------------------------------


def test_a_spent_budget_claims_nothing_and_a_larger_one_goes_on(tmp_path, capsys, monkeypatch):
    """Six samples: no pilot. The layers that are on disk are not measured again."""
    replayed = []
    original = probes.parts.grids.information_grids
    monkeypatch.setattr(
        probes.parts.grids,
        "information_grids",
        lambda case, request, removals: replayed.append(request.layers) or original(case, request, removals),
    )
    model, samples, out = demo_model(), demo_samples(3, "vqa"), tmp_path / "run"
    how = {**PROBES, "progress": True}
    few = vh.run_adaptive(model, samples, out, budget=2, **how)
    (found,) = vh.find_horizon(few, criterion="information")
    assert found.layer is None
    assert found.bracket is not None
    assert "it lies after layer" in found.reason
    assert "the budget is used up with vqa open" in capsys.readouterr().err
    first = few.config.chosen_layers["vqa"]
    assert {layer for layers in replayed for layer in layers} == set(first)

    before, replayed[:] = few.tokens(0), []
    more = vh.run_adaptive(model, samples, out, budget=8, **how)
    chosen = more.config.chosen_layers["vqa"]
    assert set(first) < set(chosen)
    assert sorted(layer for layers in replayed for layer in layers) == sorted(3 * (sorted({*chosen} - {*first})))
    after = more.tokens(0)
    np.testing.assert_array_equal(after.log_p[np.isin(after.layers, first)], before.log_p)
    exact = vh.run(model, samples, tmp_path / "exact", **PROBES)
    assert [h.layer for h in vh.find_horizon(more, criterion="information")] == [
        h.layer for h in vh.find_horizon(exact, criterion="information")
    ]
    np.testing.assert_allclose(after.log_p, exact.tokens(0).log_p[after.layers], atol=1e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    model, samples = demo_model(), demo_samples(2)
    straight = vh.run_adaptive(model, samples, tmp_path / "straight", **PROBES)
    original, calls = probes.sweeps.stages.measure, []

    def interrupt(*arguments):
        calls.append(arguments[1])
        if len(calls) in (3, 7, 11):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(probes.sweeps.stages, "measure", interrupt)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            vh.run_adaptive(model, samples, tmp_path / "run", **PROBES)
    run = vh.run_adaptive(model, samples, tmp_path / "run", **PROBES)
    assert run.config.chosen_layers == straight.config.chosen_layers
    for row in run.token_rows():
        np.testing.assert_array_equal(run.tokens(row).layers, straight.tokens(row).layers)
        np.testing.assert_allclose(run.tokens(row).log_p, straight.tokens(row).log_p, atol=1e-5)
    assert run.curves.groupby("row").size().to_dict() == straight.curves.groupby("row").size().to_dict()


def test_shards_wait_for_each_other_and_agree(tmp_path, capsys):
    model, samples = demo_model(), demo_samples(2)
    straight = vh.run_adaptive(model, samples, tmp_path / "straight", **PROBES)
    how = {**PROBES, "progress": True}
    for turn in range(12):
        run = vh.run_adaptive(model, samples, tmp_path / "sharded", shard=(turn % 2, 2), **how)
        said = capsys.readouterr().err
        assert turn or "2 rows of other shards are still to come" in said
        if turn and "still to come" not in said:
            break
    assert "done: " in said
    assert run.config.chosen_layers == straight.config.chosen_layers
    for row in straight.token_rows():
        np.testing.assert_array_equal(run.tokens(row).layers, straight.tokens(row).layers)


def test_samples_that_were_added_later_get_the_layers_that_were_chosen(tmp_path):
    how = {**PROBES, "budget": 3}
    few = vh.run_adaptive(demo_model(), demo_samples(3, "vqa"), tmp_path / "run", limit=2, **how)
    more = vh.run_adaptive(demo_model(), demo_samples(3, "vqa"), tmp_path / "run", **how)
    assert more.token_rows() == [0, 1, 2]
    assert set(few.config.chosen_layers["vqa"]) <= set(more.tokens(2).layers)


def test_a_stream_is_kept_for_every_sweep_and_says_where_it_is_from(tmp_path, capsys):
    file, how = vh.data_path("demo-samples", "vqa.jsonl"), {**PROBES, "budget": 2}
    listed = vh.run_adaptive(demo_model(), demo_samples(3, "vqa"), tmp_path / "listed", **how)
    read = vh.read_samples(file, limit=3)
    run = vh.run_adaptive(demo_model(), read, tmp_path / "read", **how | {"progress": True})
    assert run.config.sources == (str(file),)
    assert (run.config.hash, run.config.chosen_layers) == (listed.config.hash, listed.config.chosen_layers)
    assert run.samples["id"].tolist() == listed.samples["id"].tolist()
    assert run.token_rows() == [0, 1, 2]
    assert capsys.readouterr().err.count("first prompt: ") == 1


def test_a_stream_says_that_prompts_carry_reference_tokens(tmp_path):
    """Also where the first sample has none."""
    file = tmp_path / "signs.jsonl"
    image = str(demo_samples(1, "ocr")[0].image)
    lines = [{"image": image, "question": "what word is written ?", "answers": ["red"]}] * 2
    lines[1] = lines[1] | {"ocr_tokens": ["red"]}
    file.write_text("\n".join(map(json.dumps, lines)))
    read = vh.read_samples(file, with_ocr_tokens=True)
    run = vh.run_adaptive(demo_model(), read, tmp_path / "run", token_samples=0, **PROBES)
    assert run.config.with_ocr_tokens
    assert len(run.samples) == 2


def test_without_an_effect_there_is_nothing_to_bracket(tmp_path, capsys):
    """Blind from the first layer on: token grids at layer 0 show that, and no more is spent."""
    samples = [vh.Sample(f"s{i}", random_image(i), QUESTION, ("apple",), task="noise") for i in range(3)]
    how = {**PROBES, "targets": ("greedy",), "progress": True}
    run = vh.run_adaptive(blind_from(0, 4), samples, tmp_path / "run", **how)
    assert run.config.chosen_layers == {"": [0]}
    assert run.tokens(0).layers.tolist() == [0]
    assert "has no effect to speak of" in capsys.readouterr().err


def test_no_token_samples_means_no_token_grids(tmp_path, capsys):
    how = {**PROBES, "progress": True}
    run = vh.run_adaptive(demo_model(), demo_samples(2, "vqa"), tmp_path / "run", token_samples=0, **how)
    assert run.token_rows() == []
    assert "no token grids are asked for" in capsys.readouterr().err


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [0, 1]}, "layers cannot be given where layers are chosen"),
        ({"token_layers": [0]}, "token_layers cannot be given where layers are chosen"),
        ({"probes": ("entropy", "removal")}, "the probe information is needed"),
        ({"budget": 9}, "budget is 9; it must be 1 to 8 layers"),
    ],
)
def test_what_leaves_nothing_to_choose_is_refused(tmp_path, options, message):
    with pytest.raises(vh.HorizonError, match=message):
        vh.run_adaptive(demo_model(), demo_samples(1), tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "auto"}, "call run_adaptive"),
        ({"token_layers": "some"}, "token_layers is 'some'; give layers, or 'auto'"),
        ({"layers": [0, 4], "token_layers": [0, 2]}, "token_layers 2: token grids need removals at the same layers"),
        ({"token_layers": []}, "token_layers none given"),
        ({"window": 2, "max_windows": 9}, "goes with neither window nor coarse"),
    ],
)
def test_a_sweep_names_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(vh.HorizonError, match=message):
        vh.run(demo_model(), demo_samples(1), tmp_path / "run", **options)


def test_a_sweep_takes_token_layers_and_windows_by_count(tmp_path):
    run = vh.run(
        demo_model(), demo_samples(1), tmp_path / "run", probes=("removal", "information"), layers=[0, 2, 4, 6],
        token_layers=[4, 0], max_windows=9, progress=False,
    )  # fmt: skip
    grids = run.tokens(0)
    assert grids.layers.tolist() == [0, 4]
    assert len(grids.windows) == 9  # of 3 x 3 tokens on the grid of 8 x 8; windows of 2 x 2 would be 16
    assert grids.windows[["height", "width"]].to_numpy().max() == 3
    exact = vh.token_information(demo_model(), demo_samples(1)[0], window=3, layers=[0, 4])
    np.testing.assert_allclose(grids.log_p, exact.log_p, atol=1e-4)
    counted = vh.token_information(demo_model(), demo_samples(1)[0], max_windows=9, layers=[0])
    assert counted.windows.equals(exact.windows)
    (found,) = vh.find_horizon(run, by=(), criterion="information")
    assert found.skipped.tolist() == [2, 6]  # of the layers that the run has cut at


# --- command line ----------------------------------------------------------------------------------------------------


def call(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code or 0


def test_the_command_line_chooses_layers_and_says_why(tmp_path, capsys):
    model = str(vh.data_path("demo-models", "tiny-8"))
    data = str(vh.data_path("demo-samples", "vqa.jsonl"))
    options = ("--probes", "removal,information", "--limit", "2", "--window", "4", "--out", str(tmp_path / "run"))
    assert call("run", model, data, *options, "--layers", "auto", "--layer-budget", "3") == 0
    said = capsys.readouterr().err
    assert "removal sweep done: vqa horizon" in said
    assert "done: " in said
    assert len(vh.load_run(tmp_path / "run").config.chosen_layers["vqa"]) == 3
    assert call("run", model, data, *options, "--layer-budget", "3") == 2
    assert "--layer-budget 3 says how --layers auto chooses" in capsys.readouterr().err
    coarse = (*options[:-1], str(tmp_path / "coarse"), "--coarse", "8")
    assert call("run", model, data, *coarse, "--layers", "0,7") == 0
    assert "replays for token grids instead of" in capsys.readouterr().err


def test_first_order_grids_report_the_samples_that_were_checked_at_each_layer(tmp_path):
    """Task types get layers of their own, so not every checked sample is checked at every layer."""
    how = {**PROBES, "method": "gate", "contexts": ("leave-one-out", "keep-one"), "gate_checks": 2}
    run = vh.run_adaptive(demo_model(), demo_samples(2), tmp_path / "run", **how)
    assert len(set(map(tuple, run.config.chosen_layers.values()))) == 2
    found = vh.gate_agreement(run)
    assert {one.context for one in found} == {"leave-one-out", "keep-one"}
    assert all(np.isfinite(one.top_overlap) and np.isfinite(one.largest_effect) for one in found)
    assert min(one.n_samples for one in found) >= 1
    assert max(one.n_samples for one in found) <= 4
