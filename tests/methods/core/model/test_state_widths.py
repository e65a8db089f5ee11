"""A state comes back only into a model that quantizes the same modules at the same widths."""

import pytest
import torch

from quantarena.methods.core.bits import FP, AttentionBits, Bits
from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.time_table import ScheduledTable
from quantarena.methods.techniques.calibrate.attention import calibrate_attention
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range

EIGHT = AttentionBits(8, 8, 8, 8)
LAYER = "mid_block.resnets.0.conv1"


def wrapped(probe, *, attention=None, **widths):
    """The network at w4a8, layers in ``widths`` and attention products otherwise."""
    bits = dict.fromkeys(probe.graph.layers, Bits(4, 8)) | {
        name.replace("__", "."): value for name, value in widths.items()
    }
    products = None if attention is None else dict.fromkeys(probe.graph.attention, attention)
    return wrap(probe.model, probe.graph, bits, attention=products)


def state_of(model, points):
    model.set_weight_ranges(minmax_range)
    calibrate_activations(model, points, minmax_range)
    calibrate_attention(model, points, minmax_range)
    model.freeze()
    return model.state()


@pytest.fixture(scope="module")
def state(pixel):
    return state_of(wrapped(pixel, attention=EIGHT), pixel.heldout)


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 4), Bits(3, 8), Bits(4, 16)])
def test_a_layer_of_another_width_is_refused(pixel, state, bits):
    other = wrapped(pixel, attention=EIGHT, **{LAYER: bits})
    with pytest.raises(BrokenModel) as refused:
        other.load_state(state)
    assert str(refused.value) == (
        f"quantized state does not fit the model at {LAYER}: it has w4a8 in the state, {bits} in "
        "the model"
    )


def test_a_layer_that_the_model_leaves_in_floating_point_is_refused(pixel, state):
    other = wrapped(pixel, attention=EIGHT, **{LAYER: FP})
    with pytest.raises(
        BrokenModel, match=f"^quantized state has layer {LAYER}, which the model does not quantize"
    ):
        other.load_state(state)


def test_a_layer_that_the_state_lacks_is_refused(pixel, state):
    names = [LAYER, "conv_in"]
    lost = {n: t for n, t in state.items() if not n.startswith(tuple(f"layer:{x}/" for x in names))}
    with pytest.raises(BrokenModel, match="lacks layer conv_in and 1 more, which the model quant"):
        wrapped(pixel, attention=EIGHT).load_state(lost)


def test_attention_of_another_width_is_refused(pixel, state):
    name = next(iter(pixel.graph.attention))
    other = wrapped(pixel, attention=AttentionBits(8, 8, 4, 8))
    with pytest.raises(BrokenModel, match=f"at {name}: it has q8k8v8s8 in the state, q8k8v4s8 in"):
        other.load_state(state)


def test_attention_that_only_one_of_both_quantizes_is_refused(pixel, state):
    plain = state_of(wrapped(pixel), pixel.heldout)
    name = next(iter(pixel.graph.attention))
    with pytest.raises(BrokenModel, match=f"state lacks attention {name}"):
        wrapped(pixel, attention=EIGHT).load_state(plain)
    with pytest.raises(BrokenModel, match=f"state has attention {name}"):
        wrapped(pixel).load_state(state)


def test_a_state_that_does_not_say_its_widths_is_refused(pixel, state):
    old = {name: value for name, value in state.items() if not name.endswith("/widths")}
    with pytest.raises(BrokenModel, match="'widths' is missing"):
        wrapped(pixel, attention=EIGHT).load_state(old)


def test_a_table_in_the_place_of_no_module_is_refused(pixel, state):
    with pytest.raises(BrokenModel, match="does not fit the model: it has no nowhere"):
        wrapped(pixel, attention=EIGHT).load_state(state | {"table:nowhere": torch.ones(4, 3)})


def test_a_tabulated_layer_is_in_no_state_and_its_table_is(pixel):
    model, other = wrapped(pixel), wrapped(pixel)
    name = next(n for n in model.layers if n.endswith("time_emb_proj"))
    model.tabulate(name, ScheduledTable(torch.randn(4, model.layers[name].weight.shape[0])))
    kept = state_of(model, pixel.heldout)
    assert not [n for n in kept if n.startswith(f"layer:{name}/")]
    other.load_state(kept)
    assert torch.equal(other.tables[name].values, model.tables[name].values)
    assert name not in other.layers
