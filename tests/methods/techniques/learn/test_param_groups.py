import pytest
import torch

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.techniques.learn.param_groups import (
    LEAST_SCALE,
    Decay,
    Group,
    Learnable,
    Optimiser,
)


def test_decays():
    assert [Decay.LINEAR.factor(x) for x in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    assert Decay.COSINE.factor(0.5) == pytest.approx(0.5)
    assert Decay.CONSTANT.factor(0.9) == 1.0


@pytest.mark.parametrize("groups", [0, 3])
def test_only_calls_with_rows_in_the_batch_move(groups):
    clock, x = CallClock(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    quantizer = ActQuantizer(4, clock)
    if groups:
        ids = torch.arange(6) % groups
        quantizer.set_groups(-1, ids, torch.full((5, groups), 0.1), torch.full((5, groups), 8.0))
    else:
        quantizer.set_bank(torch.full((5,), 0.1), torch.full((5,), 8.0))
    learned = quantizer.learn()
    optimiser = Optimiser(
        {"act_scale": [Learnable(learned["act_scale"], bank=True)]}, {"act_scale": Group(1e-3)}
    )
    for calls in ([0, 1], [3, 3], [1, 4]):
        before = quantizer.scale.detach().clone()
        optimiser.zero_grad()
        with clock.at(torch.tensor(calls)):
            (quantizer(x) - x).square().sum().backward()
        optimiser.step(0.0)
        moved = (quantizer.scale.detach() - before).abs().reshape(5, -1).amax(1)
        assert (moved > 0).nonzero().flatten().tolist() == sorted(set(calls))
        # the first update of an entry is a whole step, however many others had before it
        assert torch.allclose(moved[calls[-1]], torch.tensor(1e-3), rtol=1e-2)


def walk(group, unit, name="weight_scale", updates=200):
    """Where a scale arrives that its gradient always makes smaller."""
    scale = torch.nn.Parameter(torch.full((3, 1), unit))
    optimiser = Optimiser({name: [Learnable(scale, unit)]}, {name: group})
    for _ in range(updates):
        optimiser.zero_grad()
        scale.sum().backward()
        optimiser.step(0.0)
    return float(scale.detach().mean())


@pytest.mark.parametrize("name", ["weight_scale", "act_scale"])
def test_a_scale_does_not_walk_through_zero(name):
    assert walk(Group(1e-4), 5e-4, name) == pytest.approx(5e-4 * LEAST_SCALE)
    assert walk(Group(1e-4), 5e-2, name) == pytest.approx(5e-2 - 200 * 1e-4, rel=1e-3)


def test_a_floor_is_for_scales_alone():
    assert walk(Group(1e-4), 5e-4, "weight") < -1e-2


def test_the_rate_of_a_parameter():
    assert Group(1e-4).rate(5e-4) == 1e-4
    assert Group(1e-2, relative=True).rate(5e-4) == pytest.approx(5e-6)
    assert Group(1e-4, most=0.01).rate(5e-4) == pytest.approx(5e-6)
    assert Group(1e-4, most=0.01).rate(1.0) == 1e-4


@pytest.mark.parametrize(("relative", "step"), [(False, 1e-3 / 0.25), (True, 1e-3)])
def test_an_absolute_rate_is_in_the_unit_that_the_parameter_is_relative_to(relative, step):
    """An absolute 1e-3 moves ``worth * gain`` by it, a relative one the gain."""
    gain = torch.nn.Parameter(torch.ones(3))
    group = Group(1e-3, relative=relative)
    optimiser = Optimiser({"gain_out": [Learnable(gain, worth=0.25)]}, {"gain_out": group})
    gain.sum().backward()
    optimiser.step(0.0)
    assert torch.allclose(1 - gain.detach(), torch.full((3,), step), rtol=1e-3)
