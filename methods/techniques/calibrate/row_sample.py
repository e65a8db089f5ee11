"""Random samples of values that arrive in batches, for range searches."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.techniques.ranges.weighted import weighted

_TAIL = 512
"""Number of the smallest values, and of the largest, that are always known exactly."""
_SEED = 0x5EED
"""Of the first draw. Values drawn with a small seed must not be drawn again by the same numbers."""


class RowSample:
    """A random sample of each row's values over all batches, and the row's tails.

    Every value has the same chance to be in the sample, whatever the sizes of the batches. While
    all values fit, the sample is the values themselves. When they no longer fit, half of them are
    dropped, and half as many of all later values are drawn. The tails are the smallest and the
    largest values of all batches: a range is decided there, where a sample has few values or none.

    Args:
        most: largest number of values of each row in the sample, at least 1; where values are
            dropped, the sample has about half of that at least.
    """

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 0
        self._halvings = self._batches = 0
        self._sample = self._low = self._high = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add one batch, (rows, values).

        Raises:
            ValueError: a value is NaN.
        """
        if not self._batches:
            self._sample = self._low = self._high = rows[:, :0]
        self._low = _smallest(self._low, rows)
        self._high = -_smallest(-self._high, -rows)
        self.total += rows.shape[1]
        # drawn, not rounded: the share of a batch that is small beside the total would be 0
        draw = random.Random(self._batches)
        generator = torch.Generator().manual_seed(_SEED + self._batches)
        kept = self._sample
        share = _share(rows.shape[1], self._halvings, draw)
        while kept.shape[1] + share > self.most:
            self._halvings += 1
            kept = _drawn(kept, _share(kept.shape[1], 1, draw), generator)
            share = _share(rows.shape[1], self._halvings, draw)
        self._sample = torch.cat([kept, _drawn(rows, share, generator)], dim=1)
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


def ranges_of(
    samples: Sequence[RowSample], search: RangeSearch, bits: int, *, symmetric: bool = False
) -> QuantParams:
    """The range of each row over the values of all samples, which have equally many rows.

    A search that takes no weights is given each sample's ``values``.
    """
    knowing = weighted(search)
    if knowing is None:
        values = torch.cat([sample.values() for sample in samples], dim=1)
        return search(values, bits, axis=0, symmetric=symmetric)
    parts = [sample.weighted() for sample in samples]
    values = torch.cat([values for values, _ in parts], dim=1)
    if all(weights is None for _, weights in parts):
        return knowing(values, bits, axis=0, symmetric=symmetric)
    weights = torch.cat(
        [torch.ones_like(values) if weights is None else weights for values, weights in parts],
        dim=1,
    )
    return knowing(values, bits, axis=0, symmetric=symmetric, weights=weights)


def _smallest(known: Tensor, rows: Tensor) -> Tensor:
    """The smallest values of ``known`` and ``rows`` in ascending order, (rows, up to ``_TAIL``).

    Raises:
        ValueError: a value is NaN.
    """
    if rows.shape[0] == 1:
        rows = _candidates(rows[0], known[0])[None]
    both = torch.cat([known, rows], dim=1)
    if bool(both.isnan().any()):
        raise ValueError("cannot find a range: the values hold NaN")
    return both.topk(min(_TAIL, both.shape[1]), dim=1, largest=False).values


def _candidates(values: Tensor, known: Tensor) -> Tensor:
    """The values (N,) that may be among the smallest, and all NaN: looked for, not sorted.

    A value is none if ``known`` are enough smaller ones. Where they are not, the smallest values
    of as many columns bound it: each column has one.
    """
    length = min(values.shape[0] // (4 * _TAIL), 64)
    if length < 4:
        return values
    end = values.shape[0] // length * length
    table, rest = values[:end].view(length, -1), values[end:]
    least = table.amin(0)
    if known.shape[0] == _TAIL:
        near = torch.cat([table[:, ~(least >= known[-1])].flatten(), rest])
        return near[~(near >= known[-1])]
    bound = least.topk(_TAIL, largest=False).values[-1]
    near = torch.cat([table[:, ~(least > bound)].flatten(), rest])
    return near[~(near > bound)]


def _share(count: int, halvings: int, draw: random.Random) -> int:
    """``count`` halved so often, with the remainder drawn."""
    share, rest = divmod(count, 1 << halvings)
    return share + (draw.randrange(1 << halvings) < rest)


def _drawn(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random columns of rows, (rows, values)."""
    length = rows.shape[1]
    if count >= length:
        return rows
    if count * 8 < length:  # a permutation would take longer, and columns hardly ever repeat
        return rows[:, torch.randint(length, (count,), generator=generator)]
    # drawn, not strided: a stride that divides the row length sees one channel only
    return rows[:, torch.randperm(length, generator=generator)[:count]]
