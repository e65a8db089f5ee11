"""Integer layers in an OpenVINO graph, in the form that its CPU plugin runs in int8.

The converter sees plain layers of random weights. Here each of their products gets quantized
inputs and the true weights:

- activation: ``Multiply(inverse scale)``, ``Round(half to even)``, then a ``FakeQuantize`` between
  ``-zx`` and ``levels - 1 - zx`` whose outputs are those numbers times the scale. A plain
  FakeQuantize rounds after it has added the zero point, which moves ties.
- weight: an int8 constant of codes less zero points, ``Convert``, ``Multiply(scale)``. A
  ``Subtract`` would make the plugin multiply in fp32.
- 7- and 8-bit codes less zero points may not fit int8. Then the constant holds the codes alone,
  and the zero points' part, ``-zw * sw * sum(a)``, comes from a sum over the input: ReduceSum, or
  a convolution with ones.
- Without dot-product instructions the plugin adds pairs of products in int16, which saturates
  silently. There, weights too large for it are written as two halves, a product each.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer

PREFIX = "__module.network."
"""Of every operation's name in a converted model, before the module's path."""
_PRODUCTS = frozenset({"MatMul", "Convolution", "GroupConvolution"})


def fill(model: Any, layers: Mapping[str, IntegerLayer], *, saturates: bool = False) -> None:
    """Give the products of a converted model their quantizers and weights, in place.

    Args:
        model: an ``openvino.Model``.
        layers: integer layers by module path.
        saturates: whether pairs of products may add up in int16 where the model runs.

    Raises:
        QuantArenaError: the model has no product of a layer.
        Unsupported: a layer has no form that runs in int8.
    """
    found: set[str] = set()
    for node in model.get_ordered_ops():
        path = path_of(node.get_friendly_name())
        if node.get_type_name() in _PRODUCTS and path in layers:
            _fill(node, path, layers[path], saturates=saturates)
            found.add(path)
    absent = sorted(set(layers) - found)
    if absent:
        raise QuantArenaError(f"the converted model has no product of {absent[0]}")
    model.validate_nodes_and_infer_types()


def path_of(name: str) -> str:
    """The module path in an operation's name."""
    return name.removeprefix(PREFIX).split("/")[0]


def _fill(node: Any, path: str, layer: IntegerLayer, *, saturates: bool) -> None:
    import openvino.opset15 as ov

    codes = _signed(layer.weight_codes).astype(np.int32)
    zero = layer.weight_zero.numpy().astype(np.int32)
    rows = [-1] + [1] * (codes.ndim - 1)
    centred = codes - zero.reshape(rows)
    fits = centred.min() >= -128 and centred.max() <= 127
    if not fits and layer.groups > 1:
        raise Unsupported(f"{path} has groups and weight zero points that do not fit int8")
    # the converter may have merged a transposition of the input into the product
    turned = node.get_type_name() == "MatMul" and node.get_attributes()["transpose_a"]
    acts = _codes_of(node.input_value(0), layer, turned=turned)
    node.input(0).replace_source_output(acts)
    first, *others = _summands(centred if fits else codes, layer, saturates=saturates)
    targets = list(node.output(0).get_target_inputs())
    node.input(1).replace_source_output(_weight(node, first, layer))
    total = node.output(0)
    for other in others:
        total = ov.add(total, _again(node, acts, _weight(node, other, layer))).output(0)
    if not fits:
        total = ov.add(total, _zero_part(node, acts, layer, zero, turned=turned)).output(0)
    if others or not fits:
        for target in targets:
            target.replace_source_output(total)


def _summands(codes: np.ndarray, layer: IntegerLayer, *, saturates: bool) -> list[np.ndarray]:
    """Weights that add up to these, none too large for sums of pairs in int16."""
    pair = 2 * ((1 << layer.act_bits) - 1)
    if not saturates or pair * int(np.abs(codes).max(initial=0)) <= np.iinfo(np.int16).max:
        return [codes]
    half = codes // 2  # at most 64 of either sign, and 510 * 64 fits
    return [half, codes - half]


def _weight(node: Any, codes: np.ndarray, layer: IntegerLayer) -> Any:
    """Codes times their scales, as a product takes them."""
    import openvino.opset15 as ov

    weight = _scaled(codes.astype(np.int8), layer)
    if node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]:
        weight = ov.transpose(weight, np.array([1, 0], np.int64)).output(0)
    if node.get_type_name() == "GroupConvolution":
        shape = list(node.input_value(1).get_partial_shape().to_shape())
        weight = ov.reshape(weight, np.array(shape, np.int64), False).output(0)
    return weight


def _again(node: Any, acts: Any, weight: Any) -> Any:
    """The same product with another weight."""
    import openvino.opset15 as ov

    told = node.get_attributes()
    if node.get_type_name() == "MatMul":
        return ov.matmul(acts, weight, told["transpose_a"], told["transpose_b"])
    kind = ov.convolution if node.get_type_name() == "Convolution" else ov.group_convolution
    ends = (list(told[name]) for name in ("strides", "pads_begin", "pads_end", "dilations"))
    return kind(acts, weight, *ends)


def _signed(codes: torch.Tensor) -> np.ndarray:
    array: np.ndarray = codes.to(torch.int8).numpy()
    return array


def _scaled(codes: np.ndarray, layer: IntegerLayer) -> Any:
    """Codes times their scales, (O, ...)."""
    import openvino as core
    import openvino.opset15 as ov

    scale = layer.weight_scale.numpy().astype(np.float32).reshape([-1] + [1] * (codes.ndim - 1))
    number = ov.convert(ov.constant(codes, dtype=core.Type.i8), core.Type.f32)
    return ov.multiply(number, ov.constant(scale)).output(0)


def _codes_of(x: Any, layer: IntegerLayer, *, turned: bool) -> Any:
    """The quantized and dequantized input; channels are the last axis but one if ``turned``."""
    import openvino.opset15 as ov

    scale = np.float32(layer.act_scale.reshape(-1)[0])
    zero, levels = int(layer.act_zero.reshape(-1)[0]), 1 << layer.act_bits
    value = ov.multiply(x, ov.constant(np.float32(1) / scale))
    if layer.in_mult is not None:
        factor = layer.in_mult.numpy().astype(np.float32)
        value = ov.multiply(
            value, ov.constant(factor.reshape([-1, 1] if turned else _channels(layer)))
        )
    rounded = ov.round(value, "half_to_even")
    ends = np.array([-zero, levels - 1 - zero], np.float32)
    low, high = (ov.constant(np.float32(end)) for end in ends)
    out_low, out_high = (ov.constant(np.float32(end * scale)) for end in ends)
    return ov.fake_quantize(rounded, low, high, out_low, out_high, levels).output(0)


def _zero_part(node: Any, acts: Any, layer: IntegerLayer, zero: np.ndarray, *, turned: bool) -> Any:
    """What zero points of weights take off a product."""
    import openvino as core
    import openvino.opset15 as ov

    factor = (-zero * layer.weight_scale.numpy()).astype(np.float32).reshape(_channels(layer))
    if layer.kind == "linear":
        axis = np.array([-2 if turned else -1], np.int64)
        total = ov.unsqueeze(ov.reduce_sum(acts, axis), np.array([-1], np.int64))
        return ov.multiply(total, ov.constant(factor))
    ones = np.ones((1, *layer.weight_codes.shape[1:]), np.int8)
    kernel = ov.multiply(
        ov.convert(ov.constant(ones, dtype=core.Type.i8), core.Type.f32),
        ov.constant(np.ones((1, 1, 1, 1), np.float32)),
    )
    told = node.get_attributes()
    total = ov.convolution(
        acts,
        kernel,
        list(told["strides"]),
        list(told["pads_begin"]),
        list(told["pads_end"]),
        list(told["dilations"]),
    )
    return ov.multiply(total, ov.constant(factor))


def _channels(layer: IntegerLayer) -> list[int]:
    """The shape in which a value of each channel broadcasts over the layer's input or output."""
    return [-1] if layer.kind == "linear" else [1, -1, 1, 1]
