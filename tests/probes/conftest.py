"""Models that several test files look at: the shipped one in float32, a random one in float64."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from random_models import random_llava, random_processor

from probes.data.readers import read_samples
from probes.data.samples import Sample
from probes.loading.loading import load_model
from probes.models.probed import ProbedModel

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices lose more by handing work around than they gain, and sums stay in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def demo() -> ProbedModel:
    return load_model(DATA / "demo-models" / "tiny-8", dtype="float32")


@pytest.fixture(scope="session")
def demo_samples() -> list[Sample]:
    """Two OCR and two VQA samples."""
    files = [DATA / "demo-samples" / f"{task}.jsonl" for task in ("ocr", "vqa")]
    return [sample for file in files for sample in read_samples(file, limit=2)]


@pytest.fixture(scope="session")
def random_model() -> ProbedModel:
    """Four layers, 25 visual tokens, float64."""
    return load_model(random_llava(34), processor=random_processor(), dtype="float64")
