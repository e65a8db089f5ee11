"""Weights that can be computed again, stored while there is room.

What frozen codes stand for, and a float weight that something was moved out of, follow from tensors
that are stored anyway. For a small network all of these are stored, so that each is computed once.
For a large one only those used last are: all of them together would be a second copy of its float
weights.
"""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

ROOM = 1 << 28
"""Bytes of values that are stored: all weights of the models that ship, and those of a block of
Stable Diffusion 1.x, which reconstruction uses again and again."""


class RecentValues:
    """Values by the module that they belong to; those not used for the longest time go first.

    Args:
        room: bytes of all stored values.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._values: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()  # last used last

    def get(self, owner: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """The owner's value: the stored one, or one made now."""
        known = self._values.pop(owner, None)
        value = make() if known is None else known
        if value.nbytes <= self.room:
            self._values[owner] = value
        if known is None:
            self._trim()
        return value

    def forget(self, owner: nn.Module) -> None:
        """Drop the owner's value, which would be another one now."""
        self._values.pop(owner, None)

    def bytes(self) -> int:
        """Bytes of the stored values; those of modules that are gone do not count."""
        return sum(value.nbytes for value in self._values.values())

    def _trim(self) -> None:
        excess = self.bytes() - self.room
        for owner, value in list(self._values.items()) if excess > 0 else ():
            if excess <= 0:
                break
            del self._values[owner]
            excess -= value.nbytes


CODED = RecentValues(ROOM)
"""What the frozen weight codes of this process stand for."""
MOVED = RecentValues(ROOM)
"""The float weights of this process that something was moved out of."""
