"""Random samples of values that arrive in batches, for range searches."""

import random

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.techniques.ranges.weighted import weighted

_TAIL = 512
"""Number of the smallest values, and of the largest, that are always known exactly."""


class RowSample:
    """A random sample of each row's values over all batches, and the row's tails.

    Every value has the same chance to be in the sample, whatever the sizes of the batches. While
    all values fit, the sample is the values themselves. The tails are the smallest and the largest
    values of all batches: a range is decided there, where a sample has few values or none.

    Args:
        most: largest number of values of each row in the sample, at least 1.
    """

    def __init__(self, most: int) -> None:
        self.most, self.total, self._batches = most, 0, 0
        self._sample = self._low = self._high = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add one batch, (rows, values)."""
        if not self._batches:
            self._sample = self._low = self._high = rows[:, :0]
        self._low = _least(torch.cat([self._low, _least(rows)], dim=1))
        self._high = -_least(torch.cat([-self._high, _least(-rows)], dim=1))
        self.total += rows.shape[1]
        before = self._sample
        if self.total > self.most:
            # The batch gets the share of the sample that it has of all values. The remainder is
            # drawn: rounded, the share of a batch that is small beside the total would be 0.
            generator = torch.Generator().manual_seed(self._batches)
            share, rest = divmod(self.most * rows.shape[1], self.total)
            share += random.Random(self._batches).randrange(self.total) < rest
            before = _drawn(before, min(before.shape[1], self.most - share), generator)
            rows = _drawn(rows, self.most - before.shape[1], generator)
        self._sample = torch.cat([before, rows], dim=1)
        self._batches += 1

    def values(self) -> Tensor:
        """The sample, (rows, values), and the row's two extremes where values were dropped.

        Raises:
            ValueError: no batch was added yet.
        """
        if not self._batches:
            raise ValueError("cannot sample: no batch has been added")
        if self.total <= self.most:
            return self._sample
        return torch.cat([self._sample, self._low[:, :1], self._high[:, :1]], dim=1)

    def weighted(self) -> tuple[Tensor, Tensor | None]:
        """The sample between the tails and the tails themselves, with their weights.

        Returns:
            Values, (rows, values), and how many of all values each stands for, same shape: 1 for
            those in a tail, 0 for those of the sample that lie beyond a tail's inner end. None for
            the weights where nothing was dropped.
        """
        values = self.values()
        tails = self._low.shape[1] + self._high.shape[1]
        if self.total <= max(self.most, tails):
            return values, None
        inside = (self._sample >= self._low[:, -1:]) & (self._sample <= self._high[:, -1:])
        count = inside.sum(1, keepdim=True)
        weights = inside * ((self.total - tails) / count.clamp(min=1))
        ends = torch.cat([self._low, self._high], dim=1)
        return (
            torch.cat([self._sample, ends], dim=1),
            torch.cat([weights, torch.ones_like(ends)], dim=1),
        )

    def ranges(self, search: RangeSearch, bits: int, *, symmetric: bool = False) -> QuantParams:
        """The range of each row; a search that takes no weights is given ``values``."""
        knowing = weighted(search)
        if knowing is None:
            return search(self.values(), bits, axis=0, symmetric=symmetric)
        values, weights = self.weighted()
        return knowing(values, bits, axis=0, symmetric=symmetric, weights=weights)


def _least(rows: Tensor) -> Tensor:
    """The smallest values of rows in ascending order, (rows, up to ``_TAIL``)."""
    return rows.topk(min(_TAIL, rows.shape[1]), dim=1, largest=False).values


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random columns of rows, (rows, values)."""
    length = rows.shape[1]
    if count >= length:
        return rows
    if count * 8 < length:  # a permutation would take longer, and columns hardly ever repeat
        return rows[:, torch.randint(length, (count,), generator=generator)]
    # drawn, not strided: a stride that divides the row length sees one channel only
    return rows[:, torch.randperm(length, generator=generator)[:count]]
