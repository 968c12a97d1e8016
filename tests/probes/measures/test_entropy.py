"""Entropy: its laws, and the definition written down once more from singular values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import probes.measures.entropy
from analyses.runs import HorizonError
from probes.measures.entropy import BLOCK_VALUES, PRODUCT_ORDERS, matrix_entropy, matrix_spectrum, token_entropy

ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, math.inf)
SHAPES = ((7, 5), (5, 7), (6, 6), (40, 16), (16, 40))

shapes = st.tuples(st.integers(2, 9), st.integers(2, 9))
seeds = st.integers(0, 2**32 - 1)
flags = st.booleans()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(states: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(states)


def spectrum_of(states: np.ndarray, *, center: bool = True, normalize_rows: bool = True) -> np.ndarray:
    """(token, dim) -> shares of the squared singular values, descending, in float64."""
    rows = states.astype(np.float64)
    if center:
        rows = rows - rows.mean(axis=0)
    if normalize_rows:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    return squares / squares.sum()


def entropy_of(states: np.ndarray, alpha: float = 1.0, **how: bool) -> float:
    shares = spectrum_of(states, **how)
    shares = shares[shares > 0]
    if alpha == 1:
        return float(-(shares * np.log(shares)).sum())
    if math.isinf(alpha):
        return float(-np.log(shares.max()))
    return float(np.log((shares**alpha).sum()) / (1 - alpha))


def rounding(alpha: float) -> float:
    """Low orders raise the rounding of empty directions to a root."""
    return 1e-9 if alpha >= 1 else 1e-6


# --- laws ------------------------------------------------------------------------------------------------------------


@given(shapes, seeds, st.floats(0.01, 1e4))
def test_identical_tokens_have_none(shape, seed, scale):
    states = tensor(np.tile(scale * normal(shape[1], seed=seed), (shape[0], 1)))
    for how in ({"center": False}, {"center": True}, {"center": True, "normalize_rows": False}):
        assert matrix_entropy(states, **how).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("n", "d"), [(2, 2), (5, 5), (5, 64), (30, 40)])
def test_orthonormal_tokens_fill_every_direction_but_the_mean(n, d, alpha):
    rotation = np.linalg.qr(normal(d, d))[0]
    states = tensor(rotation[:n])
    assert matrix_entropy(states, center=False, alpha=alpha).item() == pytest.approx(math.log(n), abs=1e-9)
    assert matrix_entropy(states, center=True, alpha=alpha).item() == pytest.approx(math.log(n - 1), abs=1e-9)


@given(shapes, seeds, flags, flags)
def test_rotation_and_order_of_tokens_change_nothing(shape, seed, center, normalize_rows):
    random = np.random.default_rng(seed)
    states = random.normal(size=shape)
    rotation = np.linalg.qr(random.normal(size=(shape[1], shape[1])))[0]
    how = {"center": center, "normalize_rows": normalize_rows}
    before = matrix_entropy(tensor(states), **how).item()
    assert matrix_entropy(tensor(states @ rotation), **how).item() == pytest.approx(before, abs=1e-9)
    assert matrix_entropy(tensor(random.permutation(states)), **how).item() == pytest.approx(before, abs=1e-9)


@given(shapes, seeds, flags)
def test_scale_changes_nothing_and_an_offset_nothing_where_tokens_are_centered(shape, seed, normalize_rows):
    states = normal(*shape, seed=seed)
    before = matrix_entropy(tensor(states), normalize_rows=normalize_rows).item()
    for moved in (1e3 * states, states + 100 * normal(shape[1], seed=seed + 1)):
        assert matrix_entropy(tensor(moved), normalize_rows=normalize_rows).item() == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_both_gram_sides_agree(n, d):
    """Padding with empty dimensions, or with zero tokens, changes the side that is smaller and nothing else."""
    states = normal(n, d)
    wide, tall = np.pad(states, ((0, 0), (0, n + d))), np.pad(states, ((0, n + d), (0, 0)))
    for alpha in ALPHAS:
        values = [matrix_entropy(tensor(x), center=False, alpha=alpha).item() for x in (states, wide, tall)]
        np.testing.assert_allclose(values, values[0], rtol=0, atol=rounding(alpha))
    for padded in (wide, tall):
        found = matrix_spectrum(tensor(padded), center=False)
        expected = spectrum_of(states, center=False)
        np.testing.assert_allclose(found[: min(n, d)], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[min(n, d) :], 0, atol=1e-12)


@given(shapes, seeds, flags, flags)
def test_renyi_two_is_the_frobenius_norm_of_the_trace_one_gram(shape, seed, center, normalize_rows):
    rows = normal(*shape, seed=seed)
    rows = rows - rows.mean(axis=0) if center else rows
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize_rows else rows
    gram = rows @ rows.T / np.trace(rows @ rows.T)
    expected = -math.log(np.linalg.norm(gram, "fro") ** 2)
    states = tensor(normal(*shape, seed=seed))
    found = matrix_entropy(states, alpha=2, center=center, normalize_rows=normalize_rows)
    assert found.item() == pytest.approx(expected, abs=1e-9)


@given(shapes, seeds, st.sampled_from(ALPHAS), flags, flags)
def test_every_order_is_that_of_the_singular_values(shape, seed, alpha, center, normalize_rows):
    states = normal(*shape, seed=seed)
    how = {"center": center, "normalize_rows": normalize_rows}
    expected = entropy_of(states, alpha, **how)
    assert matrix_entropy(tensor(states), alpha=alpha, **how).item() == pytest.approx(expected, abs=rounding(alpha))


@given(shapes, seeds)
def test_entropy_falls_with_its_order_and_meets_its_limits(shape, seed):
    states = tensor(normal(*shape, seed=seed))
    by_order = [matrix_entropy(states, alpha=alpha).item() for alpha in (0.3, 0.9, 1, 1.1, 2, 2.001, 7, 1e4, math.inf)]
    assert (np.diff(by_order) <= 1e-6).all()
    assert by_order[-2] == pytest.approx(by_order[-1], abs=1e-3)
    for near in (1 - 1e-6, 1 + 1e-6):
        assert matrix_entropy(states, alpha=near).item() == pytest.approx(matrix_entropy(states).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("n", "d", "center", "largest"),
    [(5, 9, True, 4), (5, 9, False, 5), (9, 5, True, 5), (9, 5, False, 5), (6, 6, True, 5), (2, 9, False, 2)],
)
def test_normalized_is_the_share_of_the_largest_possible(n, d, center, largest):
    states = tensor(normal(n, d))
    plain = matrix_entropy(states, center=center).item()
    found = matrix_entropy(states, center=center, normalized=True).item()
    assert found == pytest.approx(plain / math.log(largest), abs=1e-12)
    assert 0 < found <= 1


@pytest.mark.parametrize(("n", "d", "center"), [(2, 9, True), (1, 9, True), (1, 9, False), (9, 1, True), (9, 1, False)])
def test_normalized_is_undefined_where_only_one_direction_is_possible(n, d, center):
    assert math.isnan(matrix_entropy(tensor(normal(n, d)), center=center, normalized=True).item())
    assert matrix_entropy(tensor(normal(n, d)), center=center).item() == pytest.approx(0, abs=1e-9)


# --- zeros, axes, precision ------------------------------------------------------------------------------------------


def test_a_zero_row_stays_zero_and_counts_for_nothing():
    states = np.eye(4)
    padded = np.vstack([states, np.zeros((3, 4))])
    assert matrix_entropy(tensor(padded), center=False).item() == pytest.approx(math.log(4), abs=1e-12)
    np.testing.assert_allclose(matrix_spectrum(tensor(padded), center=False), 0.25, atol=1e-12)
    balanced = np.vstack([np.eye(4), -np.eye(4), np.zeros((1, 4))])  # the last row is zero after centering
    assert matrix_entropy(tensor(balanced)).item() == pytest.approx(math.log(4), abs=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_all_rows_zero_give_zero(alpha):
    for states in (torch.zeros(5, 3), torch.full((5, 3), 7.0)):
        center = bool(states.any())
        assert matrix_entropy(states, alpha=alpha, center=center).item() == 0
        np.testing.assert_array_equal(matrix_spectrum(states, center=center), np.zeros(3))
    mixed = matrix_entropy(torch.stack([torch.zeros(3, 3), torch.eye(3)]), alpha=alpha, center=False)
    np.testing.assert_allclose(mixed, [0, math.log(3)], atol=1e-12)


def test_leading_axes_are_independent():
    states = normal(2, 3, 6, 5)
    for alpha in (1.0, 2.0, 3.0):
        found = matrix_entropy(tensor(states), alpha=alpha)
        expected = [[entropy_of(states[i, j], alpha) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    spectra = matrix_spectrum(tensor(states))
    expected_spectra = [[spectrum_of(states[i, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(spectra, expected_spectra, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("center", [True, False])
def test_the_spectrum_descends_and_sums_to_one(n, d, center):
    found = matrix_spectrum(tensor(normal(3, n, d)), center=center).numpy()
    assert found.shape == (3, min(n, d))
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-12)
    assert (np.diff(found, axis=-1) <= 0).all()
    assert found.min() >= 0


def low_rank(n: int, d: int, rank: int) -> np.ndarray:
    return normal(n, rank, seed=1) @ normal(rank, d, seed=2)


@pytest.mark.parametrize(("n", "d"), [(64, 128), (128, 64), (90, 32)])
@pytest.mark.parametrize("rank", [2, 10, None])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
def test_float32_states_give_the_entropy_that_float64_gives(n, d, rank, offset):
    """A common offset costs the digits of what varies, and collapsed states leave directions for rounding to fill."""
    states = normal(n, d) if rank is None else low_rank(n, d, rank)
    states = (states + offset * normal(d, seed=3)).astype(np.float32)
    for how in ({"center": True}, {"center": False}, {"center": True, "normalize_rows": False}):
        for alpha in (0.5, 1.0, 2.0):
            found = matrix_entropy(torch.from_numpy(states), alpha=alpha, **how).item()
            assert found == pytest.approx(entropy_of(states, alpha, **how), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_widened_first(dtype):
    states = torch.from_numpy(normal(50, 30) + 20 * normal(30, seed=1)).to(dtype)
    found = matrix_entropy(states)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(entropy_of(states.double().numpy()), abs=1e-9)


# --- fast paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", range(2, PRODUCT_ORDERS + 3))
@pytest.mark.parametrize(("n", "d"), [(30, 50), (50, 30)])
def test_orders_by_products_are_those_of_the_eigenvalues(n, d, alpha):
    states = np.stack([normal(n, d), low_rank(n, d, 3)])
    found = matrix_entropy(tensor(states), alpha=alpha)
    expected = [entropy_of(matrix, alpha) for matrix in states]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    by_eigenvalues = matrix_entropy(tensor(states), alpha=alpha + 1e-12)
    np.testing.assert_allclose(found, by_eigenvalues, rtol=0, atol=1e-9)


def test_orders_by_products_need_no_eigenvalues(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("eigenvalues were computed")

    monkeypatch.setattr(torch.linalg, "eigvalsh", refuse)
    for alpha in range(2, PRODUCT_ORDERS + 1):
        matrix_entropy(tensor(normal(6, 9)), alpha=alpha)
    with pytest.raises(AssertionError, match="eigenvalues were computed"):
        matrix_entropy(tensor(normal(6, 9)))


@pytest.mark.parametrize(("n", "d"), [(13, 31), (31, 13), (16, 16)])
@pytest.mark.parametrize("block", [1, 40, 500])
@pytest.mark.parametrize("panel", [1, 5, 100])
def test_blocks_and_panels_change_nothing(monkeypatch, n, d, block, panel):
    states = normal(3, n, d) + 10 * normal(d, seed=1)
    states[1, 4] = states[1, :4].mean(axis=0)
    monkeypatch.setitem(BLOCK_VALUES, "cpu", block)
    monkeypatch.setattr(probes.measures.entropy, "PANEL_ROWS", panel)
    for how in ({}, {"center": False}, {"normalize_rows": False}):
        for alpha in (1, 2, 3):
            expected = [entropy_of(matrix, alpha, **how) for matrix in states]
            np.testing.assert_allclose(matrix_entropy(tensor(states), alpha=alpha, **how), expected, rtol=0, atol=1e-10)
        expected_spectra = [spectrum_of(matrix, **how) for matrix in states]
        np.testing.assert_allclose(matrix_spectrum(tensor(states), **how), expected_spectra, rtol=0, atol=1e-12)


class LargestWide(TorchDispatchMode):
    """Notes how many values the largest float64 tensor holds that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64:
                self.values = max(self.values, one.numel())
        return made


@pytest.mark.parametrize(("n", "d"), [(20, 3000), (3000, 20)])
def test_long_inputs_are_widened_in_blocks(monkeypatch, n, d):
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 2000)
    states = torch.randn(4, n, d, generator=torch.Generator().manual_seed(0))
    with LargestWide() as watched:
        matrix_entropy(states)
    assert 400 <= watched.values <= 2000


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_token_entropies_of_all_layers_are_computed_in_blocks(monkeypatch, preset):
    states = torch.randn(6, 50, 32, generator=torch.Generator().manual_seed(0))
    by_layer = torch.stack([token_entropy(layer, 4, preset=preset) for layer in states])
    monkeypatch.setitem(BLOCK_VALUES, "cpu", 320)
    with LargestWide() as watched:
        found = token_entropy(states, 4, preset=preset)
    torch.testing.assert_close(found, by_layer, rtol=0, atol=1e-12)
    assert watched.values <= 320


# --- tokens ----------------------------------------------------------------------------------------------------------


def centered_heads(token: np.ndarray, heads: int) -> np.ndarray:
    per_head = token.reshape(heads, -1)
    return per_head - per_head.mean(axis=0)


def paper_token_entropy(token: np.ndarray, heads: int) -> float:
    rows = centered_heads(token, heads)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gram = np.zeros((heads, heads))
    for i in range(heads):
        for j in range(heads):
            gram[i, j] = rows[i] @ rows[j]
    shares = np.linalg.eigvalsh(gram / np.trace(gram))
    return -sum(share * math.log(share) for share in shares if share > 1e-15)


def released_token_entropy(token: np.ndarray, heads: int) -> float:
    rows = centered_heads(token, heads)
    gram = np.zeros((heads, heads))
    for i in range(heads):
        for j in range(heads):
            gram[i, j] = rows[i] @ rows[j] / heads
    values = [max(value, 1e-10) for value in np.linalg.eigvalsh(gram)]
    return -sum(value * math.log(value) for value in values) / math.log(heads)


@pytest.mark.parametrize(("preset", "oracle"), [("paper", paper_token_entropy), ("released", released_token_entropy)])
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 3), (4, 4), (6, 2), (3, 16)])
def test_token_entropy_is_that_of_loops_over_tokens_and_heads(preset, oracle, heads, head_dim):
    states = 0.3 * normal(2, 5, heads * head_dim)
    found = token_entropy(tensor(states), heads, preset=preset)
    expected = [[oracle(token, heads) for token in layer] for layer in states]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    assert np.ptp(expected) > 0.01


def test_the_presets_rank_tokens_by_different_things():
    """Length counts in the released code and not in the paper's formula."""
    token = normal(1, 12)
    both = tensor(np.vstack([token, 0.1 * token]))
    paper, released = (token_entropy(both, 4, preset=preset) for preset in ("paper", "released"))
    assert paper[0].item() == pytest.approx(paper[1].item(), abs=1e-9)
    assert released[0].item() > 1.5 * released[1].item()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("center", [True, False])
def test_states_that_are_not_finite_are_refused(value, center):
    states = torch.ones(2, 4, 3)
    states[1, 2, 0] = value
    with pytest.raises(HorizonError, match=r"\(2, 4, 3\) hold values that are not finite"):
        matrix_entropy(states, center=center)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0)])
def test_states_without_a_matrix_are_refused(shape):
    with pytest.raises(HorizonError, match="no \\(token, dim\\) matrix"):
        matrix_entropy(torch.ones(shape))


@pytest.mark.parametrize("alpha", [0, -1, math.nan])
def test_orders_that_are_not_positive_are_refused(alpha):
    with pytest.raises(HorizonError, match="must be positive"):
        matrix_entropy(torch.eye(3), alpha=alpha)


@pytest.mark.parametrize(
    ("heads", "preset", "reason"),
    [(5, "paper", "do not split into 5 heads"), (0, "paper", "0 heads"), (4, "mine", "'mine' is unknown")],
)
def test_heads_that_do_not_fit_and_unknown_presets_are_refused(heads, preset, reason):
    with pytest.raises(HorizonError, match=reason):
        token_entropy(torch.ones(3, 12), heads, preset=preset)


def test_one_head_has_no_released_score():
    with pytest.raises(HorizonError, match="ln heads, which is 0"):
        token_entropy(torch.ones(3, 12), 1, preset="released")
