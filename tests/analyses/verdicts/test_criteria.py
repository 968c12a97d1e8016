"""One planted truth through every criterion, each restated by hand, and refused where nothing can be claimed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from synthetic_runs import fade_curve, write_run

from analyses.arrays.resampling import draw_counts, simultaneous_band
from analyses.runs import METHOD_TABLE, HorizonError
from analyses.verdicts.criteria import CRITERIA, is_above, settle
from analyses.verdicts.horizon import HorizonDetector, find_horizon

L = 8
FIRST_ORDER = METHOD_TABLE["gate"].caution
QUICK = HorizonDetector(resamples=300)
EVERY_CRITERION = pytest.mark.parametrize("criterion", list(CRITERIA))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def by_criterion(run, **words):
    """Criterion -> horizon of the only group."""
    return {h.criterion: h for h in find_horizon(run, **{"detector": QUICK, **words})}


def uneven_grids(p, size, n_windows=4):
    """(sample, L, window) p of single windows above the removed baseline: `size` is (L,), windows share it unevenly."""
    return p[:, :-1, None] + np.asarray(size)[None, :, None] * np.linspace(0.5, 1.5, n_windows)


def test_every_criterion_is_there_in_the_order_of_the_definitions():
    assert list(CRITERIA) == ["removal", "information", "spread", "accuracy", "kl", "vtw"]


@pytest.mark.parametrize("h", [1, 4, L])
def test_a_planted_step_is_found_by_every_criterion(tmp_path, rng, h):
    p = np.where(np.arange(L + 1) < h, 0.1, 0.9) + rng.normal(0, 0.02, (400, 1))
    grids = uneven_grids(p, np.where(np.arange(L) < h, 0.2, 0.0))
    grids[100:] = np.nan
    found = by_criterion(write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids}))
    assert {name: result.layer for name, result in found.items()} == dict.fromkeys(CRITERIA, h)
    assert {name: result.censored for name, result in found.items()} == dict.fromkeys(CRITERIA, h == L)
    assert found["vtw"].interval is None
    for name in set(CRITERIA) - {"vtw"}:
        assert found[name].interval[0] == h
    assert {name for name, result in found.items() if result.half_depth is not None} == {"removal"}
    assert [found[name].n_samples for name in ("removal", "spread")] == [400, 100]


def settled_by_hand(sizes, threshold, *, inclusive=False, first=False):
    """Smallest k that is gone (and stays so, unless the first one is asked for); the end if there is none."""
    gone = [size <= threshold if inclusive else size < threshold for size in sizes]
    for k in range(len(gone)):
        if gone[k] and (first or all(gone[k:])):
            return k
    return len(gone) - 1


def test_every_criterion_restated_from_the_planted_numbers(tmp_path, rng):
    n = 40
    p = np.clip(fade_curve(L, 4.5) + rng.normal(0, 0.05, (n, L + 1)), 0.001, 0.999)
    size = fade_curve(L, 4, p_all=0, p_none=0.2)[:-1, None]
    grids = np.clip(p[:, :-1, None] + size * rng.normal(0, 1, (n, L, 5)), 0.001, 1)
    kl = rng.exponential(0.5, (n, L + 1)) * fade_curve(L, 5, p_all=0, p_none=1)
    correct = rng.uniform(0, 1, (n, L + 1)) < fade_curve(L, 4.5)
    images = rng.integers(0, 30, n)
    run = write_run(
        tmp_path / "run",
        effects={"ocr": p},
        grids={"ocr": grids},
        kl={"ocr": kl},
        correct={"ocr": correct},
        images={"ocr": images},
        grid_shape=(2, 9),
    )
    weights = run.tokens(0).weights
    information = grids - p[:, :-1, None]
    mean = np.average(information, axis=2, weights=weights)[..., None]
    end = np.zeros((n, 1))
    values = {
        "removal": p[:, -1:] - p,
        "information": np.hstack([np.average(np.abs(information), axis=2, weights=weights), end]),
        "spread": np.hstack([np.sqrt(np.average((information - mean) ** 2, axis=2, weights=weights)), end]),
        "accuracy": correct[:, -1:].astype(float) - correct,
        "kl": kl,
        "vtw": kl,
    }
    names = sorted(set(run.samples["image_sha256"]))
    codes = np.array([names.index(h) for h in run.samples["image_sha256"]])
    counts = draw_counts(len(names), 300, 0)
    relaxed = replace(QUICK, precision=1.0)
    for name, found in by_criterion(run, detector=relaxed).items():
        curve = values[name].mean(axis=0)
        np.testing.assert_allclose(found.effect, curve, atol=1e-6)
        low, high = simultaneous_band(values[name], codes, counts)
        np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-5)
        thresholds = {
            "removal": [max(0.05 * c[0], 0.01 + 1e-6) for c in (curve, high, low)],
            "information": [0.05 * max(c) for c in (curve, high, low)],
            "spread": [0.05 * max(c) for c in (curve, high, low)],
            "accuracy": [0.01] * 3,
        }.get(name, [0.003] * 3)
        assert found.threshold == pytest.approx(thresholds[0], rel=1e-4)
        rule = {"inclusive": name in ("accuracy", "kl", "vtw"), "first": name == "vtw"}
        signed = name == "accuracy"
        assert found.layer == settled_by_hand(curve if signed else np.abs(curve), thresholds[0], **rule)
        nearest = low if signed else np.where(low * high <= 0, 0, np.minimum(np.abs(low), np.abs(high)))
        farthest = high if signed else np.maximum(np.abs(low), np.abs(high))
        ends = settled_by_hand(nearest, thresholds[1], **rule), settled_by_hand(farthest, thresholds[2], **rule)
        assert found.interval == (None if name == "vtw" else ends)


@EVERY_CRITERION
def test_settling_restated_layer_by_layer(rng, criterion):
    rule = CRITERIA[criterion]
    curves = np.round(rng.normal(0, 0.02, (200, L + 1)), 2)  # coarse, so that values equal to the threshold occur
    curves[:, -1] = 0
    layers = np.arange(0, 2 * L + 1, 2)
    for curve, layer in zip(curves, settle(rule, curves, 0.02, layers), strict=True):
        sizes = curve if rule.signed else np.abs(curve)
        at = settled_by_hand(sizes, 0.02, inclusive=rule.inclusive, first=not rule.settles)
        assert layer == layers[at]


def test_where_nothing_is_ever_gone_the_end_is_named():
    for rule in CRITERIA.values():
        assert settle(rule, np.full(5, 0.5), 0.1, np.arange(5)) == 4


@pytest.mark.parametrize(("criterion", "gone"), [("removal", False), ("kl", True), ("accuracy", True)])
def test_an_effect_equal_to_the_threshold(criterion, gone):
    assert is_above(CRITERIA[criterion], np.array([0.01]), 0.01).item() is not gone


def test_vtw_takes_the_first_crossing_and_kl_waits(tmp_path):
    p = np.tile(np.where(np.arange(L + 1) < 6, 0.1, 0.9), (30, 1))
    kl = np.tile([1, 0.5, 0.0029, 0.2, 0.1, 0.0031, 0.001, 0.0, 0.0], (30, 1))
    found = by_criterion(write_run(tmp_path / "run", effects={"ocr": p}, kl={"ocr": kl}))
    assert (found["vtw"].layer, found["vtw"].interval) == (2, None)
    assert found["kl"].layer == 6
    assert found["kl"].interval[0] <= 6 <= found["kl"].interval[1]
    assert {found[name].measure for name in ("kl", "vtw")} == {"kl"}
    run = write_run(tmp_path / "b", effects={"ocr": p}, kl={"ocr": kl})
    strict = by_criterion(run, detector=replace(QUICK, eta=0.0005))
    assert (strict["vtw"].layer, strict["kl"].layer) == (7, 7)


def answers(n, shares):
    """(n, layer) right answers: the first `share` of the samples at each layer."""
    return np.arange(n)[:, None] < np.round(np.asarray(shares) * n)


def accuracy(tmp_path, n, shares, detector=QUICK):
    p = np.tile(fade_curve(L, 4.0), (n, 1))
    run = write_run(tmp_path / f"run-{n}", effects={"ocr": p}, correct={"ocr": answers(n, shares)})
    (found,) = find_horizon(run, criterion="accuracy", detector=detector)
    return found


def test_accuracy_is_undecided_where_few_images_say_little(tmp_path):
    shares = [0.2, 0.2, 0.3, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    few = accuracy(tmp_path, 60, shares)
    assert (few.layer, few.interval) == (None, None)
    assert few.reason.startswith("undecided: the fall in accuracy at layer 3 is known to within")
    assert few.reason.endswith("points only, needed 1")
    many = accuracy(tmp_path, 600, shares)
    # at layers 0 to 2 the fall is known less well, but it is a fall for sure
    assert (many.high[:3] - many.low[:3] > 0.02).all()
    assert (many.layer, many.interval, many.measure, many.reason) == (3, (3, 3), "correct", "")
    assert math.isnan(many.noise_floor)
    assert accuracy(tmp_path / "relaxed", 60, shares, replace(QUICK, precision=0.2)).layer == 3


def test_accuracy_is_undecided_next_to_its_threshold(tmp_path):
    """At layer 4 the fall is 2 points: too small to be sure of it in 600 images, so the horizon may be 4 or 5."""
    found = accuracy(tmp_path, 600, [0.2, 0.2, 0.3, 0.3, 0.78, 0.8, 0.8, 0.8, 0.8])
    assert found.layer is None
    assert "at layer 4 is known to within" in found.reason


def test_a_rise_in_accuracy_is_no_fall(tmp_path):
    found = accuracy(tmp_path, 600, [0.2, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6], replace(QUICK, precision=1.0))
    assert found.layer == 2


def test_no_criterion_speaks_where_the_task_has_no_effect(tmp_path, rng):
    """Everything else changes a lot, but the visual tokens do not make the target likelier."""
    p = np.full((50, L + 1), 0.6)
    kl = np.tile(fade_curve(L, 4, p_all=0, p_none=1), (50, 1))
    run = write_run(
        tmp_path / "run",
        effects={"ocr": p},
        kl={"ocr": kl},
        correct={"ocr": answers(50, np.linspace(0, 1, L + 1))},
        grids={"ocr": rng.uniform(0.1, 0.9, (50, L, 4))},
    )
    found = by_criterion(run)
    assert set(found) == set(CRITERIA)
    for result in found.values():
        assert (result.layer, result.interval, result.half_depth) == (None, None, None)
        assert "has no effect to speak of" in result.reason


@EVERY_CRITERION
@pytest.mark.parametrize(
    ("n", "images", "gaps", "reason"),
    [
        (1, [0], False, "one image"),
        (9, [0] * 9, False, "one image"),
        (9, range(9), True, "measured curves is whole"),
    ],
)
def test_what_cannot_carry_a_claim_gives_none_and_the_reason(tmp_path, criterion, n, images, gaps, reason):
    p = np.tile(fade_curve(L, 4), (n, 1))
    kl, correct, grids = (p[:, -1:] - p) ** 2, (p > 0.5).astype(float), uneven_grids(p, np.full(L, 0.1))
    if gaps:
        p[:, 2] = kl[:, 3] = correct[:, 4] = grids[:, 1, 2] = np.nan
    tables = {"effects": p, "kl": kl, "correct": correct, "grids": grids, "images": images}
    run = write_run(tmp_path / "run", **{name: {"ocr": table} for name, table in tables.items()})
    (found,) = find_horizon(run, criterion=criterion, detector=QUICK)
    assert (found.layer, found.interval, found.half_depth, found.half_depth_interval) == (None, None, None, None)
    assert reason in found.reason
    assert found.half_depth_reason


@pytest.mark.parametrize("criterion", ["kl", "vtw", "information", "spread"])
def test_a_threshold_below_the_noise_floor_decides_nothing(tmp_path, criterion):
    p = np.tile(np.where(np.arange(L + 1) < 4, 0.1, 0.9), (40, 1))
    grids = uneven_grids(p, np.where(np.arange(L) < 4, 0.04, 0.0))
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": grids}, noise_floor=0.004)
    (found,) = find_horizon(run, criterion=criterion, detector=QUICK)
    assert found.layer is None
    assert "which the noise floor of 0.004 hides" in found.reason
    assert find_horizon(run, criterion="removal", detector=QUICK)[0].layer == 4


def test_windows_that_all_inform_alike_have_no_spread(tmp_path):
    p = np.tile(np.where(np.arange(L + 1) < 4, 0.1, 0.9), (40, 1))
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": np.repeat(p[:, :-1, None] + 0.05, 4, axis=2)})
    found = by_criterion(run)
    assert found["spread"].layer is None
    assert "spread of information over a sample's windows would count as gone below 0" in found["spread"].reason
    assert (found["information"].layer, found["information"].censored) == (L, True)


def test_measures_of_their_own_are_kept(tmp_path):
    p = np.tile(fade_curve(L, 4), (40, 1))
    run = write_run(tmp_path / "run", effects={"ocr": p}, grids={"ocr": uneven_grids(p, np.full(L, 0.05))})
    found = by_criterion(run, measure="log_p")
    assert {name: result.measure for name, result in found.items()} == {
        **dict.fromkeys(("removal", "information", "spread"), "log_p"),
        "accuracy": "correct",
        **dict.fromkeys(("kl", "vtw"), "kl"),
    }
    plain = by_criterion(run)
    np.testing.assert_array_equal(found["kl"].effect, plain["kl"].effect)


def test_samples_without_a_divergence_are_left_out_of_it_alone(tmp_path):
    p = np.tile(fade_curve(L, 4), (40, 1))
    kl = (p[:, -1:] - p) ** 2
    kl[[3, 8]] = np.nan
    found = by_criterion(write_run(tmp_path / "run", effects={"ocr": p}, kl={"ocr": kl}))
    assert {name: result.n_samples for name, result in found.items()} == {
        "removal": 40,
        "accuracy": 40,
        "kl": 38,
        "vtw": 38,
    }


def noisy_run(path, rng, order=None, part_size=None, keys=("ocr", "vqa")):
    """The same two tasks in any order and any number of parts, or one of them alone."""
    p = {
        key: np.clip(fade_curve(L, half) + rng.normal(0, 0.05, (20, L + 1)), 0.01, 0.99)
        for key, half in (("ocr", 5.5), ("vqa", 3.0))
    }
    grids = {key: np.clip(p[key][:, :-1, None] + rng.normal(0, 0.1, (20, L, 4)), 0.01, 0.99) for key in p}
    images = {key: rng.integers(0, 15, 20) for key in p}
    tables = {"effects": p, "grids": grids, "images": images}
    kept = {name: {key: table[key] for key in keys} for name, table in tables.items()}
    return write_run(path, **kept, order=order, part_size=part_size)


def test_order_of_samples_and_shards_do_not_matter(tmp_path, rng):
    relaxed = replace(QUICK, precision=1.0)
    whole = noisy_run(tmp_path / "a", np.random.default_rng(1))
    other = noisy_run(tmp_path / "b", np.random.default_rng(1), order=rng.permutation(40), part_size=7)
    results = [find_horizon(run, detector=relaxed) for run in (whole, other)]
    assert len(results[0]) == 2 * len(CRITERIA)
    for a, b in zip(*results, strict=True):
        assert (a.group, a.criterion, a.layer, a.interval) == (b.group, b.criterion, b.layer, b.interval)
        np.testing.assert_allclose(a.low, b.low, atol=1e-6)


def test_another_task_leaves_point_estimates_alone(tmp_path):
    relaxed = replace(QUICK, precision=1.0)
    both = noisy_run(tmp_path / "a", np.random.default_rng(1))
    alone = noisy_run(tmp_path / "b", np.random.default_rng(1), keys=("vqa",))
    expected = by_criterion(alone, detector=relaxed)
    for result in find_horizon(both, detector=relaxed):
        if result.group["task_type"] == "vqa":
            np.testing.assert_allclose(result.effect, expected[result.criterion].effect, atol=1e-6)
            assert result.layer == expected[result.criterion].layer


def test_a_run_without_grids_says_what_the_spread_needs(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": np.tile(fade_curve(L, 4), (5, 1))})
    with pytest.raises(HorizonError, match=r"'spread' needs the probe 'information' in the context 'keep-one'"):
        find_horizon(run, criterion="spread")


def test_first_order_token_grids_are_judged_only_when_asked_for(tmp_path):
    """By the method "gate" they rank windows better than they size them, and the result says so."""
    p = np.tile(fade_curve(L, 4), (40, 1))
    tables = {"effects": {"ocr": p}, "grids": {"ocr": uneven_grids(p, np.full(L, 0.05))}}
    exact, gate = (write_run(tmp_path / method, **tables, method=method) for method in ("exact", "gate"))
    assert list(by_criterion(exact)) == list(CRITERIA)
    assert list(by_criterion(gate)) == ["removal", "accuracy", "kl", "vtw"]
    for criterion in ("information", "spread"):
        warned, plain = (by_criterion(run, criterion=criterion)[criterion].warning for run in (gate, exact))
        assert (FIRST_ORDER in warned, FIRST_ORDER in plain) == (True, False)
    assert FIRST_ORDER not in by_criterion(gate)["removal"].warning


def test_what_each_rule_counts():
    assert {name for name, rule in CRITERIA.items() if rule.signed} == {"accuracy"}
    assert {name for name, rule in CRITERIA.items() if rule.flips} == {"accuracy"}
    assert {name for name, rule in CRITERIA.items() if rule.inclusive} == {"accuracy", "kl", "vtw"}
    assert {name for name, rule in CRITERIA.items() if not rule.settles} == {"vtw"}
    assert {name for name, rule in CRITERIA.items() if rule.half_depth} == {"removal"}


@EVERY_CRITERION
def test_thresholds_of_many_curves_are_those_of_each(rng, criterion):
    """Noise floor 0.002: 5 % of R_0 or 0.01 above the floor, 5 % of the largest magnitude, a point, VTW's 0.003."""
    curves = rng.uniform(0, 0.5, (3, 4, L + 1))
    found = QUICK.threshold(criterion, curves, 0.002)
    expected = {
        "removal": np.maximum(0.05 * curves[..., 0], 0.012),
        "information": 0.05 * curves.max(axis=2),
        "spread": 0.05 * curves.max(axis=2),
        "accuracy": np.full((3, 4), 0.01),
    }.get(criterion, np.full((3, 4), 0.003))
    np.testing.assert_allclose(found, expected)
    if criterion == "removal":
        assert (expected == 0.012).any()
        assert (expected > 0.012).any()
