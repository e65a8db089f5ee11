"""Layers whose K axis has groups: one call, the integers of every group as the oracle's."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from quantarena.methods.core.kernels import formats, native, oracle
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.kernels.groups.call import for_kernels, is_for_kernels
from quantarena.methods.core.kernels.groups.layout import aligned_order
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer, one_call
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.rebuild import build
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import LowRankLayer
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer

NATIVE = native.load().run_groups is not None
pytestmark = pytest.mark.skipif(not NATIVE, reason="needs the native kernels")
SIZES = (3, 1, 9, 4, 16, 2, 7, 6)
STEPS = 3


def grouped_parts(make, shape, sizes, bits, act_bits, *, far=False, own_scales=False, mult=False):
    """Layers over groups of channels whose ranges differ by up to four orders of magnitude."""
    low, high = formats.code_range(bits)
    rows, top = shape[0], (1 << act_bits) - 1
    zero = torch.randint(low, high + 1, (rows,)) if far else torch.zeros(rows)
    scales = [torch.rand(rows) * 0.1 + 0.01 for _ in sizes]
    conv = len(shape) == 4
    return [
        IntegerLayer(
            kind="conv2d" if conv else "linear",
            weight_codes=torch.randint(low, high + 1, (rows, size, *shape[2:])),
            weight_bits=bits,
            weight_scale=scales[i if own_scales else 0],
            weight_zero=zero,
            act_bits=act_bits,
            act_scale=torch.rand(STEPS).add(0.3) * 10.0 ** make.randint(-3, 1) / top,
            act_zero=torch.randint(0, top + 1, (STEPS,)),
            in_mult=torch.rand(size) + 0.5 if mult else None,
            bias=torch.randn(rows) if i == 0 else None,
            **({"padding": (1, 1), "stride": (1, 2)} if conv else {}),
        )
        for i, size in enumerate(sizes)
    ]


def planted(parts, order, shape):
    """An input whose channels have the magnitudes of their groups."""
    x = torch.randn(shape)
    dim = -1 if parts[0].kind == "linear" else 1
    factor = torch.empty(len(order))
    tops = [float(p.act_scale.max()) * (1 << p.act_bits) for p in parts]
    each = [torch.full((p.in_features,), top) for p, top in zip(parts, tops, strict=True)]
    factor[order] = torch.cat(each)
    return x * (factor if dim == -1 else factor.view(-1, 1, 1))


def pieces_of(node, x):
    dim = -1 if node.metadata["kind"] == "linear" else 1
    return [
        x.index_select(dim, run) for run in torch.split(node.channels, node.edge.diff().tolist())
    ]


def agrees(node, x):
    """Integers of every group bit for bit, outputs to 1e-5 of the largest, at every call."""
    for step in range(STEPS):
        pairs = list(zip(node.layers(), pieces_of(node, x), strict=True))
        want = torch.stack([oracle.accumulators(layer, piece, step) for layer, piece in pairs])
        assert torch.equal(node.accumulators(x, step).long(), want)
        value = sum(oracle.forward(layer, piece, step) for layer, piece in pairs)
        limit = 1e-5 * float(value.abs().max())
        assert float((node(x, step) - value).abs().max()) <= limit
        into = node(x, step).clone(memory_format=torch.preserve_format)
        node.add_to(into, x, step)
        assert float((into - 2 * value).abs().max()) <= 2 * limit


@pytest.mark.parametrize(
    ("bits", "act_bits", "far"),
    [(4, 8, False), (4, 8, True), (8, 8, True), (8, 4, False), (3, 6, True), (2, 8, False)],
)
@pytest.mark.parametrize("shape", [(35, 48), (20, 48, 3, 3), (16, 48, 1, 1)], ids=str)
def test_groups_of_very_different_ranges(library, shape, bits, act_bits, far):
    make = random.Random(bits)
    torch.manual_seed(bits + act_bits)
    parts = grouped_parts(make, shape, SIZES, bits, act_bits, far=far, mult=far, own_scales=not far)
    order = torch.randperm(48)
    node = one_call(SplitPackedLayer(parts, library, order=order))
    assert isinstance(node, GroupedLayer)
    x = planted(parts, order, (7, 48) if len(shape) == 2 else (2, 48, 5, 7))
    agrees(node, x)
    if len(shape) == 4:
        agrees(node, x.to(memory_format=torch.channels_last))
        assert node(x).is_contiguous()
    else:
        agrees(node, torch.stack([x, x], 1))
        agrees(node, planted(parts, order, (200, 48)))


@pytest.mark.parametrize("seed", range(25))
def test_random_groups_are_exact(library, seed):
    make = random.Random(seed)
    torch.manual_seed(seed)
    sizes = [make.randint(1, make.choice((2, 9, 70))) for _ in range(make.randint(2, 9))]
    kernel = make.choice(((), (1, 1), (3, 3), (2, 3)))
    shape = (make.randint(1, 50), sum(sizes), *kernel)
    settings = {"far": make.random() < 0.5, "own_scales": make.random() < 0.3}
    bits, act_bits = make.randint(1, 8), make.randint(1, 8)
    parts = grouped_parts(make, shape, sizes, bits, act_bits, mult=make.random() < 0.3, **settings)
    order = torch.randperm(sum(sizes)) if make.random() < 0.8 else None
    node = one_call(SplitPackedLayer(parts, library, order=order))
    assert isinstance(node, GroupedLayer)
    rows = make.choice((1, 5, 13))
    size = (rows, sum(sizes)) if not kernel else (make.randint(1, 2), sum(sizes), rows + 1, 6)
    x = planted(parts, torch.arange(sum(sizes)) if order is None else order, size)
    agrees(
        node,
        x if make.random() < 0.5 or not kernel else x.contiguous(memory_format=torch.channels_last),
    )


def test_panels_take_what_the_bits_say():
    """Groups of any size: no padding between them, and none in the order of the input."""
    torch.manual_seed(0)
    make = random.Random(0)
    for shape in ((64, 128), (128, 64, 3, 3), (320, 320)):
        cuts = sorted(make.sample(range(1, shape[1]), 7))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, shape[1]], strict=True)]
        parts = grouped_parts(make, shape, sizes, 4, 8)
        split = SplitPackedLayer(parts, order=torch.randperm(shape[1]))
        node = one_call(split)
        codes = torch.Size(shape).numel() * 4 / 8
        assert node.panels.numel() <= 1.03 * codes
        assert node.packed_bytes < split.packed_bytes
        fixed = node.panels.numel() + sum(
            t.numel() * t.element_size() for n, t in node.named_buffers() if n != "panels"
        )
        assert node.packed_bytes == fixed


def test_the_state_is_that_of_the_parts():
    """Checkpoints of a sum of parts come back as one call, and one call writes a sum of parts."""
    torch.manual_seed(1)
    parts = grouped_parts(random.Random(1), (20, 48), SIZES, 4, 8, far=True, mult=True)
    split = SplitPackedLayer(parts, order=torch.randperm(48))
    again = build(split.describe(), dict(split.state_dict()))
    assert isinstance(again, GroupedLayer)
    node, x = one_call(split), torch.randn(5, 48)
    assert torch.equal(again(x, 1), node(x, 1))
    other = build(node.describe(), dict(node.state_dict()))
    assert torch.equal(other(x, 2), node(x, 2))
    assert node.describe()["form"] == "split"
    assert torch.allclose(node.split()(x, 2), node(x, 2), rtol=1e-5, atol=1e-4)
    for twin in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert torch.equal(twin(x, 2), node(x, 2))
    made = grouped_parts(random.Random(2), (20, 48), SIZES, 4, 8, far=True, mult=True)
    empty = one_call(SplitPackedLayer(made, order=torch.randperm(48)))
    with pytest.raises(RuntimeError, match="Missing key"):
        empty.load_state_dict({"order": node.channels})
    good = one_call(SplitPackedLayer(node.layers(), order=node.channels))
    good.load_state_dict(node.state_dict())
    assert torch.equal(good(x, 1), node(x, 1))


def test_parts_that_differ_stay_apart():
    torch.manual_seed(1)
    first, second = grouped_parts(random.Random(1), (20, 8), (4, 4), 4, 8, far=True)
    other = grouped_parts(random.Random(1), (20, 8), (4, 4), 3, 8)[1]
    assert isinstance(one_call(SplitPackedLayer([first, other])), SplitPackedLayer)
    shifted = IntegerLayer(**{**_fields(second), "weight_zero": second.weight_zero + 1})
    assert isinstance(one_call(SplitPackedLayer([first, shifted])), SplitPackedLayer)
    assert isinstance(one_call(SplitPackedLayer([first, second])), GroupedLayer)


def _fields(layer):
    return {name: getattr(layer, name) for name in layer.__dataclass_fields__}


def test_groups_that_share_a_step_are_few():
    assert aligned_order([3, 4, 1, 2, 8, 2]) == [1, 4, 2, 0, 3, 5]
    for _ in range(20):
        sizes = torch.randint(1, 20, (8,)).tolist()
        once = aligned_order(sizes)
        assert sorted(once) == list(range(8))
        assert aligned_order([sizes[i] for i in once]) == list(range(8))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("group", "mult"), [(0, False), (16, True), (12, False)])
def test_ranges_of_rows_are_found_bit_for_bit(library, symmetric, group, mult):
    """The call that finds ranges has the integers of codes that torch makes."""
    torch.manual_seed(group)
    groups = 48 // group if group else 1
    codes = torch.randint(-8, 8, (groups * 21, 48 // groups, 1, 1))
    rows, x = groups * 21, torch.randn(37, 48) * torch.rand(37, 1) * 10
    x[3] = 0
    leaf = PackedLayer(
        IntegerLayer(
            kind="conv2d",
            weight_codes=codes,
            weight_bits=4,
            weight_scale=torch.rand(rows) + 0.1,
            weight_zero=torch.randint(-8, 8, (rows,)),
            act_bits=8,
            act_scale=torch.tensor(1.0),
            act_zero=torch.tensor(0),
            groups=groups,
        ),
        library,
    )
    quantizer = DynamicActQuantizer(8, symmetric=symmetric, group_size=group)
    node = RowScaledLayer(leaf, quantizer, torch.rand(48) + 0.5 if mult else None, torch.randn(21))
    kind = native.FOUND_SYMMETRIC if symmetric else native.FOUND
    found = node._call(kind, None)(x, 0, None, native.INTEGER)
    assert torch.equal(found.movedim(0, 1), node.accumulators(x))
    want = node.by_parts(x, 0)
    assert float((node(x) - want).abs().max()) <= 1e-5 * float(want.abs().max())
    x[5, 7] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        node(x)
    x[5, 7] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        node(x)


@pytest.mark.parametrize("rank", [1, 8, 11, 24, 40])
def test_a_branch_is_part_of_the_call(make_layer, make_input, library, rank):
    torch.manual_seed(rank)
    leaf = PackedLayer(make_layer((20, 19, 3, 3), 4, 8, padding=(1, 2), stride=(2, 1)), library)
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 1)}
    down, up = torch.randn(rank, 19, 3, 3), torch.randn(20, rank)
    node = LowRankLayer(leaf, down, up, geometry)
    assert node._in_one_call(make_input((2, 19, 9, 8)), 0) is not None
    for last in (False, True):
        x = make_input((2, 19, 9, 8))
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        branch = functional.conv2d(
            functional.conv2d(x, down, None, (2, 1), (1, 2)), up[:, :, None, None]
        )
        want = leaf(x) + branch
        assert float((node(x) - want).abs().max()) <= 1e-5 * float(want.abs().max())
        assert node(x).is_contiguous(memory_format=torch.channels_last) == last
    nn.Sequential(node).to(memory_format=torch.channels_last)
    assert is_for_kernels(node.down)
    assert torch.equal(node.state_dict()["down"], down)


def test_the_layout_of_a_branch_keeps_its_values():
    down = torch.randn(5, 7, 3, 2)
    assert torch.equal(for_kernels(down), down)
    assert is_for_kernels(for_kernels(down))
    assert not is_for_kernels(down)
