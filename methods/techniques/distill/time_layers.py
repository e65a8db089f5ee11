"""Replace layers whose output depends on the sampler call alone by tables with one row a call."""

from collections.abc import Collection

from quantarena.methods.core.model.call_outputs import call_outputs
from quantarena.methods.core.model.model import QuantizedModel
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.record.points import CalibrationSet


def tabulate_time_layers(
    model: QuantizedModel, points: CalibrationSet, names: Collection[str]
) -> dict[str, str]:
    """Tabulate each named layer whose full-precision output depends on the sampler call alone.

    Afterwards the sampler must run the calls of these points: the model's clock refuses others.

    Args:
        model: its full-precision original runs once on the points.
        points: at least two rows, of different images, at every call.
        names: paths of the layers to try, which the policy leaves in floating point.

    Returns:
        For each layer that is not tabulated, the reason.

    Raises:
        ValueError: a sampler call without points.
    """
    original = model.original
    found = call_outputs(original, lambda rows: rows.call(original), points, names)
    for name, values in found.values.items():
        model.tabulate(name, ScheduledTable(values))
    if found.values:
        model.use_schedule(points)
    return found.reasons
