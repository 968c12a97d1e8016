"""Imports the scripts of data/make, which are no package: they find each other as siblings."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports one script by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DATA / "make"))
        yield importlib.import_module
