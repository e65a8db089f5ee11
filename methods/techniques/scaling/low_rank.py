"""Low-rank floating-point branches beside quantized weights (SVDQuant, arXiv:2411.05007).

``W = L + R`` with ``L = up @ down`` of small rank. The branch L takes the largest singular
directions, so the rest R has a smaller range and loses less when it is quantized. Layers that read
the same input may share one ``down``: stack their weights, factor the stack, and split ``up`` by
rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Branch:
    """A low-rank branch with the errors of its search.

    Attributes:
        down: first factor, (r, K, ...), shaped as a weight with r outputs.
        up: second factor, (O, r).
        errors: output error after each round; where an increase ended the search it is the last.
    """

    down: Tensor
    up: Tensor
    errors: tuple[float, ...]

    @property
    def weight(self) -> Tensor:
        """The branch as one weight L, (O, K, ...)."""
        return product(self.down, self.up)


def product(down: Tensor, up: Tensor) -> Tensor:
    """``up @ down`` in the shape of a weight, (O, K, ...)."""
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def svd_branch(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factor the nearest matrix of the given rank, computed in float64.

    The directions are eigenvectors of the smaller of ``W W^T`` and ``W^T W``. This takes a fifth of
    the time of a decomposition of W and is as exact for this purpose: squaring blurs only
    directions below 1e-8 of the largest, which do not matter. One factor is orthonormal, the other
    holds the singular values.

    Args:
        weight: (O, K) or (O, K, ...).
        rank: 0 or more; from ``min(O, K...)`` up the factors are exact.

    Returns:
        ``down`` (r, K, ...) and ``up`` (O, r) in the dtype of ``weight``, with r at most
        ``min(O, K...)``.

    Raises:
        ValueError: a negative rank, a weight without input channels, or values not finite.
    """
    if rank < 0 or weight.dim() < 2:
        raise ValueError(f"no branch of rank {rank} for a weight of shape {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("a low-rank branch needs a finite weight")
    flat = weight.detach().flatten(1).double()
    wide = flat.shape[0] <= flat.shape[1]
    vectors = torch.linalg.eigh(flat @ flat.t() if wide else flat.t() @ flat).eigenvectors
    size = min(rank, *flat.shape)
    basis = vectors[:, vectors.shape[1] - size :].flip(1)  # eigenvalues come in ascending order
    down, up = (basis.t() @ flat, basis) if wide else (basis.t(), flat @ basis)
    return down.reshape(size, *weight.shape[1:]).to(weight.dtype), up.to(weight.dtype)


def refine_branch(
    weight: Tensor,
    rank: int,
    quantize: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, Tensor], float],
    *,
    rounds: int = 100,
) -> Branch:
    """SVDQuant's iteration: ``L <- SVD_r(W - Q(R))``, ``R <- W - L`` while the output error falls.

    Args:
        weight: (O, K) or (O, K, ...), after smoothing where that is wanted.
        rank: rank of the branch.
        quantize: Q, which quantizes and dequantizes a weight with ranges of its own.
        error: (L, Q(R)) -> squared output error of both together on calibration inputs; the input
            of Q(R) may be quantized.
        rounds: largest number of rounds.

    Returns:
        The branch of the best round; the search ends at the first increase.

    Raises:
        ValueError: no rounds, or what ``svd_branch`` refuses.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds asked: at least 1 is needed")
    rest = torch.zeros_like(weight)  # Q(R), zero before the first round
    best: tuple[Tensor, Tensor] | None = None
    errors: list[float] = []
    for _ in range(rounds):
        down, up = svd_branch(weight - rest, rank)
        branch = product(down, up)
        rest = quantize(weight - branch)
        errors.append(float(error(branch, rest)))
        if best is not None and not errors[-1] < min(errors[:-1]):
            break
        best = down, up
    assert best is not None
    return Branch(*best, tuple(errors))
