"""A network in a shorter number format, but for what quantization computes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.nested import map_leaves, prediction
from quantarena.methods.core.packed.nodes.node import Node


class InFormat(nn.Module):
    """A network in another number format, whose inputs and output are float32.

    Packed layers and quantized attention keep their scales and sums in float32: these convert what
    they are given, and what they return. Timesteps keep their type: bfloat16 cannot tell 999 from
    1,000.

    Args:
        network: changed in place.
        dtype: of weights, arithmetic and activations.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        lower(network, dtype)
        self.network, self.dtype = network, dtype

    def forward(self, sample: Tensor, timestep: Any, **conditions: Any) -> tuple[Tensor]:
        """The prediction in float32."""
        given = map_leaves(lambda _, leaf: self._lowered(leaf), conditions)
        output = self.network(self._lowered(sample), timestep=timestep, **given)
        return (prediction(output, self.network).float(),)

    def _lowered(self, value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if floating else value


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters and buffers in place, those of quantized parts excepted."""
    if isinstance(network, Node | QuantAttention):
        for module in network.modules():
            _keep(module)
            if isinstance(module, Node):
                module.around = dtype
        return
    for child in network.children():
        lower(child, dtype)
    for tensors in (network._parameters, network._buffers):
        for tensor in tensors.values():
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _keep(module: nn.Module) -> None:
    """Make its parameters buffers: networks take their format from the parameters they hold."""
    for name, tensor in list(module._parameters.items()):
        if tensor is not None:
            del module._parameters[name]
            module.register_buffer(name, tensor.data)


def tell_formats(network: nn.Module) -> None:
    """Let modules that hold packed layers alone be asked for the format of their parameters.

    Networks read ``next(module.parameters()).dtype`` to convert what they give a module, as Wan's
    does of its time embedding. A module without parameters answers with the ``weight`` of its first
    packed layer, which is empty. Copies of the network keep this.
    """
    for part in network.modules():
        inside = [m for m in part.modules() if isinstance(m, Node)]
        if inside and part is not network and not isinstance(part, Node) and _is_bare(part):
            vars(part)["parameters"] = partial(_format_of, inside[0])


def _is_bare(module: nn.Module) -> bool:
    return next(module.named_parameters(), None) is None


def _format_of(layer: Node, recurse: bool = True) -> Iterator[Tensor]:
    """Stands for ``parameters()`` of a module around a packed layer."""
    return iter([layer.weight])
