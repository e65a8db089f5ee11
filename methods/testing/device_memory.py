"""Bytes of tensors on a device that is only pretended, and the most that there were at once."""

import torch
from torch import Tensor


class DeviceMemory:
    """Bytes of the tensors on the pretended GPU, as an allocator without blocks would count them.

    What an operation needs while it computes is not in it, what it returns is.

    Attributes:
        held: bytes now.
        peak: the most since the start, or since ``restart``.
    """

    def __init__(self) -> None:
        self.held = self.peak = 0
        self._tensors: dict[int, int] = {}

    def restart(self) -> None:
        """Measure the peak from now on."""
        self.peak = self.held

    def add(self, storage: torch.UntypedStorage) -> None:
        """Count one more tensor of this memory."""
        number = storage._cdata
        if number not in self._tensors:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        self._tensors[number] = self._tensors.get(number, 0) + 1

    def drop(self, storage: torch.UntypedStorage) -> None:
        """One tensor of this memory is gone."""
        number = storage._cdata
        self._tensors[number] -= 1
        if not self._tensors[number]:
            del self._tensors[number]
            self.held -= storage.nbytes()


class Counted:
    """Lives as long as a tensor's values; not a weak reference, with which none can be swapped."""

    def __init__(self, memory: DeviceMemory, held: Tensor) -> None:
        self.memory, self.storage = memory, held.untyped_storage()
        memory.add(self.storage)

    def __del__(self) -> None:
        self.memory.drop(self.storage)
