"""Whole trees and networks moved to the device, on the GPU or in Triton's interpreter."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.cuda.device import interpreted_without_gpu
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry

pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")


with interpreted_without_gpu():
    from quantarena.methods.core.cuda.layer import INTERPRETED, CudaPackedLayer
    from quantarena.methods.core.cuda.place import on_cuda


DEVICE = "cpu" if INTERPRETED else "cuda"


def test_trees_run_on_cuda_leaves(make_layer, make_input):
    parts = [
        make_layer((8, n, 3, 3), b, 8, bias=n == 5, padding=(1, 1)) for n, b in ((5, 4), (3, 8))
    ]
    split = SplitPackedLayer(parts)
    mixed = MixedWidthLayer(
        [PackedLayer(make_layer((n, 8, 1, 1), n, 8)) for n in (2, 4)],
        torch.tensor([5, 0, 3, 1, 2, 4]),
    )
    network, x = nn.Sequential(split, mixed), make_input((2, 8, 4, 4))
    want = network(x)
    leaf = CudaPackedLayer(make_layer((4, 4), 8, 8)).to(DEVICE)
    moved = on_cuda(nn.Sequential(network, nn.Flatten()), DEVICE)[0]
    leaves = [m for m in moved.modules() if isinstance(m, PackedLayer)]
    assert len(leaves) == 4
    assert all(isinstance(m, CudaPackedLayer) for m in leaves)
    assert torch.allclose(moved(x.to(DEVICE)).cpu(), want, rtol=0, atol=1e-5 * want.abs().max())
    assert on_cuda(leaf, DEVICE) is leaf


def test_leaves_below_ranges_found_at_run_time(make_layer, make_input):
    def unit(layer, zeros):
        return dataclasses.replace(layer, act_scale=torch.ones(zeros.shape), act_zero=zeros)

    rows = make_layer((3 * 6, 8, 1, 1), 4, 8, asymmetric=True, bias=False, groups=3)
    images = make_layer((6, 4, 3, 3), 4, 4, asymmetric=True, bias=False, padding=(1, 1))
    by_row = RowScaledLayer(
        PackedLayer(unit(rows, torch.tensor(0))), DynamicActQuantizer(8, group_size=8), None, None
    )
    by_sample = SampleScaledLayer(
        [PackedLayer(unit(images, torch.arange(16)))], DynamicActQuantizer(4), None, None
    )
    for node, x in ((by_row, make_input((2, 3, 24))), (by_sample, make_input((2, 4, 4, 4)))):
        moved = on_cuda(copy.deepcopy(node), DEVICE)
        assert any(isinstance(m, CudaPackedLayer) for m in moved.modules())
        want = node(x)
        limit = 1e-5 * float(want.abs().max())
        assert torch.allclose(moved(x.to(DEVICE)).cpu(), want, rtol=0, atol=limit)


def test_shared_leaves_stay_shared_and_keep_their_clock(make_layer):
    leaf = PackedLayer(make_layer((6, 6), 4, 8, steps=3))
    leaf.set_clock(CallClock())
    leaf.set_step(2)
    moved = on_cuda(nn.ModuleList([leaf, nn.Sequential(leaf)]), DEVICE)
    assert moved[0] is moved[1][0]
    assert moved[0].clock is leaf.clock
    assert moved[0]._step == 2


def test_a_whole_network_equals_its_native_twin(pixel):
    model = entry("rtn").method().run(pixel.context(Bits(4, 8), "paper", Effort(32, 0)))
    packed, points = pack(model), pixel.heldout.rows(slice(0, 1))
    network = on_cuda(copy.deepcopy(packed.module), DEVICE)
    assert sum(isinstance(m, CudaPackedLayer) for m in network.modules()) == len(packed.layers)
    batch = dataclasses.replace(
        points, sample=points.sample.to(DEVICE), timestep=points.timestep.to(DEVICE)
    )
    with torch.no_grad():
        want, got = points.call(packed.module), batch.call(network).cpu()
    assert torch.allclose(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))
