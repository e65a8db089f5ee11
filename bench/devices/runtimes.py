"""What runs a packed network: our own kernels, or another runtime from the same codes."""

from abc import ABC, abstractmethod
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from torch import nn

from quantarena.bench import machine
from quantarena.bench.devices.device import DTYPES
from quantarena.bench.target import DEFAULT_TARGET, LIBRARIES, Target
from quantarena.methods.core.errors import QuantArenaError, Unsupported
from quantarena.methods.core.network import Network
from quantarena.methods.core.packed.number_format import InFormat
from quantarena.methods.core.packed.pack import PackedModel, backend_of
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.rival import Prepared
from quantarena.methods.rivals.stand_in import StandIn


class Runtime(ABC):
    """Runs packed networks on a target.

    ``build`` may write files that take long to make; the harness keeps them in its cache.
    """

    @property
    def version(self) -> str:
        """Version of the library that it needs; empty where it needs none."""
        return ""

    @abstractmethod
    def build(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> None:
        """Write what takes long to make into an empty folder."""

    @abstractmethod
    def prepare(
        self, packed: PackedModel, target: Target, original: nn.Module, folder: Path
    ) -> Network:
        """The network as it runs on the target; ``packed`` may be changed.

        Args:
            packed: lies on the target's device.
            target: device and number format.
            original: the denoiser that it stands for.
            folder: where ``build`` wrote.
        """


class TorchRuntime(Runtime):
    """Our own kernels, inside the torch network."""

    def build(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> None:
        """Nothing: packed layers are ready to run."""

    def prepare(
        self, packed: PackedModel, target: Target, original: nn.Module, folder: Path
    ) -> Network:
        """The network itself, what stays unquantized in the target's number format."""
        lowered = InFormat(packed.module, DTYPES[target.dtype])
        return replace(packed, module=StandIn(original, lowered))


class FileRuntime(Runtime):
    """A runtime of another library, which runs a model file of the same codes on the CPU.

    Attributes:
        name: as ``--runtime`` says it.
        title: as people say it.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    @property
    def version(self) -> str:
        """Of the library that runs the file."""
        library = LIBRARIES[self.name][-1]
        return f"{library} {version(library)}"

    @abstractmethod
    def write(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> int:
        """Write the model file.

        Args:
            packed: the network, on the CPU.
            points: a few calls, which its converter sees.
            folder: where the model goes.

        Returns:
            The number of layers that run in integers: all that are packed.

        Raises:
            Unsupported: a layer has no form that the runtime computes in integers.
            QuantArenaError: the runtime does not compute one in integers on this processor.
        """

    @abstractmethod
    def network(self, folder: Path, dtype: str = DEFAULT_TARGET.dtype) -> nn.Module:
        """What runs the model file, with what stays unquantized in this number format.

        Raises:
            Unsupported: the runtime does not know that format.
        """

    def build(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> None:
        """Write the model file."""
        self.write(packed, points, folder)

    def prepare(
        self, packed: PackedModel, target: Target, original: nn.Module, folder: Path
    ) -> Network:
        """The loaded model file."""
        return Prepared(
            StandIn(original, self.network(folder, target.dtype)),
            f"{self.name} packed",
            packed.bytes(),
            lines=packed.remarks(),
            clock=packed.clock,
        )


class OpenVinoRuntime(FileRuntime):
    """OpenVINO's CPU plugin, whose int8 products compute our codes."""

    name, title = "openvino", "OpenVINO"

    @property
    def version(self) -> str:
        """Of the library, and of the weights' form: a cached file serves processors of its kind."""
        return super().version + ("" if machine.has_dot_products() else ", halved weights")

    def write(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> int:
        """Write the model, compile it and look what runs in int8."""
        from quantarena.methods.rivals import ov_network
        from quantarena.methods.runtimes import openvino_graph
        from quantarena.methods.runtimes.plain_layers import plain_network

        plain = plain_network(packed)
        model = ov_network.convert(plain.module, points)
        openvino_graph.fill(model, plain.layers, saturates=not machine.has_dot_products())
        ov_network.save(model, folder)
        network = ov_network.OpenVinoNetwork(folder / ov_network.MODEL, ov_network.F32)
        integer = ov_network.integer_layers(network.compiled_for(points), plain.layers)
        if left := sorted(set(plain.layers) - set(integer)):
            raise QuantArenaError(f"OpenVINO does not run {left[0]} in int8 on this processor")
        return len(integer)

    def network(self, folder: Path, dtype: str = DEFAULT_TARGET.dtype) -> nn.Module:
        """The model, which is compiled for each shape when it first comes."""
        from quantarena.methods.rivals import ov_network

        precision = ov_network.F32 if dtype == "fp32" else ov_network.BF16
        return ov_network.OpenVinoNetwork(folder / ov_network.MODEL, precision)


class OnnxRuntime(FileRuntime):
    """ONNX Runtime on the CPU, whose integer operators compute our codes."""

    name, title = "onnx", "ONNX Runtime"

    @property
    def version(self) -> str:
        """Of the library, and of the weights' form: a cached file serves processors of its kind."""
        return super().version + ("" if machine.has_dot_products() else ", uint8 weights")

    def write(self, packed: PackedModel, points: CalibrationSet, folder: Path) -> int:
        """Write the model; its integer operators are exact by their definition."""
        from quantarena.methods.runtimes import onnx_graph, onnx_network
        from quantarena.methods.runtimes.plain_layers import plain_network

        plain = plain_network(packed)
        model = onnx_network.convert(plain.module, points)
        onnx_graph.fill(model, plain.layers, saturates=not machine.has_dot_products())
        onnx_network.save(model, folder)
        return len(plain.layers)

    def network(self, folder: Path, dtype: str = DEFAULT_TARGET.dtype) -> nn.Module:
        """The model in a session of one thread."""
        from quantarena.methods.runtimes import onnx_network

        if dtype != "fp32":
            raise Unsupported(f"ONNX Runtime computes in fp32 on CPUs, not in {dtype}")
        return onnx_network.OnnxNetwork(folder / onnx_network.MODEL)


FILE_RUNTIMES: dict[str, FileRuntime] = {
    each.name: each for each in (OpenVinoRuntime(), OnnxRuntime())
}
RUNTIMES: dict[str, Runtime] = {"torch": TorchRuntime(), **FILE_RUNTIMES}


def placed(packed: PackedModel, target: Target) -> PackedModel:
    """A packed network with its layers on the target's device; ``packed`` is changed.

    With ``offload`` they stay on the host and visit the device.

    Raises:
        Unsupported: packed layers do not run there.
    """
    if target.kind == "cpu" or packed.backend == "fp32":
        return packed
    if target.kind != "cuda":
        raise Unsupported(f"packed layers run on CPUs and CUDA GPUs, not on {target.device}")
    from quantarena.methods.core.cuda.place import on_cuda

    module = on_cuda(packed.module, target.device)
    layers = {name: module.get_submodule(name) for name in packed.layers}
    return replace(
        packed, module=module, layers=layers, backend=backend_of(layers, packed.attention)
    )
