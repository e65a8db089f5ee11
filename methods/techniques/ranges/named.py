"""All range searches by name, the default one, and the unsigned grid for softmax outputs."""

from torch import Tensor

from quantarena.methods.core.affine import QuantParams, unsigned_params
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_act_range, mse_range, shrink_range
from quantarena.methods.techniques.ranges.percentile import (
    percentile_mse_act_range,
    percentile_mse_range,
    percentile_range,
)
from quantarena.methods.techniques.ranges.threshold import mse_1d_range, mse_2d_range


def default_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    weights: Tensor | None = None,
) -> QuantParams:
    """``minmax_range`` at 8 bits, ``mse_range`` at fewer: see docs/protocol.md, "Range searches".

    Raises:
        ValueError: empty tensor, NaN or infinity.
    """
    if bits >= 8:
        return minmax_range(x, bits, axis=axis, symmetric=symmetric)
    return mse_range(x, bits, axis=axis, symmetric=symmetric, weights=weights)


def unsigned(search: RangeSearch) -> RangeSearch:
    """Make ``search`` use the unsigned grid, whose zero point is 0, as for softmax outputs.

    The returned search raises a ValueError for tensors with negative values and for symmetric
    grids.
    """

    def unsigned_search(
        x: Tensor, bits: int, *, axis: int | None = None, symmetric: bool = False
    ) -> QuantParams:
        if symmetric:
            raise ValueError("a grid is either unsigned or symmetric")
        if bool((x < 0).any()):
            raise ValueError("cannot use an unsigned grid: the tensor holds negative values")
        affine = search(x, bits, axis=axis)
        return unsigned_params((affine.levels - 1 - affine.zero_point) * affine.scale, bits)

    return unsigned_search


SEARCHES: dict[str, RangeSearch] = {
    "minmax": minmax_range,
    "mse": mse_range,
    "shrink": shrink_range,
    "default": default_range,
    "percentile": percentile_range,
    "percentile_mse": percentile_mse_range,
    "mse_1d": mse_1d_range,
    "mse_2d": mse_2d_range,
}
"""All range searches by name."""

_FOR_ACTIVATIONS: dict[RangeSearch, RangeSearch] = {
    mse_range: mse_act_range,
    percentile_mse_range: percentile_mse_act_range,
}


def for_activations(search: RangeSearch) -> RangeSearch:
    """The search for activations of a method that names one search for them and for weights.

    ``mse`` and ``percentile_mse`` weigh clipped values more there; the others are the same.
    """
    return _FOR_ACTIVATIONS.get(search, search)
