"""The demonstration, shortened: both models, runs, figures and sentences."""

import pytest

import figures.paper
import vlm_horizon as vh

LIMIT = 12  # of each set
SAVE = figures.paper.save_figures


def save_few(runs, out):
    """One file a figure; that there are three formats and two widths of each is for the tests of figures."""
    return SAVE(runs, out, formats=("png",), widths=("column",))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    said = []
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.paper, "save_figures", save_few)
        return vh.run_demo(out, token_samples=3, limit=LIMIT, progress=False, say=said.append), said, out


def test_both_models_are_measured_on_both_sets(demo):
    found, said, out = demo
    assert [run.model for run in found.runs] == ["tiny-8", "tiny-12"]
    for run in found.runs:
        assert run.path.parent == out
        assert len(run.failed) == 0
        assert run.ok["task_type"].value_counts().to_dict() == {"ocr": LIMIT, "vqa": LIMIT}
        assert len(run.token_rows()) == 6
    assert [line.split(":")[0] for line in said] == ["tiny-8", "tiny-12"]
    assert "token grids on the first 3 of each task" in said[0]


def test_every_figure_is_drawn(demo):
    found, said, _ = demo
    assert [path.name for path in found.figures] == [f"{name}_column.png" for name in figures.paper.FIGURES]
    assert not [line for line in said if "not drawn" in line]


def test_words_are_those_of_the_statistics(demo):
    found, _, _ = demo
    words = "\n".join(found.sentences)
    assert "no entropy collapse layer" in words
    for run in found.runs:
        for horizon in vh.find_horizon(run, criterion="removal"):
            assert f"at depth {horizon.half_depth:.2f}" in words
    (difference,) = [
        d
        for d in vh.compare_horizons(found.runs[0]).differences
        if d.quantity == "half_depth" and d.unit == "layers" and not d.paired
    ]
    assert difference.interval[0] > 0
    assert "tiny-8, ocr against vqa" in words
    assert "ocr lies deeper" in words
    assert "ocr, tiny-8 against tiny-12" in words


def test_missing_data_is_named():
    with pytest.raises(vh.HorizonError, match="no demo-models/tiny-99 among the shipped data"):
        vh.data_path("demo-models", "tiny-99")
