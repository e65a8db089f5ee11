"""A guard on ourselves: at 8 bits no built-in method may be worse than rounding to nearest.

It is rounding to nearest at the same widths: of weights alone where a method has no others, and
of all layers alike where it chooses widths itself within the cost of that. Such a method is held
at 4 bits: at 8, the most there is, it has nothing to choose and is round-to-nearest itself.

Rounding loses next to nothing there, and a method can leave it as it is. One that is worse was
given too little data or budget, or learns at rates that do not fit the length of its run: look for
the fault on our side first. The error is that of one call, on packed kernels and on evaluation
images.
"""

import pytest

from quantarena.methods.builtin import FP, builtins
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.model.policy import BUDGET, UNIFORM

pytestmark = pytest.mark.slow

WORKLOAD, BASELINE = "emoji-dit", "rtn"
USUAL = ("w8a8", UNIFORM.name)
ELSEWHERE = {"mixed_rtn": ("w4a8", BUDGET.name), "tuneqdm": ("w8a16", UNIFORM.name)}
"""Bits and policy of methods that say nothing of their own at the usual ones, or cannot run."""
MOST = 1.15
"""Times the error of rounding to nearest: what this few images leave to chance."""
MOST_OF = {"mixed_rtn": 0.85}
"""The same where a method has more to show than no harm: chosen widths had 0.67 times the error of
equal ones, and widths that are worth nothing would have about 1."""


def quiet(*_):
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def error(tmp_path_factory):
    """The mean relative squared error of one call, by name, bits and policy."""
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

    def error(*asked):
        if asked not in found:
            name, bits, policy = asked
            cell = Cell(WORKLOAD, name, bits, policy=policy, budget=budget)
            method = entry(name).method.configured()
            model = quantized(workspace, recorded, cell, method, cache, quiet).value.model
            packed = pack(model)
            answers = predictions(packed.module, seen.recorded, packed.clock.at)
            decibel = sqnr(seen.predictions, answers, seen.recorded.halves)
            found[asked] = float((10 ** (-decibel / 10)).mean())
        return found[asked]

    return error


def cases():
    """Every built-in method but the baseline itself, with the bits and policy it is guarded at."""
    return [
        (name, *ELSEWHERE.get(name, USUAL))
        for name, method in builtins().items()
        if name not in (FP, BASELINE) and not method.rival
    ]


@pytest.mark.parametrize(("name", "bits", "policy"), cases())
def test_no_method_is_worse_than_rounding_at_8_bits(error, name, bits, policy):
    ratio = error(name, bits, policy) / error(BASELINE, bits, UNIFORM.name)
    most = MOST_OF.get(name, MOST)
    assert ratio <= most, f"{ratio:.2f} times, at most {most}: check data, budget and rates"


def test_every_method_can_be_guarded():
    """No case is one that its method would skip."""
    from quantarena.methods.registry import entry

    for name, bits, policy in cases():
        method, widths = entry(name).method.configured(), parse_bits(bits)
        assert widths.weight == (4 if policy == BUDGET.name else 8)
        method.check(widths, "paper", policy)
