import pytest
import torch


@pytest.fixture(scope="session")
def normal():
    """Normal values of a shape and a seed, the same in every precision."""

    def normal(*shape, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal


@pytest.fixture(scope="session")
def apart():
    """Largest difference over the largest value."""

    def apart(found, expected):
        return float((found - expected).abs().max() / expected.abs().max())

    return apart
