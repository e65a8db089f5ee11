"""Weights that are quantized once for several forward and backward passes of one update."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.weight import WeightQuantizer


@contextmanager
def held_weights(model: QuantizedModel) -> Iterator[None]:
    """Quantize every weight that still learns once for all passes inside the block.

    The passes add up the gradients of the quantized weights; at the end of the block these go
    through the quantizers together.
    """
    parts = [(layer, part) for layer in model.layers.values() for part in layer.parts]
    held: list[tuple[WeightQuantizer, Tensor]] = []
    try:
        for layer, part in parts:
            quantizer = part.weight_quantizer
            if quantizer is not None and quantizer.codes is None:
                held.append((quantizer, quantizer.hold(layer.part_weight(part))))
        yield
        gradients = [(value, q.held.grad) for q, value in held if q.held is not None]
    finally:
        for quantizer, _ in held:
            quantizer.held = None
    known = [(value, gradient) for value, gradient in gradients if gradient is not None]
    torch.autograd.backward([v for v, _ in known], [g for _, g in known])  # type: ignore[no-untyped-call]
