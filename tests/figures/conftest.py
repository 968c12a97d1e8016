"""Two small planted runs that carry everything a figure can show, made once."""

import numpy as np
import pytest
from synthetic_runs import fade_curve, step_curve, write_run

N = 12
STREAMS = ("query", "hidden")
HALVES = {"ocr": 0.55, "vqa": 0.3}


def plant(path, n_layers, model, seed=0):
    """Half depths at 0.55 and 0.3 of the depth; the query's entropy collapses into layer 3, the other never."""
    rng = np.random.default_rng(seed)
    effects, grids, entropies, spectra = {}, {}, {s: {} for s in STREAMS}, {s: {} for s in STREAMS}
    for name, half in HALVES.items():
        noise = rng.normal(0, 0.02 * n_layers, N)
        effects[name] = np.stack([fade_curve(n_layers, half * n_layers + shift) for shift in noise])
        share = rng.dirichlet(np.full(6, 0.5), N)  # 2 x 3 windows of a 3 x 5 grid, smaller at the edges
        removed, full = effects[name][:, :-1, None], effects[name][:, -1:, None]
        grids[name] = removed + (full - removed) * share[:, None, :]
        grids[name][3:] = np.nan
        flat = {"query": step_curve(n_layers, 3), "hidden": np.full(n_layers, 3.0)}
        for stream in STREAMS:
            entropies[stream][name] = flat[stream] + rng.normal(0, 0.05, (N, n_layers))
            decay = np.arange(1, 15.0)[None, :] ** -np.linspace(1, 3, n_layers)[:, None]
            spectra[stream][name] = np.tile(decay / decay.sum(axis=1, keepdims=True), (N, 1, 1))
    images = {"ocr": list(range(N)), "vqa": list(range(6, 6 + N))}
    planted = {"effects": effects, "grids": grids, "entropies": entropies, "spectra": spectra}
    return write_run(path, **planted, images=images, grid_shape=(3, 5), model=f"made-up/{model}")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("eight") / "run", 8, "eight")


@pytest.fixture(scope="session")
def deeper(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("twelve") / "run", 12, "twelve", seed=1)


@pytest.fixture(scope="session")
def only_removal(tmp_path_factory):
    """Nothing but removal curves: a horizon that is not before the end, and a task without an effect."""
    rng = np.random.default_rng(2)
    late = np.concatenate([np.full((N, 8), 0.2), np.full((N, 1), 0.9)], axis=1)
    nothing = 0.5 + rng.normal(0, 1e-4, (N, 9))
    path = tmp_path_factory.mktemp("removal") / "run"
    return write_run(path, effects={"ocr": late, "puzzles": nothing}, model="made-up/blind")
