"""How many samples share a target, against planted tokens."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from synthetic_runs import fade_curve, write_run

import vlm_horizon as vh

L = 6


def planted(path, tokens, **config):
    effects = {key: np.tile(fade_curve(L, 3), (len(given), 1)) for key, given in tokens.items()}
    return write_run(path, effects=effects, target_tokens=tokens, **config)


def test_targets_are_counted_within_each_task(tmp_path):
    targets = {
        "ocr/textvqa": [([1, 2], "red"), ([2, 1], "Red"), ([3], "stop"), ([4], "go"), ([5], "7")],
        "vqa/gqa": [([8], "yes")] * 3 + [([9], "no")],
    }
    gqa, textvqa = vh.target_shares(planted(tmp_path / "run", targets))
    assert (textvqa.group, textvqa.n_samples, textvqa.n_targets) == ({"task": "textvqa"}, 5, 4)
    assert (textvqa.most_common, textvqa.share) == ("red", 0.4)  # spellings of one target, in whatever order
    assert textvqa.warning == ""
    assert (gqa.n_targets, gqa.most_common, gqa.share) == (2, "yes", 0.75)
    assert "75% of the samples share the target token 'yes'" in gqa.warning
    assert "2 targets cover all samples: a constant guess is right on 75% of them" in gqa.warning
    (together,) = vh.target_shares(planted(tmp_path / "again", targets), by=())
    assert (together.n_samples, together.n_targets) == (9, 6)


@pytest.mark.parametrize(
    ("tokens", "warned"),
    [
        ([1, 1, 2, 3], ""),  # exactly half
        ([1, 1, 1, 2, 3], "60% of the samples share"),
        ([1, 2, 3, 4], ""),
        ([1, 2, 1, 2], "2 targets cover all"),
        ([1, 1, 1], "one target covers all samples"),
    ],
)
def test_a_target_that_hardly_varies_is_warned_of(tmp_path, tokens, warned):
    (found,) = vh.target_shares(planted(tmp_path / "run", {"ocr": [([token], f"t{token}") for token in tokens]}))
    assert warned in found.warning
    assert bool(found.warning) == bool(warned)


def test_bare_spaces_are_named_as_such(tmp_path):
    targets = {"ocr": [([1], ""), ([1], ""), ([1], " "), ([2], "a"), ([3], "b"), ([4], "c"), ([5], "d")]}
    (found,) = vh.target_shares(planted(tmp_path / "run", targets))
    assert (found.n_blank, found.most_common) == (3, "(a bare space)")
    assert "the target of 3 of 7 samples is a bare space" in found.warning


def test_whole_answers_differ_in_the_order_of_their_tokens(tmp_path):
    targets = {"ocr": [([1, 2], "a b"), ([2, 1], "b a"), ([1, 2], "a b")]}
    (pooled,) = vh.target_shares(planted(tmp_path / "gold", targets))
    (whole,) = vh.target_shares(planted(tmp_path / "answer", targets, targets=("answer",)))
    assert (pooled.n_targets, whole.n_targets) == (1, 2)
    assert (whole.target, whole.most_common, whole.share) == ("answer", "a b", pytest.approx(2 / 3))


def test_a_run_of_an_earlier_version_says_that_texts_were_not_recorded(tmp_path):
    run = planted(tmp_path / "run", {"ocr": [([1], "a"), ([1], "a"), ([2], "b"), ([3], "c")]})
    (part,) = (run.path / "samples").glob("*.parquet")
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["target_text", "options"]), part)
    (found,) = vh.target_shares(vh.load_run(run.path))
    assert (found.most_common, found.n_targets, found.n_blank) == ("(not recorded)", 3, 0)


def test_samples_without_the_target_do_not_count(tmp_path):
    targets = {"ocr": [([1], "a"), ([2], "b"), ([3], "c"), ([4], "d")]}
    run = planted(tmp_path / "run", targets, failed={"ocr": 2, "vqa": 1})
    (found,) = vh.target_shares(run)
    assert found.n_samples == 4
    run.samples.at[0, "target_ids"] = None
    (found,) = vh.target_shares(run)
    assert (found.n_samples, found.n_targets) == (3, 3)
