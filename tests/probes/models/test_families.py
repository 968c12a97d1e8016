"""Families: the rule explains every visual token, and its grids lie where the pixels are; what is refused, and how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from family_processors import PAIRS, Pair, gemma3, llava, llava_next, llava_onevision
from PIL import Image
from transformers import (
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
)

from analyses.runs import HorizonError
from probes.data.samples import Sample, SampleError
from probes.loading.loading import load_model
from probes.models import layouts
from probes.models.families import FAMILIES, Family, find_family, sliding_window
from probes.models.grids import TokenGrid
from probes.models.layouts import (
    WHOLE,
    GridBlock,
    VisualLayout,
    anyres_block,
    center_crop_box,
    idefics_tiling,
    place_blocks,
)
from probes.models.probed import ProbedModel
from probes.models.prompts import Prompt, encode

# transformers' PaliGemma processor makes its (unused) labels in a way that numpy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPES = {"wide": [(185, 117)], "high": [(91, 203)], "square": [(77, 77)], "two": [(185, 117), (91, 203)]}
# what mixes patches in the vision towers: without it every token shows its own pixels only
MIXERS = ("out_proj", "attn.proj", "projection_layer")


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: pair.name)
def pair(request) -> Pair:
    return request.param


def without_mixing(model: torch.nn.Module) -> torch.nn.Module:
    """The model with a vision tower that does not attend: a token depends on the pixels under it alone."""
    decoder = {id(module) for module in model.get_decoder().modules()}
    mixers = [m for name, m in model.named_modules() if name.endswith(MIXERS) and id(m) not in decoder]
    assert len(mixers) >= 2
    for mixer in mixers:
        for parameter in mixer.parameters():
            parameter.data.zero_()
    return model


@pytest.fixture(scope="module")
def local(pair) -> ProbedModel:
    model, processor = pair.build()
    return load_model(without_mixing(model), processor=processor)


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def sample_of(images: list[Image.Image], video: bool = False) -> Sample:
    if video:
        return Sample("s", None, "is shown ?", ("apple",), frames=tuple(images))
    if len(images) == 1:
        return Sample("s", images[0], "is shown ?", ("apple",))
    return Sample("s", None, "is shown ?", ("apple",), images=tuple(images))


def embedded(model: ProbedModel, prompt: Prompt) -> np.ndarray:
    """(token, hidden): what the decoder's first layer receives."""
    seen = []
    hook = model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model.model(**prompt.inputs)
    hook.remove()
    return seen[0][0].numpy()


def cells(grids: tuple[TokenGrid, ...]) -> Iterator[tuple[TokenGrid, int, np.ndarray]]:
    """Every token with a place: its grid, its position, and left, top, right, bottom as fractions of its image."""
    for grid in grids:
        left, top, right, bottom = grid.box
        across, down = (right - left) / grid.columns, (bottom - top) / grid.rows
        for (row, column), position in np.ndenumerate(grid.positions):
            edges = left + column * across, top + row * down, left + (column + 1) * across, top + (row + 1) * down
            yield grid, int(position), np.array(edges)


def inverted(image: Image.Image, box: np.ndarray) -> tuple[Image.Image, np.ndarray] | None:
    """The image with the pixels inside a box inverted, and the box that they truly fill; None if it is empty."""
    sides = np.array([*image.size, *image.size])
    edges = np.clip(np.round(box * sides), 0, sides).astype(int)
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        return None
    pixels = np.array(image)
    inside = slice(edges[1], edges[3]), slice(edges[0], edges[2])
    pixels[inside] = 255 - pixels[inside]
    return Image.fromarray(pixels), edges / sides


def check_places(model: ProbedModel, pictures: list[Image.Image], *, video: bool = False, together: int = 1) -> int:
    """Invert the pixels under some cells, one after another, and see which tokens of the prompt change.

    Tokens whose center was inverted must; those further away than a cell, or of another image, must not, nor may
    those without a place. Resampling filters reach up to a cell beyond the edge. Returns how many were tried.
    """
    prompt = encode(model, sample_of(pictures, video))
    before, known = embedded(model, prompt), list(cells(prompt.grids))
    assert len(known) + prompt.placeless == len(prompt.visual)
    chosen = np.random.default_rng(0).choice(len(known), size=min(8, len(known)), replace=False)
    tried = 0
    for one in [0, len(known) - 1, *chosen]:
        grid, position, box = known[one]
        painted = inverted(pictures[grid.image], box)
        if painted is None:
            continue  # nothing of the image lies under this cell, only padding
        after = embedded(model, encode(model, sample_of(_swapped(pictures, grid.image, painted[0]), video)))
        changed = set(np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-9).tolist())
        place = painted[1]
        may, must = {position}, set()
        for other, token, (left, top, right, bottom) in known:
            if other.image // together != grid.image // together:
                continue
            width, height = right - left, bottom - top
            if left - width < place[2] and right + width > place[0] and top - height < place[3]:
                may |= {token} if bottom + height > place[1] else set()
            if place[0] < (left + right) / 2 < place[2] and place[1] < (top + bottom) / 2 < place[3]:
                must.add(token)
        assert must <= changed <= may
        tried += 1
    return tried


def _swapped(pictures: list[Image.Image], index: int, image: Image.Image) -> list[Image.Image]:
    return [image if i == index else picture for i, picture in enumerate(pictures)]


# --- with real image processors, through the real models -------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_lie_where_their_pixels_are(local, shape):
    pictures = [noise(size, seed) for seed, size in enumerate(SHAPES[shape])]
    assert check_places(local, pictures) >= 5


def test_tokens_of_a_video_lie_in_their_frame(local, pair):
    if not pair.video:
        with pytest.raises(SampleError, match=f"has video frames, for which the family '{local.family.name}' has no"):
            encode(local, sample_of([noise((60, 40), 0)], video=True))
        return
    frames = [noise((121, 83), seed) for seed in range(4)]
    assert check_places(local, frames, video=True, together=2 if "qwen" in pair.name else 1) >= 5


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_takes_the_prompt_with_a_forced_answer(local, shape):
    """Its own forward checks that there are as many visual tokens as features; the answer is read as it is forced."""
    sample = sample_of([noise(size, seed) for seed, size in enumerate(SHAPES[shape])])
    plain, forced = encode(local, sample), encode(local, sample, (14, 15, 16))
    n = plain.n_tokens
    assert forced.inputs["input_ids"][0].tolist() == [*plain.inputs["input_ids"][0].tolist(), 14, 15]
    with torch.no_grad():
        before = local.model(**plain.inputs).logits[0]
        after = local.model(**forced.inputs).logits[0]
        other = dict(forced.inputs, input_ids=forced.inputs["input_ids"].clone())
        other["input_ids"][0, -1] = 13
        swapped = local.model(**other).logits[0]
    # the prompt does not see the answer, nor the answer what follows in it
    torch.testing.assert_close(after[:n], before, rtol=0, atol=1e-9)
    torch.testing.assert_close(swapped[: n + 1], after[: n + 1], rtol=0, atol=1e-9)
    assert (swapped[-1] - after[-1]).abs().max() > 1e-3


def test_unguarded_answer_types_of_a_bidirectional_prompt_are_wrong():
    """PaliGemma's answer as part of the prompt would be seen by it: what `answer_types` is there for."""
    (found,) = [pair for pair in PAIRS if pair.name == "paligemma"]
    model, processor = found.build()
    probed = load_model(model, processor=processor)
    sample = sample_of([noise((40, 40), 0)])
    plain = encode(probed, sample)
    unguarded = encode(replace(probed, family=replace(probed.family, answer_types=())), sample, (14, 15, 16))
    with torch.no_grad():
        shift = model(**unguarded.inputs).logits[0, : plain.n_tokens] - model(**plain.inputs).logits[0]
    assert shift.abs().max() > 1e-3


def test_a_family_without_a_template_has_its_own_prompt():
    (found,) = [pair for pair in PAIRS if pair.name == "paligemma"]
    probed = load_model(found.build()[0], processor=found.processor())
    assert probed.processor.chat_template is None
    prompt = encode(probed, sample_of([noise((40, 40), 0), noise((40, 40), 1)]))
    assert prompt.text == "<image><image>is shown ?"
    words = probed.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert words == ["<image>"] * 50 + ["<s>", "is", "shown", "?"]
    assert "labels" not in prompt.inputs


def test_one_image_in_a_list_is_as_one_image(local):
    picture = noise((185, 117), 0)
    one = encode(local, sample_of([picture]))
    listed = encode(local, Sample("s", None, "is shown ?", ("apple",), images=(picture,)))
    assert one.text == listed.text
    assert one.inputs.keys() == listed.inputs.keys()
    assert all(torch.equal(one.inputs[key], listed.inputs[key]) for key in one.inputs)


# --- counts, against the processors' own over many sizes -------------------------------------------------------------

SIZES = [tuple(size) for size in np.random.default_rng(5).integers(9, 400, (60, 2)).tolist()]


def test_anyres_counts_are_the_processors():
    pinpoints = [[20, 40], [40, 20], [40, 40], [60, 20], [20, 60]]
    processor = llava_next(5, pinpoints)
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=20, patch_size=4),
        image_grid_pinpoints=pinpoints,
        vision_aspect_ratio="anyres_max_2",
    )
    pooling = llava_onevision(5, pinpoints, "anyres_max_2")
    shapes = set()
    for width, height in SIZES:
        block = anyres_block(config, (width, height), 0, shrink=False)
        assert block.n_tokens + 25 + 1 == processor._get_number_of_features(height, width, 20, 20)  # 1: the CLS
        pooled = anyres_block(config, (width, height), 0, shrink=True)
        assert pooled.n_tokens + 25 == pooling._get_number_of_features(height, width, 20, 20)
        shapes.add((block.rows, block.columns, pooled.rows < block.rows))
    assert {pooled for _, _, pooled in shapes} == {True, False}
    assert len(shapes) > 10


@pytest.mark.parametrize(("longest", "splitting"), [(96, True), (70, True), (100, True), (96, False)])
def test_idefics_tiles_are_those_that_its_processor_cuts(longest, splitting):
    """Also where the longest edge is no multiple of a tile, which the processor's own count gets wrong."""
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 24}, do_image_splitting=splitting
    )
    for size in SIZES[:30]:
        cut = processor([[Image.new("RGB", size)]], return_row_col_info=True, return_tensors="np")
        rows, columns = cut["rows"][0][0], cut["cols"][0][0]
        assert idefics_tiling(processor, size) == (rows or 1, columns or 1)
        assert cut["pixel_values"].shape[1] == rows * columns + 1


def test_internvl_tiles_are_those_that_its_processor_cuts():
    config = SimpleNamespace(image_seq_length=9, model_type="internvl")
    processor = GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=6)
    for size in SIZES[:30]:
        cut = processor([Image.new("RGB", size)], crop_to_patches=True)["num_patches"][0]
        layout = VisualLayout(config, {}, np.arange(9 * cut), (size,), processor)
        assert len(FAMILIES["internvl"].grids(layout)) == cut


def test_pan_and_scan_crops_have_grids(monkeypatch):
    """Gemma 3 cuts crops out of a long image, in the order of the prompt; of several images it is refused."""
    (found,) = [pair for pair in PAIRS if pair.name == "gemma3"]
    scan = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4}
    scan |= {"pan_and_scan_min_ratio_to_activate": 1.2, "do_convert_rgb": True}
    monkeypatch.setattr(Gemma3Processor, "images_kwargs", scan)
    model = load_model(without_mixing(found.build()[0]), processor=gemma3(3))
    for size, crops in (((185, 61), 3), ((70, 203), 3), ((77, 77), 0)):
        prompt = encode(model, sample_of([noise(size, 0)]))
        assert len(prompt.grids) == 1 + crops
        assert check_places(model, [noise(size, 0)]) >= 5
    with pytest.raises(SampleError, match="72 visual tokens and the rule explains 18"):
        encode(model, sample_of([noise((185, 61), 0), noise((185, 61), 1)]))


def test_padding_to_a_square_is_in_the_box():
    """LLaVA's own image processor can pad; CLIP's, which most checkpoints use, cuts."""
    (found,) = [pair for pair in PAIRS if pair.name == "llava"]
    size = {"height": 20, "width": 20}
    pads = LlavaImageProcessorPil(size={"shortest_edge": 20}, crop_size=size, do_pad=True)
    model = load_model(found.build()[0], processor=llava(5, pads))
    (grid,) = encode(model, sample_of([noise((60, 40), 0)])).grids
    assert grid.box == pytest.approx((0, -0.25, 1, 1.25))


# --- from encodings made by hand -------------------------------------------------------------------------------------


def layout_of(config: dict, n: int, sizes: list[tuple[int, int]], *, video: bool = False, **inputs) -> VisualLayout:
    settings = SimpleNamespace(**{"model_type": "m", **config})
    tensors = {key: torch.tensor(value) for key, value in inputs.items()}
    return VisualLayout(settings, tensors, np.arange(3, 3 + n), tuple(sizes), SimpleNamespace(), video)


@pytest.mark.parametrize("name", ["llava", "mistral3"])
def test_pixtral_rows_follow_the_resized_image(name):
    merge = 2 if name == "mistral3" else 1
    tower = SimpleNamespace(model_type="pixtral", patch_size=4)
    config = {"vision_config": tower, "model_type": name} | ({"spatial_merge_size": 2} if name == "mistral3" else {})
    sizes = [[8 * merge, 12 * merge], [4 * merge, 20 * merge]]
    layout = layout_of(config, 11, [(30, 20), (50, 10)], image_sizes=sizes)
    first, second = FAMILIES[name].grids(layout)
    np.testing.assert_array_equal(first.positions, np.arange(3, 9).reshape(2, 3))
    np.testing.assert_array_equal(second.positions, np.arange(9, 14).reshape(1, 5))
    assert (first.image, second.image) == (0, 1)
    with pytest.raises(HorizonError, match="the encoding lacks image_sizes, which says how the visual tokens lie"):
        FAMILIES[name].grids(replace(layout, inputs={}))


def test_a_videos_grids_name_the_first_frame_of_their_group():
    config = {"vision_config": SimpleNamespace(spatial_merge_size=2, temporal_patch_size=2)}
    layout = layout_of(config, 24, [(60, 40)] * 8, video=True, video_grid_thw=[[4, 4, 6]])
    grids = FAMILIES["qwen2_5_vl"].grids(layout)
    assert [grid.image for grid in grids] == [0, 2, 4, 6]
    np.testing.assert_array_equal(np.concatenate([grid.positions for grid in grids]), np.arange(3, 27).reshape(8, 3))


def test_class_tokens_of_frames_have_no_place():
    layout = layout_of({}, 3 * 10, [(20, 20)] * 3, video=True)
    grids = FAMILIES["video_llava"].grids(layout)
    assert [grid.positions[0, 0] for grid in grids] == [4, 14, 24]  # one behind the class token
    assert all(grid.positions.shape == (3, 3) for grid in grids)


def test_a_kept_class_token_has_no_place():
    config = {"vision_feature_select_strategy": "full", "vision_config": SimpleNamespace(model_type="clip")}
    (grid,) = FAMILIES["llava"].grids(layout_of(config, 10, [(20, 20)]))
    np.testing.assert_array_equal(grid.positions, np.arange(4, 13).reshape(3, 3))
    (grid,) = FAMILIES["llava"].grids(layout_of(config, 9, [(20, 20)]))  # a tower without one
    np.testing.assert_array_equal(grid.positions, np.arange(3, 12).reshape(3, 3))


def test_an_unfit_number_of_tokens_is_named_with_what_the_rule_explains():
    config = {"vision_config": SimpleNamespace(spatial_merge_size=2)}
    layout = layout_of(config, 13, [(30, 20)], image_grid_thw=[[1, 4, 6]])
    reason = r"the prompt holds 13 visual tokens and the rule explains 6 \(grids: 2 x 3; 0 placeless\)"
    with pytest.raises(HorizonError, match=reason):
        FAMILIES["qwen2_vl"].grids(layout)
    with pytest.raises(HorizonError, match="13 visual tokens cannot be shared evenly among 2 images, as m promises"):
        FAMILIES["paligemma"].grids(layout_of({}, 13, [(1, 1)] * 2))


def test_blocks_lay_their_tokens_in_order():
    blocks = [GridBlock(2, 3, before=1, row_end=1, after=2), GridBlock(after=1), GridBlock(1, 2, image=1)]
    first, second = place_blocks(blocks, np.arange(100, 100 + 14))
    np.testing.assert_array_equal(first.positions, [[101, 102, 103], [105, 106, 107]])
    np.testing.assert_array_equal(second.positions, [[112, 113]])
    assert (first.box, first.image, second.image) == (WHOLE, 0, 1)
    assert sum(block.placeless for block in blocks) == 6


# --- the registry ----------------------------------------------------------------------------------------------------


def test_an_undescribed_family_has_no_grid_and_all_tokens_are_placeless():
    family = find_family(SimpleNamespace(model_type="brand_new"))
    assert family == Family("brand_new", None)
    assert family.grids(layout_of({}, 7, [(1, 1)])) == []


def test_the_familys_example_in_contributing_is_right():
    text = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
    example = text.partition("## Add a model family")[2].partition("```python\n")[2].partition("```")[0]
    rule, _, entry = example.rpartition("\n\n\n")
    known = dict(vars(layouts)) | {"Family": Family}
    exec(rule, known)
    family = eval(entry, known)
    layout = layout_of({"half_grid": (2, 3)}, 32, [(8, 8)] * 2)
    grids = family.grids(layout)
    assert [grid.image for grid in grids] == [0, 0, 1, 1]
    np.testing.assert_array_equal(grids[3].positions, [[27, 28, 29], [31, 32, 33]])
    assert grids[3].box == (0.5, 0, 1, 1)
    assert family.required(video=False) == ("image_sizes",)


def test_sliding_windows_are_read_from_the_configuration():
    def config(**text):
        return SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(**text))

    assert sliding_window(config()) is None
    assert sliding_window(config(sliding_window=8)) == 8
    assert sliding_window(config(sliding_window=8, use_sliding_window=False)) is None
    assert sliding_window(config(sliding_window=8, layer_types=["full_attention"] * 2)) is None
    assert sliding_window(config(sliding_window=8, layer_types=["full_attention", "sliding_attention"])) == 8
    models = {pair.name: pair.make()[1] for pair in PAIRS}
    slides = {name for name, found in models.items() if sliding_window(found)}
    assert slides == {"gemma3"}


def test_box_of_a_center_crop_is_the_processors():
    (found,) = [pair for pair in PAIRS if pair.name == "video_llava"]
    assert center_crop_box(found.processor().image_processor, (40, 20)) == (0.25, 0, 0.75, 1)
