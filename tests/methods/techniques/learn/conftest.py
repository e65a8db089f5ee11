"""A quantized network cut into blocks, and what its reconstruction sees."""

import pytest

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.blocks import partition
from quantarena.methods.techniques.learn import optimise
from quantarena.methods.techniques.ranges.minmax import minmax_range

W4A8 = Bits(4, 8)


@pytest.fixture(scope="session")
def make():
    def make(probe, bits=W4A8, splits=True):
        model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, bits), splits=splits)
        model.set_weight_ranges(minmax_range)
        return model

    return make


@pytest.fixture(scope="session")
def cut():
    def cut(model, points, temporal=()):
        few = points.rows(slice(0, 2))
        with model.using(weights=False, acts=False):
            return partition(
                model.module, model.layers, lambda: few.call(model.module), 12, temporal
            )

    return cut


@pytest.fixture
def points(pixel):
    return UniformStride(16).draw(pixel.trajectory, 0)


@pytest.fixture
def ground(make, cut, pixel, points):
    """A split w4 model with min-max ranges, its blocks and calibration points."""
    model = make(pixel)
    return model, {block.name: block for block in cut(model, points)}, points


@pytest.fixture
def watched(monkeypatch):
    """What every block was optimised on."""
    seen = []
    original = optimise.optimise

    def spy(ground, learning, schedule, generator):
        seen.append(ground)
        return original(ground, learning, schedule, generator)

    monkeypatch.setattr("quantarena.methods.techniques.learn.reconstruct.optimise", spy)
    return seen
