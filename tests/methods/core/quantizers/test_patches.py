import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.affine import affine_params
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.patches import PatchLayer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.core.quantizers.patches import Window, weight_rows
from quantarena.methods.techniques.ranges.minmax import minmax_range

SETTINGS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": 1},
    {"kernel_size": 2, "stride": 2},
]


def window_of(conv):
    return Window.of(conv.kernel_size, conv.stride, conv.padding, conv.dilation)


@pytest.mark.parametrize("settings", SETTINGS)
@torch.no_grad()
def test_a_product_over_patches_is_the_convolution(settings):
    conv = nn.Conv2d(5, 7, **settings).double()
    x, window = torch.randn(3, 5, 9, 8, dtype=torch.float64), window_of(conv)
    rows = window.rows(x)
    y = window.image(F.linear(rows, weight_rows(conv.weight), conv.bias), x)
    assert float((y - conv(x)).abs().max()) <= 1e-10
    assert window.size(x) == tuple(y.shape[-2:])


@pytest.mark.parametrize("settings", SETTINGS)
def test_bounds_of_patches_are_those_of_their_values(settings):
    x, window = torch.randn(4, 5, 9, 8) + 2, window_of(nn.Conv2d(5, 7, **settings))
    rows = window.rows(x)
    low, high = window.bounds(x.amin((0, 1)), x.amax((0, 1)))
    assert torch.equal(low, rows.amin((0, 2)))
    assert torch.equal(high, rows.amax((0, 2)))


CALLS, IMAGE = 2, (2, 6, 7, 5)


def grouped(settings, *, mult=False, dynamic=False, splits=()):
    """A layer whose output pixels have ranges that differ by call and group."""
    clock = CallClock()
    layer = QuantLayer(nn.Conv2d(6, 4, **settings), Bits(4, 4), splits, clock)
    layer.use_patches()
    if mult:
        layer.scale_input(torch.rand(6) + 0.5)
    pixels = layer.window.size(torch.empty(IMAGE))
    ids = torch.randint(3, (CALLS, pixels[0] * pixels[1]))
    high = torch.rand(CALLS, 3) * 3 + 0.5
    found = affine_params(-high / 2, high, 4, False)
    for part in layer.parts:
        if dynamic:
            part.act_quantizer = DynamicActQuantizer(4)
        else:
            part.static.set_groups(-2, ids, found.scale, found.zero_point)
    layer.set_weight_ranges(minmax_range, symmetric=False)
    layer.freeze()
    return layer


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("options", [{}, {"mult": True}, {"dynamic": True}, {"splits": (4, 2)}])
@torch.no_grad()
def test_packed_patches_compute_the_same(settings, options):
    layer = grouped(settings, **options)
    packed = pack_layer(layer)
    tensors = {name: value.clone() for name, value in packed.state_dict().items()}
    rebuilt = build(packed.describe(), tensors)
    rebuilt.set_clock(layer.clock)
    x = torch.randn(IMAGE)
    for step in (0, 1, torch.tensor([1, 0])):
        with layer.clock.at(step):
            y = layer(x)
            for node in (packed, rebuilt):
                for image in (x, x.contiguous(memory_format=torch.channels_last)):
                    assert float((node(image) - y).abs().max() / y.abs().max()) <= 1e-5


def test_each_output_pixel_reads_codes_of_its_own_range():
    layer = grouped(SETTINGS[0])
    x = torch.randn(IMAGE)
    quantizer = layer.only_part.static
    with layer.clock.at(1):
        y = layer(x)
        params = quantizer.at(layer.window.rows(x))
    pixel = 2 * 5 + 3
    scale, zero = (float(v[0, pixel, 0]) for v in (params.scale, params.zero_point))
    image = ((torch.round(x / scale) + zero).clamp(0, 15) - zero) * scale
    weight = layer.only_part.weight_quantizer(layer.weight)
    plain = F.conv2d(image, weight, layer.bias, padding=1)
    assert torch.allclose(y[:, :, 2, 3], plain[:, :, 2, 3], atol=1e-5)
    assert not torch.allclose(y, plain, atol=1e-2), "all pixels have one range"


def test_state_keeps_patches():
    layer = grouped(SETTINGS[0])
    other = QuantLayer(nn.Conv2d(6, 4, **SETTINGS[0]), Bits(4, 4), (), layer.clock)
    other.load(layer.state())
    x = torch.randn(IMAGE)
    with layer.clock.at(0):
        assert torch.equal(other(x), layer(x))
    assert isinstance(pack_layer(other), PatchLayer)


def test_one_range_needs_no_patches_and_others_are_refused():
    layer = grouped(SETTINGS[0])
    quantizer = layer.only_part.static
    with pytest.raises(ValueError, match="another image size"), layer.clock.at(0):
        layer(torch.randn(2, 6, 8, 8))
    quantizer.set_groups(-1, torch.arange(54) % 2, torch.rand(2) + 1, torch.full((2,), 8.0))
    with pytest.raises(Unsupported, match="patches pack with ranges by row"):
        pack_layer(layer)
    quantizer.set_params(minmax_range(torch.randn(50), 4))
    packed, x = pack_layer(layer), torch.randn(IMAGE)
    assert not isinstance(packed, PatchLayer)
    assert torch.allclose(packed(x), layer(x), atol=1e-4)
    for module in (nn.Linear(4, 4), nn.Conv2d(4, 4, 3, groups=2)):
        with pytest.raises(ValueError, match="has patches"):
            QuantLayer(module, Bits(4, 4)).use_patches()
