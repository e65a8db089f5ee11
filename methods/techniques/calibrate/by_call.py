"""Groups calibration points and their values by sampler call."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.core.record.rows import module_rows

_Value = TypeVar("_Value")


def shared_inputs(model: QuantizedModel, points: CalibrationSet) -> frozenset[str]:
    """Layers whose input has no batch axis in front: none of its rows belongs to one point.

    Such an input cannot have ranges by sampler call, nor by position, since nothing says which of
    its values belong to which call. Layers that do not run on the first points are not among them.
    """
    with model.using(weights=False, acts=False):
        rows = module_rows(model.module, points, model.layers, model.run)
    return frozenset(name for name, found in rows.items() if not found.follows)


def at_call(values: Mapping[int, _Value], call: int) -> _Value:
    """The value of a sampler call; of the nearest one for a layer that did not run at this call."""
    return values[min(values, key=lambda known: abs(known - call))]


def near_call(values: Mapping[int, _Value], call: int, reach: int) -> list[_Value]:
    """The values of a sampler call and of up to ``reach`` calls before and after it.

    Where a layer did not run at these calls, the value of the nearest call at which it did.
    """
    near = [values[c] for c in range(call - reach, call + reach + 1) if c in values]
    return near or [at_call(values, call)]


def is_shared(x: Tensor, points: CalibrationSet) -> bool:
    """Whether an input belongs to all points: its rows cannot be shared out among them."""
    return bool(x.shape[0] % len(points))


def by_call(x: Tensor, points: CalibrationSet, per_call: bool) -> Iterator[tuple[int, Tensor]]:
    """Split the rows of ``x`` by sampler call; all rows come under call 0 if not ``per_call``.

    An input whose rows cannot be shared out among the points, such as a learned table, is the same
    at every call: all its rows come under each call of the points.
    """
    if not per_call:
        yield 0, x
        return
    if is_shared(x, points):
        for call in torch.unique(points.step):
            yield int(call), x
        return
    step = points.step.repeat_interleave(x.shape[0] // len(points))
    for call in torch.unique(step):
        yield int(call), x[step == call]
