"""Rows or images dealt from a shuffled deck, for walks that shall see all of them equally often."""

import torch
from torch import Tensor


class Deck:
    """Deals indices: none again before all others were dealt, and none twice at a time.

    Args:
        size: number of indices.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = torch.arange(0)

    def deal(self, count: int, generator: torch.Generator) -> Tensor:
        """The next ``count`` indices, (count,); all of them where there are fewer."""
        count = min(count, self.size)
        if len(self._left) < count:
            fresh = torch.randperm(self.size, generator=generator)
            # those left over go first, and come again only after all others
            rest = fresh[~torch.isin(fresh, self._left)]
            self._left = torch.cat([self._left, rest, self._left])
        dealt, self._left = self._left[:count], self._left[count:]
        return dealt
