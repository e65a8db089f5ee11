"""The parity gate: packed layers against their fake-quantized twins, on the same inputs."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.network import device_of
from quantarena.methods.core.packed.attention_parity import attention_parity
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.record.points import CalibrationSet

PARITY_LIMIT = 1e-5
"""Largest accepted max-abs difference over max-abs output of a layer, packed against fake."""


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Packed against fake quantization, layer by layer, on the same inputs."""

    max_rel: float
    worst_layer: str
    layers: int


@torch.no_grad()
def parity(model: QuantizedModel, packed: PackedModel, points: CalibrationSet) -> ParityReport:
    """Compare every packed layer with its fake-quantized twin on the inputs that reach it.

    Quantized attention products, fake and packed, are compared with their integer sums. The two
    networks need not be on one device: the packed one gets a copy of each input on its own.

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
            x, twin = args[0], packed.layers[name]
            other = twin(x.to(device_of(twin) or x.device)).to(output.device)
            scale = float(output.abs().max())
            gap = float((output - other).abs_().max()) / max(scale, 1e-12)
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
    gaps = attention_parity(model, points, packed.attention) if model.attention else {}
    for name, gap in gaps.items():
        if gap > worst:
            worst, where = gap, name
    if not worst <= PARITY_LIMIT:
        raise QuantArenaError(
            f"packed and fake quantization differ by {worst:.2e} at {where}; the limit is "
            f"{PARITY_LIMIT:.0e}"
        )
    if missed := sorted(set(model.layers) - compared):
        raise QuantArenaError(f"parity never reached {missed[0]}: {len(missed)} layers did not run")
    return ParityReport(worst, where, len(compared))
