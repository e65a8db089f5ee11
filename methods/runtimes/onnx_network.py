"""A denoiser as an ONNX model, and ONNX Runtime in the place of a network."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.rivals.positional import Positional, arguments

MODEL = "model.onnx"
OPSET = 20
"""The newest operator set that torch's tracing exporter writes."""


def convert(network: nn.Module, points: CalibrationSet) -> Any:
    """An ``onnx.ModelProto`` of a network, for any number of rows.

    The names of its nodes begin with the path of their module: the tracing exporter is used, which
    keeps them.

    Args:
        network: a plain network.
        points: a few recorded calls, one row each; shapes but for the rows are theirs.
    """
    import onnx

    wrapped = Positional(network, points.conditions).eval()
    example = tuple(arguments(points.sample, points.timestep, points.conditions))
    names = ["sample", "timestep", *wrapped.names]
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every branch on a shape
        written = Path(place) / MODEL
        torch.onnx.export(
            wrapped,
            example,
            written,
            dynamo=False,
            input_names=names,
            output_names=["prediction"],
            dynamic_axes={name: {0: "rows"} for name in [*names, "prediction"]},
            opset_version=OPSET,
        )
        return onnx.load_model(written)


def save(model: Any, folder: Path) -> None:
    """Check a model and write it into a folder.

    Raises:
        onnx.checker.ValidationError: it is no valid model.
    """
    import onnx

    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, folder / MODEL)


class OnnxNetwork(nn.Module):
    """A model of ONNX Runtime, on one CPU thread, in the place of a network.

    Args:
        file: a saved model.
    """

    session: Any

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.__dict__["session"] = ort.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self.names = [each.name for each in self.session.get_inputs()]

    def forward(
        self, sample: Tensor, timestep: Any, return_dict: bool = False, **conditions: Any
    ) -> tuple[Tensor]:
        """The model's output."""
        given = arguments(sample, timestep, conditions)
        feeds = {name: each.numpy() for name, each in zip(self.names, given, strict=True)}
        return (torch.from_numpy(self.session.run(None, feeds)[0]),)
