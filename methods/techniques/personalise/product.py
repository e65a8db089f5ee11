"""The product with a packed weight between two vectors of gains, and its gradient.

``y = d_out * (W (d_in * x))``, with ``W`` made from its codes by each pass and dropped again.
Autograd would keep the float weight and three activations for the way back. Here the way back has
the input and the gains, and makes the rest anew; codes and ranges have no gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.quantizers.layer_geometry import LayerGeometry
from quantarena.methods.techniques.personalise.packed_weight import PackedWeight


class _Product(torch.autograd.Function):
    """Gradients of the input and of the gains that learn."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        d_in: Tensor | None,
        d_out: Tensor | None,
        weight: PackedWeight,
        geometry: LayerGeometry,
    ) -> Tensor:
        ctx.weight, ctx.geometry = weight, geometry
        ctx.save_for_backward(x, d_in, d_out)
        y = geometry.product(_times(x, d_in), weight.value().to(x.dtype), None)
        return y if d_out is None else y.mul_(d_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, d_in, d_out) = grads, ctx.saved_tensors
        geometry: LayerGeometry = ctx.geometry
        of_x, of_in, of_out = ctx.needs_input_grad[:3]
        found: list[Tensor | None] = [None, None, None]
        weight = ctx.weight.value().to(x.dtype)
        if of_out:
            plain = geometry.product(_times(x, d_in), weight, None)
            found[2] = plain.mul_(grad).sum_to_size(d_out.shape)
        if of_x or of_in:
            back = input_gradient(geometry, _times(grad, d_out), weight, x.shape)
            found[1] = (back * x).sum_to_size(d_in.shape) if of_in else None
            found[0] = _times(back, d_in) if of_x else None
        return (*found, None, None)


def product(
    x: Tensor,
    weight: PackedWeight,
    geometry: LayerGeometry,
    d_in: Tensor | None = None,
    d_out: Tensor | None = None,
) -> Tensor:
    """The product of an input with a packed weight.

    Args:
        x: the input of the layer.
        weight: its weight.
        geometry: how the layer moves over its input.
        d_in: gains that broadcast over the input; None for none.
        d_out: gains that broadcast over the output.
    """
    result: Tensor = _Product.apply(x, d_in, d_out, weight, geometry)
    return result


def input_gradient(
    geometry: LayerGeometry, grad: Tensor, weight: Tensor, shape: torch.Size
) -> Tensor:
    """The gradient of a layer's input from that of its output."""
    if not geometry.is_conv:
        return F.linear(grad, weight.T)
    # Only its shape is read. Torch's own helper makes a tensor of that shape too.
    like = grad.new_empty(1).expand(shape)
    result: Tensor = torch.ops.aten.convolution_backward(
        grad,
        like,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * geometry.spatial,
        geometry.groups,
        (True, False, False),
    )[0]
    return result


def _times(x: Tensor, gains: Tensor | None) -> Tensor:
    return x if gains is None else x * gains
