"""Weights rounded column by column, each error compensated by the columns that follow (GPTQ).

With ``H`` the second moments of a layer's input, the error of one rounded input column is moved
onto the columns not rounded yet, by the Cholesky factor of ``H^-1`` (Frantar et al., ICLR 2023).
Here ``H`` belongs to the quantized input, and the rounded weight is not ``W`` itself but
``W' = (W C + d W) (H + d)^-1`` with ``C`` the moments between floating-point and quantized input:
the weight whose outputs on the quantized input are nearest to those of ``W`` on the plain one. All
of this is in closed form; nothing is trained.

What an input column holds when its turn comes, errors of earlier columns included, is a float
weight whose nearest codes are the rounded ones. Training can start from it, see
``start_from_columns``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams, dequantize, fake_quantize, quantize
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.part import Part
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, evenly
from quantarena.methods.techniques.calibrate.layer_samples import layer_inputs

ROWS = 4096
"""Largest number of positions (tokens or pixels) from which moments are computed."""


def columns(layer: QuantLayer, x: Tensor) -> Tensor:
    """The input vectors of a layer's products: (positions, K), K as in the flattened weight.

    Args:
        layer: not a convolution in groups.
        x: its input.
    """
    if not layer.is_conv:
        return x.flatten(0, -2)
    if layer.spatial == 1:
        x = x.unsqueeze(2)
    idle = layer.spatial == 1
    kernel = (1, *layer.weight.shape[2:]) if idle else tuple(layer.weight.shape[2:])
    return F.unfold(x, kernel, **layer.geometry.as_image()).transpose(1, 2).flatten(0, 1)


def best_weight(weight: Tensor, plain: Tensor, quantized: Tensor, damp: float) -> Tensor:
    """The weight whose outputs on ``quantized`` best match those of ``weight`` on ``plain``.

    Found by damped least squares.

    Args:
        weight: (O, K).
        plain: inputs in floating point, (positions, K).
        quantized: the same inputs after quantization, (positions, K).
        damp: strength of the pull towards ``weight``, relative to the inputs' mean second moment.
    """
    moments = quantized.T @ quantized
    pull = damp * moments.diagonal().mean().clamp(min=1e-12)
    target = (weight @ (plain.T @ quantized)) + pull * weight
    moments.diagonal().add_(pull)
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(moments)).T


def round_columns(weight: Tensor, params: QuantParams, quantized: Tensor, damp: float) -> Tensor:
    """Round ``weight`` to codes so that its products with ``quantized`` change little.

    Args:
        weight: (O, K).
        params: scale and zero point of each row, (O, 1).
        quantized: quantized inputs, (positions, K).
        damp: value added to the second moments, relative to their mean.

    Returns:
        (O, K) integer-valued float32.
    """
    return quantize(compensated(weight, params, quantized, damp), params)


def compensated(weight: Tensor, params: QuantParams, quantized: Tensor, damp: float) -> Tensor:
    """The float weight whose nearest codes are those of ``round_columns``, with its arguments.

    Columns are rounded in the order of their inputs' second moments, largest first. Each column is
    what it was when its turn came.

    Returns:
        (O, K).
    """
    moments = (quantized.T @ quantized).double()
    mean = moments.diagonal().mean().clamp(min=1e-12)
    order = moments.diagonal().argsort(descending=True, stable=True)
    moments = moments[order][:, order]
    moments.diagonal().add_(damp * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    rest = weight[:, order].clone()
    for index in range(weight.shape[1]):
        column = rest[:, index : index + 1]
        error = (column - fake_quantize(column, params)) / factor[index, index]
        rest[:, index + 1 :] -= error * factor[index, index + 1 :]
    return rest[:, order.argsort()]


@torch.no_grad()
def start_from_columns(
    model: QuantizedModel, points: CalibrationSet, count: int, *, damp: float = 0.01
) -> dict[str, float]:
    """Let weights start from rounding column by column, on inputs in floating point.

    Their ranges must be set, and stay. Codes are not fixed: weights may learn from there. Layers
    that are left rounding to nearest: convolutions in groups, layers in several parts, weights with
    K-groups, and layers that do not run.

    Args:
        model: the network.
        points: calibration points.
        count: number of points that inputs are taken from.
        damp: see ``round_columns``.

    Returns:
        By layer, the squared error of its outputs divided by that of rounding to nearest.
    """
    inputs = layer_inputs(model, points, count)
    errors: dict[str, float] = {}
    for name, layer in model.layers.items():
        x = inputs.pop(name, None)
        quantizer = layer.parts[0].weight_quantizer
        if x is None or quantizer is None or quantizer.group_size:
            continue
        if layer.groups != 1 or len(layer.parts) > 1:
            continue
        rows = columns(layer, x)
        rows = rows[evenly(len(rows), ROWS)] if len(rows) > ROWS else rows
        weight, params = layer.weight.detach().flatten(1), _by_row(quantizer.params)
        better = compensated(weight, params, rows, damp)
        left, before = (
            float((rows @ (fake_quantize(value, params) - weight).T).square().mean())
            for value in (better, weight)
        )
        quantizer.start_from(better.reshape(layer.weight.shape))
        errors[name] = left / max(before, 1e-30)
    return errors


def _by_row(params: QuantParams) -> QuantParams:
    """Parameters of a weight (O, K, ...) as those of (O, K)."""
    widths = None if params.widths is None else params.widths.reshape(-1, 1)
    scale, zero_point = (value.reshape(-1, 1) for value in (params.scale, params.zero_point))
    return QuantParams(scale, zero_point, params.bits, widths)


@torch.no_grad()
def reconstruct_columns(
    layer: QuantLayer, x: Tensor, search: RangeSearch, *, damp: float = 0.01
) -> float:
    """Set the weight codes of a layer with one part, in place; its input ranges must be set.

    Args:
        layer: not a convolution in groups, no K-groups, all channels of one width.
        x: its input in floating point, after the layer's input scale.
        search: range search used for the changed weight.
        damp: see ``best_weight`` and ``round_columns``.

    Returns:
        Squared error of the outputs, divided by that of the original weight rounded to nearest.
    """
    part: Part = layer.only_part
    quantizer = part.weight_quantizer
    assert quantizer is not None
    plain = columns(layer, x)
    quantized = plain if part.act_quantizer is None else columns(layer, part.act_quantizer(x))
    if len(plain) > ROWS:
        drawn = evenly(len(plain), ROWS)
        plain, quantized = plain[drawn], quantized[drawn]
    weight = layer.weight.detach().flatten(1)
    target = plain @ weight.T

    def error(value: Tensor) -> float:
        return float((quantized @ value.T - target).square().mean())

    quantizer.find_params(layer.weight.detach(), search, symmetric=False)
    before = error(quantizer(layer.weight.detach()).flatten(1))
    better = best_weight(weight, plain, quantized, damp)
    quantizer.find_params(better.reshape(layer.weight.shape), search, symmetric=False)
    flat = _by_row(quantizer.params)
    codes = round_columns(better, flat, quantized, damp)
    quantizer.set_codes(codes.reshape(layer.weight.shape))
    return error(dequantize(codes, flat)) / max(before, 1e-30)
