import os
import subprocess
import sys

import matplotlib
import pytest
from PIL import Image

from analyses.runs import HorizonError
from figures.paper import FIGURES, save_figures

NAMES = [
    "entropy-curves",
    "spectrum",
    "token-information",
    "removal-curves",
    "horizon-comparison",
    "token-heatmap",
]

ELSEWHERE = """
import sys
from figures.paper import save_figures
save_figures(sys.argv[1], sys.argv[2], ["removal-curves", "token-heatmap"], widths=["column"])
assert "torch" not in sys.modules, "figures must not import torch"
assert "matplotlib.pyplot" not in sys.modules, "figures must leave pyplot's state alone"
"""


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    before = dict(matplotlib.rcParams)
    result = save_figures(run, out)
    assert dict(matplotlib.rcParams) == before
    return out, result


def test_every_figure_is_written_in_every_width_and_format(saved):
    out, result = saved
    expected = [f"{n}_{w}.{kind}" for n in NAMES for w in ("column", "page") for kind in ("pdf", "svg", "png")]
    assert list(FIGURES) == NAMES
    assert [path.name for path in result.written] == expected
    assert sorted(path.name for path in out.iterdir()) == sorted(expected)
    assert result.skipped == {}


def test_pdf_fonts_are_type_42_and_no_date_is_written(saved):
    for path in saved[0].glob("*.pdf"):
        content = path.read_bytes()
        assert b"/Type3" not in content
        assert b"/CIDFontType2" in content  # how a PDF holds a Type 42 font
        assert b"CreationDate" not in content


def test_svg_text_stays_text(saved):
    content = (saved[0] / "entropy-curves_page.svg").read_text()
    assert "Matrix entropy (nats)</text>" in content
    assert "<dc:date>" not in content


@pytest.mark.parametrize(("width", "pixels"), [("column", 975), ("page", 2025)])
def test_png_is_300_dots_an_inch_at_the_printed_width(saved, width, pixels):
    for path in saved[0].glob(f"*_{width}.png"):
        with Image.open(path) as image:
            assert image.width == pixels
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_another_process_writes_the_same_bytes_without_torch(run, saved, tmp_path):
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(run.path), str(tmp_path)], check=True, env=environment)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert len(written) == 6
    for name in written:
        assert (tmp_path / name).read_bytes() == (saved[0] / name).read_bytes(), name


def test_what_a_run_cannot_carry_is_skipped_with_its_reason(only_removal, tmp_path):
    result = save_figures(only_removal, tmp_path / "new" / "folder", formats=["svg"], widths=["page"])
    assert [path.name for path in result.written] == ["removal-curves_page.svg", "horizon-comparison_page.svg"]
    assert list(result.skipped) == ["entropy-curves", "spectrum", "token-information", "token-heatmap"]
    assert "probe 'entropy'" in result.skipped["entropy-curves"]
    assert "spectra" in result.skipped["spectrum"]
    assert "probe 'information'" in result.skipped["token-heatmap"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ["pie-chart"]}, "figure 'pie-chart' is unknown; choose from entropy-curves, spectrum"),
        ({"formats": ["gif"]}, "figure format 'gif' is unknown; choose from pdf, svg, png"),
        ({"widths": ["poster"]}, "figure width 'poster' is unknown; choose from column, page"),
    ],
)
def test_unknown_words_name_the_choices_and_write_nothing(run, tmp_path, given, message):
    with pytest.raises(HorizonError, match=message):
        save_figures(run, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
