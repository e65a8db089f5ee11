"""Layers of others to time beside ours: torch in bfloat16 and int8, onnxruntime, OpenVINO.

Those of 8 bits take and give fp32, as ours do. Those of bfloat16, in eager torch and compiled, take
and give bfloat16, which is what they have inside of a network.
"""

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from quantarena.methods.rivals.bf16 import computes_bf16
from quantarena.methods.timing.cases import Case

Run = Callable[[], object]
NAMES = {
    "bf16": "bf16",
    "compiled bf16": "cbf16",
    "torch int8": "int8*",
    "onnxruntime": "ort",
    "openvino fp32": "ov32",
    "openvino int8": "ov8",
}
"""The layers of others, and the headings of their columns."""
SCALE, ZERO = 0.03, 128
"""Scale and zero point of activations; outputs have scale 1, whose rounding takes the same time."""
MOST = 127
"""Size of the largest weight code of 8 bits."""
_OPSET, _IR = 17, 8


def rivals(case: Case, weight: Tensor, x: Tensor) -> dict[str, Run]:
    """The layers that can run here, by name.

    Args:
        case: the layer.
        weight: float32 weights.
        x: float32 input, contiguous.

    Returns:
        The layers of ``NAMES``, each only where it is installed, and bfloat16 only where the
        processor computes in it.
    """
    layers = {
        "bf16": _bf16(case, weight, x),
        "compiled bf16": _bf16(case, weight, x, compiled=True),
        "torch int8": _torch(case, weight, x),
        "onnxruntime": _onnx(case, weight, x),
        "openvino fp32": openvino_layer(case, weight, x, None),
        "openvino int8": openvino_layer(case, weight, x, MOST),
    }
    return {name: run for name, run in layers.items() if run is not None}


def _bf16(case: Case, weight: Tensor, x: Tensor, *, compiled: bool = False) -> Run | None:
    """Torch's layer in bfloat16, channels last where it has channels; None where it cannot run.

    Compiled, it is what torch.compile makes of this one layer at this one shape.
    """
    if not computes_bf16():
        return None
    layer: Callable[..., Tensor] = functional.linear
    form = torch.contiguous_format
    if case.kind != "linear":
        layer, form = partial(functional.conv2d, padding=1), torch.channels_last
    image, kernel = (value.bfloat16().contiguous(memory_format=form) for value in (x, weight))
    if not compiled:
        return partial(layer, image, kernel)

    def call(image: Tensor, kernel: Tensor) -> Tensor:
        return layer(image, kernel)

    torch.compiler.reset()  # past a few shapes of one function it would no longer compile
    run = partial(torch.compile(call, dynamic=False), image, kernel)
    try:
        run()
    except Exception:  # whatever the compiler's stages raise, as where there is no C++ compiler
        return None
    return run


def openvino_layer(case: Case, weight: Tensor, x: Tensor, most: int | None) -> Run | None:
    """A model of OpenVINO that has this one layer, in float32 or in int8, with torch's threads.

    In int8 it is inexact without dot-product instructions, as torch's is: see docs/kernels.md.

    Args:
        case: the layer.
        weight: float32 weights.
        x: float32 input, contiguous.
        most: size of the largest weight code in int8; None is float32.

    Returns:
        A call that gives the output, or None where OpenVINO is not installed.
    """
    try:  # optional
        import openvino as core
        import openvino.opset15 as ov
    except ImportError:
        return None
    entry = ov.parameter(list(x.shape), core.Type.f32)
    acts, factor = entry.output(0), ov.constant(weight.numpy()).output(0)
    if most is not None:
        codes, scale = weight_codes(weight, most)
        low, high = (ov.constant(np.float32((end - ZERO) * SCALE)) for end in (0, 255))
        acts = ov.fake_quantize(acts, low, high, low, high, 256).output(0)
        number = ov.convert(ov.constant(codes.numpy(), dtype=core.Type.i8), core.Type.f32)
        each = scale.numpy().reshape([-1] + [1] * (weight.dim() - 1))
        factor = ov.multiply(number, ov.constant(each)).output(0)
    if case.kind == "linear":
        product = ov.matmul(acts, factor, False, True)
    else:
        product = ov.convolution(acts, factor, [1, 1], [1, 1], [1, 1], [1, 1])
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.Core().compile_model(core.Model([product], [entry], "layer"), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(core.Tensor(x.numpy(), shared_memory=True))

    def run() -> object:
        request.infer()
        return request.get_output_tensor().data

    return run


def weight_codes(weight: Tensor, most: int = MOST) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes by output channel, the largest of that size, and their scales."""
    scale = weight.flatten(1).abs().amax(dim=1) / most
    shape = (-1, *[1] * (weight.dim() - 1))
    return (weight / scale.view(shape)).round().to(torch.int8), scale


def _torch(case: Case, weight: Tensor, x: Tensor) -> Run | None:
    """Torch's static x86 layer, or None where this build lacks it."""
    ops: Any = torch.ops.quantized
    _, scale = weight_codes(weight)
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
    codes, scale = weight_codes(weight)
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
