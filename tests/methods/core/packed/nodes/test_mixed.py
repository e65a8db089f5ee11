"""Layers whose output channels have several widths, as one call of the kernels."""

import copy
import dataclasses
import pickle

import pytest
import torch

from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer


def same_input(layers):
    """Layers with the activation quantizer of the first."""
    first = layers[0]
    names = ("act_scale", "act_zero", "in_mult")
    return [
        dataclasses.replace(layer, **{name: getattr(first, name) for name in names})
        for layer in layers
    ]


def spread(sizes, ordered=True):
    """Where each output lies among the parts': every part's in order, or in any."""
    if not ordered:
        return torch.randperm(sum(sizes))
    whose = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return whose[torch.randperm(len(whose))].argsort(stable=True).argsort()


def mixed(make_layer, library, shape, widths, *, ordered=True, act=8, **options):
    """A mixed layer, its parts' descriptions, and the order of its outputs."""
    torch.manual_seed(sum(shape))
    sizes = [shape[0] + 3 * i for i in range(len(widths))]
    layers = same_input(
        [
            make_layer((size, *shape[1:]), width, act, seed=i, asymmetric=i == 1, **options)
            for i, (size, width) in enumerate(zip(sizes, widths, strict=True))
        ]
    )
    back = spread(sizes, ordered)
    return MixedWidthLayer([PackedLayer(layer, library) for layer in layers], back), layers, back


def integers(layers, back, x, step=0):
    return torch.cat(
        [oracle.accumulators(layer, x, step) for layer in layers], 1 if x.dim() == 4 else -1
    )


@pytest.mark.parametrize("widths", [(3, 4), (1, 2, 3), (2, 4, 8), (5, 5), (8,)], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("rows", [1, 6, 19, 130])
def test_rows_are_exact(make_layer, make_input, library, widths, ordered, rows):
    node, layers, back = mixed(
        make_layer,
        library,
        (21, 168),
        widths,
        ordered=ordered,
        codes="extreme",
        steps=2,
        multiplier=True,
    )
    x = make_input((rows, 168), extreme=rows == 6)
    want = integers(layers, back, x, 1)[:, back]
    assert torch.equal(node.accumulators(x, 1).long(), want)
    node.set_step(1)
    parts = node.by_parts(x, 1)
    assert torch.allclose(node(x), parts, rtol=0, atol=1e-5 * float(parts.abs().max()))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("widths", [(3, 4), (1, 6), (2, 4, 8)], ids=str)
def test_images_are_exact(make_layer, make_input, library, last, widths):
    node, layers, back = mixed(
        make_layer, library, (9, 10, 3, 3), widths, padding=(1, 1), stride=(2, 1)
    )
    x = make_input((3, 10, 9, 13))
    x = x.to(memory_format=torch.channels_last) if last else x
    assert torch.equal(node.accumulators(x).long(), integers(layers, back, x)[:, back])
    parts = node.by_parts(x, 0)
    assert torch.allclose(node(x), parts, rtol=0, atol=1e-5 * float(parts.abs().max()))
    assert (
        node(x).stride()
        == parts.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        ).stride()
    )


def test_threads_share_the_panels(make_layer, make_input, library):
    torch.set_num_threads(3)
    for rows, shape in ((30, (200, 900)), (400, (70, 160))):
        node, layers, back = mixed(make_layer, library, shape, (2, 3, 4))
        x = make_input((rows, shape[1]))
        assert torch.equal(node.accumulators(x).long(), integers(layers, back, x)[:, back])


def test_all_widths_share_one_call(make_layer, make_input, library):
    if library.run is None:
        pytest.skip("no native kernels")
    node, _, _ = mixed(make_layer, library, (16, 64), (3, 4))
    alone = []
    for part in node.parts:
        part._run = lambda *given: alone.append(given)
    node(make_input((4, 64)))
    assert not alone


def test_sums_of_ranges_of_channels(make_layer, make_input, library):
    nodes = []
    for i, inputs in enumerate((20, 12)):
        options = {"bias": i == 0, "padding": (1, 1)}
        node, _, _ = mixed(make_layer, library, (18, inputs, 3, 3), (3, 4), **options)
        nodes.append(node)
    split = SplitPackedLayer(nodes)
    x = make_input((2, 32, 6, 5))
    want = sum(n.by_parts(p, 0) for n, p in zip(nodes, torch.split(x, [20, 12], 1), strict=True))
    assert torch.allclose(split(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_parts_that_quantize_in_their_own_way_run_apart(make_layer, make_input, library):
    layers = [make_layer((12, 40), w, 8, seed=w) for w in (3, 4)]
    back = spread([12, 12])
    node, x = MixedWidthLayer([PackedLayer(v, library) for v in layers], back), make_input((5, 40))
    assert not node.in_place
    want = torch.cat([oracle.forward(layer, x) for layer in layers], -1)[:, back]
    assert torch.allclose(node(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_codes_take_the_bits_that_they_promise(make_layer, library):
    node, _, _ = mixed(make_layer, library, (64, 64), (1, 3), bias=False)
    codes = sum(part.panels.numel() for part in node.parts)
    assert codes == 64 * (64 * 1 + 80 * 3) // 8  # 64 and 67 channels, in panels of 16
    rest = sum(b.numel() * b.element_size() for b in node.buffers()) - codes
    assert rest <= 131 * 20 + 200  # scales, sums, zero points, order; chunks of panels


def test_codes_that_come_later_are_used(make_layer, make_input, library):
    node, _, _ = mixed(make_layer, library, (20, 48), (3, 8))
    first = copy.deepcopy(node.parts[0].state_dict())
    other, layers, _ = mixed(make_layer, library, (20, 48), (3, 8), codes="extreme")
    x = make_input((7, 48))
    before = node(x)
    node.load_state_dict(other.state_dict())
    want = torch.cat([oracle.forward(layer, x) for layer in layers], -1)[:, other.back.long()]
    assert not torch.allclose(before, want)
    assert torch.allclose(node(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    again = build(other.describe(), dict(other.state_dict()))
    for copied in (copy.deepcopy(node), pickle.loads(pickle.dumps(node)), again):
        assert torch.allclose(copied(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))
    node.parts[0].load_state_dict(first)
    assert torch.allclose(node(x), node.by_parts(x, 0), rtol=0, atol=1e-5 * float(want.abs().max()))


def test_an_order_that_names_a_channel_twice_is_refused(make_layer, library):
    parts = [PackedLayer(make_layer((4, 8), w, 8), library) for w in (2, 4)]
    with pytest.raises(ValueError, match="does not hold all 8"):
        MixedWidthLayer(parts, torch.zeros(8))
