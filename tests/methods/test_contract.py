"""A context does not change under a method's hands, and other widths have to be declared."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.policy import FLOAT, UNIFORM, Policy
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.network import Role
from quantarena.methods.dgq import Dgq
from quantarena.methods.info import Effort
from quantarena.methods.rtn import RoundToNearest
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.distill.time_layers import tabulate_time_layers
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.widths import DECLARED, Widths

W4A8, SMALL = Bits(4, 8), Effort(8, 0)
FLOAT_FF = replace(UNIFORM, roles={Role.FF: FLOAT})


class Declares(RoundToNearest):
    """Leaves feed-forward layers in floating point and says so."""

    def quantize(self, ctx):
        model = ctx.wrap(policy=FLOAT_FF)
        model.set_weight_ranges(minmax_range)
        points = ctx.draw(UniformStride(ctx.effort.samples))
        calibrate_activations(model, points, minmax_range)
        return model


class Hides(Declares):
    """The same without a word on the row."""

    def quantize(self, ctx):
        model = super().quantize(ctx)
        del model.notes[DECLARED]
        return model


@pytest.mark.parametrize("name", ["policy", "bits", "effort", "seed", "draws"])
def test_a_context_is_frozen(pixel, name):
    context = pixel.context(W4A8, "paper", SMALL)
    with pytest.raises(FrozenInstanceError):
        setattr(context, name, None)


def test_other_widths_are_declared_layer_by_layer(transformer):
    context = transformer.context(W4A8, "paper", SMALL)
    model = Declares().run(context)
    ff = {n for n, info in transformer.graph.layers.items() if info.role is Role.FF}
    assert ff
    assert not ff & set(model.layers)
    assert model.notes[DECLARED] == {"layers": dict.fromkeys(sorted(ff), "fp")}
    assert DECLARED not in RoundToNearest().run(context).notes


def test_widths_that_are_not_declared_are_refused(transformer):
    with pytest.raises(QuantArenaError, match="policy and model disagree"):
        Hides().run(transformer.context(W4A8, "paper", SMALL))


def test_a_saved_state_fits_the_model_that_its_notes_restore(transformer):
    context = transformer.context(W4A8, "paper", SMALL)
    model = Declares().run(context)
    other = context.restore({}, model.notes)
    assert other.layers.keys() == model.layers.keys()
    other.load_state(model.state())
    with torch.no_grad():
        assert torch.equal(other.run(transformer.heldout), model.run(transformer.heldout))


def test_changes_lead_from_one_assignment_to_the_other(conditional):
    quantized = Policy("all", attention=Dgq.published.attention)
    one = Widths.of(UNIFORM, conditional.graph, W4A8)
    other = Widths.of(quantized, conditional.graph, W4A8)
    assert one.changed(one.changes(other)) == other
    assert other.changed(other.changes(one)) == one
    assert one.changes(one) == {}
    assert set(other.attention.values()) == {AttentionBits(8, 8, 8, 8)}


def test_dgq_declares_that_it_leaves_the_softmax_in_floating_point(conditional):
    context = replace(conditional.context(Bits(4, 4), "paper", SMALL), policy=Dgq.published)
    model = Dgq(Dgq.Options(softmax16=True)).run(context)
    declared = model.notes[DECLARED]["attention"]
    assert declared == {name: [4, 4, 4, 16] for name in sorted(model.attention)}
    assert context.policy is Dgq.published


class Tabulates(RoundToNearest):
    """Puts tables of full precision where the policy asks for quantized time layers."""

    def quantize(self, ctx):
        model = super().quantize(ctx)
        names = [n for n, info in ctx.graph.layers.items() if info.role is Role.TIME_EMBED]
        points = ctx.range_points()
        tabulate_time_layers(model, points, names)
        return model


def test_a_table_of_something_else_than_the_quantized_layer_is_refused(pixel):
    context = pixel.context(W4A8, "paper", SMALL)
    with pytest.raises(QuantArenaError, match="is not what its quantized layer gives"):
        Tabulates().run(context)


def test_quantized_layers_in_a_tabulated_module_are_refused(pixel):
    class Whole(RoundToNearest):
        def quantize(self, ctx):
            model = super().quantize(ctx)
            model.tabulate("time_embedding", ScheduledTable(torch.zeros(4, 32)))
            return model

    with pytest.raises(QuantArenaError, match=r"linear_1 is quantized and has no table of its own"):
        Whole().run(pixel.context(W4A8, "paper", SMALL))


def test_the_row_shows_every_draw(pixel):
    context = pixel.context(W4A8, "paper", SMALL)
    assert context.calibration == {}
    context.draw(UniformStride(4))
    assert context.calibration["points"] == 4
    assert "earlier" not in context.calibration
    context.draw(UniformStride(8))
    assert context.calibration["points"] == 8
    assert [draw["points"] for draw in context.calibration["earlier"]] == [4]
