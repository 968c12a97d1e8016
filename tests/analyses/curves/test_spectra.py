import numpy as np
from synthetic_runs import step_curve, write_run

from analyses.curves.spectra import mean_spectra


def plant(path, spectra):
    entropies = {"query": {key: np.tile(step_curve(4, 2), (len(a), 1)) for key, a in spectra.items()}}
    return write_run(path, entropies=entropies, spectra={"query": spectra} if spectra else None)


def test_tasks_weigh_equally_however_many_samples_they_have(tmp_path):
    rng = np.random.default_rng(0)
    spectra = {"ocr/signs": rng.dirichlet(np.ones(5), (7, 4)), "ocr/letters": rng.dirichlet(np.ones(5), (2, 4))}
    (found,) = mean_spectra(plant(tmp_path / "run", spectra))
    expected = (spectra["ocr/signs"].mean(axis=0) + spectra["ocr/letters"].mean(axis=0)) / 2
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    np.testing.assert_allclose(found.values.sum(axis=1), 1, rtol=1e-6)
    assert (found.stream, found.n_samples, found.layers.tolist()) == ("query", 9, [0, 1, 2, 3])


def test_samples_with_fewer_tokens_have_zeros_at_the_ranks_they_lack(tmp_path):
    many, few = np.full((1, 4, 4), 0.25), np.full((1, 4, 2), 0.5)
    (found,) = mean_spectra(plant(tmp_path / "run", {"ocr": many, "vqa": few}))
    np.testing.assert_allclose(found.values, np.tile([0.375, 0.375, 0.125, 0.125], (4, 1)))


def test_a_run_without_spectra_has_none(tmp_path):
    entropies = {"query": {"ocr": np.ones((2, 4))}}
    assert mean_spectra(write_run(tmp_path / "run", entropies=entropies)) == []
