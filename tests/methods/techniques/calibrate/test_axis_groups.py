import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.affine import FAR, QuantParams, fake_quantize
from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.model.attention_mode import Fake
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.calibrate.axis_bounds import axes_of_inputs, axes_of_products
from quantarena.methods.techniques.calibrate.axis_groups import (
    group_params,
    groups_by_call,
    groups_of_all,
    spreads,
)
from quantarena.methods.techniques.calibrate.bounds import Bounds
from quantarena.methods.techniques.ranges.minmax import minmax_range


def bounds_of(x):
    """Of the slices along the last axis at every call; ``x`` is (S, values, slices)."""
    return Bounds(x.amin(1), x.amax(1))


def mse(x, ids):
    """Of each slice of ``x`` (S, values, slices) over its power, its group's range at 4 bits."""
    found = group_params(bounds_of(x), ids, 4)
    place = ids.expand(len(x), x.shape[2])
    scale, zero = (v.gather(1, place).unsqueeze(1) for v in (found.scale, found.zero_point))
    wrong = (fake_quantize(x, QuantParams(scale, zero, 4)) - x).square().mean(1)
    return float((wrong / x.square().mean(1)).mean())


@pytest.mark.parametrize("maker", [groups_by_call, groups_of_all])
def test_error_falls_with_groups_to_that_of_slices(maker):
    x = torch.randn(3, 200, 12) * torch.logspace(-1, 1.5, 12)[torch.randperm(12)]
    errors = [mse(x, maker(bounds_of(x), groups, 0)) for groups in (1, 2, 4, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] * 1.5 < errors[0]
    one = group_params(bounds_of(x), maker(bounds_of(x), 1, 0), 4)
    whole = [minmax_range(call, 4) for call in x]
    assert one.scale.flatten().tolist() == [float(params.scale) for params in whole]
    assert one.zero_point.flatten().tolist() == [float(params.zero_point) for params in whole]
    for slot in range(12):
        slices = x[:, :, slot]
        params = minmax_range(slices, 4, axis=0)
        found = group_params(bounds_of(x), maker(bounds_of(x), 12, 0), 4)
        assert torch.equal(found.scale[:, slot], params.scale.flatten())


def test_groups_beyond_zero_are_as_wide_as_their_members():
    """Of the slices the first two are a group, the third contains zero, the last is far away."""
    low = torch.tensor([[5.0, 6.0, -1.0, -1e6], [-9.0, -8.0, 0.0, 3e5]])
    high = torch.tensor([[7.0, 8.0, 2.0, -1e6 + 3], [-7.0, -6.0, 0.0, 3e5]])
    bounds, ids = Bounds(low, high), torch.tensor([0, 0, 1, 2])
    near, tight = (group_params(bounds, ids, 4, with_zero=on) for on in (True, False))
    assert torch.equal(near.scale[:, 1], tight.scale[:, 1])
    assert torch.equal(near.zero_point[:, 1], tight.zero_point[:, 1])
    assert tight.scale[:, 0].tolist() == pytest.approx([3 / 15, 3 / 15])
    assert tight.zero_point[:, 0].tolist() == [-25, 45]
    assert float(near.zero_point.min()) >= 0
    assert float(near.zero_point.max()) <= 15
    assert tight.zero_point[:, 2].tolist() == [FAR, -FAR]
    for slot, group in enumerate(ids):
        for x in (low[:, slot], high[:, slot]):
            params = QuantParams(tight.scale[:, group], tight.zero_point[:, group], 4)
            wrong = (fake_quantize(x, params) - x).abs()
            assert bool((wrong <= params.scale * 0.51).all()), "not in the range"


@pytest.mark.parametrize("maker", [groups_by_call, groups_of_all])
def test_an_outlier_slice_is_alone(maker):
    x = torch.randn(2, 300, 20)
    x[:, :, 7] *= 15
    ids = maker(bounds_of(x), 3, 0)
    for row in ids.reshape(-1, 20):
        assert (row == row[7]).sum() == 1


def test_only_groups_by_call_follow_slices_that_change_places():
    x = torch.randn(2, 300, 20)
    x[0, :, :5] *= 20
    x[1, :, 10:15] *= 20
    moving, frozen = (
        mse(x, maker(bounds_of(x), 2, 0)) for maker in (groups_by_call, groups_of_all)
    )
    assert frozen > 3 * moving
    enough = mse(x, groups_of_all(bounds_of(x), 3, 0))
    assert enough < 1.1 * moving, "three histories, one group each"


def test_histories_count_calls_alike_whatever_their_size():
    x = torch.randn(2, 300, 6)
    x[0, :, :3] *= 8  # call 1 is a thousand times larger and does not tell slices apart
    x[1] *= 1000
    ids = groups_of_all(bounds_of(x), 2, 0)
    assert ids[:3].unique().numel() == ids[3:].unique().numel() == 1
    assert ids[0] != ids[3]


def test_spread_is_the_formula():
    bounds = Bounds(torch.tensor([[-1.0, -3, 0]]), torch.tensor([[1.0, 9, 4]]))
    assert spreads(bounds).tolist() == [(9 - 1) + (0 + 3)]


def test_equal_seeds_give_equal_groups():
    bounds = bounds_of(torch.randn(3, 50, 40))
    assert torch.equal(groups_by_call(bounds, 4, 1), groups_by_call(bounds, 4, 1))


def test_pooled_bounds_are_those_of_neighbouring_calls(pixel):
    model = wrap(pixel.model, pixel.graph, dict.fromkeys(pixel.graph.layers, Bits(4, 4)))
    model.set_weight_ranges(minmax_range)
    axes = axes_of_inputs(model, pixel.heldout)["mid_block.resnets.0.conv1"]
    low, pooled = axes.channels.low, axes.pooled(1).channels.low
    assert torch.equal(pooled[0], low[:2].amin(0))
    assert torch.equal(pooled[2], low[1:4].amin(0))
    assert torch.equal(axes.pooled(0).positions.high, axes.positions.high)
    wide = axes.pooled(9).positions.high
    assert torch.equal(wide[0], wide[3])


def test_bounds_are_those_of_what_layers_read(probe):
    """Along both axes and at every call, held against inputs that a plain run shows."""
    model = wrap(probe.model, probe.graph, dict.fromkeys(probe.graph.layers, Bits(8, 8)))
    model.set_weight_ranges(minmax_range)
    found = axes_of_inputs(model, probe.heldout, batch=3)
    seen = {}
    for name, layer in model.layers.items():
        layer.register_forward_pre_hook(lambda m, a, name=name: seen.setdefault(name, a[0]))
    with torch.no_grad(), model.using(weights=True, acts=False):
        model.run(probe.heldout)
    step = probe.heldout.step
    for name, x in seen.items():
        layer, axes = model.layers[name], found[name]
        rows = x
        if layer.spatial == 2:
            window = layer.window
            taps = F.unfold(x, window.kernel, window.dilation, window.padding, window.stride)
            rows = taps.mT
            channels = x.flatten(2).mT
        else:
            channels = x if x.dim() == 3 else x.unsqueeze(1)
        assert (axes.positions is None) == (rows.dim() != 3)
        for call in range(4):
            kept = channels[step == call]
            assert torch.allclose(axes.channels.high[call], kept.amax((0, 1)), atol=1e-5)
            assert torch.allclose(axes.whole.low[call, 0], kept.amin(), atol=1e-5)
            if axes.positions is not None:
                kept = rows[step == call]
                assert torch.allclose(axes.positions.low[call], kept.amin((0, 2)), atol=1e-5)
                assert torch.allclose(axes.positions.high[call], kept.amax((0, 2)), atol=1e-5)
    assert len(seen) == len(found) == len(model.layers)


def test_products_have_bounds_without_the_excluded_token(conditional):
    attention = dict.fromkeys(conditional.graph.attention, AttentionBits(8, 8, 8, 8))
    bits = dict.fromkeys(conditional.graph.layers, Bits(8, 8))
    model = wrap(conditional.model, conditional.graph, bits, attention=attention)
    model.set_weight_ranges(minmax_range)
    name = next(n for n, info in conditional.graph.attention.items() if info.kind == "cross")
    before = axes_of_products(model, conditional.heldout)
    model.attention[name].excluded = 1
    after = axes_of_products(model, conditional.heldout)
    assert {operand for _, operand in before} == {"query", "key", "value"}
    assert before[name, "key"].positions.low.shape == (4, 5)
    assert torch.equal(after[name, "key"].positions.low, before[name, "key"].positions.low[:, 1:])
    assert after[name, "value"].positions.low.shape == (4, 5)
    assert all(quant.mode == Fake() for quant in model.attention.values())


def test_vectors_have_no_positions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, sample, timestep=None, return_dict=True):
            return (self.one(sample),)

    network = Net().eval()
    sample, times = torch.randn(2, 3, 4), torch.arange(2).float()
    graph = trace(network, sample[0, :2], timestep=times[:1])
    model = wrap(network, graph, {"one": Bits(8, 8)})
    model.set_weight_ranges(minmax_range)
    step = torch.tensor([0, 0, 1, 1])
    points = Trajectory(sample, times, {}).pick(step, torch.tensor([0, 1, 0, 1]))
    axes = axes_of_inputs(model, points)["one"]
    assert axes.positions is None
    assert torch.equal(axes.channels.low[1], sample[1, :2].amin(0))
    assert axes.pooled(1).positions is None
