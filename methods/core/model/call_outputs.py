"""Outputs of layers that the sampler call alone decides, for tables that stand in for them.

Whether a layer depends on more than the call, such as a prompt that is added to the time embedding,
is tested on recorded points: at every call all rows must give the same output, bit for bit, and so
must all runs of the layer within the call.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import QuantizedModel, place
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.record.points import CalibrationSet, calls_of


@dataclass(frozen=True, slots=True)
class CallOutputs:
    """What layers give at each sampler call.

    Attributes:
        values: outputs of the layers that the call alone decides, (S, C).
        reasons: why each other layer has none.
    """

    values: dict[str, Tensor]
    reasons: dict[str, str]


def call_outputs(
    network: nn.Module,
    run: Callable[[CalibrationSet], Any],
    points: CalibrationSet,
    names: Collection[str],
) -> CallOutputs:
    """The outputs of layers by sampler call, where they depend on nothing else.

    Args:
        network: where the layers are.
        run: one forward pass of the network on some of the points.
        points: at least two rows, of different images, at every call.
        names: paths of the layers.

    Raises:
        ValueError: a sampler call without points.
    """
    if not names:
        return CallOutputs({}, {})  # a pass over the points would tell nothing
    reasons: dict[str, str] = {}
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for call in calls_of(points):
        here = points.rows(points.step == call)
        if len(here) < 2:
            return CallOutputs({}, dict.fromkeys(names, "one point at a call cannot tell"))
        for name, outputs in _outputs(network, run, here, names).items():
            if not outputs or any(len(output) != len(here) for output in outputs):
                reasons[name] = "does not run once for every row"
            elif any(not torch.equal(x, outputs[0][:1].expand_as(x)) for x in outputs):
                reasons[name] = "depends on more than the sampler call"
            else:
                values[name].append(outputs[0][0].clone())
    found = {name: torch.stack(rows) for name, rows in values.items() if name not in reasons}
    return CallOutputs(found, reasons)


@torch.no_grad()
def _outputs(
    network: nn.Module,
    run: Callable[[CalibrationSet], Any],
    points: CalibrationSet,
    names: Collection[str],
) -> dict[str, list[Tensor]]:
    """Outputs of each layer in one pass, one entry for each time it runs."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        outputs[name].append(output)

    handles = [network.get_submodule(n).register_forward_hook(partial(note, n)) for n in names]
    try:
        run(points)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def tabulate_quantized(
    model: QuantizedModel, points: CalibrationSet, names: Collection[str]
) -> dict[str, str]:
    """Put tables in the place of quantized layers whose output the sampler call alone decides.

    A table holds what the quantized layer gives, so the network's output stays as it is. Codes are
    fixed first: nothing that feeds these layers may change afterwards.

    Args:
        model: its layers have their ranges.
        points: at least two rows, of different images, at every call.
        names: paths of quantized layers to try.

    Returns:
        For each layer that is not tabulated, the reason.
    """
    model.freeze()
    found = call_outputs(model.module, model.run, points, names)
    for name, values in found.values.items():
        model.tabulate(name, ScheduledTable(values))
    if found.values:
        model.use_schedule(points)
    return found.reasons


def verify_tables(model: QuantizedModel, points: CalibrationSet) -> None:
    """Check that tables in the place of quantized layers hold what these give, bit for bit.

    Args:
        model: frozen.
        points: the points that the tables were made on, so that sums are in the same order.

    Raises:
        QuantArenaError: naming a layer whose table says something else.
    """
    if lost := [name for name in model.replaced if name not in model.tables]:
        raise QuantArenaError(f"{lost[0]} is quantized and has no table of its own")
    try:
        for name, layer in model.replaced.items():
            place(model.module, name, layer)
        found = call_outputs(model.module, model.run, points, model.replaced).values
    finally:
        for name in model.replaced:
            place(model.module, name, model.tables[name])
    for name in model.replaced:
        if name not in found or not torch.equal(found[name], model.tables[name].values):
            raise QuantArenaError(f"the table of {name} is not what its quantized layer gives")
