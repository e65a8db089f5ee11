import pytest
import torch

from quantarena.methods.techniques.learn.losses import reconstruction_loss


def test_loss_sums_channels_and_means_the_rest():
    output = torch.zeros(2, 3, 4, 4)
    assert reconstruction_loss(output, output + 2, 2.0) == pytest.approx(12.0)
    assert reconstruction_loss(torch.zeros(2, 5, 7), torch.ones(2, 5, 7), 2.4) == pytest.approx(7.0)
