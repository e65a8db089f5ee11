"""Inputs of networks that few networks have: complex tables of rotary positions (Lumina)."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from quantarena.methods.core.record.recorder import recording
from quantarena.methods.core.record.trajectory import Trajectory


class Rotary(nn.Module):
    def forward(self, sample, timestep, rotation=None, return_dict=False):
        return (sample * rotation.real.mean(),)


@pytest.mark.parametrize("rows", [5, 2])
def test_complex_conditions_are_kept(tmp_path, rows):
    rotation = torch.polar(torch.ones(rows, 4), torch.linspace(0, 3, rows * 4).reshape(rows, 4))
    scheduler, network, sample = DDIMScheduler(), Rotary(), torch.randn(2, 3, 4, 4)
    with torch.no_grad(), recording(network, scheduler) as done:
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            output = network(sample, t.expand(2), rotation=rotation)[0]
            sample = scheduler.step(output, t, sample).prev_sample
    done.save(tmp_path / "t.safetensors")
    for trajectory in (done(), Trajectory.load(tmp_path / "t.safetensors")):
        points = trajectory.pick(torch.tensor([0, 2]), torch.tensor([0, 1]))
        kept = points.conditions["rotation"]
        assert kept.dtype == torch.complex64
        assert torch.equal(kept, rotation)
        assert len(points.sha256()) == 64
        with torch.no_grad():
            assert points.call(network).shape == (2, 3, 4, 4)
