"""Copies that a layer does itself: the same bits without them, and no copy goes that must stay."""

import pytest
import torch

from quantarena.methods.core.kernels.native import GeometryStruct
from quantarena.methods.core.kernels.observer import Kind
from quantarena.methods.core.packed.step import recorded as recorded_module
from quantarena.methods.core.packed.step.copies import without_copies
from quantarena.methods.core.packed.step.pointwise import Pointwise
from quantarena.methods.core.packed.step.recorded import RecordedStep
from quantarena.methods.core.packed.step.steps import NativeStep
from quantarena.methods.core.packed.step.trace import View

SHAPE = (2, 4, 3, 3)
PLANES, PIXELS = (36, 9, 3, 1), (36, 1, 12, 4)


def view(buffer, strides=PIXELS, offset=0):
    return View(buffer, offset, SHAPE, strides, torch.float32)


def copy(to, source):
    program = Pointwise(to, (source,))
    return NativeStep(Kind.KERNEL, 0, None, (to, source), (0,), program=program)


def layer(x, y, flags=0):
    geometry = GeometryStruct(batch=2, height=3, width=3, out_height=3, out_width=3)
    for side, strides in (("x", x.strides), ("y", y.strides)):
        for axis, stride in zip(("batch", "channel", "row", "pixel"), strides, strict=True):
            setattr(geometry, f"{side}_{axis}", stride)
    return NativeStep(Kind.LAYER, 0, None, (x, y, None, None), (1,), geometry, flags)


def writes(at):
    return NativeStep(Kind.KERNEL, 0, None, (at, view(90)), (0,))


def reads(at):
    return NativeStep(Kind.KERNEL, 0, None, (view(91), at), (0,))


def test_a_layer_reads_what_was_copied_for_it():
    before = [copy(view(1, PLANES), view(0)), layer(view(1, PLANES), view(2))]
    (after,) = without_copies(before, {2})
    assert after.operands == (view(0), view(2), None, None)
    geometry = after.more
    found = (geometry.x_batch, geometry.x_channel, geometry.x_row, geometry.x_pixel)
    assert found == PIXELS
    assert before[1].more.x_pixel == 1, "the recorded call's own structure stays"


def test_a_layer_writes_to_where_its_output_was_copied():
    wide = view(2, (72, 1, 24, 8), 16)
    (after,) = without_copies([layer(view(0), view(1)), copy(wide, view(1))], {2})
    assert after.operands == (view(0), wide, None, None)
    geometry = after.more
    assert (geometry.y_batch, geometry.y_channel, geometry.y_row) == (72, 1, 24)


FOR_A_READER = [copy(view(1, PLANES), view(0)), layer(view(1, PLANES), view(2))]
OF_A_WRITER = [layer(view(0), view(1)), copy(view(2, PLANES), view(1))]


@pytest.mark.parametrize(
    ("steps", "outputs"),
    [
        (FOR_A_READER, {1}),
        ([*FOR_A_READER, reads(view(1, PLANES))], set()),
        ([FOR_A_READER[0], writes(view(0)), FOR_A_READER[1]], set()),
        ([FOR_A_READER[0], layer(view(1, PLANES), view(2), flags=1)], set()),
        ([FOR_A_READER[0], layer(view(1, PLANES), view(0, PLANES))], set()),
        ([FOR_A_READER[0], layer(view(1, (36, 9, 1, 3)), view(2))], set()),
        ([FOR_A_READER[0], reads(view(1, PLANES))], set()),
        (OF_A_WRITER, {1}),
        ([*OF_A_WRITER, reads(view(1))], set()),
        ([OF_A_WRITER[0], reads(view(2)), OF_A_WRITER[1]], set()),
        ([layer(view(2), view(1)), OF_A_WRITER[1]], set()),
        ([layer(view(0), view(1), flags=1), OF_A_WRITER[1]], set()),
        ([writes(view(1)), OF_A_WRITER[1]], set()),
    ],
    ids=[
        "returned",
        "read again",
        "source changes",
        "adds",
        "over its source",
        "another view",
        "no layer",
        "layer's output returned",
        "layer's output read",
        "place in use",
        "place is the layer's input",
        "adds to what is copied",
        "no layer writes",
    ],
)
def test_a_copy_that_somebody_needs_stays(steps, outputs):
    assert without_copies(steps, outputs) == steps


def test_a_network_computes_the_same_bits_without_copies(made, call_of, monkeypatch):
    packed, probe = made
    call = call_of(probe, 1, 3)

    def replayed():
        step = RecordedStep(packed.module, packed.clock)
        with packed.clock.at(1):
            operations = step.plan(call.points.sample, **call.kwargs).native_operations
        result = call.on(step, packed.clock)
        assert step.told.replayed == 1
        return operations, result

    fewer, result = replayed()
    monkeypatch.setattr(recorded_module, "without_copies", lambda steps, _: steps)
    all_of_them, expected = replayed()
    assert torch.equal(result, expected)
    assert fewer <= all_of_them
