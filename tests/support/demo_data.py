"""The shipped models and samples, for tests."""

from __future__ import annotations

from functools import cache

import vlm_horizon as vh


@cache
def demo_model(name: str = "tiny-8"):
    """A shipped model, loaded once a session. Do not change it."""
    return vh.load_model(vh.data_path("demo-models", name))


def demo_samples(n: int, *sets: str) -> list:
    """The first n samples of each shipped set ("ocr" and "vqa" by default)."""
    files = [vh.data_path("demo-samples", f"{name}.jsonl") for name in sets or ("ocr", "vqa")]
    return [sample for file in files for sample in vh.read_samples(file, limit=n)]
