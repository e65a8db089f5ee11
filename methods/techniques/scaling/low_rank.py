"""Low-rank branches that stay in floating point beside a quantized rest (SVDQuant).

``W = L + R`` with ``L = up @ down`` of small rank: the branch takes the largest directions, the
rest R is flatter and loses less when it is quantized (arXiv:2411.05007). Layers that read the same
input may share one ``down``: factor their weights one above the other and cut ``up`` by rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch and how it was found.

    Attributes:
        down: (r, K, ...), shaped as a weight with r outputs.
        up: (O, r).
        errors: output error after each round, the last one an increase if that ended it.
    """

    down: Tensor
    up: Tensor
    errors: tuple[float, ...]

    @property
    def weight(self) -> Tensor:
        """``L``, (O, K, ...)."""
        return product(self.down, self.up)


def product(down: Tensor, up: Tensor) -> Tensor:
    """``up @ down`` in the shape of a weight, (O, K, ...)."""
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def svd_branch(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of that rank, found in float64.

    The directions are those of the smaller of ``W W^T`` and ``W^T W``, which takes a fifth of a
    decomposition of W itself and is as exact: directions that its squares blur, below 1e-8 of the
    largest, weigh nothing. One factor is orthonormal, the other holds the sizes.

    Args:
        weight: (O, K) or (O, K, ...).
        rank: 0 or more; from ``min(O, K...)`` up it is exact.

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
    kept = min(rank, *flat.shape)
    basis = vectors[:, vectors.shape[1] - kept :].flip(1)  # they come in ascending order
    down, up = (basis.t() @ flat, basis) if wide else (basis.t(), flat @ basis)
    return down.reshape(kept, *weight.shape[1:]).to(weight.dtype), up.to(weight.dtype)


def refine_branch(
    weight: Tensor,
    rank: int,
    quantize: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, Tensor], float],
    *,
    rounds: int = 100,
) -> Branch:
    """SVDQuant's iteration: ``L <- SVD_r(W - Q(R))``, ``R <- W - L`` while the output gets better.

    Args:
        weight: (O, K) or (O, K, ...); smoothed before, where smoothing is wanted.
        rank: of the branch.
        quantize: Q, a weight to what its codes stand for, with ranges of its own.
        error: output error of L and Q(R) together; a squared error on calibration inputs, which
            may be quantized for Q(R) alone.
        rounds: most times that L is found.

    Returns:
        The branch of the best round, which the first increase ends.

    Raises:
        ValueError: no rounds, or what ``svd_branch`` refuses.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds asked: at least 1 is needed")
    rest = torch.zeros_like(weight)  # Q(R), nothing before the first round
    best: tuple[Tensor, Tensor] | None = None
    errors: list[float] = []
    for _ in range(rounds):
        down, up = svd_branch(weight - rest, rank)
        taken = product(down, up)
        rest = quantize(weight - taken)
        errors.append(float(error(taken, rest)))
        if best is not None and not errors[-1] < min(errors[:-1]):
            break
        best = down, up
    assert best is not None
    return Branch(*best, tuple(errors))
