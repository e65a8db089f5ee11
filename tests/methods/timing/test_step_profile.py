"""The clock within a recorded step: every operation is counted once, and results stay."""

from functools import partial

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.testing.networks import probes
from quantarena.methods.timing.step_profile import OUTSIDE, profile


@pytest.fixture(scope="module")
def ready():
    if native.library().run is None:
        pytest.skip("needs native kernels")
    probe = list(probes())[1]
    packed = pack(entry("rtn").method().run(probe.context(Bits(4, 8), "paper", Effort(8, 0))))
    points = probe.trajectory.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    step = RecordedStep(packed.module, packed.clock)
    given = {"timestep": points.timestep, "return_dict": False, **points.conditions}
    with torch.no_grad(), packed.clock.at(0):
        plan = step.plan(points.sample, **given)
        yield step, plan, partial(step, points.sample, **given)


def test_every_operation_is_counted_once_and_the_result_stays(ready):
    step, plan, call = ready
    before, library = call()[0], plan._library
    found = {spent.label: spent for spent in profile(step, plan, call, 3)}
    assert sum(spent.operations for spent in found.values()) == plan.native_operations
    layers = found["convolution"].operations + found["linear"].operations
    assert layers == sum(op.kind == 0 for op in plan._ops)
    assert found[OUTSIDE].operations == 0
    assert all(spent.seconds > 0 for spent in found.values())
    assert plan._library is library
    assert torch.equal(call()[0], before)


def test_a_call_that_is_not_replayed_is_refused(ready):
    step, plan, call = ready
    with pytest.raises(ValueError, match="not replayed"):
        profile(step, plan, lambda: step.network(*call.args, **call.keywords), 2)
