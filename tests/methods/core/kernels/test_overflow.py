"""No sum of an accepted layer leaves int32, whatever the input and the zero points."""

import dataclasses

import pytest
import torch

from quantarena.methods.core.kernels import formats, oracle
from quantarena.methods.core.kernels.formats import IntegerLayer, largest_sum
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

MOST = 2**31 - 1


def worst(depth, *, bits=8, code=-128, zero=256, act_zero=0, rows=3):
    """A layer all of whose products have the same sign and the largest size."""
    return IntegerLayer(
        kind="linear",
        weight_codes=torch.full((rows, depth), code, dtype=torch.int8),
        weight_bits=bits,
        weight_scale=torch.ones(rows),
        weight_zero=torch.full((rows,), zero, dtype=torch.int32),
        act_bits=8,
        act_scale=torch.tensor(1.0),
        act_zero=torch.tensor(act_zero),
    )


@pytest.mark.parametrize(
    ("code", "zero", "depth"), [(-128, 256, 21_931), (127, -256, 21_988), (-128, 127, 33_025)]
)
@pytest.mark.parametrize("act_zero", [0, 255])
def test_the_deepest_layers_are_exact_and_deeper_ones_refused(library, code, zero, depth, act_zero):
    layer = worst(depth, code=code, zero=zero, act_zero=act_zero)
    x = torch.full((2, depth), 1e9 if act_zero == 0 else -1e9)
    want = oracle.accumulators(layer, x)
    assert MOST * 0.999 < int(want.abs().max()) <= MOST
    module = PackedLayer(layer, library)
    assert torch.equal(module.accumulators(x).long(), want)
    assert torch.allclose(module(x), oracle.forward(layer, x))
    with pytest.raises(ValueError, match="may exceed an int32: split the input channels") as caught:
        worst(depth + 1, code=code, zero=zero, act_zero=act_zero)
    assert "\n" not in str(caught.value)


def test_depth_alone_refuses_nothing(library):
    """40,000 products fit where half of them have the other sign."""
    layer = worst(40_000, zero=0)
    codes = layer.weight_codes.clone()
    codes[:, ::2] = 127
    layer = dataclasses.replace(layer, weight_codes=codes)
    x = torch.where(torch.arange(40_000) % 2 == 0, 1e9, -1e9).repeat(2, 1)
    assert torch.equal(
        PackedLayer(layer, library).accumulators(x).long(), oracle.accumulators(layer, x)
    )
    with pytest.raises(ValueError, match="split the input channels"):
        worst(formats.MAX_DEPTH + 1, code=0, zero=0)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_is_reached_and_never_passed(make_layer, monkeypatch, seed):
    make = torch.Generator().manual_seed(seed)
    bits, act_bits = int(torch.randint(1, 9, (), generator=make)), 1 + seed % 8
    layer = make_layer((4, 30), bits, act_bits, seed=seed, codes="uniform", asymmetric=True)
    far = torch.randint(-(1 << bits), (1 << bits) + 1, (4,), generator=make, dtype=torch.int32)
    layer = dataclasses.replace(layer, weight_zero=far)
    monkeypatch.setattr(formats, "MAX_SUM", 0)  # never satisfied with the coarse bound
    bound = largest_sum(layer.weight_codes, far, act_bits)
    monkeypatch.undo()
    assert bound <= largest_sum(layer.weight_codes, far, act_bits)  # the coarse one
    top, seen = (1 << act_bits) - 1, 0
    weight = layer.weight_codes.long() - far[:, None].long()
    for zero in {0, top // 2, top}:
        own = dataclasses.replace(layer, act_zero=torch.tensor(zero), act_scale=torch.tensor(1.0))
        for sign in (1, -1):
            x = torch.where(sign * weight > 0, 1e9, -1e9)
            seen = max(seen, int(oracle.accumulators(own, x).abs().max()))
    assert seen == bound
