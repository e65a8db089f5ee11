from itertools import pairwise

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.quantizers.group_views import group_range, grouped, ungrouped
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.scaling.low_rank import product, refine_branch, svd_branch


def quantize(weight, bits=4, group=8):
    params = group_range(minmax_range, weight, bits, group, symmetric=True)
    return ungrouped(fake_quantize(grouped(weight, group), params))


def planted(rows=24, columns=32, rank=3):
    """A flat weight and a few strong directions."""
    strong = torch.randn(rows, rank) @ torch.randn(rank, columns) * 3
    return strong + 0.1 * torch.randn(rows, columns)


def output_error(weight):
    x = torch.randn(64, weight.shape[1], generator=torch.Generator().manual_seed(5))
    target = x @ weight.detach().t()
    return lambda low, rest: float((x @ (low + rest).t() - target).square().mean())


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (6, 4, 3, 3)])
@pytest.mark.parametrize("rank", [0, 1, 5, 99])
def test_a_branch_and_its_rest_are_the_weight(shape, rank):
    weight = torch.randn(shape, dtype=torch.float64)
    down, up = svd_branch(weight, rank)
    kept = min(rank, *weight.flatten(1).shape)
    assert down.shape == (kept, *shape[1:])
    assert up.shape == (shape[0], kept)
    rest = weight - product(down, up)
    values = torch.linalg.svdvals(weight.flatten(1))
    # Eckart-Young: what is left is what the dropped singular values hold
    assert rest.square().sum() == pytest.approx(float(values[kept:].square().sum()), abs=1e-9)
    if rank == 99:
        assert rest.abs().max() <= 1e-10
    if rank == 0:
        assert torch.equal(rest, weight)


def test_float32_weights_are_factored_in_float64():
    weight = planted()
    down, up = svd_branch(weight, 4)
    exact = product(*svd_branch(weight.double(), 4))
    assert down.dtype == up.dtype == torch.float32
    assert (product(down, up).double() - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_errors_fall_until_the_first_increase():
    weight = planted()
    found = refine_branch(weight, 4, quantize, output_error(weight))
    *falling, last = found.errors
    assert len(found.errors) >= 3
    assert all(b < a for a, b in pairwise(falling))
    assert last >= falling[-1]
    error = output_error(weight)
    assert error(found.weight, quantize(weight - found.weight)) == min(found.errors)


def test_one_round_is_the_plain_decomposition():
    weight = planted()
    found = refine_branch(weight, 4, quantize, output_error(weight), rounds=1)
    assert torch.equal(found.weight, product(*svd_branch(weight, 4)))
    assert len(found.errors) == 1


def test_rank_0_is_plain_quantization_and_full_rank_is_floating_point():
    weight = planted()
    error = output_error(weight)
    none = refine_branch(weight, 0, quantize, error)
    assert none.errors[0] == error(none.weight, quantize(weight))
    assert none.weight.abs().max() == 0
    full = refine_branch(weight, 24, quantize, error)
    assert min(full.errors) <= 1e-9 * none.errors[0]


def test_a_branch_pays_where_few_directions_are_strong():
    weight = planted()
    error = output_error(weight)
    plain = error(torch.zeros_like(weight), quantize(weight))
    assert plain >= 10 * min(refine_branch(weight, 4, quantize, error).errors)


def test_what_cannot_be_factored_is_refused():
    with pytest.raises(ValueError, match="rank -1"):
        svd_branch(torch.randn(3, 3), -1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        svd_branch(torch.randn(3), 1)
    with pytest.raises(ValueError, match="finite"):
        svd_branch(torch.tensor([[1.0, torch.nan]]), 1)
    with pytest.raises(ValueError, match="at least 1"):
        refine_branch(torch.randn(3, 3), 1, quantize, lambda low, rest: 0.0, rounds=0)


@pytest.mark.parametrize("rank", [1, 4, 24])
def test_a_layer_with_a_branch_packs(rank):
    module = nn.Linear(32, 24)
    module.weight.data = planted()
    x = torch.randn(5, 32)
    with torch.no_grad():
        target = module(x)
    branch = refine_branch(module.weight.detach(), rank, quantize, output_error(module.weight))
    errors = {}
    for name in ("plain", "branch"):
        layer = QuantLayer(module, Bits(4, 8))
        if name == "branch":
            layer.set_low_rank(branch.down, branch.up)
        part = layer.only_part
        part.weight_quantizer.group_size = 8
        layer.set_weight_ranges(minmax_range, symmetric=True)
        part.act_quantizer.set_params(minmax_range(x, 8))
        layer.freeze()
        fake, packed = layer(x), pack_layer(layer)(x)
        assert (fake - packed).abs().max() <= 1e-5 * fake.abs().max()
        errors[name] = float((fake - target).square().mean())
    assert errors["branch"] < (0.5 if rank >= 4 else 1) * errors["plain"]


def test_layers_of_one_input_share_a_projection():
    query, key = planted(), planted()
    down, up = svd_branch(torch.cat([query, key]), 6)
    assert down.shape == (6, 32)
    stacked = torch.cat([product(down, up[:24]), product(down, up[24:])])
    assert (stacked - product(down, up)).abs().max() <= 1e-5
    assert (query - product(down, up[:24])).square().mean() < 0.02 * query.square().mean()
