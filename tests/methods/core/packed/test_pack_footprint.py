import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.packed.footprint import footprint
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.pack import observe, pack
from quantarena.methods.core.packed.parity import PARITY_LIMIT, parity
from quantarena.methods.core.record.steps import UniformStride
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.inputs import calibrate_activations
from quantarena.methods.techniques.ranges.minmax import minmax_range


def quantized(probe, bits, *, splits=True):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, bits), splits=splits)
    model.set_weight_ranges(minmax_range)
    points = UniformStride(16).draw(probe.trajectory, 0)
    calibrate_activations(model, points, minmax_range)
    model.freeze()
    return model


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8), Bits(4, 4), Bits(2, 4), Bits(1, 1)])
def test_packed_equals_fake_layer_by_layer(probe, bits):
    model = quantized(probe, bits)
    report = parity(model, pack(model), probe.heldout.rows(slice(0, 4)))
    assert report.max_rel <= PARITY_LIMIT
    assert report.layers == len(probe.graph.layers)
    assert report.worst_layer in probe.graph.layers


def test_packed_network_follows_the_fake_one(probe):
    model = quantized(probe, Bits(8, 8))
    packed = pack(model)
    with torch.no_grad():
        fake, real = probe.heldout.call(model.module), probe.heldout.call(packed.module)
    assert real.shape == fake.shape
    # a rounding tie may fall the other way in a later layer, so this is no bitwise claim
    assert (fake - real).square().mean() <= 1e-4 * fake.square().mean()


def test_split_layers_pack_to_sums(pixel):
    packed = pack(quantized(pixel, Bits(4, 8)))
    sums = {name for name, layer in packed.layers.items() if isinstance(layer, SplitPackedLayer)}
    assert sums == {name for name, layer in pixel.graph.layers.items() if layer.splits}
    assert [len(packed.parts(name)) for name in sums] == [2] * len(sums)


@pytest.mark.parametrize("victim", ["conv_in", "mid_block.attentions.0.to_q", "conv_out"])
def test_one_wrong_code_is_caught(pixel, victim):
    model = quantized(pixel, Bits(8, 8))
    packed = pack(model)
    quantizer = model.layers[victim].only_part.weight_quantizer
    codes = quantizer.codes.clone()
    codes.view(-1)[0] += 1 if codes.view(-1)[0] < 255 else -1
    quantizer.set_codes(codes)
    with pytest.raises(QuantArenaError, match=victim):
        parity(model, packed, pixel.heldout.rows(slice(0, 4)))


def test_nan_in_the_middle_is_caught(pixel):
    model = quantized(pixel, Bits(8, 8))
    packed = pack(model)
    packed.parts("mid_block.resnets.0.conv1")[0].register_forward_hook(
        lambda module, args, output: output * float("nan")
    )
    with pytest.raises(QuantArenaError, match=r"mid_block\.resnets\.0\.conv1"):
        parity(model, packed, pixel.heldout.rows(slice(0, 4)))


def test_a_layer_that_never_ran_is_not_called_equal(pixel):
    model = quantized(pixel, Bits(8, 8))
    packed = pack(model)
    idle = model.layers["mid_block.resnets.0.conv1"]
    model.layers["ghost"] = idle.__class__(nn.Linear(3, 3), Bits(8, 8))
    with pytest.raises(QuantArenaError, match="never reached ghost"):
        parity(model, packed, pixel.heldout.rows(slice(0, 4)))


@pytest.mark.parametrize("bits", [Bits(w, a) for w in range(1, 9) for a in (3, 8)])
def test_observed_widths_are_those_asked_for(pixel, bits):
    packed = pack(quantized(pixel, bits))
    assert packed.widths() == UNIFORM.assign(pixel.graph, bits)


def test_bytes_count_every_tensor_once(pixel):
    model = quantized(pixel, Bits(4, 8))
    packed = pack(model)
    buffers = {id(t): t for t in (*packed.module.parameters(), *packed.module.buffers())}
    assert packed.bytes() == sum(t.numel() * t.element_size() for t in buffers.values())
    assert not any(t.dim() > 1 and t.is_floating_point() for t in buffers.values())


def test_codes_of_large_layers_take_half_a_byte_at_four_bits():
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    graph = trace(network, torch.randn(2, 64, 4, 4))
    sizes = {}
    for width in (8, 4, 2):
        model = wrap(network, graph, dict.fromkeys(graph.layers, Bits(width, 8)))
        model.set_weight_ranges(minmax_range)
        for layer in model.layers.values():
            layer.only_part.act_quantizer.set_params(minmax_range(torch.randn(9), 8))
        model.freeze()
        sizes[width] = pack(model).bytes()
    weights = 2 * 64 * 64 * 9
    for width, size in sizes.items():
        assert weights * width / 8 <= size <= 1.05 * weights * width / 8 + 4096


def test_nothing_quantized_is_the_network_itself(probe):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, FP))
    packed = pack(model)
    assert packed.backend == "fp32"
    assert packed.widths() == {}
    seen = observe(model, packed, probe.model)
    assert seen.coverage == {"fp": pytest.approx(1.0)}
    assert seen.layers == 0
    assert seen.act_bits == 32
    assert seen.weight_bits == 32
    assert seen.packed_bytes == seen.fp_bytes


def test_account_by_hand(probe):
    model = quantized(probe, Bits(4, 4))
    packed = pack(model)
    seen = observe(model, packed, probe.model)
    graph = probe.graph
    assert sum(seen.coverage.values()) == pytest.approx(1.0)
    assert set(seen.coverage) == {"w4a4", "w8a8", "fp"}
    assert seen.coverage["fp"] == pytest.approx(graph.other_macs / graph.total_macs)
    raised = sum(
        graph.layers[n].macs
        for n, bits in UNIFORM.assign(graph, Bits(4, 4)).items()
        if bits == Bits(8, 8)
    )
    assert seen.coverage["w8a8"] == pytest.approx(raised / graph.total_macs)
    expected = 4 * seen.coverage["w4a4"] + 8 * seen.coverage["w8a8"] + 32 * seen.coverage["fp"]
    assert seen.act_bits == pytest.approx(expected)
    numbers = sum(t.numel() for t in (*probe.model.parameters(), *probe.model.buffers()))
    assert seen.fp_bytes == 4 * numbers
    assert seen.packed_bytes == packed.bytes()
    assert seen.weight_bits == pytest.approx(8 * packed.bytes() / numbers)


def test_layers_left_out_count_as_full_precision(pixel):
    name = "mid_block.resnets.0.conv1"
    seen = footprint(pixel.graph, {name: Bits(4, 8)}, pixel.model, packed_bytes=1000)
    share = pixel.graph.layers[name].macs / pixel.graph.total_macs
    assert seen.coverage == {"fp": pytest.approx(1 - share), "w4a8": pytest.approx(share)}
    assert seen.layers == 1


class Placed(nn.Module):
    """A layer beside a table of positions that is larger than its weight, as in SD3."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("positions", torch.randn(64, 16), persistent=False)
        self.register_buffer("order", torch.arange(64))

    def forward(self, x):
        return self.layer(x + self.positions[self.order[: x.shape[1]]])


def packed_of(network, x, bits):
    graph = trace(network.eval().requires_grad_(False), x)
    model = wrap(network, graph, dict.fromkeys(graph.layers, bits))
    model.set_weight_ranges(minmax_range)
    for layer in model.layers.values():
        layer.only_part.act_quantizer.set_params(minmax_range(torch.randn(9), 8))
    model.freeze()
    return model, pack(model)


def test_buffers_count_on_both_sides():
    network = Placed()
    model, packed = packed_of(network, torch.randn(2, 5, 16), Bits(4, 8))
    seen = observe(model, packed, network)
    assert seen.fp_bytes == 4 * (16 * 16 + 16 + 64 * 16) + 8 * 64
    assert seen.packed_bytes == packed.bytes() < seen.fp_bytes
    assert seen.weight_bits == pytest.approx(32 * packed.bytes() / seen.fp_bytes)
    half = Placed().half()
    assert tensor_bytes(half, float_bits=32) == seen.fp_bytes
    assert packed.remarks() == ()


def test_depthwise_layers_shrink_and_are_named():
    network = nn.Sequential(
        nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Conv2d(48, 48, 3, padding=1, groups=48)
    )
    model, packed = packed_of(network, torch.randn(1, 48, 6, 6), Bits(4, 8))
    seen = observe(model, packed, network)
    assert packed.widths() == dict.fromkeys(model.layers, Bits(4, 8))
    assert seen.packed_bytes < seen.fp_bytes / 2
    (line,) = packed.remarks()
    assert line.startswith("0 and 1 more layers in groups: codes are stored densely")


def test_layers_that_grow_are_named():
    network = nn.Linear(64, 1)
    wrapper = nn.Sequential(network)
    _, packed = packed_of(wrapper, torch.randn(2, 64), Bits(8, 8))
    (line,) = packed.remarks()
    assert "packed form takes" in line
    assert "bytes more than float32 weights would" in line
    grown = packed.bytes() - 4 * 64
    assert str(grown) in line
