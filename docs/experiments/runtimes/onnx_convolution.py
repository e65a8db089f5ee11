"""Times a convolution in ONNX Runtime: in fp32, as ConvInteger, and as our export writes it.

docs/runtimes.md has the numbers of ``python docs/experiments/runtimes/onnx_convolution.py``: 3x3,
128 channels, 16x16 positions, 16 images, 8-bit weights and activations, one thread.
"""

import copy
import tempfile
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from quantarena.bench.devices.turns import take_turns
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.record.trajectory import CalibrationSet
from quantarena.methods.runtimes import onnx_graph, onnx_network

CHANNELS, SIDE, IMAGES, ROUNDS = 128, 16, 16, 20
INT8 = "MatMulInteger, int8 weights"


class Net(nn.Module):
    """A denoiser of one convolution."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """The convolution; the timestep changes nothing, but an exporter keeps what is used."""
        return (self.layer(sample * (0 * timestep + 1).reshape(-1, 1, 1, 1)),)


def as_conv_integer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same codes with ConvInteger in the place of patches and MatMulInteger."""
    kept = []
    for node in model.graph.node:
        if node.op_type in ("Pad", "Slice", "Concat") or node.name.endswith("/last"):
            continue
        if node.op_type == "MatMulInteger":
            weight = next(w for w in model.graph.initializer if w.name == node.input[1])
            rows = numpy_helper.to_array(weight).reshape(3, 3, CHANNELS, CHANNELS)
            weight.CopyFrom(numpy_helper.from_array(rows.transpose(3, 2, 0, 1), weight.name))
            node.op_type = "ConvInteger"
            node.input[0] = node.name.replace("sums", "codes")
            node.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
        if node.op_type == "Mul" and node.name.endswith("/scaled"):
            scale = next(s for s in model.graph.initializer if s.name == node.input[1])
            shaped = numpy_helper.to_array(scale).reshape(-1, 1, 1)
            scale.CopyFrom(numpy_helper.from_array(shaped, scale.name))
        if node.op_type == "Transpose":
            node.op_type = "Identity"
            del node.attribute[:]
        kept.append(node)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made


def main() -> None:
    """Print milliseconds of each."""
    torch.set_num_threads(1)
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False).requires_grad_(False)
    layer = IntegerLayer(
        kind="conv2d",
        weight_codes=torch.randint(-127, 128, conv.weight.shape, dtype=torch.int8),
        weight_bits=8,
        weight_scale=torch.full((CHANNELS,), 0.01),
        weight_zero=torch.zeros(CHANNELS, dtype=torch.int32),
        act_bits=8,
        act_scale=torch.tensor(0.05),
        act_zero=torch.tensor(128),
        padding=(1, 1),
    )
    x = torch.randn(IMAGES, CHANNELS, SIDE, SIDE)
    points = CalibrationSet(x, torch.zeros(IMAGES), torch.zeros(IMAGES, dtype=torch.long))
    plain = onnx_network.convert(Net(conv), points)
    models = {"fp32": plain}
    for name, saturates in ((INT8, False), ("MatMulInteger, uint8 weights", True)):
        models[name] = model = copy.deepcopy(plain)
        onnx_graph.fill(model, {"layer": layer}, saturates=saturates)
    models["ConvInteger"] = as_conv_integer(copy.deepcopy(models[INT8]))
    with tempfile.TemporaryDirectory() as place:
        networks = {}
        for name, model in models.items():
            folder = Path(place) / name
            folder.mkdir()
            onnx_network.save(model, folder)
            networks[name] = onnx_network.OnnxNetwork(folder / onnx_network.MODEL)
        found, wanted = (points.call(networks[n]) for n in ("ConvInteger", INT8))
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5), "not the same product"
        turns = take_turns(networks, points, ROUNDS)
    for name in networks:
        print(f"{name}: {1e3 * sorted(turns.seconds(name))[ROUNDS // 2]:.1f} ms")
    print(turns.warning or f"{ROUNDS} undisturbed rounds in turns, medians")


if __name__ == "__main__":
    main()
