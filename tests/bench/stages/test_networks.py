"""A rival's cell from the pipeline folder to the row, with a rival that needs no library."""

from dataclasses import replace

import numpy as np
import pytest

from quantarena.bench.schema import Measurement, Row, Status
from quantarena.bench.stages import floors, sequence
from quantarena.methods import registry
from quantarena.methods.rival import NO_GATE

FAKE = """
import copy
from quantarena.methods.core.bits import Bits
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.registry import register
from quantarena.methods.rival import Prepared, Rival
from quantarena.methods.rivals.held import network_bytes
from quantarena.methods.rivals.stand_in import StandIn

@register("fake")
class Fake(Rival):
    info = MethodInfo(title="Fake", venue="library", paper="-", summary="none", licence="MIT")
    supports = Capabilities(weight_bits=(8,), act_bits=(8,))
    needs = NEEDS

    def build(self, ctx, folder):
        (folder / "made").write_text("x")

    def prepare(self, ctx, folder):
        assert (folder / "made").read_text() == "x"
        BODY
        network = copy.deepcopy(ctx.model)
        name = next(iter(ctx.graph.layers))
        return Prepared(
            StandIn(ctx.model, network), "fake int8", network_bytes(network) - 1000,
            {name: Bits(8, 8)}, lines=("a remark",), notes={"said": 1},
        )
"""


def quiet(stage, done, total):
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    def made(body="pass", needs="()"):
        file = tmp_path_factory.mktemp("plugin") / "fake.py"
        file.write_text(FAKE.replace("BODY", body).replace("NEEDS", needs))
        return (str(file),)

    return made


@pytest.fixture(scope="module")
def cell(cell):
    return replace(cell, method="fake", bits="w8a8", budget=replace(cell.budget, batch=3))


@pytest.fixture(scope="module")
def plugin(write):
    return write()


@pytest.fixture(scope="module")
def row(cell, paths, plugin):
    return sequence.run_cell(cell, paths, plugins=plugin, progress=quiet)


def test_a_rivals_row_says_what_ran(row):
    assert row.status is Status.OK, row.reason
    assert row.backend == "fake int8"
    assert row.parity is None
    assert row.calibration["parity"] == NO_GATE
    assert row.calibration["notes"] == {"said": 1}
    assert row.calibration["libraries"] == {}
    assert row.method["rival"] is True
    assert row.method["licence"] == "MIT"
    assert "a remark" in row.warnings
    assert row.observed.packed_bytes == row.observed.fp_bytes - 1000
    assert row.observed.layers == 1
    assert set(row.observed.coverage) == {"w8a8", "fp"}
    assert row.measurement("lpips/alex-v0.1").value == 0, "the same network draws the same images"
    assert Row.from_dict(row.to_dict()) == row


def test_a_rival_is_timed_as_all_others(row, paths, plugin):
    timed = sequence.time_cell(row, paths, plugins=plugin, progress=quiet).latency
    assert timed.backend == "fake int8"
    assert timed.ratio_low <= timed.ratio <= timed.ratio_high


def test_a_second_run_builds_nothing(row, cell, paths, plugin, monkeypatch):
    def never(*args):
        raise AssertionError("built again")

    monkeypatch.setattr(registry.entry("fake", plugin).method, "build", never)
    again = sequence.run_cell(cell, paths, plugins=plugin, progress=quiet)
    assert again.status is Status.OK, again.reason
    assert again.stage_keys == row.stage_keys


@pytest.mark.parametrize(
    ("body", "needs", "change", "status", "reason"),
    [
        ("raise RuntimeError('no\\\\nluck')", "()", {}, Status.FAILED, "no"),
        ("pass", "('no-such-library',)", {}, Status.SKIPPED, "pip install 'quantarena[rivals]'"),
        ("pass", "()", {"policy": "published"}, Status.SKIPPED, "no policy applies"),
        ("pass", "()", {"bits": "w4a4"}, Status.SKIPPED, "does not quantize"),
        ("ctx.model.requires_grad_(False).eval()", "()", {}, Status.OK, ""),
        ("next(ctx.model.parameters()).data += 1", "()", {}, Status.FAILED, "copy it first"),
    ],
)
def test_what_goes_wrong_is_one_line(
    cell, paths, write, row, body, needs, change, status, reason, monkeypatch
):
    name = "fake"
    found = sequence.run_cell(
        replace(cell, **change),
        paths,
        plugins=fresh(write(body, needs), monkeypatch),
        progress=quiet,
    )
    assert found.status is status, (name, found.reason)
    assert reason in (found.reason or "")
    assert "\n" not in (found.reason or "")


def fresh(plugin, monkeypatch):
    """Forget the plug-in of other tests, whose name this one has."""
    monkeypatch.setitem(registry._entries, "fake", [])
    return plugin


@pytest.mark.parametrize(
    ("value", "low", "within"),
    [(0.001, 0.0005, True), (0.0019, 0.0015, True), (0.01, 0.008, False)],
)
def test_settings_stand_for_full_precision_within_its_own_margin(value, low, within):
    name = "lpips/alex-v0.1"
    scored = [Measurement(name, value, low=low)]
    own, other = {name: np.array([0.0006])}, {name: np.array([1.0])}
    assert (floors.beyond_own_margin(scored, own, other) is None) is within
    assert floors.beyond_own_margin([], own, other) is not None
