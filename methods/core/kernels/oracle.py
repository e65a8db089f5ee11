"""The integer reference in plain torch: slow, exact, and the backend where nothing else runs.

Every native kernel must reproduce :func:`accumulators` bit for bit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quantarena.methods.core.kernels.formats import IntegerLayer


def quantize(layer: IntegerLayer, x: Tensor, step: int = 0) -> Tensor:
    """Computes the activation codes of an input.

    Args:
        layer: the layer whose quantizer is applied.
        x: float32 ``(..., in)`` for linear, ``(batch, in, height, width)`` for conv2d.
        step: entry of the activation table.

    Returns:
        uint8 codes, shape of ``x``; NaN gives 0, infinities saturate.
    """
    zero = int(layer.act_zero.reshape(-1)[step])
    scale = layer.act_scale.reshape(-1)[step]
    mult = layer.in_mult
    if mult is not None:
        mult = mult.reshape((-1,) if layer.kind == "linear" else (1, -1, 1, 1))
    top = (1 << layer.act_bits) - 1
    return (centred_codes(x, scale, zero, top, mult) + zero).to(torch.uint8)


def centred_codes(x: Tensor, scale: Tensor, zero: int, top: int, mult: Tensor | None) -> Tensor:
    """Computes activation codes less their zero point.

    Args:
        x: the input.
        scale: float32 scalar.
        zero: zero point.
        top: largest code.
        mult: broadcasts over ``x``, or None.

    Returns:
        float32 integers, shape of ``x``.
    """
    value = x.detach().to(torch.float32) * (torch.ones((), dtype=torch.float32) / scale)
    if mult is not None:
        value = value * mult
    code = value.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return code.clamp(-float(zero), float(top - zero)).round()


def accumulators(layer: IntegerLayer, x: Tensor, step: int = 0) -> Tensor:
    """Computes T = sum (a - zx) * (c - zw), exactly.

    Args:
        layer: the layer.
        x: float32 input as in :func:`quantize`.
        step: entry of the activation table.

    Returns:
        int64 tensor in the shape of the layer's output.

    Raises:
        ValueError: the input has the wrong number of channels.
    """
    check_input(layer, x)
    zero = int(layer.act_zero.reshape(-1)[step])
    # float64 holds every partial sum exactly: an IntegerLayer's are below 2**31 (largest_sum)
    code = quantize(layer, x, step).to(torch.float64) - zero
    shape = (-1,) + (1,) * (layer.weight_codes.dim() - 1)
    weight = layer.weight_codes.to(torch.float64) - layer.weight_zero.to(torch.float64).view(shape)
    if layer.kind == "linear":
        return functional.linear(code, weight).to(torch.int64)
    result = functional.conv2d(
        code, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    return result.to(torch.int64)


def forward(layer: IntegerLayer, x: Tensor, step: int = 0) -> Tensor:
    """Computes Y = sx * sw * T + bias in float32, in the memory format of the input.

    Args:
        layer: the layer.
        x: float32 input as in :func:`quantize`.
        step: entry of the activation table.

    Returns:
        float32 output.
    """
    total = accumulators(layer, x, step).to(torch.float32)
    shape = (-1,) if layer.kind == "linear" else (1, -1, 1, 1)
    y = total * (layer.act_scale.reshape(-1)[step] * layer.weight_scale).view(shape)
    if layer.bias is not None:
        y = y + layer.bias.view(shape)
    if layer.kind == "conv2d" and channels_last(x):
        y = y.contiguous(memory_format=torch.channels_last)
    return y


def channels_last(x: Tensor) -> bool:
    """Whether a 4-d tensor is channels_last and not also plainly contiguous."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def check_input(layer: IntegerLayer, x: Tensor) -> None:
    """Raises ValueError unless ``x`` fits the layer."""
    check_shape(layer.metadata(), tuple(x.shape))


def check_shape(metadata: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless an input of ``shape`` fits a layer of this description."""
    inputs = metadata["weight_shape"][1] * metadata["groups"]
    if metadata["kind"] == "linear":
        good, wanted = len(shape) >= 1 and shape[-1] == inputs, f"(..., {inputs})"
    else:
        good = len(shape) == 4 and shape[1] == inputs
        wanted = f"(batch, {inputs}, height, width)"
    if not good:
        raise ValueError(f"input {shape} does not fit a layer that takes {wanted}")
    if metadata["kind"] == "conv2d" and min(output_size(metadata, shape[2], shape[3])) < 1:
        raise ValueError(f"input {shape} is smaller than the kernel")


def output_size(metadata: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Output height and width of a convolution."""
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            (height, width),
            metadata["padding"],
            metadata["dilation"],
            metadata["weight_shape"][2:],
            metadata["stride"],
            strict=True,
        )
    ]
    return sizes[0], sizes[1]
