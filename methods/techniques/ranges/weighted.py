"""Range searches on values that stand for several values each, as those of a sample do."""

import inspect
from typing import Protocol, cast

from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.quantizers.range_search import RangeSearch


class WeightedSearch(Protocol):
    """The signature of a range search that knows how many values each of its values stands for."""

    def __call__(
        self,
        x: Tensor,
        bits: int,
        *,
        axis: int | None = None,
        symmetric: bool = False,
        weights: Tensor | None = None,
    ) -> QuantParams:
        """Scale and zero point for ``x``; weights have its shape."""
        ...


def weighted(search: RangeSearch) -> WeightedSearch | None:
    """The search if it takes weights, else None; those of ``ranges`` all do."""
    takes = "weights" in inspect.signature(search).parameters
    return cast("WeightedSearch", search) if takes else None
