"""One collapse layer for a model, and collapse layers against horizons: planted, restated, refused."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.arrays.collapse_rules import RULES
from analyses.arrays.depths import half_depths
from analyses.arrays.resampling import draw_counts, percentile_interval, resampled_means
from analyses.runs import HorizonError
from analyses.verdicts.agreement import (
    agreement_frame,
    compare_collapse_to_horizon,
    describe_agreement,
    joint_collapse_layer,
)
from analyses.verdicts.collapse import CollapseDetector, find_collapse_layer
from analyses.verdicts.horizon import HorizonDetector, find_horizon

L = 12
DROPS = CollapseDetector(resamples=300)
QUICK = HorizonDetector(resamples=300)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def around(rng, curve, n=30, sd=0.1):
    return curve + rng.normal(0, sd, (n, 1)) + rng.normal(0, sd / 2, (n, len(curve)))


def entropy_run(path, rng, layers, *, n=30, **words):
    """Entropies with a planted drop: stream -> task key -> layer (0 for none)."""
    planted = {
        stream: {key: around(rng, step_curve(L, at, 4, 3) if at else np.full(L, 3.5), n) for key, at in tasks.items()}
        for stream, tasks in layers.items()
    }
    return write_run(path, entropies=planted, **words)


@pytest.mark.parametrize("rule", list(RULES))
def test_streams_and_tasks_that_collapse_together_have_a_joint_layer(tmp_path, rng, rule):
    tasks = {"ocr/a": 3, "ocr/b": 3, "vqa/c": 3}
    run = entropy_run(tmp_path / "run", rng, {"query": tasks, "key": tasks, "hidden": dict.fromkeys(tasks, 0)})
    found = joint_collapse_layer(run, rule=rule, detector=DROPS)
    assert (found.layer, found.interval, found.reason) == (3, (3, 3), "")
    assert (found.consistency, found.vote_share, found.n_layers) == (1.0, 1.0, L)
    assert [one.stream for one in found.streams] == ["query", "key"]
    assert found.detector.rule == rule
    assert found.votes.to_dict("list") == {
        "stream": ["query"] * 3 + ["key"] * 3,
        "task": ["a", "b", "c"] * 2,
        "layer": [3] * 6,
    }


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"query": {"ocr": 3}, "key": {"ocr": 7}}, "the streams collapse at different layers: query 3, key 7"),
        ({"query": {"ocr": 3}, "key": {"ocr": 0}}, "key: the largest drop"),
        ({"query": {"ocr": 3}}, "a joint layer needs at least two streams, the run measured query of query, key"),
        ({"hidden": {"ocr": 3}}, "needs at least two streams, the run measured none of query, key"),
        (
            {"query": {"ocr/a": 3, "ocr/b": 0}, "key": {"ocr/a": 3, "ocr/b": 3}},
            "query: only 50% of the single tasks have a drop into layer",
        ),
    ],
)
def test_no_joint_layer_without_agreement(tmp_path, rng, layers, reason):
    found = joint_collapse_layer(entropy_run(tmp_path / "run", rng, layers), detector=DROPS)
    assert (found.layer, found.interval) == (None, None)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("values", "images"),
    [
        (step_curve(L, 4)[None], [0]),
        (np.tile(step_curve(L, 4), (7, 1)), [0] * 7),
        (np.full((7, L), np.nan), range(7)),
        (np.full((7, L), 3.0), range(7)),
    ],
    ids=["one sample", "one image", "gaps", "constant"],
)
@pytest.mark.parametrize("rule", list(RULES))
def test_what_cannot_carry_a_claim_has_no_joint_layer(tmp_path, rule, values, images):
    run = write_run(
        tmp_path / "run", entropies={"query": {"ocr": values}, "key": {"ocr": values}}, images={"ocr": images}
    )
    found = joint_collapse_layer(run, rule=rule, detector=DROPS)
    assert (found.layer, found.interval) == (None, None)
    assert found.reason.startswith("query: ")
    assert "; key: " in found.reason


def test_joint_consistency_restated_by_hand(tmp_path):
    """Fewer resamples collapse at the layer in both streams at once than in each of them."""
    rng = np.random.default_rng(4)
    early, late = step_curve(L, 4, 4, 3), step_curve(L, 5, 4, 3)

    def values(share):
        mixed = np.where(rng.uniform(0, 1, (60, 1)) < share, early, late)
        return mixed + rng.normal(0, 0.02, (60, L))

    planted = {"query": {"ocr": values(0.58)}, "key": {"ocr": values(0.58)}}
    run = write_run(tmp_path / "run", entropies=planted)
    loose = CollapseDetector(resamples=300, consistency=0.2, level=0.5)
    found = joint_collapse_layer(run, detector=loose)
    codes = np.unique(run.samples["image_sha256"], return_inverse=True)[1]
    counts = draw_counts(60, 300, 0)
    picks = [loose.picks(resampled_means(planted[stream]["ocr"], codes, counts)) for stream in ("query", "key")]
    both = (picks[0] == 4) & (picks[1] == 4)
    assert found.consistency == pytest.approx(both.mean())
    assert both.mean() < min((pick == 4).mean() for pick in picks)
    strict = CollapseDetector(resamples=300, consistency=both.mean() + 0.01, level=0.5)
    refused = joint_collapse_layer(run, detector=strict)
    assert (found.layer, refused.layer) == (4, None)
    assert "of the resamples collapse at layer 4 in all streams, needed" in refused.reason


def test_unknown_streams_are_named(tmp_path, rng):
    run = entropy_run(tmp_path / "run", rng, {"query": {"ocr": 3}, "key": {"ocr": 3}})
    with pytest.raises(HorizonError, match="stream 'value' is unknown"):
        joint_collapse_layer(run, streams=("query", "value"))


def paired_run(path, rng, *, collapse=3, half=7.0, n=40, images=None, **words):
    """One task with a drop into layer `collapse` and removal effects that fade around `half`."""
    p = np.clip(fade_curve(L, half) + rng.normal(0, 0.03, (n, L + 1)), 0.01, 0.99)
    entropies = {"query": {"ocr": around(rng, step_curve(L, collapse, 4, 3), n)}}
    images = {"ocr": range(n) if images is None else images}
    return write_run(path, effects={"ocr": p}, entropies=entropies, images=images, **words), p, entropies


def test_gaps_restated_on_common_resamples(tmp_path, rng):
    images = rng.integers(0, 25, 40)
    run, p, entropies = paired_run(tmp_path / "run", rng, images=images)
    (found,) = compare_collapse_to_horizon(run, collapse_detector=DROPS, horizon_detector=QUICK)
    (horizon,) = find_horizon(run, criterion="removal", detector=QUICK)
    names = sorted(set(run.samples["image_sha256"]))
    codes = np.array([names.index(h) for h in run.samples["image_sha256"]])
    counts = draw_counts(len(names), 300, 0)
    effects = p[:, -1:] - p
    drops = -np.diff(resampled_means(entropies["query"]["ocr"], codes, counts), axis=1)
    places = drops.argmax(axis=1) + 1
    means = resampled_means(effects, codes, counts)
    half, settled = found.gaps
    assert (half.quantity, settled.quantity) == ("half_depth", "horizon")
    assert half.layers == pytest.approx(horizon.half_depth - 3)
    draws = half_depths(means, np.arange(L + 1)) - places
    low, high = half.interval
    assert low <= np.quantile(draws, 0.025) + 1e-9
    assert high >= np.quantile(draws, 0.975) - 1e-9
    assert (low, high) == pytest.approx(tuple(percentile_interval(draws, n_clusters=len(names))))
    assert half.fraction == pytest.approx(half.layers / L)
    assert half.fraction_interval == pytest.approx((low / L, high / L))
    assert settled.layers == horizon.layer - 3
    assert settled.interval[0] <= settled.layers <= settled.interval[1]
    words = describe_agreement(found)
    assert words.startswith(
        f"synthetic, ocr, query: the entropy collapses at layer 3, the horizon is layer {horizon.layer}:"
    )
    assert words.count("lies beyond the collapse") == 2


def test_information_may_die_before_the_collapse_or_with_it(tmp_path, rng):
    run, *_ = paired_run(tmp_path / "before", rng, collapse=10, half=4.0)
    (found,) = compare_collapse_to_horizon(run, collapse_detector=DROPS, horizon_detector=QUICK)
    assert found.gaps[0].interval[1] < 0
    assert "half of the effect lies before the collapse" in describe_agreement(found)
    run, *_ = paired_run(tmp_path / "with", rng, collapse=5, half=5.0)
    (found,) = compare_collapse_to_horizon(run, collapse_detector=DROPS, horizon_detector=QUICK)
    assert "half of the effect cannot be told apart from the collapse" in describe_agreement(found)


def test_a_censored_horizon_is_a_lower_bound(tmp_path, rng):
    run, *_ = paired_run(tmp_path / "run", rng, half=11.5)
    (found,) = compare_collapse_to_horizon(run, collapse_detector=DROPS, horizon_detector=QUICK)
    gap = found.gaps[1]
    assert (gap.layers, gap.censored) == (L - 3, True)
    assert "a lower bound" in describe_agreement(found)
    assert "the horizon is not before the end" in describe_agreement(found)


def test_what_is_missing_is_said_in_words(tmp_path, rng):
    flat = {"ocr": np.full((30, L), 3.0), "vqa": around(rng, step_curve(L, 4)), "none": np.full((30, L), 3.0)}
    p = {"ocr": np.tile(fade_curve(L, 5), (30, 1)), "vqa": np.full((30, L + 1), 0.5), "none": np.full((30, L + 1), 0.5)}
    run = write_run(tmp_path / "run", effects=p, entropies={"key": flat})
    results = compare_collapse_to_horizon(run, collapse_detector=DROPS, horizon_detector=QUICK)
    none, ocr, vqa = results
    for found in results:
        assert [(gap.layers, gap.interval, gap.fraction) for gap in found.gaps] == [(None, None, None)] * 2
        assert all(gap.reason for gap in found.gaps)
    assert "no collapse to hold against the horizon (the horizon is layer" in describe_agreement(ocr)
    assert "the entropy drops nowhere" in describe_agreement(ocr)
    assert "collapses at layer 4, and there is no horizon to hold against it, because removing" in describe_agreement(
        vqa
    )
    assert "no collapse to hold against the horizon, because" in describe_agreement(none)


def test_the_frame_holds_raw_numbers(tmp_path, rng):
    runs = [paired_run(tmp_path / name, rng, model=name)[0] for name in ("a", "b")]
    results = compare_collapse_to_horizon(runs, rule="two-segment", collapse_detector=DROPS, horizon_detector=QUICK)
    frame = agreement_frame(results)
    assert frame["model"].tolist() == ["a", "a", "b", "b"]
    assert frame["quantity"].tolist() == ["half_depth", "horizon"] * 2
    assert set(frame["rule"]) == {"two-segment"}
    assert (frame["layers"] == [gap.layers for found in results for gap in found.gaps]).all()
    assert (frame["collapse_layer"] == 3).all()


def test_a_criterion_without_half_depth_has_one_gap(tmp_path, rng):
    run, *_ = paired_run(tmp_path / "run", rng)
    (found,) = compare_collapse_to_horizon(run, criterion="vtw", collapse_detector=DROPS, horizon_detector=QUICK)
    assert [gap.quantity for gap in found.gaps] == ["horizon"]
    assert found.gaps[0].layers == found.horizon.layer - 3


def test_order_and_shards_do_not_matter(tmp_path):
    runs = [
        paired_run(tmp_path / name, np.random.default_rng(5), order=order, part_size=size)[0]
        for name, order, size in (("a", None, None), ("b", np.random.default_rng(1).permutation(40), 7))
    ]
    words = {"collapse_detector": DROPS, "horizon_detector": QUICK}
    (one,), (other,) = (compare_collapse_to_horizon(run, **words) for run in runs)
    for a, b in zip(one.gaps, other.gaps, strict=True):
        assert a.layers == pytest.approx(b.layers)
        assert a.interval == pytest.approx(b.interval)


@pytest.mark.parametrize("rule", list(RULES))
def test_another_task_leaves_the_collapse_of_a_task_alone(tmp_path, rule):
    both = entropy_run(tmp_path / "a", np.random.default_rng(2), {"query": {"ocr": 3, "vqa": 8}})
    alone = entropy_run(tmp_path / "b", np.random.default_rng(2), {"query": {"ocr": 3}})
    (ocr, _), (only,) = (find_collapse_layer(run, rule=rule, detector=DROPS) for run in (both, alone))
    assert (ocr.layer, ocr.drop, ocr.sharpness) == (only.layer, only.drop, only.sharpness)


def test_a_run_without_groups_has_nothing_to_compare(tmp_path):
    run = write_run(tmp_path / "run", effects={"ocr": np.empty((0, L + 1))}, entropies={"query": {}})
    assert compare_collapse_to_horizon(run) == []
