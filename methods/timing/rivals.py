"""Other 8-bit layers to time beside ours, with fp32 inputs and outputs: torch and onnxruntime."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from quantarena.methods.timing.cases import Case

Run = Callable[[], object]
SCALE, ZERO = 0.03, 128
"""Scale and zero point of activations; outputs have scale 1, whose rounding takes the same time."""
_OPSET, _IR = 17, 8


def rivals(case: Case, weight: Tensor, x: Tensor) -> dict[str, Run]:
    """The layers that can run here, by name.

    Args:
        case: the layer.
        weight: float32 weights.
        x: float32 input, contiguous.

    Returns:
        ``torch int8`` and ``onnxruntime``, each only where it is installed and has the layer.
    """
    layers = {"torch int8": _torch(case, weight, x), "onnxruntime": _onnx(case, weight, x)}
    return {name: run for name, run in layers.items() if run is not None}


def _codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit codes by output channel, and their scales."""
    scale = weight.flatten(1).abs().amax(dim=1) / 127
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scale.view(shape)).round().to(torch.int8), scale


def _torch(case: Case, weight: Tensor, x: Tensor) -> Run | None:
    """Torch's static x86 layer, or None where this build lacks it."""
    ops: Any = torch.ops.quantized
    _, scale = _codes(weight)
    zero = torch.zeros(weight.shape[0], dtype=torch.int64)
    try:
        torch.backends.quantized.engine = "x86"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the removal of these types
            w = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
            torch.quantize_per_tensor(x, SCALE, ZERO, torch.quint8)
            if case.kind == "linear":
                packed, layer = ops.linear_prepack(w, None), ops.linear
            else:
                packed = ops.conv2d_prepack(w, None, [1, 1], [1, 1], [1, 1], 1)
                layer = ops.conv2d
    except (RuntimeError, AttributeError):
        return None

    def run() -> object:
        codes = torch.quantize_per_tensor(x, SCALE, ZERO, torch.quint8)
        return layer(codes, packed, 1.0, 0).dequantize()

    return run


def _onnx(case: Case, weight: Tensor, x: Tensor) -> Run | None:
    """An onnxruntime layer (quantize, QLinear operator, dequantize) with torch's threads."""
    try:  # optional, and without types
        onnx: Any = import_module("onnx")
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError:
        return None
    codes, scale = _codes(weight)
    if case.kind == "linear":
        codes = codes.t().contiguous()
    arrays: dict[str, Any] = {
        "xs": torch.tensor(SCALE),
        "xz": torch.tensor(ZERO, dtype=torch.uint8),
        "w": codes,
        "ws": scale,
        "wz": torch.zeros(len(scale), dtype=torch.int8),
        "ys": torch.tensor(1.0),
        "yz": torch.tensor(ZERO, dtype=torch.uint8),
    }
    node = onnx.helper.make_node
    product = ["a", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    attributes = {} if case.kind == "linear" else {"pads": [1, 1, 1, 1]}
    name = "QLinearMatMul" if case.kind == "linear" else "QLinearConv"
    image = [None] * x.dim()
    graph = onnx.helper.make_graph(
        [
            node("QuantizeLinear", ["x", "xs", "xz"], ["a"]),
            node(name, product, ["b"], **attributes),
            node("DequantizeLinear", ["b", "ys", "yz"], ["y"]),
        ],
        "layer",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, image)],
        [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    array = x.numpy()
    return lambda: session.run(None, {"x": array})
