"""The form of a step that is timed, and what a row says of it."""

import pytest
import torch

from quantarena.bench.devices import steps
from quantarena.bench.devices.choose import Choice, fastest_of
from quantarena.bench.devices.steps import EAGER, RECORDED, timed_step
from quantarena.bench.target import DEFAULT_TARGET, Target
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import native
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.packed.step.verify import Agreement
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.rival import Prepared
from quantarena.methods.testing.networks import probes

pytestmark = pytest.mark.skipif(native.library().run is None, reason="needs native kernels")


@pytest.fixture(scope="module")
def made():
    """A packed U-Net and one batch of recorded points."""
    probe = next(iter(probes()))
    context = probe.context(Bits(4, 8), "paper", Effort(8, 0))
    points = probe.trajectory.pick(torch.ones(2, dtype=torch.long), torch.arange(2))
    return pack(entry("rtn").method().run(context)), points


@pytest.fixture
def times(monkeypatch):
    """Says which form is faster."""

    def say(**seconds):
        def chosen(networks, points):
            stage = {name: [seconds[name]] for name in networks}
            return Choice(fastest_of(stage), (stage,))

        monkeypatch.setattr(steps, "choose", chosen)

    return say


def test_a_recorded_step_is_timed_where_it_is_no_slower(made, times):
    packed, points = made
    times(recorded=1.0, eager=1.0)
    with packed.clock.at(1):
        found = timed_step(packed, DEFAULT_TARGET, points)
        assert torch.equal(points.call(found.module), points.call(found.module))
    assert (found.step.form, found.step.native_pieces, found.step.torch_pieces) == (RECORDED, 1, 0)
    assert found.step.arena_bytes > 0
    assert found.step.prepare_seconds > 0
    assert found.step.reason == found.warning == ""


def test_a_slower_recording_is_not(made, times):
    packed, points = made
    times(recorded=1.1, eager=1.0)
    with packed.clock.at(1):
        found = timed_step(packed, DEFAULT_TARGET, points)
    assert found.module is packed.module
    assert (found.step.form, found.step.reason) == (EAGER, "the recorded step was slower")
    assert found.step.prepare_seconds > 0


def test_a_wrong_recording_is_not_and_the_row_warns(made, monkeypatch):
    packed, points = made
    wrong = Agreement(0.5, "somewhere", 3, True)
    monkeypatch.setattr(steps.RecordedStep, "agreement", lambda *_, **__: wrong)
    with packed.clock.at(1):
        found = timed_step(packed, DEFAULT_TARGET, points)
    assert (found.module, found.step.form) == (packed.module, EAGER)
    assert "differs from torch by 5.00e-01 at somewhere" in found.warning


def test_what_cannot_be_recorded_says_why(made):
    packed, points = made
    rival = Prepared(packed.module, "another", 1)
    assert "no packed layers" in timed_step(rival, DEFAULT_TARGET, points).step.reason
    there = timed_step(packed, Target(device="cuda"), points)
    assert (there.module, there.step.reason) == (packed.module, "steps are recorded on CPUs")
    packed.module.train()
    try:
        with packed.clock.at(1):
            assert "training" in timed_step(packed, DEFAULT_TARGET, points).step.reason
    finally:
        packed.module.eval()
