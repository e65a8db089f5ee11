"""MPQ-DM's relation distillation wins where features say more than the predictions one learns from.

Planted are two things. Each label reads other channels of the last block's features, and the
calibration images have one label of several, so the prediction says nothing about most channels:
the relations between places do. And the features of a sampler call have an offset, larger than
what is to be read, that the next call's has with the other sign: single features all point along
it, their mean over two calls does not.
"""

import math
import statistics
from functools import cache

import pytest
import torch
from torch import nn

from quantarena.methods import mpq_dm
from quantarena.methods.contract import MethodContext
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.policy import FLOAT, Policy
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import Role, trace
from quantarena.methods.info import Effort
from quantarena.methods.mpq_dm import MpqDm, relation_loss
from quantarena.methods.rtn import RoundToNearest

CALLS, LABELS, WIDTH = 8, 8, 16
ROWS, HELD, SIDE = 4, 32, 6
BITS, UPDATES = Bits(3, 8), 160
ENDS_FLOAT = Policy("flat", roles={Role.INPUT: FLOAT, Role.OUTPUT: FLOAT})
SEEDS = range(8)
CRITICAL = 2.998
"""Of Student's t with 7 degrees of freedom, one-sided, at 1 %."""


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        with torch.no_grad():  # so that the block matters beside its input
            self.up.weight *= 2.2
            self.down.weight *= 2.2

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Reader(nn.Module):
    """A block on tokens; what is read of its features depends on the label.

    ``offsets`` (CALLS, WIDTH) are added to the block's input at each call, which passes them on,
    and are taken off again behind it. ``mask`` (LABELS, WIDTH) says which channels a label reads.
    """

    def __init__(self, offsets, mask):
        super().__init__()
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.block = Block()
        self.register_buffer("offsets", offsets)
        self.register_buffer("mask", mask)
        with torch.no_grad():  # what the block computes does not depend on the offset
            known = torch.linalg.pinv(offsets) @ offsets
            self.block.up.weight -= self.block.up.weight @ known

    def forward(self, sample, timestep, label, return_dict=True):
        offset = self.offsets[timestep.long()][:, None]
        x = torch.tanh(2 * self.first(sample.flatten(2).mT)) + offset
        read = (self.block(x) - offset) * self.mask[label][:, None]
        return (self.last(read).mT.reshape(sample.shape),)


def alternating(size=4.0):
    """One direction, ``size`` a channel, with the other sign at every other call."""
    direction = torch.randn(WIDTH)
    signs = 1.0 - 2 * (torch.arange(CALLS) % 2)
    return size * WIDTH**0.5 * signs[:, None] * direction / direction.norm()


def disjoint():
    """Each label reads channels of its own."""
    return (torch.arange(WIDTH) % LABELS == torch.arange(LABELS)[:, None]).float()


def images(seed, rows, seen):
    """Walks whose consecutive samples are alike, and their labels; ``seen`` of them calibrate."""
    make = torch.Generator().manual_seed(1000 + seed)
    size = (rows + HELD, 4, SIDE, SIDE)
    sample = torch.randn(size, generator=make) + 0.3 * torch.randn(CALLS, *size, generator=make)
    label = torch.cat([torch.arange(rows) % seen, torch.arange(HELD) % LABELS])
    return sample, label


def error(seed, method, *, seen=1, updates=UPDATES, offsets=alternating, mask=disjoint):
    """Relative error of one call on other images, whose labels are all there are."""
    torch.manual_seed(seed)
    network = Reader(offsets(), mask()).eval().requires_grad_(False)
    rows = max(ROWS, seen)
    sample, label = images(seed, rows, seen)
    times = torch.arange(CALLS).float()

    def recorded(part):
        return Trajectory(sample[:, part], times, {"label": label[part].expand(CALLS, -1)})

    given, others = recorded(slice(rows)), recorded(slice(rows, None))
    few = given.pick(torch.zeros(2, dtype=torch.long), torch.arange(2))
    graph = trace(network, few.sample, timestep=few.timestep, **few.conditions)
    # MPQ-DM makes 0.8 updates of each iteration
    effort = Effort(rows * CALLS, math.ceil(updates / 0.8))
    made = method.run(MethodContext(network, graph, given, BITS, ENDS_FLOAT, "paper", 0, effort))
    points = others.pick(
        torch.arange(CALLS).repeat_interleave(HELD), torch.arange(HELD).repeat(CALLS)
    )
    with torch.no_grad():
        target = points.call(network)
        return float((made.run(points) - target).square().mean() / target.square().mean())


@cache
def errors(**options):
    """By seed, of MPQ-DM with these options; all others are the defaults."""
    return [error(seed, MpqDm(MpqDm.Options(**options))) for seed in SEEDS]


def gain(without, ours):
    """How many times larger ``without`` is: geometric mean, and Student's t of its logarithm."""
    logs = [math.log(a / b) for a, b in zip(without, ours, strict=True)]
    mean, spread = statistics.mean(logs), max(1e-9, statistics.stdev(logs))
    return math.exp(mean), mean / (spread / math.sqrt(len(logs)))


def test_the_papers_weight_and_window_are_the_defaults():
    assert (MpqDm.Options().relation, MpqDm.Options().window) == (100.0, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("off", "least"), [({"relation": 0.0}, 1.5), ({"window": 1}, 1.3)], ids=["relation", "window"]
)
def test_relations_over_two_calls_win_where_predictions_say_little(off, least):
    """At equal updates, and at the paper's weight and window."""
    ratio, t = gain(errors(**off), errors())
    assert ratio >= least
    assert t >= CRITICAL


def test_rtn_and_no_fine_tuning_are_behind():
    rtn = [error(seed, RoundToNearest()) for seed in SEEDS]
    for others in (rtn, errors(finetune=False)):
        ratio, t = gain(others, errors())
        assert ratio >= 1.5
        assert t >= CRITICAL


def test_the_gain_is_the_relations_own(monkeypatch):
    """Those of other images only harm: the term does not win by holding back the rest."""

    def of_others(ours, theirs):
        return relation_loss(ours, [features.roll(1, 0) for features in theirs])

    monkeypatch.setattr(mpq_dm, "relation_loss", of_others)
    wrong = [error(seed, MpqDm()) for seed in SEEDS[:3]]
    assert gain(wrong, errors(relation=0.0)[:3])[0] >= 2
