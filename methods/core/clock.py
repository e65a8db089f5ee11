"""Which sampler call is being computed: the index that step-dependent quantizers look up.

Nothing here counts. Whoever knows the sampler call says it: a sampler through ``core.announce``, a
set of calibration points through their ``step``. A step bank read before anybody said so is an
error, not entry 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from quantarena.methods.core.errors import UserError


@dataclass(frozen=True, slots=True)
class CallSchedule:
    """The sampler calls that step banks were calibrated on, entry k of a bank is call k.

    Attributes:
        sampler: name of the sampler, for messages; empty where nobody knows.
        timesteps: model timestep of each call; samplers that repeat one have it twice.
    """

    sampler: str
    timesteps: tuple[float, ...]

    def __str__(self) -> str:
        name = f" of {self.sampler}" if self.sampler else ""
        if not self.timesteps:
            return f"0 calls{name}"
        first, last = self.timesteps[0], self.timesteps[-1]
        return f"{len(self.timesteps)} calls{name} from timestep {first:g} to {last:g}"


class CallClock:
    """The sampler call that all layers of one model share.

    Attributes:
        schedule: what the model's banks were calibrated on; None where it has no bank, or where
            nobody said.
    """

    __slots__ = ("_index", "schedule")

    def __init__(self, schedule: CallSchedule | None = None) -> None:
        self.schedule = schedule
        self._index: int | Tensor | None = None

    def __repr__(self) -> str:
        return f"CallClock(index={self._index}, schedule={self.schedule})"

    @property
    def is_set(self) -> bool:
        """Whether somebody said which call this is."""
        return self._index is not None

    @property
    def index(self) -> int | Tensor:
        """Sampler call of the whole batch, or of each batch row, (B,) int64.

        Raises:
            UserError: nobody has said it.
        """
        if self._index is None:
            raise UserError(
                "the quantized network has settings for each sampler call, and nobody said which "
                "call this is: sample inside core.announce.announcing(scheduler, model.clock), or "
                "run recorded points inside model.clock.at(points.step)"
            )
        return self._index

    def set(self, index: int | Tensor) -> None:
        """Say which sampler call comes next.

        Args:
            index: of the whole batch, or one a batch row, (B,) integers.

        Raises:
            ValueError: negative, or a tensor that is no list of integers.
        """
        if isinstance(index, Tensor):
            if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
                raise ValueError(
                    f"sampler calls must be (B,) integers, not {tuple(index.shape)} {index.dtype}"
                )
            index = index.long()
            negative = bool((index < 0).any())
        else:
            index = int(index)
            negative = index < 0
        if negative:
            raise ValueError("a sampler call is negative: calls count from 0")
        self._index = index

    def clear(self) -> None:
        """Forget the call: reading a bank is an error again."""
        self._index = None

    @contextmanager
    def at(self, index: int | Tensor) -> Iterator[None]:
        """The call inside the block; afterwards what it was before, also when that was unset."""
        before = self._index
        self.set(index)
        try:
            yield
        finally:
            self._index = before
