"""A few whole inputs of every layer, for methods that try several versions of a layer."""

from torch import Tensor

from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet, evenly
from quantarena.methods.techniques.calibrate.watch import watch_inputs

MOST = 1 << 20
"""Values kept of a layer: 4 MiB."""


def layer_inputs(
    model: QuantizedModel, points: CalibrationSet, count: int, *, most: int = MOST
) -> dict[str, Tensor]:
    """Each layer's input at some of the points, from one pass in floating point.

    Args:
        model: its layers; multipliers are applied.
        points: ``count`` of them are run, evenly spread, all where there are fewer.
        count: points.
        most: values kept of a layer; where its inputs are larger, fewer rows are kept, evenly
            spread, but at least one.

    Returns:
        By layer, (rows, ...); layers that did not run are missing.
    """
    rows = min(count, len(points))
    kept: dict[str, Tensor] = {}

    def watch(name: str, layer: QuantLayer, x: Tensor, subset: CalibrationSet) -> None:
        fit = max(1, most // x[0].numel())
        kept[name] = x[evenly(len(x), fit)].clone() if fit < len(x) else x

    few = points.rows(evenly(len(points), rows))
    watch_inputs(model, few, watch, quantized_weights=False, batch=rows)
    return kept
