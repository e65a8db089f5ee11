"""Ranges of attention operands from one pass over calibration points."""

from collections.abc import Callable

import torch
from torch import Tensor

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_mode import Watch
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.quantizers.range_search import RangeSearch
from quantarena.methods.core.record.points import CalibrationSet, calls_of
from quantarena.methods.techniques.calibrate.by_call import by_call

_KEEP = 1 << 16
"""Values kept of each range for its search; extremes are always kept."""


class RowSample:
    """Extremes and a random sample of each row's values over all batches."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.kept: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Take in one batch, (rows, values)."""
        ends = torch.stack(rows.aminmax(dim=1), dim=1)
        if rows.shape[1] > self.quota:
            # drawn, not strided: a stride that divides the row length sees one channel only
            generator = torch.Generator().manual_seed(len(self.kept))
            rows = rows[:, torch.randint(rows.shape[1], (self.quota,), generator=generator)]
        self.kept.append(torch.cat([rows, ends], dim=1))

    def values(self) -> Tensor:
        """What was kept of all batches, (rows, values)."""
        return torch.cat(self.kept, dim=1)


def ranged(quant: QuantAttention, operand: str) -> bool:
    """Whether the operand has a range that is found beforehand."""
    return quant.static(operand) is not None


WatchOperand = Callable[[str, str, Tensor, CalibrationSet], None]
"""Called with a module's path, the operand, its values inside its quantizer, and their points."""


@torch.no_grad()
def watch_operands(
    model: QuantizedModel,
    points: CalibrationSet,
    watch: WatchOperand,
    *,
    wanted: Callable[[QuantAttention, str], bool] = ranged,
    quantized_weights: bool = True,
    batch: int = 64,
) -> None:
    """Show every attention operand that is ``wanted`` to ``watch``, in one pass over the points.

    Operands are those of the network with floating-point activations, (samples, heads, rows,
    columns), without excluded tokens.
    """
    current = points

    def watcher(name: str, quant: QuantAttention) -> Watch:
        def show(operand: str, x: Tensor) -> None:
            if wanted(quant, operand):
                watch(name, operand, quant.inside(operand, x), current)

        return show

    watches = {name: watcher(name, quant) for name, quant in model.attention.items()}
    with model.using(weights=quantized_weights, acts=False), model.watching(watches):
        for subset in points.batches(batch):
            current = subset
            model.run(subset)


@torch.no_grad()
def calibrate_attention(
    model: QuantizedModel,
    points: CalibrationSet,
    search: RangeSearch,
    *,
    symmetric: bool = False,
    per_step: bool = False,
    per_head: bool = False,
    quantized_weights: bool = True,
    batch: int = 64,
) -> None:
    """Set the static range of every attention operand from one pass over the points.

    Operands are those of the network with floating-point activations. The softmax's output gets
    zero point 0, so that all codes are for its values, which are never negative; where it is
    quantized logarithmically at run time there is nothing to find. Searches see the exact extremes
    and a random sample of the values, the same one in every run.

    Args:
        model: with quantized attention products; without, nothing happens.
        points: to run on.
        search: finds each range.
        symmetric: zero points of queries, keys and values in the middle of the codes.
        per_step: a range for each sampler call (DilateQuant's TPQ with ``per_head``); the points
            must cover all calls.
        per_head: a range for each head.
        quantized_weights: run on quantized weights.
        batch: points run at once.

    Raises:
        ValueError: a sampler call without points, where ``per_step``.
    """
    if not model.attention:
        return
    calls = calls_of(points) if per_step else [0]
    quota = max(1024, _KEEP // -(-len(points) // batch))
    found: dict[tuple[str, str], dict[int, RowSample]] = {}

    def watch(name: str, operand: str, x: Tensor, subset: CalibrationSet) -> None:
        kept = found.setdefault((name, operand), {})
        for call, part in by_call(x, subset, per_step):
            rows = part.transpose(0, 1).flatten(1) if per_head else part.reshape(1, -1)
            kept.setdefault(call, RowSample(quota)).add(rows)

    watch_operands(model, points, watch, quantized_weights=quantized_weights, batch=batch)
    for (name, operand), kept in found.items():
        quantizer = model.attention[name].static(operand)
        assert quantizer is not None
        centred = symmetric and operand != "softmax"
        ranges = [
            search(kept[call].values(), quantizer.bits, axis=0, symmetric=centred) for call in calls
        ]
        scale = torch.stack([r.scale.flatten() for r in ranges])
        zero = torch.stack([r.zero_point.flatten() for r in ranges])
        _set(model.attention[name], operand, scale, zero, per_step, per_head)
    if per_step:
        model.use_schedule(points)


def _set(
    quant: QuantAttention, operand: str, scale: Tensor, zero: Tensor, per_step: bool, per_head: bool
) -> None:
    """Give a quantizer its ranges, (calls, heads); an axis that does not count has length 1."""
    quantizer = quant.static(operand)
    assert quantizer is not None
    if operand == "softmax":
        zero = torch.zeros_like(zero)
    if per_head:
        ids = torch.arange(scale.shape[1])
        scale, zero = (scale, zero) if per_step else (scale[0], zero[0])
        quantizer.set_groups(1, ids, scale, zero)
    elif per_step:
        quantizer.set_bank(scale[:, 0], zero[:, 0])
    else:
        quantizer.set_params(QuantParams(scale, zero, quantizer.bits))
