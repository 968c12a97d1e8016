import matplotlib
import pytest

from analyses.runs import HorizonError
from figures.style import FONT_SIZE, PALETTE, RC, SMALL, WIDTHS, assign_looks, figure_width, group_label, paper_style


def test_the_style_holds_inside_the_context_and_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    with paper_style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        assert matplotlib.rcParams["svg.fonttype"] == "none"
        assert matplotlib.rcParams["font.size"] == FONT_SIZE
    assert dict(matplotlib.rcParams) == before


def test_no_text_is_smaller_than_what_can_be_read_at_column_width():
    sizes = [value for name, value in RC.items() if name.endswith(("size", "fontsize")) and "font" in name]
    sizes += [RC["xtick.labelsize"], RC["ytick.labelsize"], RC["axes.labelsize"], RC["axes.titlesize"]]
    assert min(sizes) >= SMALL >= 6.5


def test_looks_depend_on_neither_order_nor_company_of_known_names():
    alone = assign_looks(["vqa"])["vqa"]
    for names in (["ocr", "vqa"], ["charts", "vqa", "ocr", "documents"], ["vqa", "ocr"]):
        assert assign_looks(names)["vqa"] == alone
        assert assign_looks(names) == assign_looks(reversed(names))


def test_every_name_looks_different_even_beyond_the_palette():
    looks = assign_looks(f"task {i}" for i in range(2 * len(PALETTE)))
    assert len({(look.color, look.linestyle) for look in looks.values()}) == 2 * len(PALETTE)


def test_known_names_in_two_spellings_do_not_share_a_color():
    looks = assign_looks(["ocr", "OCR"])
    assert looks["ocr"].color != looks["OCR"].color


def test_group_labels_are_the_values():
    assert group_label({"task_type": "ocr", "task": "signs"}) == "ocr, signs"
    assert group_label({}) == "all samples"


def test_a_width_that_does_not_exist_names_those_that_do():
    assert figure_width("column") == WIDTHS["column"] == 3.25
    with pytest.raises(HorizonError, match=r"poster.*column, page"):
        figure_width("poster")
