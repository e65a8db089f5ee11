import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import BrokenModel, UserError
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.model.options.call_gains import CallGains, pair_of
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.gains import GainsLayer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.techniques.learn.learning import start_learning
from quantarena.methods.techniques.ranges.minmax import minmax_range

OF_CALL = torch.tensor([1, 1, 0])
MODULES = {
    "linear": (lambda: nn.Linear(10, 6), (4, 5, 10)),
    "vector": (lambda: nn.Linear(10, 6, bias=False), (4, 10)),
    "conv2d": (lambda: nn.Conv2d(10, 6, 3, padding=1), (4, 10, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(10, 6, 3, stride=2), (4, 10, 9)),
    "groups": (lambda: nn.Conv2d(10, 6, 3, groups=2), (4, 10, 5, 5)),
}


def layer_of(kind, bits=4, random=True):
    make, shape = MODULES[kind]
    module = make()
    layer = QuantLayer(module, Bits(bits, 16), clock=CallClock())
    layer.set_weight_ranges(minmax_range, symmetric=False)
    layer.freeze()
    experts = layer.set_gains(OF_CALL, 2)
    if random:
        for gain in (*experts.d_in, *experts.d_out):
            gain.data += 0.3 * torch.randn(gain.shape)
    return module, layer, torch.randn(shape)


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_experts_split_timesteps_evenly(experts):
    times = torch.tensor([0, 249, 250, 499, 500, 999, 1000])
    wanted = [min(experts - 1, int(t) * experts // 1000) for t in times]
    assert pair_of(times, experts, 1000).tolist() == wanted


def test_edges_of_four_experts():
    assert pair_of(torch.tensor([0.0, 249.0, 250.0, 999.0]), 4, 1000).tolist() == [0, 0, 1, 3]
    with pytest.raises(ValueError, match="must be positive"):
        pair_of(torch.tensor([0.0]), 0, 1000)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("bits", [4, 8])
def test_gains_around_the_codes_are_the_dense_weight(kind, bits):
    """d_out W d_in, by gains on input and output, packed and not."""
    _, layer, x = layer_of(kind, bits)
    packed = pack_layer(layer)
    quantizer = layer.only_part.weight_quantizer
    centred = quantizer.codes.float() - quantizer.zero_point
    for call, expert in enumerate(OF_CALL.tolist()):
        d_in, d_out = layer.option(CallGains).d_in[expert], layer.option(CallGains).d_out[expert]
        if kind == "groups":
            each = d_in.reshape(2, 5).repeat_interleave(3, dim=0)[:, :, None, None]
            dense = (quantizer.scale.flatten() * d_out)[:, None, None, None] * centred * each
        else:
            places = [1] * (centred.dim() - 2)
            rows = (quantizer.scale.flatten() * d_out).reshape(-1, 1, *places)
            dense = rows * centred * d_in.reshape(1, -1, *places)
        with layer.clock.at(call):
            wanted = layer.affine(x, dense, layer.bias)
            for found in (layer(x), packed(x)):
                assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", MODULES)
def test_rows_of_several_calls(kind):
    _, layer, x = layer_of(kind)
    packed = pack_layer(layer)
    calls = torch.tensor([0, 2, 1, 2])
    with layer.clock.at(calls):
        fake, ours = layer(x), packed(x)
    for row, call in enumerate(calls.tolist()):
        with layer.clock.at(call):
            alone = layer(x[row : row + 1])
        assert torch.allclose(fake[row : row + 1], alone, atol=1e-6)
    assert (fake - ours).abs().max() <= 1e-5 * fake.abs().max()
    with layer.clock.at(torch.tensor([0, 1, 0, 1])):  # one expert
        assert torch.allclose(layer(x), layer_at(layer, x, 0), atol=1e-6)


def layer_at(layer, x, call):
    with layer.clock.at(call):
        return layer(x)


@pytest.mark.parametrize("kind", MODULES)
def test_new_experts_change_nothing(kind):
    module, layer, x = layer_of(kind, random=False)
    plain = QuantLayer(module, Bits(4, 16))
    plain.set_weight_ranges(minmax_range, symmetric=False)
    plain.freeze()
    assert torch.allclose(layer_at(layer, x, 0), plain(x), atol=1e-6)


def test_only_the_active_expert_learns_and_codes_stay():
    _, layer, x = layer_of("linear", random=False)
    quantizer = layer.only_part.weight_quantizer
    kept = [t.clone() for t in (quantizer.codes, quantizer.zero_point, quantizer.scale, layer.bias)]
    learning = start_learning({"a": layer}, [], ("gain_in", "gain_out"))
    assert sum(f.parameter.numel() for g in learning.parameters.values() for f in g) == 2 * (10 + 6)
    with layer.clock.at(0), torch.enable_grad():
        layer(x).square().mean().backward()
    grads = {
        name: [None if p.grad is None else float(p.grad.abs().sum()) for p in rows]
        for name, rows in layer.option(CallGains).parameter_groups().items()
    }
    assert all(found[0] is None and found[1] > 0 for found in grads.values())
    learning.finish()
    assert not any(p.requires_grad for p in layer.option(CallGains).parameters())
    now = (quantizer.codes, quantizer.zero_point, quantizer.scale, layer.bias)
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


def test_state_comes_back_and_misfits_are_refused():
    module, layer, x = layer_of("conv2d")
    other = QuantLayer(module, Bits(4, 16), clock=layer.clock)
    other.load(layer.state())
    assert torch.equal(layer_at(other, x, 2), layer_at(layer, x, 2))
    state = layer.state() | {"gain_in": torch.ones(2, 3)}
    with pytest.raises(BrokenModel, match="gains of"):
        other.load(state)


def test_a_packed_layer_comes_back_from_its_description():
    _, layer, x = layer_of("conv2d")
    packed = pack_layer(layer)
    tensors = {n: t.clone() for n, t in packed.state_dict().items()}
    again = build(packed.describe(), tensors)
    assert isinstance(again, GainsLayer)
    for call in range(3):
        assert torch.equal(again(x, call), packed(x, call))
    assert again.entries == 3


def test_packed_codes_take_their_bits():
    _, layer, _ = layer_of("linear", bits=4)
    packed = pack_layer(layer)
    assert packed.inner.codes.numel() == -(-4 * 60 // 8)
    extra = packed.inner.weight_scale.numel() * 4 + packed.inner.weight_zero.numel() * 2
    assert packed.inner.packed_bytes == 30 + extra


def test_calls_nobody_calibrated_are_refused():
    _, layer, x = layer_of("linear")
    with pytest.raises(UserError, match="nobody said which call"):
        layer(x)
    with layer.clock.at(3), pytest.raises(UserError, match="calibrated for 3 calls"):
        layer(x)


def test_where_gains_cannot_go():
    layer = QuantLayer(nn.Linear(4, 4), Bits(4, 8))
    with pytest.raises(ValueError, match="weight-only layer"):
        layer.set_gains(OF_CALL, 2)
    with pytest.raises(ValueError, match="weight-only layer of one part"):
        QuantLayer(nn.Linear(4, 4), Bits(4, 16), (2, 2)).set_gains(OF_CALL, 2)
    with pytest.raises(ValueError, match="do not fit calls"):
        QuantLayer(nn.Linear(4, 4), Bits(4, 16)).set_gains(OF_CALL, 1)
    _, layer, _ = layer_of("linear")
    inner = pack_layer(layer).inner
    with pytest.raises(ValueError, match="do not fit a weight"):
        GainsLayer(inner, torch.ones(2, 10), torch.ones(2, 5), OF_CALL, None)


@pytest.mark.parametrize("gains_first", [False, True])
@pytest.mark.parametrize("other", ["a low-rank branch", "patches"])
def test_options_that_do_not_go_with_gains(gains_first, other):
    layer = QuantLayer(nn.Conv2d(4, 4, 3), Bits(4, 16))
    puts = [
        lambda: layer.set_gains(OF_CALL, 2),
        lambda: (
            layer.use_patches()
            if other == "patches"
            else layer.set_low_rank(torch.zeros(1, 4, 3, 3), torch.zeros(4, 1))
        ),
    ]
    first, second = puts if gains_first else puts[::-1]
    first()
    with pytest.raises(ValueError, match="do not go together") as refused:
        second()
    assert other in str(refused.value)
    assert len(layer.options) == 1
