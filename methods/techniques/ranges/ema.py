"""Running ranges: exponential moving averages of the bounds of calibration batches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams, affine_params


@dataclass(frozen=True, slots=True)
class EmaRange:
    """Exponential moving averages of the smallest and the largest values of batches.

    Q-Diffusion uses momentum 0.95, PTQ4DM and EDA-DM use 0.9.

    Attributes:
        momentum: weight of the past, in [0, 1).
        low: average of the smallest values; None before the first update.
        high: average of the largest values; None before the first update.
    """

    momentum: float = 0.95
    low: Tensor | None = None
    high: Tensor | None = None

    def update(self, low: Tensor, high: Tensor) -> "EmaRange":
        """The range after one more batch with these bounds; the first batch is taken as it is.

        Raises:
            ValueError: a bound is not finite.
        """
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ValueError("cannot average a range: it holds NaN or infinity")
        low, high = low.float(), high.float()
        if self.low is not None and self.high is not None:
            low = torch.lerp(low, self.low, self.momentum)
            high = torch.lerp(high, self.high, self.momentum)
        return replace(self, low=low, high=high)

    def params(self, bits: int, *, symmetric: bool = False) -> QuantParams:
        """Scale and zero point of the present range, in the shape of its bounds.

        Raises:
            ValueError: no batch was added yet.
        """
        if self.low is None or self.high is None:
            raise ValueError("cannot find a range: no batch has been seen")
        return affine_params(self.low, self.high, bits, symmetric)
