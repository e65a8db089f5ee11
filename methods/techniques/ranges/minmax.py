"""The min-max range search."""

from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.techniques.ranges.rows import (
    as_rows,
    minmax_rows,
    shaped,
)


def minmax_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    weights: Tensor | None = None,
) -> QuantParams:
    """The range from the smallest to the largest value; nothing is clipped.

    Weights of values, see ``ranges.weighted``, change nothing.

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    rows, shape = as_rows(x, axis)
    return shaped(minmax_rows(rows, bits, symmetric), shape)
