"""Effect curves against the numbers that were planted."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.curves.effects import (
    entropy_curves,
    image_codes,
    information_curves,
    information_quantiles,
    noise_floor,
    removal_effects,
)
from analyses.runs import HorizonError, split_groups

L = 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def grids(rng):
    """A 3 x 5 token grid under 2 x 2 windows: 2 x 3 windows of 4, 4, 2, 2, 2, 1 tokens."""
    return rng.uniform(0.01, 0.9, (4, L, 6))


@pytest.fixture
def run(tmp_path, rng, grids):
    p = {"ocr/read": rng.uniform(0.05, 0.95, (4, L + 1)), "vqa/color": rng.uniform(0.05, 0.95, (3, L + 1))}
    return write_run(
        tmp_path / "run",
        effects=p,
        correct={"ocr/read": np.tile([0, 0, 1, 0, 1, 1, 1], (4, 1)), "vqa/color": np.ones((3, L + 1))},
        kl={key: np.abs(a - a[:, -1:]) for key, a in p.items()},
        entropies={"query": step_curve(L, 3), "hidden": {"ocr/read": rng.uniform(1, 4, (4, L + 1))}},
        grids={"ocr/read": grids},
        leave_one_out={"ocr/read": grids[:, :, ::-1]},
        grid_shape=(3, 5),
        images={"ocr/read": [0, 1, 2, 2], "vqa/color": [2, 3, 4]},
        failed={"ocr/read": 1},
        noise_floor={"ocr/read": np.array([1e-6, 2e-6, 3e-6, 4e-6]), "vqa/color": np.array([5e-6, 6e-6, 1e-3])},
    ), p


def test_removal_effects_are_differences_from_the_models_own_forward(run):
    run, p = run
    stacked = np.concatenate([p["ocr/read"], p["vqa/color"]])
    found = removal_effects(run)
    np.testing.assert_allclose(found.values, stacked[:, -1:] - stacked, atol=1e-12)
    assert (found.values[:, -1] == 0).all()
    np.testing.assert_array_equal(found.layers, np.arange(L + 1))
    np.testing.assert_array_equal(found.rows, np.arange(7))
    assert (found.measure, found.unit) == ("p", "probability")
    assert list(found.groups["task"]) == ["read"] * 4 + ["color"] * 3
    log = removal_effects(run, measure="log_p")
    np.testing.assert_allclose(log.values, np.log(stacked[:, -1:] / stacked), atol=1e-12)
    assert log.unit == "nats"


def test_kl_is_stored_and_correct_is_a_drop_in_accuracy(run):
    run, p = run
    np.testing.assert_allclose(
        removal_effects(run, measure="kl").values[:4], np.abs(p["ocr/read"] - p["ocr/read"][:, -1:]), atol=1e-12
    )
    drop = removal_effects(run, measure="correct")
    np.testing.assert_array_equal(drop.values[0], [1, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(drop.values[5], np.zeros(L + 1))


def test_clusters_are_images_across_tasks(run):
    run, _ = run
    codes = removal_effects(run).images
    assert codes[2] == codes[3] == codes[4]
    assert sorted(set(codes)) == [0, 1, 2, 3, 4] == sorted(set(image_codes(run)))
    np.testing.assert_array_equal(codes[:4], entropy_curves(run, "hidden").images)


def test_entropy_curves_and_their_normalization(run):
    run, _ = run
    hidden = entropy_curves(run, "hidden")
    assert hidden.values.shape == (4, L + 1)
    query = entropy_curves(run, "query")
    np.testing.assert_array_equal(query.values, np.tile(step_curve(L, 3), (7, 1)))
    share = entropy_curves(run, "query", normalized=True)
    # 15 tokens of a 3 x 5 grid (ocr), 64 of the default one (vqa), centered; query is 128 wide
    np.testing.assert_allclose(share.values[0], step_curve(L, 3) / np.log(14))
    np.testing.assert_allclose(share.values[6], step_curve(L, 3) / np.log(63))
    assert (query.unit, share.unit) == ("nats", "1")


def test_one_token_has_no_normalized_entropy(tmp_path):
    one = write_run(
        tmp_path / "one",
        effects={"ocr": np.full((1, L + 1), 0.5)},
        entropies={"query": np.zeros(L)},
        grids={"ocr": np.full((1, L, 1), 0.5)},
        grid_shape=(1, 1),
        window=1,
    )
    assert np.isnan(entropy_curves(one, "query", normalized=True).values).all()


def test_information_weights_windows_by_their_size(run, grids):
    run, p = run
    weights = np.array([4, 4, 2, 2, 2, 1])
    effects = grids - p["ocr/read"][:, :-1, None]
    mean = (effects * weights).sum(axis=2) / 15
    found = information_curves(run, ("mean",))[0]
    np.testing.assert_allclose(found.values[:, :-1], mean, atol=1e-6)
    assert (found.values[:, -1] == 0).all()
    np.testing.assert_array_equal(found.layers, np.arange(L + 1))
    magnitude, removal = information_curves(run, ("magnitude", "removal"))
    np.testing.assert_allclose(magnitude.values[:, :-1], (np.abs(effects) * weights).sum(axis=2) / 15, atol=1e-6)
    np.testing.assert_allclose(removal.values, removal_effects(run).values[:4], atol=1e-6)
    spread = np.sqrt((((effects - mean[..., None]) ** 2) * weights).sum(axis=2) / 15)
    np.testing.assert_allclose(information_curves(run, ("spread",))[0].values[:, :-1], spread, atol=1e-6)


def test_leave_one_out_is_what_the_window_adds_to_all_others(run, grids):
    run, p = run
    effects = p["ocr/read"][:, -1:, None] - grids[:, :, ::-1]
    mean = (effects * [4, 4, 2, 2, 2, 1]).sum(axis=2) / 15
    np.testing.assert_allclose(
        information_curves(run, ("mean",), context="leave-one-out")[0].values[:, :-1], mean, atol=1e-6
    )
    log = information_curves(run, ("mean",), context="leave-one-out", measure="log_p")[0].values[:, :-1]
    logs = np.log(p["ocr/read"][:, -1:, None] / grids[:, :, ::-1])
    np.testing.assert_allclose(log, (logs * [4, 4, 2, 2, 2, 1]).sum(axis=2) / 15, atol=1e-5)


def test_quantiles_pool_tokens_of_all_samples(run, grids):
    run, p = run
    layers, values = information_quantiles(run, [0, 2], quantiles=(0, 0.3, 0.5, 1))
    effects = grids - p["ocr/read"][:, :-1, None]
    for i in range(L):
        tokens = np.sort(np.concatenate([np.repeat(effects[row, i], [4, 4, 2, 2, 2, 1]) for row in (0, 2)]))
        expected = [np.quantile(tokens, q, method="inverted_cdf") for q in (0, 0.3, 0.5, 1)]
        np.testing.assert_allclose(values[i], expected, atol=1e-6)
    np.testing.assert_array_equal(layers, np.arange(L))
    layers, values = information_quantiles(run, [5])
    np.testing.assert_array_equal(layers, np.arange(L))
    assert np.isnan(values).all()


def test_samples_without_a_grid_are_absent(tmp_path, grids):
    grids[1] = np.nan
    run = write_run(
        tmp_path / "run", effects={"ocr": np.full((4, L + 1), 0.5)}, grids={"ocr": grids}, grid_shape=(3, 5)
    )
    np.testing.assert_array_equal(information_curves(run, ("mean",))[0].rows, [0, 2, 3])


def test_noise_floor_is_the_99th_percentile(run):
    run, _ = run
    assert noise_floor(run, "p") == pytest.approx(np.quantile([1e-6, 2e-6, 3e-6, 4e-6, 5e-6, 6e-6, 1e-3], 0.99))


def test_groups_split_every_sample_once(run):
    run, _ = run
    groups = split_groups(run.samples, ("task_type", "task"))
    assert [g for g, _ in groups] == [
        {"task_type": "ocr", "task": "read"},
        {"task_type": "vqa", "task": "color"},
    ]
    # the failed sample belongs to its group: a group that failed as a whole must not vanish
    np.testing.assert_array_equal(groups[0][1], [0, 1, 2, 3, 7])
    assert split_groups(run.samples, ())[0][0] == {}
    np.testing.assert_array_equal(split_groups(run.samples, ())[0][1], np.arange(8))


def test_cuts_may_be_a_choice_of_layers(tmp_path):
    p = fade_curve(L, 3)[[0, 2, 4, 6]][None]
    run = write_run(tmp_path / "run", effects={"ocr": p}, n_layers=L, layers=(0, 2, 4))
    found = removal_effects(run)
    np.testing.assert_array_equal(found.layers, [0, 2, 4, 6])
    np.testing.assert_allclose(found.values, p[:, -1:] - p, atol=1e-12)


def test_without_a_measured_sample_curves_are_empty_but_layers_known(tmp_path):
    run = write_run(
        tmp_path / "run",
        effects={"ocr": np.empty((0, L + 1))},
        entropies={"query": {"ocr": np.empty((0, L))}},
        failed={"ocr": 2},
        layers=(0, 3),
    )
    np.testing.assert_array_equal(removal_effects(run).layers, [0, 3, L])
    np.testing.assert_array_equal(entropy_curves(run, "query").layers, np.arange(L))
    assert removal_effects(run).values.shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda run: removal_effects(run, measure="logit"),
            "measure 'logit' is unknown; did you mean 'log_p'? choose from p, log_p, kl",
        ),
        (lambda run: removal_effects(run, target="silver"), "target 'silver' is unknown; choose from gold"),
        (lambda run: entropy_curves(run, "value"), "stream 'value' is unknown; choose from query, hidden"),
        (lambda run: information_curves(run, ("mean",), context="removal"), "context 'removal' is unknown"),
        (
            lambda run: information_curves(run, ("mean",), measure="kl")[0],
            "measure 'kl' is unknown; choose from p, log_p",
        ),
        (lambda run: split_groups(run.samples, ("color",)), "column to group by 'color' is unknown"),
        (lambda run: noise_floor(run, "correct"), "measure 'correct' is unknown"),
    ],
)
def test_unknown_words_name_the_choices(run, call, words):
    with pytest.raises(HorizonError, match=words.replace("?", r"\?")):
        call(run[0])


def test_what_was_not_measured_is_said(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.ones((2, L))}})
    with pytest.raises(HorizonError, match=r"no removal curves.*'removal'"):
        removal_effects(run)
    with pytest.raises(HorizonError, match=r"no keep-one token grids.*'information'"):
        information_curves(run, ("mean",))[0]
    assert np.isnan(noise_floor(write_run(tmp_path / "none", effects={"a": np.ones((1, 4))}, noise_floor=np.nan), "p"))
