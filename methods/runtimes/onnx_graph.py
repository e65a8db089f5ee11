"""Integer layers in an ONNX graph, in operators that any ONNX runtime computes exactly.

The converter sees plain layers of random weights. Here each of their products becomes integers:

- activation: ``Mul(inverse scale)``, ``QuantizeLinear`` with scale 1, which rounds half to even and
  adds the zero point, and ``Clip`` where codes have fewer than 8 bits. A QuantizeLinear with the
  scale itself would divide, which moves ties.
- product: ``MatMulInteger``. A convolution first lays the codes of each kernel position side by
  side (``Pad``, ``Slice``, ``Concat``, one byte a code): ``ConvInteger`` has no fast kernel in ONNX
  Runtime, and its fast QLinearConv rounds the output to 8 bits, which our codes do not.
- weight: int8 codes less zero points. 8-bit codes less zero points may not fit int8: then the zero
  points' part comes from one more column of ones, in integers too.
- ``Cast``, ``Mul(scale)``, ``Add(bias)``.

Where ONNX Runtime has no dot-product instructions, its uint8 by int8 kernels add pairs of products
in int16, which saturates silently. Weights too large for that are then written as uint8, whose
kernels are slower and exact everywhere.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.kernels.formats import IntegerLayer

PREFIX = "/network/"
"""Of every node's name in a converted model, before the module's path."""
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_CALL = re.compile(r"_\d+$")
_END = np.iinfo(np.int64).max


def fill(model: Any, layers: Mapping[str, IntegerLayer], *, saturates: bool) -> None:
    """Give the products of a converted model their codes, in place.

    Args:
        model: an ``onnx.ModelProto``.
        layers: integer layers by module path.
        saturates: whether uint8 by int8 products may add up in int16 where the model runs.

    Raises:
        QuantArenaError: the model has no product of a layer.
        Unsupported: a layer has no exact form.
    """
    nodes: list[Any] = []
    found: set[str] = set()
    built = _Built([])
    for node in model.graph.node:
        path = layer_of(node.name, layers)
        if node.op_type in _PRODUCTS and path:
            built.prefix = f"{node.name}/"
            _product(built, node, path, layers[path], saturates=saturates)
            nodes += built.taken()
            found.add(path)
        else:
            nodes.append(node)
    if absent := sorted(set(layers) - found):
        raise QuantArenaError(f"the converted model has no product of {absent[0]}")
    used = {name for node in nodes for name in node.input}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *built.constants])


def layer_of(name: str, layers: Mapping[str, IntegerLayer]) -> str:
    """The layer whose product a node is, by its name; empty where it is none's.

    From a module's second call on, the exporter numbers its path.
    """
    path = name.removeprefix(PREFIX).rpartition("/")[0].replace("/", ".")
    return next((each for each in (path, _CALL.sub("", path)) if each in layers), "")


@dataclass
class _Built:
    """Nodes and constants that stand for a product."""

    constants: list[Any]
    prefix: str = ""
    nodes: list[Any] = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        from onnx import numpy_helper

        name = self.prefix + name
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        from onnx import helper

        output = self.prefix + name
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def taken(self) -> list[Any]:
        nodes, self.nodes = self.nodes, []
        return nodes


def _product(built: _Built, node: Any, path: str, layer: IntegerLayer, *, saturates: bool) -> None:
    if layer.groups > 1:
        raise Unsupported(f"{path} has groups of channels")
    acts = _codes(built, node.input[0], path, layer)
    if layer.kind != "linear":
        acts = _patches(built, acts, layer)
    product = _multiplied(built, acts, path, layer, saturates=saturates)
    scale = layer.weight_scale.numpy().astype(np.float32).reshape(-1)
    scale = scale * np.float32(layer.act_scale.reshape(-1)[0])
    value = built.op("Cast", [product], "float", to=1)
    value = built.op("Mul", [value, built.constant("scale", scale)], "scaled")
    if len(node.input) > 2 and layer.bias is not None:
        bias = layer.bias.numpy().astype(np.float32)
        value = built.op("Add", [value, built.constant("bias", bias)], "biased")
    last = "Identity" if layer.kind == "linear" else "Transpose"
    order = {} if layer.kind == "linear" else {"perm": [0, 3, 1, 2]}
    built.op(last, [value], "output", **order)
    built.nodes[-1].output[0] = node.output[0]


def _codes(built: _Built, x: str, path: str, layer: IntegerLayer) -> str:
    """The input's codes, uint8; of a convolution with the channels last."""
    zero = int(layer.act_zero.reshape(-1)[0])
    if not 0 <= zero <= 255:
        raise Unsupported(f"{path} has an activation zero point of {zero}, outside its codes")
    inverse = np.float32(1) / np.float32(layer.act_scale.reshape(-1)[0])
    value = built.op("Mul", [x, built.constant("inverse", inverse)], "steps")
    if layer.in_mult is not None:
        factor = layer.in_mult.numpy().astype(np.float32).reshape(-1)
        shape = (-1,) if layer.kind == "linear" else (1, -1, 1, 1)
        value = built.op(
            "Mul", [value, built.constant("factor", factor.reshape(shape))], "levelled"
        )
    unit = [built.constant("one", np.float32(1)), built.constant("zero", np.uint8(zero))]
    value = built.op("QuantizeLinear", [value, *unit], "codes")
    if layer.act_bits < 8:
        low = built.constant("low", np.uint8(0))
        high = built.constant("high", np.uint8((1 << layer.act_bits) - 1))
        value = built.op("Clip", [value, low, high], "clipped")
    if layer.kind == "linear":
        return value
    return built.op("Transpose", [value], "last", perm=[0, 2, 3, 1])


def _patches(built: _Built, acts: str, layer: IntegerLayer) -> str:
    """Codes of all kernel positions side by side, (N, H, W, positions x channels)."""
    height, width = layer.weight_codes.shape[2:]
    high, wide = layer.padding
    if high or wide:
        pads = built.constant("pads", np.array([0, high, wide, 0, 0, high, wide, 0], np.int64))
        acts = built.op("Pad", [acts, pads, f"{built.prefix}zero"], "padded")
    if (height, width) == (1, 1) and tuple(layer.stride) == (1, 1):
        return acts
    axes = built.constant("axes", np.array([1, 2], np.int64))
    steps = built.constant("strides", np.array(layer.stride, np.int64))
    parts = []
    for row in range(height):
        for column in range(width):
            starts = [row * layer.dilation[0], column * layer.dilation[1]]
            after = [
                (height - 1 - row) * layer.dilation[0],
                (width - 1 - column) * layer.dilation[1],
            ]
            ends = [-each if each else _END for each in after]
            at = f"{row}.{column}"
            first = built.constant(f"start.{at}", np.array(starts, np.int64))
            last = built.constant(f"end.{at}", np.array(ends, np.int64))
            parts.append(built.op("Slice", [acts, first, last, axes, steps], f"patch.{at}"))
    return parts[0] if len(parts) == 1 else built.op("Concat", parts, "patches", axis=3)


def _multiplied(
    built: _Built, acts: str, path: str, layer: IntegerLayer, *, saturates: bool
) -> str:
    """Integer sums, (..., O) int32, zero points of both sides taken off."""
    codes = layer.weight_codes.numpy().astype(np.int32)
    if layer.kind != "linear":
        codes = codes.transpose(0, 2, 3, 1)  # as the patches: positions, then channels
    rows = codes.reshape(len(codes), -1)
    zero = layer.weight_zero.numpy().astype(np.int32).reshape(-1)
    centred = rows - zero[:, None]
    largest = int(np.abs(centred).max(initial=0))
    at = f"{built.prefix}zero"
    top = 2 * ((1 << layer.act_bits) - 1)
    if saturates and top * largest > np.iinfo(np.int16).max:
        if zero.min() < -128 or zero.max() > 127:
            raise Unsupported(f"{path} has weight zero points that do not fit uint8")
        plain = built.constant("weight", (rows.T + 128).astype(np.uint8))
        zeros = built.constant("weight_zero", (zero + 128).astype(np.uint8))
        return built.op("MatMulInteger", [acts, plain, at, zeros], "sums")
    if centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127:
        weight = built.constant("weight", centred.T.astype(np.int8))
        return built.op("MatMulInteger", [acts, weight, at], "sums")
    ones = np.ones((rows.shape[1], 1), np.int8)
    weight = built.constant("weight", np.concatenate([rows.T.astype(np.int8), ones], 1))
    both = built.op("MatMulInteger", [acts, weight, at], "both")
    axis = built.constant("last_axis", np.array([-1], np.int64))
    split = [built.constant(f"split.{i}", np.array([i], np.int64)) for i in (0, len(rows), _END)]
    sums = built.op("Slice", [both, split[0], split[1], axis], "with_zero_points")
    total = built.op("Slice", [both, split[1], split[2], axis], "total")
    part = built.op("Mul", [total, built.constant("weight_zero", zero)], "zero_points")
    return built.op("Sub", [sums, part], "sums")
