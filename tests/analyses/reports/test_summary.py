"""The closing words claim what the data say: deeper, less deep, or not told apart."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

from analyses.reports.summary import describe_collapse, summarize
from analyses.runs import HorizonError
from analyses.verdicts.collapse import CollapseDetector
from analyses.verdicts.horizon import HorizonDetector

QUICK = {"horizon_detector": HorizonDetector(resamples=300), "collapse_detector": CollapseDetector(resamples=300)}
L = 8


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write(path, rng, *, ocr, vqa, n_layers=L, n=40, shared=0, curve=None, **config):
    """A run with one half depth for OCR and one for VQA, and some noise; `shared` images are asked both."""
    p = {
        key: np.stack([fade_curve(n_layers, h, 0.4) for h in half + rng.normal(0, 0.3, n)])
        for key, half in (("ocr", ocr), ("vqa", vqa))
    }
    entropies = None if curve is None else {"query": curve, "key": np.linspace(2, 3, n_layers)}
    images = {"ocr": range(n), "vqa": range(n - shared, 2 * n - shared)}
    return write_run(path, effects=p, entropies=entropies, images=images, **config)


def test_deeper_is_said_with_its_numbers(tmp_path, rng):
    text = summarize(write(tmp_path / "run", rng, ocr=5.5, vqa=3.5, shared=20), **QUICK)
    assert len(text) == 3
    assert text[0].startswith("synthetic, ocr (removal criterion, 40 images): the information horizon is layer 7 [")
    assert "half of the effect is gone at depth 5." in text[0]
    assert text[2].startswith("ocr against vqa, by half depth: over all images ocr lies deeper (+")
    assert "on the 20 images asked in both ocr lies deeper (+" in text[2]


def test_the_opposite_is_said_when_the_data_say_so(tmp_path, rng):
    text = summarize(write(tmp_path / "run", rng, ocr=3.5, vqa=5.5), **QUICK)[-1]
    assert "over all images vqa lies deeper (-" in text
    assert "the first" not in text
    assert "asked in both" not in text


def test_no_difference_is_said_as_not_told_apart(tmp_path, rng):
    text = summarize(write(tmp_path / "run", rng, ocr=4.5, vqa=4.5, shared=40), **QUICK)[-1]
    assert "on the 40 images asked in both they cannot be told apart (" in text
    assert "deeper" not in text
    assert "over all images" not in text


def test_models_may_differ_in_layers_and_agree_in_fraction(tmp_path, rng):
    runs = [
        write(tmp_path / "a", rng, ocr=5.0, vqa=2.4, shared=40, model="x/tiny-8"),
        write(tmp_path / "b", rng, ocr=7.5, vqa=7.2, shared=40, n_layers=12, model="x/tiny-12"),
    ]
    text = summarize(runs, **QUICK)
    ocr, vqa = text[-2:]
    assert ocr.startswith("ocr, tiny-8 against tiny-12")
    assert "in layers tiny-12 lies deeper (-2." in ocr
    assert "in fraction of depth they cannot be told apart" in ocr
    assert "asked in both tiny-12 lies deeper (-4." in vqa
    assert "of the depth)" in vqa
    assert sum("tiny-12, ocr against vqa" in line for line in text) == 1


def test_collapse_or_none_with_the_reason(tmp_path, rng):
    text = summarize(write(tmp_path / "run", rng, ocr=5, vqa=4, curve=step_curve(L, 3)), **QUICK)[0]
    assert "the entropy of query collapses at layer 3 [3, 3], dropping by 2.00 nats (100% of resamples agree)" in text
    assert "no entropy collapse layer in key (key: the entropy drops nowhere)" in text


def test_no_effect_is_no_horizon_and_no_comparison(tmp_path):
    run = write_run(
        tmp_path / "run", effects={"ocr": np.tile(fade_curve(L, 7.6, 0.2), (9, 1)), "vqa": np.full((9, L + 1), 0.5)}
    )
    ocr, vqa, pair = summarize(run, **QUICK)
    assert "the information horizon is not before the end of the 8 layers;" in ocr
    assert "no information horizon, because removing all visual tokens at layer 0 has no effect" in vqa
    assert "over all images no comparison is possible (vqa: removing" in pair


def test_what_was_not_measured_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", entropies={"query": {"ocr": np.tile(step_curve(L, 3), (9, 1))}})
    assert len(summarize(run, **QUICK)) == 1
    with pytest.raises(HorizonError, match="no entropy curve"):
        describe_collapse([])
