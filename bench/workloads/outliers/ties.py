"""Which channels of a network must be rescaled together so that its function stays the same.

Every channel that may be rescaled has a number. The factor of a channel is that of its class, or
one over it. Class 0 is fixed: its factor is 1.
"""

import torch
from torch import Tensor

FIXED = 0


class Ties:
    """Classes of channels, each with one free factor: a union-find whose members have a sign."""

    def __init__(self) -> None:
        self._up, self._sign = [FIXED], [1]

    def fresh(self, count: int) -> Tensor:
        """Numbers of new channels, each in a class of its own, (count,)."""
        first = len(self._up)
        self._up += range(first, first + count)
        self._sign += [1] * count
        return torch.arange(first, first + count, dtype=torch.int32)

    def find(self, channel: int) -> tuple[int, int]:
        """The class of a channel, and 1 or -1: its factor is that of the class, or one over it."""
        sign, path = 1, []
        while self._up[channel] != channel:
            path.append((channel, sign))
            sign *= self._sign[channel]
            channel = self._up[channel]
        for passed, before in path:  # later searches take one step
            self._up[passed], self._sign[passed] = channel, sign * before
        return channel, sign

    def tie(self, one: int, other: int, sign: int = 1) -> None:
        """Let ``one`` have the factor of ``other``, or one over it where ``sign`` is -1."""
        (a, sign_a), (b, sign_b) = self.find(one), self.find(other)
        between = sign * sign_a * sign_b
        if a == b:
            if between < 0 and a != FIXED:  # a factor that is its own inverse is 1
                self._up[a] = FIXED
            return
        if a == FIXED:
            a, b = b, a
        self._up[a], self._sign[a] = b, between

    def fix(self, channel: int) -> None:
        """Let the factor of the channel's class be 1."""
        self.tie(channel, FIXED)

    def free(self, channel: int) -> bool:
        """Whether the channel may be rescaled."""
        return self.find(channel)[0] != FIXED
