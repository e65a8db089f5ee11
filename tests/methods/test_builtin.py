"""What is read from the sources of the built-in methods is what their classes hold."""

import subprocess
import sys

import pytest

from quantarena.bench.plan.presets import PRESETS
from quantarena.methods.builtin import builtins
from quantarena.methods.core.bits import parse_bits
from quantarena.methods.registry import entry


@pytest.mark.parametrize("name", builtins())
def test_the_source_and_the_class_agree(name):
    known, method = builtins()[name], entry(name).method
    assert known.module == method.__module__
    assert known.paper == method.info.paper
    assert known.most_iterations == method.supports.most_iterations
    assert known.board_bits == method.supports.board_bits
    assert known.own_widths == (getattr(method, "published", None) is not None)
    for bits in map(parse_bits, known.board_bits):
        assert bits.weight in method.supports.weight_bits
        assert bits.act in method.supports.act_bits


def test_listing_them_imports_no_torch():
    code = (
        "import sys\nfrom quantarena.methods.builtin import builtins\n"
        "print(len(builtins()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(builtins())), "False"]


def test_the_larger_presets_run_every_method_at_its_widths():
    grid = PRESETS["quick"].grid
    cells = {(cell.method, cell.bits) for cell in grid.cells()}
    wanted = {(name, bits) for name, method in builtins().items() for bits in method.board_bits}
    assert cells == wanted | {("fp", "fp")}
