"""A stub of a network and a pipeline's loop."""

import pytest
import torch
from torch import nn


class Stub(nn.Module):
    """A network that remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 3, 1)
        self.seen = []

    def forward(self, sample, timestep, context=None, added=None, flag=None, return_dict=True):
        self.seen.append((sample.clone(), float(torch.as_tensor(timestep).reshape(-1)[0])))
        return (0.3 * sample + 0.01 * torch.tanh(self.inner(sample)).mean(1, keepdim=True),)


def _sample_once(model, scheduler, x, steps=5, split=1, halves=1, **inputs):
    """A pipeline's loop."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        parts = [
            model(torch.cat([part] * halves), timestep, **inputs)[0] for part in scaled.chunk(split)
        ]
        output = torch.cat([part.chunk(halves)[-1] for part in parts])
        x = scheduler.step(output, timestep, x, return_dict=False)[0]
    return x


def _noise(count, seed=0, channels=1, size=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


@pytest.fixture
def stub():
    """The class of a network that remembers its inputs."""
    return Stub


@pytest.fixture
def sample_once():
    """A pipeline's loop over a network."""
    return _sample_once


@pytest.fixture
def noise():
    """Images of noise of a seed."""
    return _noise
