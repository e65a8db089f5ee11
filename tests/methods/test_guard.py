"""A guard on ourselves: at 8 bits no built-in method may be worse than rounding to nearest.

Rounding loses next to nothing there, and a method can leave it as it is. One that is worse was
given too little data or budget, or learns at rates that do not fit the length of its run: look for
the fault on our side first. The error is that of one call, on packed kernels and on evaluation
images.
"""

import pytest

from quantarena.methods.builtin import builtins
from quantarena.methods.core.bits import FP_WIDTH, parse_bits

pytestmark = pytest.mark.slow

WORKLOAD, BITS = "emoji-dit", "w8a8"
MOST = 1.15
"""Times the error of rounding to nearest: what this few images leave to chance."""


def quiet(*_):
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def error(tmp_path_factory):
    """The mean relative squared error of one call, by name of the method."""
    from quantarena.bench.cache import StageCache
    from quantarena.bench.metrics.fidelity.noise_error import predictions, sqnr
    from quantarena.bench.spec import Budget, Cell
    from quantarena.bench.stages.closeness import probe
    from quantarena.bench.stages.quantize import quantized
    from quantarena.bench.stages.record import trajectory
    from quantarena.bench.stages.workspace import open_workspace
    from quantarena.methods.core.packed.pack import pack
    from quantarena.methods.registry import entry

    # ranges need images more than points: from 32 images DGQ's groups are too tight
    budget = Budget(8, 8, 10, 128, 64, 320, 40, 20)
    cache = StageCache(tmp_path_factory.mktemp("guard"))
    workspace = open_workspace(Cell(WORKLOAD, "fp", "fp", budget=budget))
    recorded, seen = trajectory(workspace, cache), probe(workspace, cache)
    found = {}

    def error(name):
        if name not in found:
            cell = Cell(WORKLOAD, name, BITS, budget=budget)
            method = entry(name).method.configured()
            model = quantized(workspace, recorded, cell, method, cache, quiet).value.model
            packed = pack(model)
            answers = predictions(packed.module, seen.recorded, packed.clock.at)
            decibel = sqnr(seen.predictions, answers, seen.recorded.halves)
            found[name] = float((10 ** (-decibel / 10)).mean())
        return found[name]

    return error


def names():
    """The built-in methods that are compared at quantized activations, but the baseline itself."""
    return [
        name
        for name, method in builtins().items()
        if name != "rtn"
        and not method.rival
        and any(parse_bits(bits).act != FP_WIDTH for bits in method.board_bits)
    ]


@pytest.mark.parametrize("name", names())
def test_no_method_is_worse_than_rounding_at_8_bits(error, name):
    ratio = error(name) / error("rtn")
    assert ratio <= MOST, f"{ratio:.2f} times: check data, budget and rates"


def test_every_method_is_guarded():
    """A method that cannot run at this width has no guard and is named here."""
    from quantarena.methods.registry import entry

    for name in names():
        supports = entry(name).method.supports
        assert 8 in supports.weight_bits
        assert 8 in supports.act_bits
