"""Views that turn groups, tokens and heads into the leading index that range searches know."""

from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.quantizers.range_search import RangeSearch


def grouped(x: Tensor, group: int, *, axis: int = 1) -> Tensor:
    """``x`` with ``axis`` of size K seen as (K / group, group); a view, ``ungrouped`` undoes it.

    Args:
        x: a weight (out, in, ...) with the default axis, an activation (..., in) with axis -1.
        group: neighbours that share a range, usually 64 or 128.
        axis: the axis that is cut into groups.

    Raises:
        ValueError: ``group`` does not divide the axis.
    """
    size = x.shape[axis]
    if group < 1 or size % group:
        raise ValueError(f"groups of {group} do not divide an axis of {size} channels")
    axis %= x.dim()
    return x.reshape(*x.shape[:axis], size // group, group, *x.shape[axis + 1 :])


def ungrouped(x: Tensor, *, axis: int = 1) -> Tensor:
    """The inverse of ``grouped``; ``axis`` counts as it did there, in the ungrouped tensor."""
    start = axis if axis >= 0 else axis - 1
    return x.flatten(start, start + 1)


def leading_range(
    search: RangeSearch, x: Tensor, bits: int, axes: int, *, symmetric: bool = False
) -> QuantParams:
    """One range for each index into the first ``axes`` axes, found together.

    Tables of (step, ...) need ``axes=1``, of (step, head, ...) ``axes=2``.

    Returns:
        Parameters of shape (*x.shape[:axes], 1, ...), which broadcast over ``x``.

    Raises:
        ValueError: what ``search`` refuses, or a ``axes`` that leaves no values to a range.
    """
    if not 0 < axes < x.dim():
        raise ValueError(f"cannot keep {axes} of {x.dim()} axes")
    if x.numel() == 0:
        raise ValueError("cannot find a range: the tensor is empty")
    params = search(x.flatten(0, axes - 1), bits, axis=0, symmetric=symmetric)
    shape = (*x.shape[:axes], *[1] * (x.dim() - axes))
    return QuantParams(params.scale.reshape(shape), params.zero_point.reshape(shape), bits)


def group_range(
    search: RangeSearch,
    x: Tensor,
    bits: int,
    group: int,
    *,
    axis: int = 1,
    symmetric: bool = False,
) -> QuantParams:
    """Ranges of K-groups: one for each index into the axes before ``axis`` and each group.

    A weight (out, in, ...) gets one per output channel and group, an activation (..., in) with
    axis -1 one per token and group.

    Returns:
        Parameters that broadcast over ``grouped(x, group, axis=axis)``.
    """
    view = grouped(x, group, axis=axis)
    return leading_range(search, view, bits, axis % x.dim() + 1, symmetric=symmetric)
