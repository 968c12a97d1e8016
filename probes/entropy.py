"""Matrix entropy of visual states, entropy of single tokens, and the spectra they come from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from analyses.runs import HorizonError

PRESETS = ("paper", "released")
CHUNK_VALUES = 2**21  # of float64, 16 MB: a layer or two of a large model, all layers of a small one


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
    trace; exp(S) is an effective number of directions. S_2 needs no eigenvalues.

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
    check_alpha(alpha)
    _check_shape(states)

    def entropy_of(matrices: torch.Tensor) -> torch.Tensor:
        gram = _gram(matrices, center=center, normalize_rows=normalize_rows)
        entropy = -gram.square().sum((-2, -1)).log() if alpha == 2 else _renyi(_spectrum(gram), alpha)
        zero = gram.diagonal(dim1=-2, dim2=-1).sum(-1) == 0
        return torch.where(zero, 0.0, entropy).clamp(min=0.0)

    entropy = _in_chunks(entropy_of, states)
    if not normalized:
        return entropy
    largest = math.log(max(1, min(states.shape[-2] - center, states.shape[-1])))
    return entropy / largest if largest > 0 else torch.full_like(entropy, math.nan)


def check_alpha(alpha: float) -> None:
    """Raise HorizonError unless the Renyi order is positive."""
    if not alpha > 0:
        raise HorizonError(f"alpha is {alpha}; the Renyi order must be positive")


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
    if preset not in PRESETS:
        raise HorizonError(f"preset {preset!r} is unknown; choose from {', '.join(PRESETS)}")
    if heads < 1 or states.shape[-1] % heads:
        raise HorizonError(f"states of shape {tuple(states.shape)} do not split into {heads} heads")
    per_head = states.unflatten(-1, (heads, -1))
    if preset == "paper":
        return matrix_entropy(per_head)
    if heads == 1:
        raise HorizonError("the released preset divides by ln heads, which is 0 for one head")
    centered = _centered(per_head)
    gram = centered @ centered.transpose(-2, -1) / heads
    values = torch.linalg.eigvalsh(gram).clamp(min=1e-10)
    return torch.special.entr(values).sum(-1) / math.log(heads)


def _centered(states: torch.Tensor) -> torch.Tensor:
    """In float64: the rounding of a common offset would pass for a direction that the tokens share."""
    wide = states.double()
    return wide - wide.mean(-2, keepdim=True)


def _check_shape(states: torch.Tensor) -> None:
    if states.ndim < 2 or 0 in states.shape[-2:]:
        raise HorizonError(f"states of shape {tuple(states.shape)} have no (token, dim) matrix")


def _in_chunks(function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Apply a function to (matrix, token, dim) chunks of (..., token, dim) states: their float64 copies stay small."""
    matrices = states.reshape(-1, *states.shape[-2:])
    size = max(1, CHUNK_VALUES // (states.shape[-2] * states.shape[-1]))
    found = torch.cat([function(chunk) for chunk in matrices.split(size)])
    return found.reshape((*states.shape[:-2], *found.shape[1:]))


def _gram(states: torch.Tensor, *, center: bool, normalize_rows: bool) -> torch.Tensor:
    """Trace-one Gram matrix on the smaller side, (..., min(N, d), min(N, d)) float64; zero for zero states.

    The products are float64 too: in float32 their rounding fills every direction that collapsed states left empty.
    """
    rows = _centered(states) if center else states.double()
    if not torch.isfinite(rows).all():
        raise HorizonError(f"states of shape {tuple(states.shape)} hold values that are not finite")
    if normalize_rows:
        lengths = rows.norm(dim=-1, keepdim=True)
        # a token that lies at the mean is a zero row, whatever rounding left of it
        rounding = 4 * torch.finfo(rows.dtype).eps * states.double().abs().amax((-2, -1), keepdim=True)
        rows = torch.where(lengths > rounding * math.sqrt(rows.shape[-1]), rows / lengths, 0.0)
    sides = rows if rows.shape[-2] <= rows.shape[-1] else rows.transpose(-2, -1)
    gram = sides @ sides.transpose(-2, -1)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return torch.where(trace > 0, gram / trace.clamp(min=torch.finfo(gram.dtype).tiny), 0.0)


def _spectrum(gram: torch.Tensor) -> torch.Tensor:
    """Ascending eigenvalues; those within rounding of 0, negative ones among them, are 0."""
    values = torch.linalg.eigvalsh(gram)
    rounding = gram.shape[-1] * torch.finfo(gram.dtype).eps * values[..., -1:]
    return torch.where(values > rounding, values, 0.0)


def _renyi(values: torch.Tensor, alpha: float) -> torch.Tensor:
    if alpha == 1:
        return torch.special.entr(values).sum(-1)
    if math.isinf(alpha):
        return -values.amax(-1).log()
    return (alpha * values.log()).logsumexp(-1) / (1 - alpha)  # the powers themselves underflow at high orders
