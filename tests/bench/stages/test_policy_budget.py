"""Policy ``budget`` from the cell to the row: skipped, kept, or exceeded."""

from dataclasses import replace

from quantarena.bench.schema import Status
from quantarena.bench.stages import sequence

GREEDY = """
from quantarena.methods.core.bits import Bits
from quantarena.methods.mixed_rtn import MixedRoundToNearest
from quantarena.methods.registry import register


@register("greedy")
class Greedy(MixedRoundToNearest):
    def quantize(self, ctx):
        return self.rounded(ctx, dict.fromkeys(ctx.budget.layers, Bits(6, 8)))
"""


def quiet(stage, done, total):
    """Progress that nobody watches."""


def test_a_method_that_chooses_no_widths_is_skipped_under_policy_budget(cell, tmp_path):
    paths = sequence.Paths(tmp_path / "r", tmp_path / "c")
    row = sequence.run_cell(replace(cell, policy="budget"), paths, progress=quiet)
    assert row.status is Status.SKIPPED
    assert row.reason == "rtn does not choose widths, which policy budget asks for: use uniform"
    assert not (tmp_path / "c").exists()


def test_a_budget_row_costs_no_more_than_the_uniform_one(cell, paths):
    row = sequence.run_cell(cell, paths, progress=quiet)
    options = (("points", "4"), ("steps", "-2,1,2"))
    ours = replace(cell, method="mixed_rtn", policy="budget", options=options)
    found = sequence.run_cell(ours, paths, progress=quiet)
    assert found.status is Status.OK, found.reason
    assert found.observed.code_bits <= row.observed.code_bits
    assert found.observed.bops <= row.observed.bops
    assert len(found.calibration["notes"]["allocation"]["layers"]) > 1
    again = sequence.run_cell(ours, paths, progress=quiet)
    assert again.observed == found.observed, "the model of the cache has the same widths"


def test_a_method_that_overspends_is_a_failed_row(cell, paths, tmp_path):
    file = tmp_path / "greedy.py"
    file.write_text(GREEDY)
    asked = replace(cell, method="greedy", policy="budget")
    found = sequence.run_cell(asked, paths, plugins=(str(file),), progress=quiet)
    assert found.status is Status.FAILED
    assert found.reason.startswith("policy budget allows 4 bits a weight")
    assert len(found.reason.splitlines()) == 1
