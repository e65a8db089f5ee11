"""Running ranges: averages of the bounds of one calibration batch after another."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params
from quantarena.methods.techniques.ranges.rows import as_rows, minmax_rows, shaped


@dataclass(frozen=True, slots=True)
class EmaRange:
    """A running range: exponential moving averages of the smallest and the largest values.

    ``momentum`` 0.95 is Q-Diffusion's, 0.9 that of PTQ4DM and EDA-DM.

    Attributes:
        momentum: share of the past, in [0, 1).
        low: averaged smallest values; None before the first update.
        high: averaged largest values.
    """

    momentum: float = 0.95
    low: Tensor | None = None
    high: Tensor | None = None

    def update(self, low: Tensor, high: Tensor) -> "EmaRange":
        """The range after one more batch, whose bounds are given; the first is taken as it is."""
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ValueError("cannot average a range: it holds NaN or infinity")
        low, high = low.float(), high.float()
        if self.low is not None and self.high is not None:
            low = torch.lerp(low, self.low, self.momentum)
            high = torch.lerp(high, self.high, self.momentum)
        return replace(self, low=low, high=high)

    def params(self, bits: int, *, symmetric: bool = False) -> QuantParams:
        """Scale and zero point of the present range, in the shape of its bounds."""
        if self.low is None or self.high is None:
            raise ValueError("cannot find a range: no batch has been seen")
        return affine_params(self.low, self.high, bits, symmetric)


def ema_range(
    x: Tensor,
    bits: int,
    *,
    axis: int | None = None,
    symmetric: bool = False,
    momentum: float = 0.95,
) -> QuantParams:
    """What ``EmaRange`` ends at over batches stacked along dimension 0 of ``x``, in closed form.

    Args:
        x: (batches, ...); parameters broadcast over it.
        bits: 1 to 8.
        axis: None, or an axis of ``x`` other than 0.
        symmetric: zero point fixed in the middle of the codes.
        momentum: see ``EmaRange``.

    Raises:
        ValueError: empty tensor, NaN or infinity, or axis 0.
    """
    if axis is not None and axis % x.dim() == 0:
        raise ValueError("axis 0 holds the batches, it cannot have ranges of its own")
    if axis is None:
        rows, shape = as_rows(x, 0)
        rows, shape = rows.unsqueeze(0), (1,) * x.dim()
    else:
        _, shape = as_rows(x, axis)
        rows = x.float().movedim(axis, 0).flatten(2) if x.dim() > 2 else x.float().T.unsqueeze(2)
    minmax_rows(rows.flatten(1), bits, symmetric)
    low, high = rows.aminmax(dim=2)  # (channels, batches)
    age = torch.arange(low.shape[1] - 1, -1, -1, device=x.device)
    weight = momentum ** age.double() * (1 - momentum)
    weight[0] = momentum ** int(age[0])
    params = affine_params((low * weight).sum(1), (high * weight).sum(1), bits, symmetric)
    return shaped(params, shape)
