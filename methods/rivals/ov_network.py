"""A denoiser as an OpenVINO model: conversion, compilation for one shape at a time, counting.

The protocol's one thread is set here. So is the precision: on processors with bfloat16 arithmetic
OpenVINO rounds everything to it unless told otherwise.
"""

import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.rivals.positional import Positional, arguments

MODEL = "model.xml"
F32, BF16 = "f32", "bf16"
_DEVICE = "CPU"
_MACS = frozenset({"Convolution", "GroupConvolution", "MatMul", "FullyConnected"})


def convert(network: nn.Module, points: CalibrationSet) -> Any:
    """An ``openvino.Model`` of a network, for any number of rows.

    Args:
        network: full precision.
        points: a few recorded calls, one row each; shapes but for the rows are theirs.
    """
    import openvino as ov

    wrapped = Positional(network, points.conditions).eval()
    example = tuple(arguments(points.sample, points.timestep, points.conditions))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every branch on a shape
        model = ov.convert_model(wrapped, example_input=example)
    shapes = [[-1, *tensor.shape[1:]] for tensor in example]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    return model


def save(model: Any, folder: Path) -> None:
    """Write a model into a folder, its weights in the formats that they have."""
    import openvino as ov

    ov.save_model(model, folder / MODEL, compress_to_fp16=False)


def has_bf16() -> bool:
    """Whether OpenVINO finds bfloat16 arithmetic on this processor."""
    import openvino as ov

    return "BF16" in ov.Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVinoNetwork(nn.Module):
    """A model of OpenVINO in the place of a network.

    Shapes that are known at compilation run faster than free ones, so the model is compiled again
    for each number of rows: one for a sampler's batches, and one for a last, smaller batch.

    Args:
        file: a saved model.
        precision: ``f32`` or ``bf16``; quantized layers stay in int8 under either.
    """

    core: Any
    model: Any
    compiled: dict[tuple[tuple[int, ...], ...], Any]

    def __init__(self, file: Path, precision: str) -> None:
        super().__init__()
        import openvino as ov

        self.precision = precision
        self.__dict__["core"] = ov.Core()
        self.__dict__["model"] = self.core.read_model(file)
        self.__dict__["compiled"] = {}

    def forward(
        self, sample: Tensor, timestep: Any, return_dict: bool = False, **conditions: Any
    ) -> tuple[Tensor]:
        """The model's output."""
        given = list(arguments(sample, timestep, conditions))
        compiled = self.for_shapes([tuple(tensor.shape) for tensor in given])
        arrays = [tensor.numpy() for tensor in given]
        # the output's memory is that of the next call's output
        result = compiled(arrays, share_inputs=True, share_outputs=True)[0].copy()
        return (torch.from_numpy(result),)

    def compiled_for(self, points: CalibrationSet) -> Any:
        """The ``openvino.CompiledModel`` for as many rows as there are points."""
        given = arguments(points.sample, points.timestep, points.conditions)
        return self.for_shapes([tuple(tensor.shape) for tensor in given])

    def for_shapes(self, shapes: list[tuple[int, ...]]) -> Any:
        """The model compiled for inputs of these shapes.

        Returns:
            An ``openvino.CompiledModel``.
        """
        key = tuple(shapes)
        if key not in self.compiled:
            model = self.model.clone()
            model.reshape(dict(zip(model.inputs, map(list, shapes), strict=True)))
            self.compiled[key] = self.core.compile_model(model, _DEVICE, self._settings())
        return self.compiled[key]

    def _settings(self) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": self.precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else inputs of some layers become int8 unasked
        }


def constant_bytes(compiled: Any) -> int:
    """Bytes of all constants in the graph that runs, in the number formats that it holds them.

    Copies that single operations make in an order of their own are not named there.
    """
    total = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _said(node, "layerType") == "Const":
            output = node.output(0)
            total += prod(output.shape) * output.element_type.bitwidth // 8
    return total


def integer_layers(compiled: Any, layers: Mapping[str, Any]) -> dict[str, Bits]:
    """The layers whose product runs on int8 codes, by the names that the graph that runs keeps."""
    found = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        if _said(node, "layerType") in _MACS and _said(node, "runtimePrecision") in ("i8", "u8"):
            for source in _said(node, "originalLayersNames").split(","):
                path = source.removeprefix("__module.network.").split("/")[0]
                if path in layers:
                    found[path] = Bits(8, 8)
    return found


def _said(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
