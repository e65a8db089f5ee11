import pytest
import torch

from quantarena.methods.core.affine import fake_quantize


@pytest.fixture(scope="session")
def sample():
    """Normal values of a seed, times a scale."""

    def sample(shape, seed, scale=1.0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale

    return sample


@pytest.fixture(scope="session")
def loss():
    """Mean error of fake quantization in a norm, the largest value being one."""

    def loss(x, params, norm=2.4, dim=None):
        error = ((fake_quantize(x, params) - x).double() / x.abs().max().double()).abs().pow(norm)
        return error.mean() if dim is None else error.mean(dim)

    return loss
