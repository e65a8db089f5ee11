"""From a quantized model to packed integer layers, and the gate that ties the two together."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.account import Account, account
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.packed import PackedLayer
from quantarena.methods.core.kernels.split import SplitPackedLayer
from quantarena.methods.core.layers import QuantLayer
from quantarena.methods.core.model import QuantizedModel, place
from quantarena.methods.core.trajectory import CalibrationSet

PARITY_LIMIT = 1e-5
"""Largest accepted max-abs difference over max-abs output of a layer, packed against fake."""


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A network whose quantized layers hold packed codes and nothing else of their weights.

    Attributes:
        module: same forward as the original; runs inside its diffusers pipeline.
        layers: packed layers by module path.
        backend: ``packed`` where the native kernels run, ``reference`` for the slow integer path,
            ``fp32`` where nothing was quantized, ``fake`` where a layer cannot pack.
    """

    module: nn.Module
    layers: Mapping[str, nn.Module]
    backend: str

    def parts(self, name: str) -> list[PackedLayer]:
        """The packed parts of one layer."""
        return [m for m in self.layers[name].modules() if isinstance(m, PackedLayer)]

    def widths(self) -> dict[str, Bits]:
        """Bits of every layer as its packed tensors hold them; the widest part counts."""
        found = {}
        for name in self.layers:
            parts = self.parts(name)
            weight = max(round(part.weight_bits_observed) for part in parts)
            found[name] = Bits(weight, max(part.metadata["act_bits"] for part in parts))
        return found

    def bytes(self) -> int:
        """Bytes of all tensors of the network, packed codes, scales and padding included."""
        packed = [part for name in self.layers for part in self.parts(name)]
        inside = {id(t) for part in packed for t in (*part.parameters(), *part.buffers())}
        rest = {
            id(t): t.numel() * t.element_size()
            for t in (*self.module.parameters(), *self.module.buffers())
            if id(t) not in inside
        }
        return sum(part.packed_bytes for part in packed) + sum(rest.values())


def integer_layers(layer: QuantLayer) -> list[IntegerLayer]:
    """One integer layer a part, bias in the first.

    Raises:
        ValueError: a side is in floating point, or the codes are not frozen.
    """
    found = []
    geometry: dict[str, Any] = {}
    if layer.is_conv:
        geometry = {"stride": layer.stride, "padding": layer.padding}
        geometry |= {"dilation": layer.dilation, "groups": layer.groups}
    for index, part in enumerate(layer.part_list()):
        wq, aq = part.weight_quantizer, part.static
        if wq is None or aq is None or wq.codes is None:
            raise ValueError("only a layer with frozen weight codes and quantized input packs")
        offset = 2 ** (wq.bits - 1)
        rows = layer.weight.shape[0]
        mult = None if layer.in_mult is None else layer.in_mult[part.start : part.stop]
        found.append(
            IntegerLayer(
                kind="conv2d" if layer.is_conv else "linear",
                weight_codes=(wq.codes.to(torch.int16) - offset).to(torch.int8),
                weight_bits=wq.bits,
                weight_scale=wq.scale.detach().reshape(-1).expand(rows).contiguous(),
                weight_zero=(wq.zero_point.reshape(-1).expand(rows) - offset).to(torch.int32),
                act_bits=aq.bits,
                act_scale=aq.scale.detach(),
                act_zero=aq.zero_point.to(torch.int32),
                in_mult=mult,
                bias=layer.bias if index == 0 else None,
                **geometry,
            )
        )
    return found


def pack_layer(layer: QuantLayer) -> nn.Module:
    """One packed layer, or the sum of packed parts where the layer is split."""
    pieces = integer_layers(layer)
    return PackedLayer(pieces[0]) if len(pieces) == 1 else SplitPackedLayer(pieces)


def pack(model: QuantizedModel) -> PackedModel:
    """Replace every quantized layer by its packed form.

    The network runs channels-last inside: packed convolutions read the channels of a pixel side by
    side, and attention then needs no transposition of its tokens.
    """
    if not model.layers:
        return PackedModel(model.module, {}, "fp32")
    memo = {id(layer): layer for layer in model.layers.values()}  # not copied, replaced below
    module = copy.deepcopy(model.module, memo)  # type: ignore[arg-type]
    packed: dict[str, nn.Module] = {}
    for name, layer in model.layers.items():
        packed[name] = pack_layer(layer)
        place(module, name, packed[name])
    channels_last(module)
    result = PackedModel(module, packed, "packed")
    backends = {part.backend for name in packed for part in result.parts(name)}
    backend = "packed" if backends == {"packed"} else "reference"
    return PackedModel(module, packed, backend)


def channels_last(module: nn.Module) -> nn.Module:
    """Make a network take and keep its images channels-last; 4-d inputs are converted on entry."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def convert(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(_last(a) for a in args), {k: _last(v) for k, v in kwargs.items()}

    module.register_forward_pre_hook(convert, with_kwargs=True)
    return module


def _last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Packed against fake quantization, layer by layer, on the same inputs."""

    max_rel: float
    worst_layer: str
    layers: int


@torch.no_grad()
def parity(model: QuantizedModel, packed: PackedModel, points: CalibrationSet) -> ParityReport:
    """Compare every packed layer with its fake-quantized twin on the inputs that reach it.

    Args:
        model: frozen.
        packed: packed from ``model``.
        points: a few calibration points.

    Raises:
        QuantArenaError: a layer differs by more than ``PARITY_LIMIT``, or never ran.
    """
    worst, where = 0.0, ""
    compared: set[str] = set()

    def compare(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            nonlocal worst, where
            other = packed.layers[name](args[0])
            scale = float(output.abs().max())
            gap = float((output - other).abs().max()) / max(scale, 1e-12)
            compared.add(name)
            if math.isnan(gap):  # no number is above NaN, a later layer would hide it
                gap = math.inf
            if gap > worst:
                worst, where = gap, name

        return note

    handles = [layer.register_forward_hook(compare(n)) for n, layer in model.layers.items()]
    try:
        model.run(points)
    finally:
        for handle in handles:
            handle.remove()
    if not worst <= PARITY_LIMIT:
        raise QuantArenaError(
            f"packed and fake quantization differ by {worst:.2e} at {where}; the limit is "
            f"{PARITY_LIMIT:.0e}"
        )
    if missed := sorted(set(model.layers) - compared):
        raise QuantArenaError(f"parity never reached {missed[0]}: {len(missed)} layers did not run")
    return ParityReport(worst, where, len(compared))


def observe(model: QuantizedModel, packed: PackedModel, original: nn.Module) -> Account:
    """Bits, bytes and coverage of the packed network."""
    return account(model.graph, packed.widths(), original, packed.bytes())
