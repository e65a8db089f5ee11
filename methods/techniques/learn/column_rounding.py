"""Weights rounded column by column; the columns that follow make each error good on real inputs.

GPTQ (Frantar et al., ICLR 2023): with ``H`` the second moments of a layer's input, the error of one
rounded input column is moved onto those not rounded yet, by the Cholesky factor of ``H^-1``. Here
the input is the quantized one, and what is rounded is the weight that makes the best of it,
``W' = (W C + d W) (H + d)^-1`` with ``C`` the moments between floating-point and quantized input:
it answers the quantized input as ``W`` answers the plain one. In closed form; nothing learns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams, dequantize, quantize
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.part import Part
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import evenly

ROWS = 4096
"""Most places that moments are taken over."""


def columns(layer: QuantLayer, x: Tensor) -> Tensor:
    """What each output is a product with: (places, K), K as in the flattened weight.

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


def best_weight(weight: Tensor, plain: Tensor, seen: Tensor, damp: float) -> Tensor:
    """The weight that answers ``seen`` as ``weight`` answers ``plain``, by damped least squares.

    Args:
        weight: (O, K).
        plain: inputs in floating point, (places, K).
        seen: the same as the layer gets them, (places, K).
        damp: pull towards ``weight``, relative to the mean second moment of an input.
    """
    moments = seen.T @ seen
    pull = damp * moments.diagonal().mean().clamp(min=1e-12)
    target = (weight @ (plain.T @ seen)) + pull * weight
    moments.diagonal().add_(pull)
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(moments)).T


def round_columns(weight: Tensor, params: QuantParams, seen: Tensor, damp: float) -> Tensor:
    """Codes of ``weight`` under which the products with ``seen`` change little.

    Columns are rounded in the order of their inputs' second moments, largest first.

    Args:
        weight: (O, K).
        params: scale and zero point of each row, (O, 1).
        seen: inputs, (places, K).
        damp: added to the second moments, relative to their mean.

    Returns:
        (O, K) integer-valued float32.
    """
    moments = (seen.T @ seen).double()
    mean = moments.diagonal().mean().clamp(min=1e-12)
    order = moments.diagonal().argsort(descending=True, stable=True)
    moments = moments[order][:, order]
    moments.diagonal().add_(damp * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    rest, codes = weight[:, order].clone(), torch.empty_like(weight)
    for index in range(weight.shape[1]):
        column = rest[:, index : index + 1]
        code = quantize(column, params)
        codes[:, index : index + 1] = code
        error = (column - dequantize(code, params)) / factor[index, index]
        rest[:, index:] -= error * factor[index, index:]
    return codes[:, order.argsort()]


@torch.no_grad()
def reconstruct_columns(
    layer: QuantLayer, x: Tensor, search: RangeSearch, *, damp: float = 0.01
) -> float:
    """Decide the codes of a layer of one part, its input quantizer's ranges set; in place.

    Args:
        layer: not a convolution in groups, no K-groups, all channels of one width.
        x: its input in floating point, multipliers applied.
        search: range search of the changed weight.
        damp: see ``best_weight`` and ``round_columns``.

    Returns:
        Squared error of the outputs over that of the weight as it is, rounded to nearest.
    """
    part: Part = layer.only_part
    quantizer = part.weight_quantizer
    assert quantizer is not None
    plain = columns(layer, x)
    seen = plain if part.act_quantizer is None else columns(layer, part.act_quantizer(x))
    if len(plain) > ROWS:
        drawn = evenly(len(plain), ROWS)
        plain, seen = plain[drawn], seen[drawn]
    weight = layer.weight.detach().flatten(1)
    target = plain @ weight.T

    def error(value: Tensor) -> float:
        return float((seen @ value.T - target).square().mean())

    quantizer.find_params(layer.weight.detach(), search, symmetric=False)
    before = error(quantizer(layer.weight.detach()).flatten(1))
    better = best_weight(weight, plain, seen, damp)
    quantizer.find_params(better.reshape(layer.weight.shape), search, symmetric=False)
    params = quantizer.params
    flat = QuantParams(params.scale.reshape(-1, 1), params.zero_point.reshape(-1, 1), params.bits)
    codes = round_columns(better, flat, seen, damp)
    quantizer.set_codes(codes.reshape(layer.weight.shape))
    return error(dequantize(codes, flat)) / max(before, 1e-30)
