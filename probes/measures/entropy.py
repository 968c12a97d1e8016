"""Matrix entropy of visual states, entropy of single tokens, and the spectra they come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from analyses.runs import HorizonError, check_choice

PRESETS = ("paper", "released")
# Float64 values in one block: 4 MB, so that a block stays in a CPU's caches from its first pass to its last.
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**26}
PANEL_ROWS = 192  # rows of a Gram matrix in one product: the narrowest panel at which products run at full speed
PRODUCT_ORDERS = 4  # largest order whose tr(G^alpha) needs one product, which costs less than eigenvalues at any size


def matrix_entropy(
    states: torch.Tensor,
    *,
    alpha: float = 1.0,
    center: bool = True,
    normalize_rows: bool = True,
    normalized: bool = False,
) -> torch.Tensor:
    """Entropy of the spectrum of token states: how many directions they fill, on a log scale.

    S_1 = -sum s ln s, S_alpha = ln(sum s^alpha) / (1 - alpha), with s the eigenvalues of the Gram matrix over its
    trace; exp(S) is an effective number of directions. Orders 2, 3 and 4 take no eigenvalues, since
    sum s^alpha = tr(G^alpha).

    Args:
        states: (..., token, dim) float tensor.
        alpha: Renyi order, positive; 1 is the von Neumann entropy.
        center: subtract the mean over tokens first.
        normalize_rows: then scale every token to length 1; a zero row stays zero.
        normalized: divide by the largest possible value, ln min(N - 1, dim) centered or ln min(N, dim) not;
            NaN where that is 0.

    Returns:
        (...) entropy in nats, float64; 0 where all rows are zero. Dimensionless if normalized.

    Raises:
        HorizonError: fewer than two axes, no token, a non-finite state, or alpha not positive.

    Source: arXiv 2602.17196, Eq. 1-4; Wei et al., arXiv 2401.17139.

    >>> round(matrix_entropy(torch.eye(5), center=False).item(), 6) == round(math.log(5), 6)
    True
    """
    if not alpha > 0:
        raise HorizonError(f"alpha is {alpha}; the Renyi order must be positive")
    _check_shape(states)

    def entropy_of(matrices: torch.Tensor) -> torch.Tensor:
        gram = _gram(matrices, center=center, normalize_rows=normalize_rows)
        by_products = alpha in range(2, PRODUCT_ORDERS + 1)
        entropy = _power_trace(gram, int(alpha)).log() / (1 - alpha) if by_products else _renyi(_spectrum(gram), alpha)
        zero = gram.diagonal(dim1=-2, dim2=-1).sum(-1) == 0
        return torch.where(zero, 0.0, entropy).clamp(min=0.0)

    entropy = _in_chunks(entropy_of, states)
    if not normalized:
        return entropy
    largest = math.log(max(1, min(states.shape[-2] - center, states.shape[-1])))
    return entropy / largest if largest > 0 else torch.full_like(entropy, math.nan)


def matrix_spectrum(states: torch.Tensor, *, center: bool = True, normalize_rows: bool = True) -> torch.Tensor:
    """Eigenvalues of the Gram matrix over its trace, descending.

    Args:
        states: (..., token, dim) float tensor.
        center: subtract the mean over tokens first.
        normalize_rows: then scale every token to length 1.

    Returns:
        (..., min(token, dim)) float64, summing to 1, or all 0 where every row is zero.

    Raises:
        HorizonError: as `matrix_entropy`.
    """
    _check_shape(states)
    return _in_chunks(
        lambda matrices: _spectrum(_gram(matrices, center=center, normalize_rows=normalize_rows)).flip(-1), states
    )


def token_entropy(states: torch.Tensor, heads: int, *, preset: str = "paper") -> torch.Tensor:
    """Entropy of every single token over its heads: the pruning score of EntropyPrune.

    A token's vector is read as (heads, head_dim) and centered over heads. `paper`: rows to length 1, Gram matrix
    over its trace, in nats. `released`, as the released code does: rows as they are, Gram matrix over the number
    of heads and no trace, eigenvalues clamped at 1e-10, divided by ln heads.

    Args:
        states: (..., token, dim) float tensor, usually queries; dim = heads x head_dim.
        heads: number of heads.
        preset: "paper" or "released".

    Returns:
        (..., token) entropy: nats for `paper`, unitless for `released`.

    Raises:
        HorizonError: dim is no multiple of heads, or the preset is unknown.

    Source: arXiv 2602.17196, Eq. 7-14, and its released code.
    """
    check_choice("preset", preset, PRESETS)
    if heads < 1 or states.shape[-1] % heads:
        raise HorizonError(f"states of shape {tuple(states.shape)} do not split into {heads} heads")
    per_head = states.unflatten(-1, (heads, -1))
    if preset == "paper":
        return matrix_entropy(per_head)
    if heads == 1:
        raise HorizonError("the released preset divides by ln heads, which is 0 for one head")

    def score_of(matrices: torch.Tensor) -> torch.Tensor:
        rows = matrices.double()
        rows = rows - rows.mean(-2, keepdim=True)
        values = _eigenvalues(rows @ rows.mT / heads).clamp(min=1e-10)
        return torch.special.entr(values).sum(-1) / math.log(heads)

    return _in_chunks(score_of, per_head)


def _check_shape(states: torch.Tensor) -> None:
    if states.ndim < 2 or 0 in states.shape[-2:]:
        raise HorizonError(f"states of shape {tuple(states.shape)} have no (token, dim) matrix")


def _in_chunks(function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Apply a function to (matrix, token, dim) chunks of (..., token, dim) states: their float64 copies stay small."""
    matrices = states.reshape(-1, *states.shape[-2:])
    results = torch.cat([function(chunk) for chunk in matrices.split(matrices_at_once(states))])
    return results.reshape((*states.shape[:-2], *results.shape[1:]))


def matrices_at_once(states: torch.Tensor) -> int:
    """Return how many (token, dim) matrices of these states are computed in one chunk."""
    return max(1, _block_values(states) // (states.shape[-2] * states.shape[-1]))


def _block_values(states: torch.Tensor) -> int:
    return BLOCK_VALUES.get(states.device.type, BLOCK_VALUES["cuda"])


def _gram(states: torch.Tensor, *, center: bool, normalize_rows: bool) -> torch.Tensor:
    """Lower triangle of the trace-one Gram matrix on the smaller side, (matrix, min(N, d), min(N, d)) float64.

    Zero for zero states; what stands above the diagonal means nothing. Everything is float64: the rounding of a
    common offset would pass for a direction that the tokens share, and that of products fills every direction that
    collapsed states left empty. Only a block of the longer axis is widened at a time, so memory does not grow with it.
    """
    low, high = torch.aminmax(states.flatten(-2), dim=-1)
    largest = torch.maximum(low.abs(), high.abs()).double()[:, None]
    if not torch.isfinite(largest).all():
        raise HorizonError(f"states of shape {tuple(states.shape)} hold values that are not finite")
    n, d = states.shape[-2:]
    # a token that lies at the mean is a zero row, whatever rounding left of it
    shortest = 4 * torch.finfo(torch.float64).eps * largest * math.sqrt(d)
    gram = torch.zeros(len(states), min(n, d), min(n, d), dtype=torch.float64, device=states.device)
    if n <= d:
        for block in _blocks(states, -1):
            rows = block.to(torch.float64, copy=True)
            if center:
                rows -= rows.mean(-2, keepdim=True)
            _add_products(gram, rows)
    else:
        mean = _mean_row(states) if center else 0.0
        for block in _blocks(states, -2):
            rows = block.double() - mean
            scale = _inverse(rows.norm(dim=-1), shortest)[..., None] if normalize_rows else 1.0
            _add_products(gram, (rows * scale).mT)
    return _scaled(gram, shortest if normalize_rows and n <= d else None)


def _scaled(gram: torch.Tensor, shortest: torch.Tensor | None) -> torch.Tensor:
    """Divide a Gram matrix by its trace in place and return it.

    Unless `shortest` is None, the vectors behind it are scaled to length 1 first. Their squared lengths stand on the
    diagonal, so the vectors themselves are not read again.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.ones_like(squares) if shortest is None else _inverse(squares.sqrt(), shortest)
    trace = (squares * scale.square()).sum(-1, keepdim=True)
    scale = scale * _inverse(trace.sqrt(), torch.zeros_like(trace))
    gram *= scale[..., :, None]
    gram *= scale[..., None, :]
    return gram


def _blocks(states: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
    """Split states along one axis into blocks of at most `BLOCK_VALUES` values."""
    return states.split(max(1, _block_values(states) * states.shape[axis] // states.numel()), dim=axis)


def _mean_row(states: torch.Tensor) -> torch.Tensor:
    """Return the (matrix, 1, dim) float64 mean over tokens, summed block by block."""
    sums = [block.double().sum(-2, keepdim=True) for block in _blocks(states, -2)]
    return torch.cat(sums, dim=-2).sum(-2, keepdim=True) / states.shape[-2]


def _inverse(lengths: torch.Tensor, shortest: torch.Tensor) -> torch.Tensor:
    """Return 1 / length for every length, and 0 for lengths up to `shortest`."""
    return torch.where(lengths > shortest, 1 / lengths, 0.0)


def _add_products(gram: torch.Tensor, sides: torch.Tensor) -> None:
    """Add sides @ sides.mT to the lower triangle of `gram`: panels that end at the diagonal, half the operations."""
    for start in range(0, sides.shape[-2], PANEL_ROWS):
        stop = min(start + PANEL_ROWS, sides.shape[-2])
        gram[:, start:stop, :stop].baddbmm_(sides[:, start:stop], sides[:, :stop].mT)


def _power_trace(gram: torch.Tensor, order: int) -> torch.Tensor:
    """tr(G^order) from a lower triangle, order 2 to 4: the inner product of two powers that add up to it."""
    symmetric = gram.tril() + gram.tril(-1).mT
    larger = symmetric @ symmetric if order > 2 else symmetric
    return (larger * (larger if order == 4 else symmetric)).sum((-2, -1))


def _spectrum(gram: torch.Tensor) -> torch.Tensor:
    """Ascending eigenvalues; those within rounding of 0, negative ones among them, are 0."""
    values = _eigenvalues(gram)
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps * values[..., -1:]
    return torch.where(values > rounding, values, 0.0)


def _eigenvalues(gram: torch.Tensor) -> torch.Tensor:
    """Return ascending eigenvalues, computed on the CPU: accelerators are slow at float64 matrices of this size."""
    return torch.linalg.eigvalsh(gram.cpu()).to(gram.device)


def _renyi(values: torch.Tensor, alpha: float) -> torch.Tensor:
    if alpha == 1:
        return torch.special.entr(values).sum(-1)
    if math.isinf(alpha):
        return -values.amax(-1).log()
    return (alpha * values.log()).logsumexp(-1) / (1 - alpha)  # the powers themselves underflow at high orders
