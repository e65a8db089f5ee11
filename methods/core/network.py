"""What is needed of a network that draws images, whoever made it."""

from itertools import chain
from typing import Protocol

import torch
from torch import nn

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.visits import HOST, visit_of

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
    """The device that a network's inputs have to be on: that of its parameters and buffers.

    Returns:
        The host for a network whose islands visit a device. None where it has no parameters and no
        buffers, and so computes wherever its inputs are.
    """
    visit = visit_of(network)
    if visit is not None:
        return visit.device if visit.held else HOST
    return next((t.device for t in chain(network.parameters(), network.buffers())), None)


def tensor_bytes(module: nn.Module, float_bits: int | None = None) -> int:
    """Bytes of a module's parameters and buffers, each tensor once.

    Args:
        module: the module.
        float_bits: width at which floating-point numbers are counted; None for their own.
    """
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(
        t.numel() * (float_bits // 8 if float_bits and t.is_floating_point() else t.element_size())
        for t in tensors.values()
    )
