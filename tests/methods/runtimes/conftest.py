"""What the graphs of other runtimes have in common: the networks, and how near is near."""

import pytest
import torch

from quantarena.methods.testing.networks import probes


@pytest.fixture(scope="session")
def networks():
    return {probe.name: probe for probe in probes()}


@pytest.fixture(scope="session")
def agrees():
    """Check that a network predicts what a packed one does, on eight points of a probe."""

    def agrees(probe, packed, network):
        eight = probe.trajectory.pick(torch.zeros(8, dtype=torch.long), torch.arange(8))
        with torch.no_grad():
            wanted, found = (eight.call(each).flatten(1) for each in (packed.module, network))
        errors = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
        # floats in another order put a code on the other side now and then, in a tiny network
        assert errors.median() < 1e-5
        assert errors.max() < 0.1

    return agrees
