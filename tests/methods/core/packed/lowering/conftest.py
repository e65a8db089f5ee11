"""Layers with options added one by one, and checks of their packed form."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quantarena.methods.core.affine import affine_params, tight_params
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.model.layer import QuantLayer
from quantarena.methods.core.packed.lowering.lower import pack_layer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.rebuild import build, leaf_nodes
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer
from quantarena.methods.core.packed.nodes.weight_only import WeightOnlyLayer
from quantarena.methods.core.packed.nodes.wrappers import LowRankLayer, MixedWidthLayer
from quantarena.methods.techniques.ranges.minmax import minmax_range

STEPS = 5


class Maker:
    """A quantized layer and inputs that fit it, options added one by one."""

    def __init__(self, module, bits, x, *, splits=(), seed=0):
        torch.manual_seed(seed)
        self.clock = CallClock()
        self.layer = QuantLayer(module, bits, splits, self.clock)
        self.x, self.bits = x, bits
        self.parts = self.layer.parts

    def part_input(self, part):
        return self.layer.part_input(part, self.layer.scaled(self.x))

    def mult(self):
        self.layer.scale_input(torch.rand(self.layer.in_channels) * 2 + 0.3)
        return self

    def bank(self):
        for part in self.parts:
            low, high = self.part_input(part).aminmax()
            factor = torch.linspace(0.4, 1.3, STEPS)
            found = affine_params(low * factor, high * factor, self.bits.act, False)
            part.act_quantizer.set_bank(found.scale, found.zero_point)
        return self

    def groups(self, axis, count, *, steps=False):
        for part in self.parts:
            x = self.part_input(part)
            ids = torch.randint(count, (x.shape[axis],))
            ids[:count] = torch.arange(count)
            low, high = x.movedim(axis, 0).flatten(1).aminmax(dim=1)
            lows = torch.stack([low[ids == g].min() for g in range(count)])
            highs = torch.stack([high[ids == g].max() for g in range(count)])
            if steps:
                factor = torch.linspace(0.4, 1.3, STEPS)[:, None]
                lows, highs = lows * factor, highs * factor
            found = affine_params(lows, highs, self.bits.act, False)
            part.act_quantizer.set_groups(axis, ids, found.scale, found.zero_point)
        return self

    def far_groups(self, count, distance):
        """Groups of tokens whose ranges lie up to ``distance`` of their width from zero."""
        for part in self.parts:
            ids = torch.arange(self.x.shape[1]) % count
            middle = torch.linspace(-distance, distance, count)
            self.x = self.x.clamp(-1, 1) / 2 + middle[ids][:, None]
            found = tight_params(middle - 0.5, middle + 0.5, self.bits.act)
            part.act_quantizer.set_groups(-2, ids, found.scale, found.zero_point)
        return self

    def dynamic(self, *, symmetric=False, group=0):
        for part in self.parts:
            part.use_dynamic(symmetric=symmetric, group_size=group)
        return self

    def bit_map(self, *widths):
        for part in self.parts:
            rows = self.layer.weight.shape[0]
            chosen = torch.tensor(widths)[torch.randint(len(widths), (rows,))]
            chosen[: len(widths)] = torch.tensor(widths)
            part.weight_quantizer.set_bit_map(chosen)
        return self

    def weight_groups(self, group):
        for part in self.parts:
            part.use_weight_groups(group)
        return self

    def low_rank(self, rank=2):
        weight = self.layer.weight
        down = torch.randn(rank, *weight.shape[1:]) * 0.1
        self.layer.set_low_rank(down, torch.randn(weight.shape[0], rank))
        return self

    def done(self, *, symmetric=False):
        self.layer.set_weight_ranges(minmax_range, symmetric=symmetric)
        for part in self.parts:
            if part.static is not None and part.static.scale.numel() == 0:
                part.static.set_params(minmax_range(self.part_input(part), self.bits.act))
        self.layer.freeze()
        self.packed = pack_layer(self.layer)
        return self


def linear(bits=None, *, shape=(3, 7, 24), out=10, **options):
    torch.manual_seed(sum(shape))
    x = torch.randn(shape) * (torch.rand(shape[-1]) * 3 + 0.2) + 0.3
    return Maker(nn.Linear(shape[-1], out), bits or Bits(4, 8), x, **options)


def conv(bits=None, *, shape=(3, 24, 7, 6), out=10, last=True, splits=(), **options):
    torch.manual_seed(sum(shape))
    x = torch.randn(shape) * (torch.rand(shape[1]) * 3 + 0.2).view(-1, 1, 1) + 0.3
    x = x.to(memory_format=torch.channels_last) if last else x
    options = {"kernel_size": 3, "padding": 1, **options}
    return Maker(nn.Conv2d(shape[1], out, **options), bits or Bits(4, 8), x, splits=splits)


def conv1d(bits=None, *, shape=(3, 24, 9), out=10, splits=(), **options):
    torch.manual_seed(sum(shape))
    options = {"kernel_size": 3, "padding": 1, **options}
    module = nn.Conv1d(shape[1], out, **options)
    return Maker(module, bits or Bits(4, 8), torch.randn(shape) + 0.3, splits=splits)


@torch.no_grad()
def gap(case, x=None):
    """Packed against fake; outputs of rows are alike in shape and memory format."""
    x = case.x if x is None else x
    fake, packed = case.layer(x), case.packed(x)
    assert packed.shape == fake.shape
    assert float(fake.std()) > 1e-3
    return float((fake - packed).abs().max() / fake.abs().max())


def check(case, x=None):
    """Packed equals fake, every integer that a leaf makes is exact, and the tree comes back."""
    seen = []
    handles = [watch(leaf, seen) for leaf in leaf_nodes(case.packed)]
    try:
        assert gap(case, x) <= 1e-5
        with pytest.MonkeyPatch.context() as patch:  # integers show when taken apart
            patch.setattr(RowScaledLayer, "run", RowScaledLayer.by_parts)
            patch.setattr(MixedWidthLayer, "run", MixedWidthLayer.by_parts)
            patch.setattr(MixedWidthLayer, "in_place", False)
            patch.setattr(LowRankLayer, "_in_one_call", lambda *_: None)
            assert gap(case, x) <= 1e-5
    finally:
        for undo in handles:
            undo()
    for leaf, inputs, step in seen:
        assert torch.equal(leaf.accumulators(inputs, step).long(), integers(leaf, inputs, step))
    assert seen or isinstance(leaf_nodes(case.packed)[0], WeightOnlyLayer)
    again = build(case.packed.describe(), dict(case.packed.state_dict()))
    again.set_clock(case.clock)
    x = case.x if x is None else x
    assert torch.equal(again(x), case.packed(x))
    assert again.weight_shape == tuple(case.layer.weight.shape)


def integers(leaf, x, step):
    """The oracle's sums, of each group where there are groups."""
    if not isinstance(leaf, GroupedLayer):
        return oracle.accumulators(leaf.integer_layer(), x, step)
    dim = -1 if leaf.metadata["kind"] == "linear" else 1
    runs = torch.split(leaf.channels, leaf.edge.diff().tolist())
    pieces = [x.index_select(dim, run) for run in runs]
    layers = zip(leaf.layers(), pieces, strict=True)
    return torch.stack([oracle.accumulators(layer, piece, step) for layer, piece in layers])


def watch(leaf, seen):
    """Note what a leaf is run on."""
    if isinstance(leaf, WeightOnlyLayer):
        return lambda: None
    if isinstance(leaf, GroupedLayer):
        grouped = leaf.run

        def run_groups(x, step):
            seen.append((leaf, x.clone(), step))
            return grouped(x, step)

        leaf.run = run_groups
        return lambda: delattr(leaf, "run")
    plain = leaf._run

    def run(x, step, into, flags):
        seen.append((leaf, x.clone(), step))
        return plain(x, step, into, flags)

    leaf._run = run

    def undo():
        del leaf._run

    return undo


def each_step(case):
    """Every call alone, mixed calls in one batch, calls for folded batches."""
    outputs = []
    for step in range(STEPS):
        with case.clock.at(step):
            check(case)
            outputs.append(case.packed(case.x))
    assert not torch.equal(outputs[0], outputs[-1])
    with case.clock.at(torch.tensor([4, 0, 2])):
        check(case)
        mixed = case.packed(case.x)
    for row, step in enumerate((4, 0, 2)):
        assert (mixed[row] - outputs[step][row]).abs().max() <= 1e-5 * mixed.abs().max()
    with case.clock.at(torch.tensor([1, 3])):
        check(case, torch.cat([case.x, case.x]))


@pytest.fixture(scope="session")
def make():
    """Makers of layers with options, and checks of what they pack to."""
    return SimpleNamespace(
        linear=linear,
        conv=conv,
        conv1d=conv1d,
        gap=gap,
        check=check,
        each_step=each_step,
        calls=STEPS,
    )
