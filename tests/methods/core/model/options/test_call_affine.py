import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.call_affine import CallAffine
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.gains import CallAffineLayer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.techniques.ranges.minmax import minmax_range

CALLS = 3
MODULES = {
    "linear": (lambda: nn.Linear(10, 6), (4, 5, 10)),
    "vector": (lambda: nn.Linear(10, 6, bias=False), (4, 10)),
    "conv2d": (lambda: nn.Conv2d(10, 6, 3, padding=1), (4, 10, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(10, 6, 3, stride=2), (4, 10, 9)),
}
AXIS = {"linear": -1, "vector": -1, "conv2d": 1, "conv1d": 1}


def layer_of(kind, bits, splits=(), bank=False):
    make, shape = MODULES[kind]
    layer, x = QuantLayer(make(), bits, splits, clock=CallClock()), torch.randn(shape)
    layer.set_weight_ranges(minmax_range, symmetric=False)
    for part in layer.parts:
        if part.static is not None:
            found = minmax_range(x, bits.act)
            part.static.set_params(found)
            if bank:
                scales = found.scale.reshape(1) * torch.tensor([1.0, 1.5, 2.0])
                part.static.set_bank(scales, found.zero_point.reshape(1).repeat(CALLS))
    layer.freeze()
    return layer, x


def at(layer, x, call):
    with layer.clock.at(call):
        return layer(x)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("bits", [Bits(4, 16), Bits(8, 8)], ids=str)
@pytest.mark.parametrize("options", [{}, {"splits": (4, 6)}, {"bank": True}])
def test_the_output_is_multiplied_and_shifted_fake_and_packed(kind, bits, options):
    layer, x = layer_of(kind, bits, **options)
    plain = [at(layer, x, call) for call in range(CALLS)]
    gain, shift = torch.rand(CALLS, 6) + 0.5, torch.randn(CALLS, 6)
    layer.set_call_affine(gain, shift)
    packed = pack_layer(layer)
    shape = [6 if axis == AXIS[kind] % x.dim() else 1 for axis in range(x.dim())]
    for call in range(CALLS):
        wanted = plain[call] * gain[call].reshape(shape) + shift[call].reshape(shape)
        for found in (at(layer, x, call), at_packed(packed, layer, x, call)):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    calls = torch.tensor([0, 2, 1, 2])
    with layer.clock.at(calls):
        fake, ours = layer(x), packed(x)
    assert (fake - ours).abs().max() <= 1e-5 * fake.abs().max()
    for row, call in enumerate(calls.tolist()):
        assert torch.allclose(fake[row : row + 1], at(layer, x[row : row + 1], call), atol=1e-6)


def at_packed(packed, layer, x, call):
    with layer.clock.at(call):
        return packed(x)


def test_gains_of_one_and_shifts_of_zero_change_no_bit():
    layer, x = layer_of("conv2d", Bits(4, 8))
    plain, plain_packed = at(layer, x, 1), pack_layer(layer)(x)
    layer.set_call_affine(torch.ones(CALLS, 6), torch.zeros(CALLS, 6))
    assert torch.equal(at(layer, x, 1), plain)
    assert torch.equal(at_packed(pack_layer(layer), layer, x, 1), plain_packed)


def test_it_is_off_in_full_precision():
    layer, x = layer_of("conv2d", Bits(4, 8))
    layer.use_weight_quantizer = layer.use_act_quantizer = False
    plain = at(layer, x, 0)
    layer.set_call_affine(torch.rand(CALLS, 6), torch.randn(CALLS, 6))
    assert torch.equal(at(layer, x, 0), plain)


def test_state_and_descriptions_come_back():
    layer, x = layer_of("conv2d", Bits(4, 8), splits=(4, 6))
    layer.set_call_affine(torch.rand(CALLS, 6) + 0.5, torch.randn(CALLS, 6))
    other = QuantLayer(MODULES["conv2d"][0](), Bits(4, 8), (4, 6), clock=layer.clock)
    other.weight, other.bias = layer.weight, layer.bias
    other.load(layer.state())
    assert torch.equal(at(other, x, 2), at(layer, x, 2))
    packed = pack_layer(layer)
    again = build(packed.describe(), {n: t.clone() for n, t in packed.state_dict().items()})
    assert isinstance(again, CallAffineLayer)
    assert again.entries == CALLS
    assert torch.equal(again(x, 2), packed(x, 2))
    with pytest.raises(BrokenModel, match="6 output channels"):
        other.load(layer.state() | {"call_gain": torch.ones(CALLS, 5)})


def test_misfits_are_refused():
    layer, x = layer_of("conv2d", Bits(4, 8), bank=True)
    for gain, shift in (
        (torch.ones(6), torch.zeros(6)),
        (torch.ones(CALLS, 6), torch.zeros(1, 6)),
        (torch.ones(0, 6), torch.zeros(0, 6)),
        (torch.full((CALLS, 6), torch.inf), torch.zeros(CALLS, 6)),
    ):
        with pytest.raises(ValueError, match="output channels"):
            layer.set_call_affine(gain, shift)
    layer.set_call_affine(torch.ones(CALLS + 1, 6), torch.zeros(CALLS + 1, 6))
    with pytest.raises(ValueError, match="tables of 3 sampler calls"):
        pack_layer(layer)  # its bank has other calls
    layer.put(CallAffine.of(torch.ones(CALLS, 6), torch.zeros(CALLS, 6), layer))
    with pytest.raises(UserError, match="nobody said which"):
        layer(x)
