"""Packed and fake networks side by side."""

from contextlib import ExitStack

import pytest
import torch

from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range


def _gap(one, other):
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
def _side_by_side(model, packed, points):
    """Relative gaps between the inputs of twins, and between the networks' outputs.

    The fake network goes on from what the packed one computed: were both left alone, a last bit in
    front of a quantizer could move a code, and all that follows with it. Which CPU's sums have
    that bit is chance; what a twin does with an input is the business of ``parity``.
    """
    recorded = {name: [] for name in (*packed.layers, *packed.attention)}
    gaps = {}

    def note(name):
        return lambda _, args, output: recorded[name].append((args[0], output))

    def noted(name, attend):
        def call(*operands, **options):
            output = attend(*operands, **options)
            recorded[name].append((torch.cat([x.flatten() for x in operands[:3]]), output))
            return output

        return call

    def compare(name, x):
        other, output = recorded[name].pop(0)
        gaps[name] = max(gaps.get(name, 0.0), _gap(x, other))
        return output

    def answer(name):
        return lambda _, args, output: compare(name, args[0])

    def answered(name):
        return lambda *operands, **_: compare(name, torch.cat([x.flatten() for x in operands[:3]]))

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, layer in packed.layers.items():
            stack.callback(layer.register_forward_hook(note(name)).remove)
        for name, quant in packed.attention.items():
            patch.setattr(quant, "attend", noted(name, quant.attend), raising=False)
        with packed.clock.at(points.step):
            want = points.call(packed.module)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, layer in model.layers.items():
            stack.callback(layer.register_forward_hook(answer(name)).remove)
        for name, quant in model.attention.items():
            patch.setattr(quant, "attend", answered(name))
        gaps["network"] = _gap(model.run(points), want)
    assert not any(recorded.values())
    return gaps


@pytest.fixture
def side_by_side():
    return _side_by_side


def _packed_of(probe, bits, *, splits=True, symmetric=False):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, bits), splits=splits)
    model.set_weight_ranges(minmax_range, symmetric=symmetric)
    calibrate_activations(model, UniformStride(8).draw(probe.trajectory, 0), minmax_range)
    model.freeze()
    return pack(model)


@pytest.fixture(scope="session")
def packed_of():
    """A network of the probes at these widths, by rounding to nearest."""
    return _packed_of
