"""Runs over several images, video frames and families that nobody has described: what is written, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_processors import PAIRS
from PIL import Image
from random_models import random_image

from analyses.runs import HorizonError
from figures.overlay import figure_token_heatmap
from probes.data.samples import Sample, SampleError, image_sha256, pictures_sha256
from probes.loading.loading import load_model
from probes.measures.single import removal_curve, token_information
from probes.models.families import Family
from probes.models.probed import ProbedModel
from probes.models.prompts import encode
from probes.replay.capture import capture
from probes.sweeps.sweep import run


def noise(seed: int, size: tuple[int, int] = (121, 83)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def sample(name: str, **pictures) -> Sample:
    return Sample(name, pictures.pop("image", None), "is shown ?", ("apple",), **pictures)


def model_of(name: str) -> ProbedModel:
    (found,) = [pair for pair in PAIRS if pair.name == name]
    model, processor = found.build()
    return load_model(model, processor=processor)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """LLaVA-OneVision on one image, two images and three frames; one more has frames of different sizes."""
    samples = [
        sample("one", image=noise(0)),
        sample("two", images=(noise(0), noise(1, (50, 90)))),
        sample("video", frames=(noise(2), noise(3), noise(4))),
        sample("odd", frames=(noise(2), noise(3, (50, 90)))),
    ]
    out = tmp_path_factory.mktemp("runs") / "onevision"
    found = run(model_of("llava_onevision"), samples, out, targets=("greedy",), layers=(0, 2), progress=False)
    return samples, found


def test_each_grid_says_which_image_or_frame_it_shows(measured):
    _, found = measured
    crops = {row["id"]: list(row["crops"]) for _, row in found.ok.iterrows()}
    assert {name: [crop["image"] for crop in held] for name, held in crops.items()} == {
        "one": [0, 0],
        "two": [0, 1],
        "video": [0, 1, 2],
    }
    for name, held in crops.items():
        placed = sum(crop["rows"] * crop["columns"] for crop in held)
        row = found.samples.loc[found.row_of(name)]
        assert row["n_visual"] == placed + row["n_placeless"]
        windows = found.tokens(found.row_of(name)).windows
        assert (windows["height"] * windows["width"]).sum() == placed
    assert found.samples.set_index("id")["n_placeless"].drop("odd").tolist() == [6, 2, 1]
    assert found.failed["error"].tolist() == ["sample 'odd': its video frames differ in size"]


def test_clusters_and_thumbnails_are_of_all_pictures_and_of_the_first(measured):
    samples, found = measured
    digests = found.ok.set_index("id")["image_sha256"]
    for one in samples[:3]:
        assert digests[one.id] == pictures_sha256(one.load_images())
    assert digests["one"] == image_sha256(samples[0].image)
    assert found.thumbnail(0) == found.thumbnail(1)


def test_the_heat_map_of_several_images_shows_the_first(measured):
    """The thumbnail is the first image's, so windows of the second would lie over the wrong picture."""
    _, found = measured
    figure = figure_token_heatmap(found, sample="two")
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    grids = found.tokens(found.row_of("two"))
    first = (grids.windows["crop"] == 0).to_numpy()
    assert 0 < first.sum() < len(first)
    for ax, values in zip(panels, grids.information("p"), strict=True):
        np.testing.assert_array_equal(ax.collections[0].get_array(), values[first])


# --- a family that nobody has described ------------------------------------------------------------------------------

REASON = (
    "token grids need a description of the family 'brand_new' .*: add one to probes/models/families.py, "
    "as CONTRIBUTING.md"
)


@pytest.fixture(scope="module")
def undescribed(random_model) -> ProbedModel:
    return replace(random_model, family=Family("brand_new", None))


SHOWN = Sample("s", random_image(), "what is shown ?", ("apple",))


def test_entropies_and_removals_need_no_grid(undescribed, random_model, tmp_path: Path):
    states, described = (capture(model, SHOWN, ("hidden",)) for model in (undescribed, random_model))
    assert torch.equal(states.states["hidden"], described.states["hidden"])
    assert states.grids == ()
    assert encode(undescribed, SHOWN).placeless == 25
    removed, expected = (removal_curve(model, SHOWN) for model in (undescribed, random_model))
    np.testing.assert_array_equal(removed.log_p, expected.log_p)
    found = run(undescribed, [SHOWN], tmp_path / "run", probes=("entropy", "removal"), progress=False)
    assert found.ok["n_placeless"].tolist() == [25]
    assert found.config.family == "brand_new"


def test_token_grids_need_one(undescribed, tmp_path):
    with pytest.raises(HorizonError, match=REASON):
        token_information(undescribed, SHOWN)
    with pytest.raises(HorizonError, match=REASON):
        run(undescribed, [SHOWN], tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# --- the silent error of Qwen2.5-VL ----------------------------------------------------------------------------------


def test_a_processor_that_marks_no_visual_tokens_is_refused_since_the_model_would_not_notice():
    model = model_of("qwen2_5_vl")
    shown = sample("s", image=noise(0))
    whole = encode(model, shown).inputs
    unguarded = {key: value for key, value in whole.items() if key != "mm_token_type_ids"}
    with torch.no_grad():
        right = model.model(**whole).logits[0, -1]
        model.model.model.rope_deltas = None
        wrong = model.model(**unguarded).logits[0, -1]
    assert (wrong - right).abs().max() > 1e-3
    model.processor.return_mm_token_type_ids = False
    with pytest.raises(SampleError, match="gives no mm_token_type_ids, without which the family 'qwen2_5_vl' is"):
        encode(model, shown)
