"""The form in which a packed network's step is timed: recorded once and replayed, or as written."""

from dataclasses import dataclass

import torch
from torch import nn

from quantarena.bench.devices.choose import choose
from quantarena.bench.schema import Step
from quantarena.bench.target import Target
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.network import Network
from quantarena.methods.core.packed.pack import PackedModel
from quantarena.methods.core.packed.parity import PARITY_LIMIT
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.core.packed.step.trace import NotRecordable
from quantarena.methods.core.record.points import CalibrationSet

RECORDED, EAGER = "recorded", "eager"


@dataclass(frozen=True, slots=True)
class TimedStep:
    """What is timed.

    Attributes:
        module: the network, in its form.
        step: what the row says of the form.
        warning: a line for the row where a recording was wrong; empty where none was.
    """

    module: nn.Module
    step: Step
    warning: str = ""


@torch.no_grad()
def timed_step(network: Network, target: Target, points: CalibrationSet) -> TimedStep:
    """A network's step in its fastest form: recorded where that holds and is no slower.

    A recording is held against the network before it is timed. Its preparation is not part of the
    times; the row has it beside them.

    Args:
        network: the cell's; its clock is at the call of the points.
        target: where it runs.
        points: one batch, as it will be timed.
    """
    module = network.module
    if not isinstance(network, PackedModel) or not network.layers:
        return TimedStep(module, Step(EAGER, reason="the network has no packed layers of ours"))
    if target.kind != "cpu" or target.offload:
        return TimedStep(module, Step(EAGER, reason="steps are recorded on CPUs"))
    recorded = RecordedStep(module, network.clock)
    given = {"timestep": points.timestep, "return_dict": False, **points.conditions}
    try:
        plan = recorded.plan(points.sample, **given)
    except NotRecordable as error:
        seconds = recorded.told.prepare_seconds
        return TimedStep(module, Step(EAGER, prepare_seconds=seconds, reason=error.message))
    seconds, wrong, reason = recorded.told.prepare_seconds, "", ""
    try:
        recorded.agreement(points.sample, **given).require(PARITY_LIMIT)
    except QuantArenaError as error:
        wrong = reason = error.message
    if not reason:
        chosen = choose({RECORDED: recorded, EAGER: module}, points).name
        reason = "" if chosen == RECORDED else "the recorded step was slower"
    if reason:
        warning = f"latency: {wrong}; the step was timed as written" if wrong else ""
        return TimedStep(module, Step(EAGER, prepare_seconds=seconds, reason=reason), warning)
    step = Step(RECORDED, plan.native_pieces, plan.torch_pieces, plan.arena_bytes, seconds)
    return TimedStep(recorded, step)
