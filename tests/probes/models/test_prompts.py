"""Prompts: what the model reads, where its visual tokens lie, and where its answer is read off."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from analyses.runs import HorizonError
from probes.data.samples import Sample, SampleError
from probes.measures.case import Case
from probes.measures.information import removal_curves
from probes.models.families import Family, square_grid
from probes.models.layouts import GridBlock, VisualLayout, center_crop_box
from probes.models.probed import ProbedModel
from probes.models.prompts import chat_text, encode
from probes.models.targets import Target, answer_target
from probes.replay.capture import capture_prompt

N_WORDS = 6  # "what does the text say ?"


def with_template(model: ProbedModel, template: str | None) -> ProbedModel:
    """The same model; its processor has another chat template."""
    processor = copy(model.processor)
    processor.chat_template = template
    return replace(model, processor=processor)


def with_blocks(model: ProbedModel, *blocks: GridBlock, **facts) -> ProbedModel:
    """The same model; its family lays visual tokens out in the given blocks."""
    return replace(model, family=Family("made-up", lambda _layout: list(blocks), **facts))


class Reworked:
    """The demo model's processor, with what it gives changed by a function."""

    def __init__(self, processor, change) -> None:
        self.processor, self.change = processor, change

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, **kwargs):
        return self.change(dict(self.processor(**kwargs)))


def reworked(model: ProbedModel, change) -> ProbedModel:
    return replace(model, processor=Reworked(model.processor, change))


@pytest.fixture(scope="module")
def read(demo_samples) -> Sample:
    return demo_samples[0]


# --- the demo model's prompt -----------------------------------------------------------------------------------------


def test_the_demo_models_prompt(demo, read):
    prompt = encode(demo, read)
    assert read.question == "what does the text say ?"
    assert prompt.text == "USER: <image> what does the text say ? ASSISTANT:"
    words = demo.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    assert words == ["<s>", "USER:", *["<image>"] * 64, *read.question.split(), "ASSISTANT:"]
    assert prompt.visual.tolist() == list(range(2, 66))
    (grid,) = prompt.grids
    np.testing.assert_array_equal(grid.positions, np.arange(2, 66).reshape(8, 8))
    assert grid.box == (0.0, 0.0, 1.0, 1.0)
    assert prompt.placeless == 0
    assert prompt.n_tokens == 2 + 64 + N_WORDS + 1
    assert prompt.readout.tolist() == [prompt.n_tokens - 1]
    np.testing.assert_array_equal(np.asarray(prompt.image), np.asarray(read.load_image()))


def test_the_grid_is_row_major(demo):
    """A white square in the third row and sixth column of patches is seen by the token at that place."""
    black, spot = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64))
    spot.paste((255, 255, 255), (5 * 8, 2 * 8, 6 * 8, 3 * 8))
    first = []
    for image in (black, spot):
        prompt = encode(demo, Sample("s", image, "what ?", ()))
        hidden = capture_prompt(demo, prompt, ("hidden",)).visual.states["hidden"][0]
        first.append(hidden.cpu().numpy())
    moved = np.linalg.norm(first[1] - first[0], axis=1)
    place = np.argwhere(prompt.grids[0].positions == prompt.visual.cpu().numpy()[moved.argmax()])
    assert place.tolist() == [[2, 5]]


def test_inputs_are_on_the_models_device_and_pixels_in_its_precision(demo, random_model, read):
    for model in (demo, random_model):
        inputs = encode(model, replace(read, question="what is shown ?")).inputs
        assert {value.device.type for value in inputs.values()} == {model.device.type}
        assert inputs["pixel_values"].dtype == model.dtype
        assert inputs["input_ids"].dtype == torch.long


def test_a_beginning_of_sequence_that_the_template_writes_is_not_doubled(demo, read):
    written = with_template(demo, "<s>" + demo.processor.chat_template)
    assert chat_text(written, read.question).startswith("<s>USER:")
    plain, once = encode(demo, read), encode(written, read)
    assert once.inputs["input_ids"].tolist() == plain.inputs["input_ids"].tolist()
    assert (plain.inputs["input_ids"] == demo.tokenizer.bos_token_id).sum() == 1
    doubled = demo.processor(images=[read.load_image()], text=[once.text], return_tensors="pt")["input_ids"]
    assert (doubled == demo.tokenizer.bos_token_id).sum() == 2  # what the processor would do by itself


def test_tokens_that_no_grid_holds_are_placeless(demo, read):
    prompt = encode(with_blocks(demo, GridBlock(9, 7, after=1)), read)
    np.testing.assert_array_equal(prompt.grids[0].positions, np.arange(2, 65).reshape(9, 7))
    assert prompt.placeless == 1
    assert len(prompt.visual) == 64


# --- the forced answer -----------------------------------------------------------------------------------------------


def test_a_forced_answer_is_appended_except_its_last_token(demo, read):
    plain, n = encode(demo, read), encode(demo, read).n_tokens
    for answer in ((11,), (11, 12), (11, 12, 13, 14)):
        prompt = encode(demo, read, answer)
        assert prompt.inputs["input_ids"][0].tolist() == plain.inputs["input_ids"][0].tolist() + list(answer[:-1])
        assert prompt.inputs["attention_mask"][0].tolist() == [1] * (n + len(answer) - 1)
        assert prompt.n_tokens == n + len(answer) - 1
        assert prompt.readout.tolist() == list(range(n - 1, n - 1 + len(answer)))
        assert prompt.visual.tolist() == plain.visual.tolist()


@torch.no_grad()
def test_log_p_of_the_answer_is_the_mean_of_a_plain_forwards(demo, demo_samples):
    longest = 0
    for sample in demo_samples:
        target = answer_target(demo.tokenizer, sample)
        found = target.log_p(capture_prompt(demo, encode(demo, sample, target.ids), ()).log_probs).item()

        words = f"{encode(demo, sample).text} {sample.answers[0]}"
        whole = demo.processor(images=[sample.load_image()], text=[words], return_tensors="pt").to(demo.device)
        log_probs = demo.model(**whole).logits[0].log_softmax(-1)
        ids, n = whole["input_ids"][0], len(target.ids)
        assert ids[-n:].tolist() == list(target.ids)
        expected = log_probs[-n - 1 : -1].gather(1, ids[-n:, None]).mean().item()
        assert found == pytest.approx(expected, abs=1e-5)
        longest = max(longest, n)
    assert longest >= 2


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_target_behind_a_forced_prefix_is_read_from_a_plain_forward_with_the_prefix(demo, demo_samples):
    """Removal curves of a target that begins one token later: at L, the plain model's value after that token."""
    sample = demo_samples[0]
    before, after = (demo.tokenizer.convert_tokens_to_ids(word) for word in ("is", "red"))
    target = Target("gold", "red", (after,), prefix=(before,))
    captured = capture_prompt(demo, encode(demo, sample, target.forced), ())
    curve = removal_curves(Case(demo, captured, {"gold": target}))["gold"]
    plain = dict(encode(demo, sample).inputs)
    plain["input_ids"] = torch.cat([plain["input_ids"], torch.tensor([[before]])], dim=1)
    plain["attention_mask"] = torch.ones_like(plain["input_ids"])
    with torch.no_grad():
        expected = demo.model(**plain).logits[0, -1].log_softmax(-1)[after].item()
    assert curve.log_p_all == pytest.approx(expected, abs=1e-5)
    assert np.abs(curve.log_p[:-1] - expected).max() > 0.05


def test_a_row_that_could_not_be_read_says_why(demo):
    with pytest.raises(SampleError, match=r"^pets.jsonl line 3: not valid JSON$"):
        encode(demo, Sample("pets:3", None, "", (), error="pets.jsonl line 3: not valid JSON"))


def test_a_missing_image_is_named(demo, tmp_path):
    with pytest.raises(SampleError, match=r"sample 's': image .*none.png does not exist"):
        encode(demo, Sample("s", tmp_path / "none.png", "what ?", ()))


def test_an_image_that_gives_no_visual_token_is_named(demo, read):
    processor = copy(demo.processor)
    processor.patch_size = 128  # no patch fits
    with pytest.raises(SampleError, match=f"sample '{read.id}': the prompt of '.*tiny-8' holds no visual token"):
        encode(replace(demo, processor=processor), read)


def test_a_template_that_leaves_the_image_out_is_named(demo, read):
    blind = with_template(demo, "USER: {{ messages[0]['content'][1]['text'] }} ASSISTANT:")
    with pytest.raises(SampleError, match=f"sample '{read.id}': the processor of '.*tiny-8' refuses its image with"):
        encode(blind, read)


def test_a_question_that_holds_the_image_placeholder_is_named(demo, read):
    with pytest.raises(SampleError, match=f"sample '{read.id}': .* refuses .*'USER: <image> is <image> red"):
        encode(demo, replace(read, question="is <image> red ?"))


def test_a_processor_without_a_chat_template_is_named(demo, read):
    with pytest.raises(SampleError, match=r"processor of '.*tiny-8' has no chat template that renders an image and a"):
        encode(with_template(demo, None), read)


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([GridBlock(7, 9)], r"63 \(grids: 7 x 9; 0 placeless\)"),
        ([GridBlock(8, 8, after=1)], r"65 \(grids: 8 x 8; 1 placeless\)"),
        ([GridBlock(7, 8), GridBlock(2, 2, row_end=1)], r"62 \(grids: 7 x 8, 2 x 2; 2 placeless\)"),
        ([], r"0 \(grids: none; 0 placeless\)"),
    ],
)
def test_more_or_fewer_visual_tokens_than_the_rule_explains_are_named(demo, read, blocks, told):
    reason = (
        f"^sample '{read.id}': '.*tiny-8' \\(made-up\\): the prompt holds 64 visual tokens and the rule explains {told}"
    )
    with pytest.raises(SampleError, match=reason):
        encode(with_blocks(demo, *blocks), read)


def test_an_encoding_that_lacks_what_the_family_needs_is_named(demo, read):
    needs = with_blocks(demo, GridBlock(8, 8), inputs=("mm_token_type_ids",), video_inputs=("video_grid_thw",))
    reason = (
        "gives no mm_token_type_ids, without which the family 'made-up' is silently wrong: take the processor of the"
    )
    with pytest.raises(SampleError, match=reason):
        encode(needs, read)
    told = reworked(needs, lambda found: found | {"mm_token_type_ids": torch.zeros_like(found["input_ids"])})
    assert encode(told, read).placeless == 0


# --- padding, and encodings that are no single prompt ----------------------------------------------------------------


def padded(found: dict, left: int, right: int) -> dict:
    def widened(row):
        return torch.nn.functional.pad(row, (left, right))

    return found | {key: widened(found[key]) for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 2), (3, 2)])
def test_padding_is_taken_off(demo, read, left, right):
    plain, prompt = encode(demo, read), encode(reworked(demo, lambda found: padded(found, left, right)), read)
    assert prompt.inputs.keys() == plain.inputs.keys()
    assert all(torch.equal(prompt.inputs[key], plain.inputs[key]) for key in plain.inputs)
    assert prompt.visual.tolist() == plain.visual.tolist()
    assert prompt.readout.tolist() == plain.readout.tolist()


def test_padding_left_in_would_have_changed_the_answer(random_model, read):
    """The variant without the guard: pads at the left, which a replay of captured layers would take for words."""
    model = random_model.model
    plain = encode(random_model, replace(read, question="what is shown ?")).inputs
    left = padded(plain, 3, 0)
    del left["attention_mask"]
    with torch.no_grad():
        shift = model(**left).logits[0, -1].softmax(-1) - model(**plain).logits[0, -1].softmax(-1)
    assert shift.abs().max() > 1e-3


def test_a_mask_with_holes_and_a_batch_are_named(demo, read):
    def holed(found):
        mask = found["attention_mask"].clone()
        mask[0, 4] = 0
        return found | {"attention_mask": mask}

    with pytest.raises(SampleError, match="its attention mask hides tokens inside the prompt; mask only padding"):
        encode(reworked(demo, holed), read)
    double = reworked(demo, lambda found: {key: torch.cat([value, value]) for key, value in found.items()})
    with pytest.raises(SampleError, match=r"its input_ids have shape \(2, 73\); one row is expected"):
        encode(double, read)


def test_a_token_without_an_embedding_is_named(demo, read):
    def beyond(found):
        ids = found["input_ids"].clone()
        ids[0, -1] = 91
        return found | {"input_ids": ids}

    with pytest.raises(SampleError, match=r"token id 91 lies beyond the 91 embeddings of '.*tiny-8': its processor"):
        encode(reworked(demo, beyond), read)


# --- several images, frames ------------------------------------------------------------------------------------------


def test_several_images_have_grids_in_their_order(demo, demo_samples):
    first, second = (sample.load_image() for sample in demo_samples[:2])
    both = Sample("both", None, "what ?", (), images=(first, second))
    prompt = encode(demo, both)
    assert prompt.text == "USER: <image> <image> what ? ASSISTANT:"
    assert [grid.image for grid in prompt.grids] == [0, 1]
    np.testing.assert_array_equal(prompt.grids[1].positions, np.arange(66, 130).reshape(8, 8))
    assert [np.asarray(image).tolist() for image in prompt.images] == [np.asarray(i).tolist() for i in (first, second)]
    for place, image in enumerate((first, second)):
        alone = encode(demo, Sample("one", image, "what ?", ()))
        assert torch.equal(prompt.inputs["pixel_values"][place], alone.inputs["pixel_values"][0])


def test_frames_of_different_sizes_and_a_missing_video_processor_are_named(demo):
    frames = (Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9)))
    video = Sample("v", None, "what ?", (), frames=frames)
    with pytest.raises(
        SampleError, match="'v' has video frames, for which the family 'llava' has no rule: give them as"
    ):
        encode(demo, video)
    takes = with_blocks(demo, GridBlock(8, 8), video=True)
    with pytest.raises(SampleError, match="loaded without its video processor, which needs torchvision: install the"):
        encode(takes, video)
    processor = copy(demo.processor)
    processor.video_processor = processor.image_processor
    with pytest.raises(SampleError, match="sample 'v': its video frames differ in size"):
        encode(replace(takes, processor=processor), video)


def test_a_template_that_fails_by_itself_is_named(demo, read):
    with pytest.raises(SampleError, match=r"has no chat template that renders an image and a question: no images$"):
        encode(with_template(demo, "{{ raise_exception('no images') }}"), read)


def test_a_number_of_tokens_that_is_no_square_is_named(demo):
    with pytest.raises(HorizonError, match="63 visual tokens form no square grid, as llava promises"):
        square_grid(VisualLayout(demo.model.config, {}, np.arange(63), ((64, 64),), None))


@pytest.mark.parametrize(
    ("size", "image", "box"),
    [
        ({"shortest_edge": 64}, (192, 64), (1 / 3, 0, 2 / 3, 1)),  # the middle third
        ({"shortest_edge": 64}, (50, 100), (0, 0.25, 1, 0.75)),
        ({"height": 64, "width": 64}, (192, 64), (0, 0, 1, 1)),  # squeezed, all of it
        ({"shortest_edge": 32}, (64, 64), (-0.5, -0.5, 1.5, 1.5)),  # padded
    ],
)
def test_the_box_is_what_the_encoder_sees(size, image, box):
    """Against pixels: the corners of a ramp picture, as the processor leaves them."""
    crop = {"height": 64, "width": 64}
    processor = CLIPImageProcessorPil(size=size, crop_size=crop, do_center_crop=True, do_normalize=False)
    assert center_crop_box(processor, image) == pytest.approx(box, abs=0.01)
    width, height = image
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(1, 255, width)[None], np.linspace(1, 255, height)[:, None]
    seen = processor(images=Image.fromarray(ramp), return_tensors="pt")["pixel_values"][0].numpy() * 255
    inside = [max(0.0, box[0]), max(0.0, box[1]), min(1.0, box[2]), min(1.0, box[3])]
    lit = seen[:2].max(axis=0) > 0.5
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    found = [
        *(seen[channel][rows[0], columns[0]] for channel in (0, 1)),
        *(seen[channel][rows[-1], columns[-1]] for channel in (0, 1)),
    ]
    np.testing.assert_allclose(found, [1 + 254 * fraction for fraction in inside], atol=8)


def test_without_a_center_crop_the_grid_covers_the_whole_image():
    whole = CLIPImageProcessorPil(size={"shortest_edge": 64}, do_center_crop=False)
    assert center_crop_box(whole, (192, 64)) == (0, 0, 1, 1)
