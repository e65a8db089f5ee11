import pytest
import torch

from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.kernels.packed import PackedLayer

WIDTHS = [(w, a) for w in range(1, 9) for a in (4, 8)] + [(4, 1), (8, 2), (3, 6)]

CONVOLUTIONS = {
    "3x3": ((20, 20, 3, 3), (2, 20, 9, 8), {"padding": (1, 1)}),
    "3x3 of 3 channels": ((18, 3, 3, 3), (2, 3, 8, 8), {"padding": (1, 1)}),
    "3x3 stride 2": ((17, 8, 3, 3), (1, 8, 16, 16), {"padding": (1, 1), "stride": (2, 2)}),
    "3x3 stride 2, no padding": ((4, 6, 3, 3), (2, 6, 17, 13), {"stride": (2, 2)}),
    "3x3 on 4x4": ((16, 32, 3, 3), (3, 32, 4, 4), {"padding": (1, 1)}),
    "3x3 on 1x1": ((16, 32, 3, 3), (3, 32, 1, 1), {"padding": (1, 1)}),
    "3x3 on 2x12": ((9, 16, 3, 3), (2, 16, 2, 12), {"padding": (1, 1)}),
    "3x3 on 20x20": ((9, 4, 3, 3), (3, 4, 20, 20), {"padding": (1, 1)}),
    "1x1": ((33, 12, 1, 1), (3, 12, 5, 7), {}),
    "1x1 stride 2": ((8, 12, 1, 1), (2, 12, 6, 9), {"stride": (2, 2)}),
    "1x1 with padding": ((8, 12, 1, 1), (2, 12, 6, 5), {"padding": (1, 2)}),
    "4x4 stride 4": ((24, 3, 4, 4), (2, 3, 16, 16), {"stride": (4, 4)}),
    "1x3": ((8, 8, 1, 3), (2, 8, 1, 30), {"padding": (0, 1)}),
    "5x2 odd": ((7, 5, 5, 2), (1, 5, 11, 10), {"stride": (3, 1), "padding": (2, 1)}),
    "dilated": ((8, 8, 3, 3), (1, 8, 12, 12), {"padding": (2, 3), "dilation": (2, 3)}),
    "groups": ((12, 4, 3, 3), (2, 12, 8, 8), {"padding": (1, 1), "groups": 3}),
    "depthwise": ((10, 1, 3, 3), (2, 10, 8, 8), {"padding": (1, 1), "groups": 10}),
    "all at once": (
        (8, 6, 3, 2),
        (1, 12, 13, 12),
        {"stride": (1, 3), "padding": (2, 1), "dilation": (2, 1), "groups": 2},
    ),
}


def check(layer, module, x, step=0):
    """Accumulators bit for bit, outputs to rounding, memory format kept."""
    want, got = oracle.accumulators(layer, x, step), module.accumulators(x, step)
    assert torch.equal(want, got.long())
    y, z = oracle.forward(layer, x, step), module(x, step)
    assert float((y - z).abs().max() if y.numel() else 0) <= 1e-5 * float(y.abs().amax() + 1e-30)
    assert y.shape == z.shape
    assert y.stride() == z.stride()


@pytest.mark.parametrize(("weight_bits", "act_bits"), WIDTHS)
def test_every_width_pair_is_exact(make_layer, make_input, library, weight_bits, act_bits):
    for seed, codes in enumerate(("normal", "uniform", "low", "high", "extreme")):
        for asymmetric in (False, True):
            settings = {"seed": seed, "codes": codes, "asymmetric": asymmetric}
            layer = make_layer((35, 70), weight_bits, act_bits, **settings)
            check(layer, PackedLayer(layer, library), make_input((13, 70), seed, codes != "normal"))
            layer = make_layer((20, 12, 3, 3), weight_bits, act_bits, padding=(1, 1), **settings)
            x = make_input((1, 12, 5, 9), seed, codes != "normal")
            check(layer, PackedLayer(layer, library), x)
            check(layer, PackedLayer(layer, library), x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
def test_long_sums_of_extreme_codes_do_not_overflow(make_layer, library, weight_bits, sign):
    for codes in ("low", "high", "extreme"):
        layer = make_layer((17, 2900), weight_bits, 8, codes=codes)
        check(layer, PackedLayer(layer, library), torch.full((3, 2900), sign * 1e9))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (2, 4)])
def test_convolutions_are_exact_in_both_formats(make_layer, make_input, library, name, bits):
    shape, size, options = CONVOLUTIONS[name]
    for asymmetric in (False, True):
        layer = make_layer(shape, *bits, asymmetric=asymmetric, multiplier=asymmetric, **options)
        module = PackedLayer(layer, library)
        x = make_input(size)
        check(layer, module, x)
        check(layer, module, x.to(memory_format=torch.channels_last))
