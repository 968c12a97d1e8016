"""Sample sizes: plans made from pilots of a known population are followed, and give the width that was asked for."""

import numpy as np
import pytest
import simulated_curves as simulated
from synthetic_runs import write_run

from analyses.comparisons.planning import MIN_IMAGES, interval_widths, plan_samples
from analyses.runs import HorizonError
from analyses.verdicts.horizon import HorizonDetector, find_horizon

QUICK = HorizonDetector(resamples=600)
FADE = simulated.fade(24)


def make_run(path, values, images=None):
    """A run whose removal effects are `values` (up to a factor, which half depths do not feel)."""
    names = {} if images is None else {"images": {"ocr": images}}
    return write_run(path, effects={"ocr": 0.99 - 0.98 * values}, **names)


def test_following_the_plan_gives_the_width(tmp_path):
    rng = np.random.default_rng(0)
    planned, widths, held = [], [], []
    for i in range(8):
        pilot = FADE.draw(rng, 60)[0]
        (plan,) = plan_samples(make_run(tmp_path / f"run-{i}", pilot), width=0.6, detector=QUICK)
        planned.append(plan.images)
        assert plan.more_images == plan.more_samples == plan.images - 60
        assert 0.4 < plan.exponent < 0.6
        low, high = QUICK(*FADE.draw(rng, plan.images)).half_depth_interval
        widths.append(high - low)
        held.append(plan.images_interval[0] <= 212 <= plan.images_interval[1])
    # 212 images are what this population needs on average: width 0.617 at 200 images, 0.880 at 100
    assert np.mean(planned) == pytest.approx(212, rel=0.15)
    assert np.mean(widths) == pytest.approx(0.6, rel=0.07)
    assert np.abs(np.array(widths) - 0.6).max() < 0.25
    assert np.mean(held) >= 0.75


def test_the_law_passes_through_the_pilot(tmp_path):
    values, images = simulated.fade(8, questions=2).draw(np.random.default_rng(1), 80)
    run = make_run(tmp_path / "run", values, images)
    (found,) = find_horizon(run, criterion="removal", detector=QUICK)
    sizes, widths = interval_widths(values, images, np.arange(9), QUICK)
    now = np.ptp(found.half_depth_interval)
    assert widths[sizes == 80] == pytest.approx(now, rel=0.1)
    (plan,) = plan_samples(run, width=now / 2, detector=QUICK)
    assert plan.width_now == pytest.approx(now)
    assert plan.images == pytest.approx(4 * 80, rel=0.15)
    assert plan.more_samples == 2 * plan.more_images
    assert (plan.n_samples, plan.n_images) == (160, 80)
    assert plan.images_interval[0] < plan.images < plan.images_interval[1]
    narrower = plan_samples(run, width=now / 4, detector=QUICK)[0]
    assert narrower.images == pytest.approx(4 * plan.images, rel=0.2)


def test_enough_is_enough(tmp_path):
    run = make_run(tmp_path / "run", FADE.draw(np.random.default_rng(2), 60)[0])
    (plan,) = plan_samples(run, width=20.0, detector=QUICK)
    assert (plan.images, plan.more_images, plan.more_samples) == (MIN_IMAGES, 0, 0)


def plateau(rng, n):
    """Half of the samples lose their effect early, half late: the half depth is either, and stays so."""
    late = rng.random((n, 1)) < 0.5
    effects = 0.8 * (np.arange(9) < np.where(late, 7, 2)) + rng.normal(0, 0.01, (n, 9))
    effects[:, -1] = 0
    return effects


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (FADE.draw(np.random.default_rng(3), 19)[0], "a pilot of 19 images is too small (at least 20)"),
        (np.tile([0.8, 0.8, 0.2, 0.0], (40, 1)), "does not vary between resamples"),
        (plateau(np.random.default_rng(4), 80), "the effect stays near its half over many layers"),
        (simulated.no_effect(8).draw(np.random.default_rng(5), 60)[0], "no effect to speak of"),
    ],
)
def test_a_pilot_that_carries_no_plan_says_why(tmp_path, values, reason):
    (plan,) = plan_samples(make_run(tmp_path / "run", values), detector=QUICK)
    assert reason in plan.reason
    assert (plan.images, plan.images_interval, plan.more_images, plan.more_samples) == (None, None, None, None)


def test_groups_are_planned_apart(tmp_path):
    rng = np.random.default_rng(6)
    effects = {key: 0.99 - 0.98 * simulated.fade(24).draw(rng, n)[0] for key, n in (("ocr", 30), ("vqa", 60))}
    run = write_run(tmp_path / "run", effects=effects)
    plans = plan_samples(run, width=0.5, detector=QUICK)
    assert [(plan.group["task_type"], plan.n_images) for plan in plans] == [("ocr", 30), ("vqa", 60)]
    assert [plan.warning.partition(":")[0] for plan in plans] == ["only 30 images", ""]
    with pytest.raises(HorizonError, match="wider than 0 layers"):
        plan_samples(run, width=0.0)
