"""Walks from new noise: the sampler's own step, both halves of an image, refusals."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.distill.fresh_walk import fresh_walk
from quantarena.methods.techniques.distill.walk import Driver, walk_calls

CALLS, IMAGES, SHARES = 5, 6, (-2.0, 3.0)


class Teacher(nn.Module):
    """Its prediction depends on the condition, as that of each guidance half does."""

    def forward(self, sample, timestep=None, return_dict=True, label=None):
        return (torch.tanh(sample + label.reshape(-1, 1, 1, 1)),)


def next_sample(call, sample, halves):
    """Of (N, H, C, ...) predictions."""
    guided = SHARES[0] * halves[:, 0] + SHARES[1] * halves[:, 1]
    return (1 - 0.02 * call) * sample - 0.1 * guided


def recorded(clip=100.0, scale=3.0):
    """Images one after the other, the first halves of all before the second ones."""
    make = torch.Generator().manual_seed(0)
    label = torch.cat([torch.zeros(IMAGES), torch.arange(IMAGES) / 10 + 0.1])
    sample = scale * torch.randn(IMAGES, 2, 5, 5, generator=make)
    samples = []
    for call in range(CALLS):
        samples.append(torch.cat([sample, sample]))
        prediction = Teacher()(samples[-1], label=label)[0]
        sample = next_sample(call, sample, prediction.unflatten(0, (2, -1)).transpose(0, 1))
        sample = sample.clamp(-clip, clip)
    times = torch.arange(CALLS).flip(0) * 10
    return Trajectory(torch.stack(samples), times, {"label": label.expand(CALLS, -1)}, halves=2)


def walked(walk, seed):
    teacher = Teacher()
    generator = torch.Generator().manual_seed(seed)
    predict = {driver: lambda points: points.call(teacher) for driver in Driver}
    return [points for _, points in walk_calls(walk, predict, generator)]


def test_new_walks_follow_the_sampler():
    walk = fresh_walk(Teacher(), recorded(), batch=8)
    for points in (walked(walk, 0), walked(walk, 0), walked(walk, 1)):
        assert [len(p) for p in points] == [8] * CALLS
        for call, (now, then) in enumerate(pairwise(points)):
            assert torch.equal(now.sample[::2], now.sample[1::2]), "the halves share a sample"
            halves = now.call(Teacher()).unflatten(0, (-1, 2))
            wanted = next_sample(call, now.sample[::2], halves)
            assert torch.allclose(then.sample[::2], wanted, atol=1e-3)
    first = [walked(walk, seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(first[0].sample, first[1].sample)
    assert not torch.equal(first[0].sample, first[2].sample)


def test_noise_is_new_and_conditions_are_recorded_ones():
    known = recorded()
    points = walked(fresh_walk(Teacher(), known, batch=200), 0)[0]
    labels = known.conditions["label"][0]
    assert bool((points.conditions["label"][::2] == 0).all())
    assert set(points.conditions["label"][1::2].tolist()) == set(labels[IMAGES:].tolist())
    gaps = (points.sample[:, None] - known.sample[0]).flatten(2).norm(dim=2)
    assert float(gaps.min()) > 1.0
    assert float(points.sample.std()) == pytest.approx(float(known.sample[0].std()), rel=0.05)


def test_a_batch_smaller_than_an_image_is_one_image():
    assert len(walked(fresh_walk(Teacher(), recorded(), batch=1), 0)[0]) == 2


def test_a_sampler_that_clips_is_refused():
    with pytest.raises(Unsupported, match="its fit is off by"):
        fresh_walk(Teacher(), recorded(clip=1.0), batch=4)
