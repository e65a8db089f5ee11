"""Replace layers whose output depends on the sampler call alone by tables with one row a call.

Whether a layer depends on more than the call, such as a prompt that is added to the time embedding,
is tested on recorded points: at every call all rows must give the same output, bit for bit, and so
must all runs of the layer within the call.
"""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor, nn

from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.record.points import CalibrationSet, calls_of


def tabulate_time_layers(
    model: QuantizedModel, points: CalibrationSet, names: Collection[str]
) -> dict[str, str]:
    """Tabulate each named layer whose full-precision output depends on the sampler call alone.

    Afterwards the sampler must run the calls of these points: the model's clock refuses others.

    Args:
        model: its full-precision original runs once on the points.
        points: at least two rows, of different images, at every call.
        names: paths of the layers to try.

    Returns:
        For each layer that is not tabulated, the reason.

    Raises:
        ValueError: a sampler call without points.
    """
    reasons: dict[str, str] = {}
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for call in calls_of(points):
        here = points.rows(points.step == call)
        if len(here) < 2:
            return dict.fromkeys(names, "one point at a call cannot tell")
        for name, outputs in _outputs(model.original, here, names).items():
            if not outputs or any(len(output) != len(here) for output in outputs):
                reasons[name] = "does not run once for every row"
            elif any(not torch.equal(x, outputs[0][:1].expand_as(x)) for x in outputs):
                reasons[name] = "depends on more than the sampler call"
            else:
                values[name].append(outputs[0][0].clone())
    for name in values:
        if name not in reasons:
            model.tabulate(name, ScheduledTable(torch.stack(values[name])))
            model.use_schedule(points)
    return reasons


@torch.no_grad()
def _outputs(
    network: nn.Module, points: CalibrationSet, names: Collection[str]
) -> dict[str, list[Tensor]]:
    """Outputs of each layer in one pass, one entry for each time it runs."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def note(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        outputs[name].append(output)

    handles = [network.get_submodule(n).register_forward_hook(partial(note, n)) for n in names]
    try:
        points.call(network)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
