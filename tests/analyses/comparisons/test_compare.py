"""Differences of depth: planted gaps, pairing on shared images, censoring, and what cannot be said."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.depths import half_depths, settled_layer
from analyses.arrays.permutation import adjust_holm, half_depth_p_value
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.comparisons.compare import compare_horizons
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector, find_horizon

L = 10
QUICK = HorizonDetector(resamples=400)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def fades(halves, n_layers=L, width=0.4):
    """(sample, n_layers + 1) p after removal, with the middle of the rise of each sample given."""
    return np.stack([fade_curve(n_layers, half, width) for half in halves])


def pick(comparison, quantity="half_depth", unit="layers", *, paired=False):
    (found,) = [d for d in comparison.differences if (d.quantity, d.unit, d.paired) == (quantity, unit, paired)]
    return found


def test_a_planted_gap_is_measured_in_layers_and_fraction(tmp_path, rng):
    p = {"ocr": fades(rng.normal(6.5, 0.3, 60)), "vqa": fades(rng.normal(4.0, 0.3, 50))}
    comparison = compare_horizons(write_run(tmp_path / "run", effects=p), detector=QUICK)
    assert [h.group["task_type"] for h in comparison.groups] == ["ocr", "vqa"]
    gap = pick(comparison)
    assert (gap.a, gap.b, gap.n_a, gap.n_b) == ("ocr", "vqa", 60, 50)
    assert gap.interval[0] < 2.5 < gap.interval[1]
    assert gap.interval[1] - gap.interval[0] < 0.4
    assert pick(comparison, unit="fraction").value == pytest.approx(gap.value / L)
    assert pick(comparison, unit="fraction").interval == pytest.approx(tuple(v / L for v in gap.interval))
    horizon = pick(comparison, "horizon")
    assert horizon.value == comparison.groups[0].layer - comparison.groups[1].layer
    assert horizon.interval[0] <= horizon.value <= horizon.interval[1]


def test_everything_restated_by_hand(tmp_path, rng):
    p = {"ocr": fades(rng.normal(6, 1, 30)), "vqa": fades(rng.normal(4, 1, 25))}
    images = {"ocr": rng.integers(0, 20, 30), "vqa": rng.integers(10, 30, 25)}
    run = write_run(tmp_path / "run", effects=p, images=images)
    comparison = compare_horizons(run, detector=QUICK)
    names = sorted(set(run.samples["image_sha256"]))
    codes = np.array([names.index(h) for h in run.samples["image_sha256"]])
    sides = [(p["ocr"][:, -1:] - p["ocr"], codes[:30]), (p["vqa"][:, -1:] - p["vqa"], codes[30:])]
    shared = set(codes[:30]) & set(codes[30:])
    counts, layers = draw_counts(len(names), 400, 0), np.arange(L + 1)
    for paired in (False, True):
        half, settled, draws, horizons = [], [], [], []
        for values, images_of in sides:
            inside = np.isin(images_of, list(shared)) if paired else slice(None)
            mean, means = values[inside].mean(axis=0), resampled_means(values[inside], images_of[inside], counts)
            half.append(half_depths(mean, layers))
            draws.append(half_depths(means, layers))
            settled.append(settled_layer(mean, max(0.05 * mean[0], 0.01 + 1e-6), layers))
            horizons.append([settled_layer(m, max(0.05 * m[0], 0.01 + 1e-6), layers) for m in means])
        found = pick(comparison, paired=paired)
        assert found.value == pytest.approx(half[0] - half[1])
        few = min(found.n_a, found.n_b)
        assert found.interval == pytest.approx(tuple(percentile_interval(draws[0] - draws[1], n_clusters=few)))
        found = pick(comparison, "horizon", paired=paired)
        assert found.value == settled[0] - settled[1]
        steps = np.subtract(*horizons).astype(float)
        assert found.interval == pytest.approx(tuple(percentile_interval(steps, n_clusters=few, method="inverted_cdf")))
        assert found.n_a == (len(shared) if paired else len(set(codes[:30])))


def test_pairing_cancels_what_an_image_is_like(tmp_path, rng):
    """Images differ a lot in depth; on each, one question lies exactly a layer deeper than the other."""
    depth = rng.uniform(2.5, 6.5, 60)
    p = {"ocr": fades(depth + 1, 14), "vqa": fades(depth, 14)}
    shared = write_run(tmp_path / "shared", effects=p, images={"ocr": range(60), "vqa": range(60)})
    apart = write_run(tmp_path / "apart", effects=p)
    paired, unpaired = pick(compare_horizons(shared, detector=QUICK), paired=True), pick(compare_horizons(apart))
    assert paired.value == pytest.approx(1, abs=0.06)
    assert paired.interval[0] > 0.9
    assert paired.interval[1] < 1.1
    assert np.ptp(unpaired.interval) > 4 * np.ptp(paired.interval)
    # the common resamples see that the images are the same even where nothing is restricted to them
    assert pick(compare_horizons(shared, detector=QUICK)).interval == pytest.approx(paired.interval)


def test_pairing_uses_images_asked_in_both(tmp_path, rng):
    p = {"ocr": fades(np.repeat([7.0, 5.0], 20)), "vqa": fades(np.repeat([3.0, 4.0], 20))}
    run = write_run(tmp_path / "run", effects=p, images={"ocr": range(40), "vqa": range(20, 60)})
    comparison = compare_horizons(run, detector=QUICK)
    paired = pick(comparison, paired=True)
    assert (paired.n_a, paired.n_b) == (20, 20)
    assert paired.value == pytest.approx(5.0 - 3.0, abs=0.05)
    assert pick(comparison).value == pytest.approx(6.0 - 3.5, abs=0.25)


def test_a_set_against_itself_differs_by_nothing(tmp_path, rng):
    p = fades(rng.normal(5, 1, 40))
    run = write_run(tmp_path / "run", effects={"a": p, "b": p}, images={"a": range(40), "b": range(40)})
    for difference in compare_horizons(run, detector=QUICK).differences:
        assert (difference.value, difference.interval) == (0, (0, 0))
        assert difference.p_value == difference.p_adjusted == (1 if difference.quantity == "half_depth" else None)


def test_p_values_restated(tmp_path, rng):
    p = {"ocr": fades(rng.normal(5.2, 1.2, 30)), "vqa": fades(rng.normal(4.6, 1.2, 25))}
    images = {"ocr": np.arange(30), "vqa": np.arange(20, 45)}
    run = write_run(tmp_path / "run", effects=p, images=images)
    comparison = compare_horizons(run, detector=HorizonDetector(resamples=50, seed=3), permutations=500)
    names = sorted(set(run.samples["image_sha256"]))
    codes = np.array([names.index(h) for h in run.samples["image_sha256"]])
    sides = [(p["ocr"][:, -1:] - p["ocr"], codes[:30]), (p["vqa"][:, -1:] - p["vqa"], codes[30:])]
    for paired in (False, True):
        if paired:
            shared = np.intersect1d(codes[:30], codes[30:])
            sides = [
                (values[np.isin(images_of, shared)], images_of[np.isin(images_of, shared)])
                for values, images_of in sides
            ]
        expected = half_depth_p_value(*sides[0], *sides[1], np.arange(L + 1), permutations=500, seed=3)
        found = [pick(comparison, unit=unit, paired=paired).p_value for unit in ("layers", "fraction")]
        assert found == [expected, expected]
        assert 0.01 < expected < 1
        assert pick(comparison, "horizon", paired=paired).p_value is None


def test_holm_goes_over_the_half_depths_of_one_unit_and_pairing(tmp_path, rng):
    p = {f"ocr/{name}": fades(rng.normal(half, 1, 20)) for name, half in (("a", 5.2), ("b", 5), ("c", 4.3), ("d", 3))}
    p["ocr/none"] = np.full((20, L + 1), 0.5)
    images = {key: range(20) for key in ("ocr/a", "ocr/b", "ocr/none")}
    run = write_run(tmp_path / "run", effects=p, images=images)
    differences = compare_horizons(run, between="task", detector=QUICK, permutations=300).differences
    for unit in ("layers", "fraction"):
        for paired, n in ((False, 6), (True, 1)):
            kind = ("half_depth", unit, paired)
            family = [d for d in differences if (d.quantity, d.unit, d.paired) == kind]
            assert len(family) == 10
            assert sum(d.p_value is not None for d in family) == n
            assert [d.p_adjusted for d in family] == adjust_holm([d.p_value for d in family])
    assert any(d.p_adjusted > d.p_value for d in differences if d.p_value is not None)
    assert {d.p_value for d in differences if d.value is None} == {None}


def test_p_values_can_be_left_out(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": fades([5] * 9), "vqa": fades([4] * 9)})
    found = compare_horizons(run, detector=QUICK, permutations=0).differences
    assert {(d.p_value, d.p_adjusted) for d in found} == {(None, None)}
    assert pick(compare_horizons(run, detector=QUICK, permutations=0)).value == pick(compare_horizons(run)).value


@pytest.mark.parametrize("cut", [4, 6, 8])
def test_the_uncut_against_the_cut_model(tmp_path, rng, cut):
    """A model that sees nothing from layer `cut` on has R'_k = R_k - R_cut, so its horizon and half depth are known."""
    p = fades(rng.normal(5.5, 1, 40), width=0.8)
    effects = p[:, -1:] - p
    left = np.where(np.arange(L + 1) < cut, effects - effects[:, [cut]], 0)
    runs = [
        write_run(tmp_path / name, model=f"x/{name}", effects={"ocr": 0.95 - e}, images={"ocr": range(40)})
        for name, e in (("uncut", effects), ("cut", left))
    ]
    comparison = compare_horizons(runs, between="model", detector=QUICK)
    halves = [half_depths(e.mean(axis=0), np.arange(L + 1)) for e in (effects, left)]
    found = pick(comparison, paired=True)
    assert found.value == pytest.approx(halves[0] - halves[1])
    assert found.interval[0] > 0
    assert found.p_value == 1 / 2001
    threshold = max(0.05 * left[:, 0].mean(), 0.01 + 1e-6)
    assert comparison.groups[1].layer == settled_layer(left.mean(axis=0), threshold, np.arange(L + 1)) <= cut


def test_models_of_one_fraction_of_depth_differ_in_layers_only(tmp_path, rng):
    """The deeper model runs through the same curve in twice the layers."""
    p = fades(rng.normal(4, 0.8, 30), 8)
    slow = np.stack([np.interp(np.arange(17) / 2, np.arange(9), curve) for curve in p])
    runs = [
        write_run(tmp_path / name, model=f"x/{name}", effects={"ocr": a}, images={"ocr": images})
        for name, a, images in (("short", p, range(30)), ("long", slow, range(30)))
    ]
    comparison = compare_horizons(runs, between="model", detector=QUICK)
    layers, fraction = (pick(comparison, unit=unit, paired=True) for unit in ("layers", "fraction"))
    assert (layers.p_value, fraction.p_value) == (1 / 2001, 1)
    assert (layers.p_adjusted, fraction.p_adjusted) == (1 / 2001, 1)
    assert fraction.value == pytest.approx(0)


def test_without_shared_images_there_is_nothing_paired(tmp_path, rng):
    run = write_run(tmp_path / "run", effects={"ocr": fades([5] * 9), "vqa": fades([4] * 9)})
    paired = pick(compare_horizons(run, detector=QUICK), paired=True)
    assert (paired.value, paired.interval, paired.n_a) == (None, None, 0)
    assert paired.reason == "no image was asked in both"


def test_censored_horizons_are_bounds_or_nothing(tmp_path):
    p = {"a": fades([9.3] * 9, width=0.2), "b": fades([4] * 9), "c": fades([9.2] * 9, width=0.2)}
    comparison = compare_horizons(write_run(tmp_path / "run", effects=p), detector=QUICK)
    assert [h.censored for h in comparison.groups] == [True, False, True]
    by_pair = {(d.a, d.b): d for d in comparison.differences if d.quantity == "horizon" and d.unit == "layers"}
    assert list(by_pair) == [("a", "b"), ("a", "c"), ("b", "c")]
    unpaired = {
        (d.a, d.b): d for d in comparison.differences if (d.quantity, d.unit, d.paired) == ("horizon", "layers", False)
    }
    assert unpaired["a", "b"].censored
    assert unpaired["a", "b"].value == L - comparison.groups[1].layer
    assert unpaired["a", "c"].value is None
    assert "neither horizon is reached" in unpaired["a", "c"].reason
    half = [d for d in comparison.differences if d.quantity == "half_depth" and not d.paired]
    assert not any(d.censored for d in half)
    assert all(d.value is not None for d in half)


def test_a_level_without_effect_gives_none_and_says_which(tmp_path, rng):
    run = write_run(tmp_path / "run", effects={"ocr": fades([5] * 9), "vqa": np.full((9, L + 1), 0.5)})
    found = pick(compare_horizons(run, detector=QUICK))
    assert (found.value, found.interval) == (None, None)
    assert found.reason.startswith("vqa: removing all visual tokens at layer 0 has no effect")


def test_levels_equal_what_find_horizon_says(tmp_path, rng):
    p = {"ocr/x": fades(rng.normal(6, 1, 30)), "vqa/y": fades(rng.normal(4, 1, 25)), "vqa/z": fades([5] * 9)}
    run = write_run(tmp_path / "run", effects=p)
    compared = compare_horizons(run, between="task", detector=QUICK).groups
    found = find_horizon(run, by=("task",), criterion="removal", detector=QUICK)
    for one, other in zip(compared, found, strict=True):
        assert (one.group, one.layer, one.interval) == (other.group, other.layer, other.interval)
        assert one.half_depth_interval == other.half_depth_interval


def test_models_are_compared_in_fraction_of_depth_and_paired_on_images(tmp_path, rng):
    depth = rng.uniform(-1, 1, 40)
    shallow = write_run(
        tmp_path / "shallow", model="x/shallow", effects={"ocr": fades(4 + depth, 8)}, images={"ocr": range(40)}
    )
    deep = write_run(
        tmp_path / "deep",
        model="x/deep",
        effects={"ocr": fades(8 + 2 * depth[::-1], 16, width=0.8)},
        images={"ocr": list(range(40))[::-1]},
    )
    comparison = compare_horizons([shallow, deep], between="model", detector=QUICK)
    layers, fraction = pick(comparison, paired=True), pick(comparison, unit="fraction", paired=True)
    assert (layers.a, layers.b, layers.n_a) == ("shallow", "deep", 40)
    assert layers.value == pytest.approx(-4, abs=0.15)
    assert fraction.value == pytest.approx(0, abs=0.01)
    assert fraction.interval[0] < 0 < fraction.interval[1]
    # the same image moves both models alike, which only resampling images across runs can see
    assert np.ptp(fraction.interval) < 0.01


def test_models_are_compared_within_task_types_and_tasks_within_models(tmp_path):
    p = {"ocr": fades([6] * 9), "vqa": fades([4] * 9)}
    runs = [write_run(tmp_path / name, model=f"x/{name}", effects=p) for name in ("one", "two")]
    models = compare_horizons(runs, between="model", within=("task_type",), detector=QUICK)
    assert {(d.a, d.b) for d in models.differences} == {("one: ocr", "two: ocr"), ("one: vqa", "two: vqa")}
    types = compare_horizons(runs, detector=QUICK)
    assert {(d.a, d.b) for d in types.differences} == {("one: ocr", "one: vqa"), ("two: ocr", "two: vqa")}
    namesakes = [write_run(tmp_path / name, effects=p) for name in ("fp16", "fp32")]
    (pair,) = {(d.a, d.b) for d in compare_horizons(namesakes, between="model", detector=QUICK).differences}
    assert pair == ("synthetic (fp16)", "synthetic (fp32)")


def test_categories_within_tasks(tmp_path):
    p = {f"ocr/{task}/{kind}": fades([5] * 5) for task in ("read", "count") for kind in ("x", "y")}
    comparison = compare_horizons(
        write_run(tmp_path / "run", effects=p), between="category", within=("task",), detector=QUICK
    )
    assert {(d.a, d.b) for d in comparison.differences} == {("read / x", "read / y"), ("count / x", "count / y")}


def test_other_criteria_compare_horizons_only(tmp_path):
    p = {"ocr": fades([6] * 9), "vqa": fades([4] * 9)}
    grids = {key: np.repeat(a[:, -1:, None] + a[:, :-1, None], 4, axis=2) / 2 for key, a in p.items()}
    run = write_run(tmp_path / "run", effects=p, grids=grids)
    comparison = compare_horizons(run, criterion="information", detector=QUICK)
    assert {d.quantity for d in comparison.differences} == {"horizon"}
    assert pick(comparison, "horizon").value == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"between": "color"},
            "comparison 'color' is unknown; choose from task_type, task, category, model, revision, prompt",
        ),
        ({"between": "model"}, "needs at least 2 run"),
        (
            {"between": "task", "within": ("task",)},
            r"'task' is unknown; did you mean 'task_type'\? choose from task_type, category",
        ),
        ({"criterion": "elbow"}, "criterion 'elbow' is unknown"),
        ({"measure": "kl"}, "measure of the criterion 'removal' 'kl' is unknown"),
        ({"within": ("color",)}, "column to group by 'color' is unknown"),
    ],
)
def test_unknown_words_name_the_choices(tmp_path, words, message):
    run = write_run(tmp_path / "run", effects={"ocr": fades([5] * 3)})
    with pytest.raises(HorizonError, match=message):
        compare_horizons(run, **words)
