"""MSE range searches: the smallest error among ranges narrower than min-max."""

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.techniques.ranges.rows import (
    best_of,
    blockwise,
    condensed,
    losses_of,
    minmax_rows,
)

ACT_NORM = 3.0
"""Exponent of the error of activation ranges; docs/protocol.md, "What 8-bit ranges may clip"."""
_SHRINK = 0.86
"""Factor between two ranges of the first pass of ``mse_range``."""
_NEAR = (-6 / 9, -3 / 9, -1 / 9, 0.0, 1 / 9, 3 / 9, 6 / 9)
"""Second-pass offsets, in units of one first-pass step.

Steps of 1/9 are fine enough for 6+ bits.
"""


def shrink_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    steps: int = 80,
    weights: Tensor | None = None,
) -> QuantParams:
    """The best of ``steps`` ranges by mean ``|x - q(x)| ** norm``.

    The first range is min-max, each further one 1 % of it narrower.

    Source: the search of the BRECQ lineage as in the code of Q-Diffusion (Li et al., ICCV 2023)
    and MPQ-DM (arXiv:2412.11549); unlike there, the range is widened to contain zero.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error.
        steps: number of ranges, at most 100.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    shrinks = 1.0 - 0.01 * torch.arange(1, steps, device=x.device)

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        return best_of(rows, plain, _shrunk(rows, shrinks, bits, symmetric), norm, weights)

    return blockwise(x, axis, search, weights)


def mse_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    norm: float = 2.4,
    coarse: int = 12,
    weights: Tensor | None = None,
) -> QuantParams:
    """The range with the smallest mean ``|x - q(x)| ** norm``, each end shrunk separately.

    Activations after SiLU or GELU end just below zero and have a long tail above. Shrinking both
    ends together, as ``shrink_range`` does, clips the many small negative values to get rid of the
    few large ones. Here the first pass shrinks both ends together, or one alone, by powers of 0.86
    down to a sixth. The second pass moves the upper end around the best, then the lower end. This
    comes as close to the minimum as ``mse_2d_range``, in the time of 50 candidates. Rows of more
    than 16,384 values are replaced by a histogram; the result is then compared with min-max on the
    values themselves, so it is never worse than min-max in this norm.

    Args:
        x: any shape; parameters broadcast over it, with ``x.shape[axis]`` entries.
        bits: 1 to 8.
        axis: None for one range, else one for each index into that axis.
        symmetric: zero point fixed in the middle of the codes.
        norm: exponent of the error; docs/protocol.md says why it should not be below 2.
        coarse: number of shrinking steps in the first pass.
        weights: number of values that each value stands for, in the shape of ``x``; 1 by default.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    shrinks = _SHRINK ** torch.arange(coarse + 1, device=x.device)
    near = _SHRINK ** torch.tensor(_NEAR, device=x.device)
    still, stay = torch.ones_like(shrinks), torch.ones_like(near)
    # factors of the lower and of the upper end, (2, K)
    together, closer = torch.stack([shrinks, shrinks]), torch.stack([near, near])
    one = torch.stack([torch.cat([shrinks, still]), torch.cat([still, shrinks])])
    passes = [together, closer]
    if not symmetric:
        upper, lower = torch.stack([stay, near]), torch.stack([near, stay])
        passes = [torch.cat([together, one], dim=1), upper, lower]

    def affine(ends: Tensor) -> QuantParams:
        return affine_params(ends[0], ends[1], bits, symmetric)

    def search(rows: Tensor, weights: Tensor | None) -> QuantParams:
        plain = minmax_rows(rows, bits, symmetric)
        ends = torch.stack(rows.aminmax(dim=1, keepdim=True))
        short, counts = condensed(rows, weights)
        best = torch.ones_like(ends)
        for steps in passes:
            tried = (best * steps.unsqueeze(1)).clamp(max=1.0)
            losses = losses_of(short, affine(ends * tried), norm, counts)
            best = tried.gather(2, losses.argmin(dim=1, keepdim=True).expand(2, -1, -1))
        return best_of(rows, plain, affine(ends * best), norm, weights)

    return blockwise(x, axis, search, weights)


def mse_act_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    weights: Tensor | None = None,
) -> QuantParams:
    """``mse_range`` for activations: clipped values count more than at its exponent for weights.

    Activations have longer tails than weights, and values that calibration has not seen. Arguments
    and errors are those of ``mse_range``.
    """
    return mse_range(x, bits, axis=axis, symmetric=symmetric, norm=ACT_NORM, weights=weights)


def _shrunk(rows: Tensor, shrinks: Tensor, bits: int, symmetric: bool) -> QuantParams:
    """Min-max ranges of rows, multiplied by ``shrinks`` (K,) or (R, K); result (R, K)."""
    low, high = rows.aminmax(dim=1, keepdim=True)
    return affine_params(low * shrinks, high * shrinks, bits, symmetric)
