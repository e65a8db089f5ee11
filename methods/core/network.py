"""What is needed of a network that draws images, whoever made it."""

from itertools import chain
from typing import Protocol

import torch
from torch import nn

from quantarena.methods.core.clock import CallClock

SHORT = (torch.bfloat16, torch.float16)
"""Number formats that networks run in, beside float32. Codes are made of float32."""


class Network(Protocol):
    """A network ready to draw: ``PackedModel``, and ``Prepared`` of rivals."""

    @property
    def module(self) -> nn.Module:
        """Called as the denoiser is."""

    @property
    def backend(self) -> str:
        """What runs it; ``fp32`` where nothing differs from full precision."""

    @property
    def clock(self) -> CallClock:
        """The sampler call that its tables are read at."""

    def remarks(self) -> tuple[str, ...]:
        """Lines for the reader of a row."""


def device_of(network: nn.Module) -> torch.device | None:
    """The device that a network computes on: that of its parameters and buffers.

    Returns:
        None where it has none of either, and so computes wherever its inputs are.
    """
    return next((t.device for t in chain(network.parameters(), network.buffers())), None)
