"""Activation ranges averaged over windows of points, as in the released code of several methods.

PTQ4DM (Shang et al., CVPR 2023) and EDA-DM (arXiv:2401.04585) calibrate batch by batch: they search
a range on each batch and use an exponential moving average of the bounds.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.ema import EmaRange

MOMENTUM, WINDOW = 0.9, 256
"""Momentum and batch size of the released code."""


def calibrate_averaged(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    *,
    seed: int,
    momentum: float = MOMENTUM,
    window: int = WINDOW,
    batch: int = 0,
) -> None:
    """Set the static range of every layer's input and of every quantized attention operand.

    The points are shuffled and cut into windows. Up to ``window`` points this is one search over
    all of them.

    Args:
        model: network with its weight ranges set.
        points: points to run.
        search: range search used in each window.
        seed: seed of the shuffle.
        momentum: weight of earlier windows when one is added, in [0, 1).
        window: points of one window.
        batch: points of one forward pass; 0 as ``CalibrationSet.batches`` has it.
    """
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    running: dict[str, EmaRange] = {}
    for subset in points.rows(order).batches(window):
        calibrate_activations(model, subset, search, batch=batch)
        for name, quantizer in _static(model):
            past = running.get(name, EmaRange(momentum))
            running[name] = past.update(*_bounds(quantizer.params))
    for name, quantizer in _static(model):
        quantizer.set_params(running[name].params(quantizer.bits))


def _static(model: QuantizedModel) -> Iterator[tuple[str, ActQuantizer]]:
    """Every static activation quantizer, with a unique name."""
    for path, layer in model.layers.items():
        for index, part in enumerate(layer.parts):
            if part.static is not None:
                yield f"{path}/{index}", part.static
    for index, quantizer in enumerate(model.product_quantizers()):
        yield f"products/{index}", quantizer


def _bounds(params: QuantParams) -> tuple[Tensor, Tensor]:
    """Values of the first and the last code."""
    low = -params.zero_point.detach() * params.scale.detach()
    return low, low + (params.levels - 1) * params.scale.detach()


Calibrate = Callable[[QuantizedModel, CalibrationSet, RangeSearch, int], None]
"""A way to set activation ranges: called with the model, its points, a range search and a seed."""


def all_at_once(
    model: QuantizedModel, points: CalibrationSet, search: RangeSearch, seed: int
) -> None:
    """One range for each input from all points; the seed is not used."""
    calibrate_activations(model, points, search)


def averaged(model: QuantizedModel, points: CalibrationSet, search: RangeSearch, seed: int) -> None:
    """Ranges averaged over windows of points, as released code of several methods has them."""
    calibrate_averaged(model, points, search, seed=seed)
