"""What the README promises is there."""

import re
from pathlib import Path

import pytest

import vlm_horizon as vh
from analyses.runs import HorizonError
from probes.models.families import FAMILIES
from vlm_horizon.cli import app
from vlm_horizon.readme import family_table, task_table, write_tables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_make_targets_and_ci_runs_the_tests():
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert re.search(rf"^    make {command} ", README, re.MULTILINE)
        assert re.search(rf"^{command}: ", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_command_shown_exists():
    shown = set(re.findall(r"^    vlm-horizon (\w+)", README, re.MULTILINE))
    assert shown
    assert shown <= {command.name or command.callback.__name__ for command in app.registered_commands}


def test_every_name_used_exists():
    used = set(re.findall(r"\bvh\.(\w+)(?:\.(\w+))?", README))
    modules = {first for first, _ in used} - set(vh.__all__)
    assert len(used) > 10
    assert modules <= set(dir(vh))
    assert all(second in getattr(vh, first).__all__ for first, second in used if first in modules and second)


def test_the_table_of_families_is_what_the_code_says(tmp_path):
    table = README.partition("<!-- families: begin -->")[2].partition("<!-- families: end -->")[0]
    assert table == f"\n{family_table()}"
    for name, family in FAMILIES.items():
        (row,) = [line for line in table.splitlines() if f"| `{name}` |" in line]
        assert row.startswith(f"| {family.title} |")
        assert ("refused" in row) == bool(family.refused)
        assert ("video" in row) == family.video


def test_stale_tables_are_made_anew_and_the_rest_stays(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README.replace("| textvqa |", "| other |").replace("| LLaVA-1.5 |", "| another |"))
    assert copy.read_text() != README
    write_tables(copy)
    assert copy.read_text() == README


@pytest.mark.parametrize("marker", ["families: begin", "families: end", "tasks: begin", "tasks: end"])
def test_a_file_that_lacks_a_marker_stays_as_it_is(tmp_path, marker):
    copy = tmp_path / "README.md"
    broken = README.replace(f"<!-- {marker} -->", "").replace("| textvqa |", "| other |")
    copy.write_text(broken)
    with pytest.raises(HorizonError, match=f"README.md has no place for the table of {marker.split(':')[0]}: put <!--"):
        write_tables(copy)
    assert copy.read_text() == broken


def test_every_file_named_exists():
    named = set(re.findall(r"`([\w/.-]+\.(?:md|ipynb|cff))`", README)) | set(
        re.findall(r"\]\(([\w/.-]+\.png)\)", README)
    )
    assert len(named) >= 6
    assert all((ROOT / name).is_file() for name in named)


def test_the_table_of_benchmarks_is_the_codes():
    assert f"<!-- tasks: begin -->\n{task_table()}<!-- tasks: end -->" in README


def test_the_constraints_pin_every_dependency():
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = set(re.findall(r'^    "([\w.-]+)[><=]', project, re.MULTILINE))
    assert len(dependencies) > 20
    assert {name.lower() for name in dependencies} <= pins
