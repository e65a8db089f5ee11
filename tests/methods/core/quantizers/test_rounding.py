"""The gradients of soft rounding are written by hand, so they are held against autograd's."""

import pytest
import torch

from quantarena.methods.core.kernels import soft_weight
from quantarena.methods.core.quantizers.rounding import HIGH, LOW, SoftRounding
from quantarena.methods.techniques.ranges.minmax import minmax_range


@pytest.fixture(params=["native", "torch"])
def soft(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(soft_weight, "find", lambda *tensors: None)
    elif soft_weight.find(torch.ones(1)) is None:
        pytest.skip("the native library is not there")
    weight = torch.randn(4, 30)
    made = SoftRounding(weight, minmax_range(weight, 4, axis=0))
    made.alpha.data += torch.randn(4, 30) * 2  # some of them beyond the cut
    return made, weight


def plain(alpha):
    return (torch.sigmoid(alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


def test_weight_gradient_is_autograds(soft):
    made, weight = soft
    params = minmax_range(weight, 4, axis=0)
    pull = torch.randn(4, 30)
    (made.weight() * pull).sum().backward()
    alpha = made.alpha.detach().clone().requires_grad_(True)
    codes = torch.floor(weight / params.scale) + plain(alpha) + params.zero_point
    other = (codes.clamp(0, 15) - params.zero_point) * params.scale
    (other * pull).sum().backward()
    assert torch.allclose(made.weight(), other, atol=1e-6)
    inner = (codes > 0) & (codes < 15)
    assert torch.allclose(made.alpha.grad[inner], alpha.grad[inner], atol=1e-6)


@pytest.mark.parametrize("beta", [20.0, 7.5, 2.0])
def test_penalty_gradient_is_autograds(soft, beta):
    made, _ = soft
    pull = torch.randn(4, 30)
    (made.weight() * pull).sum().backward()
    without = made.alpha.grad
    made.alpha.grad, made.penalty = None, (0.3, beta)
    (made.weight() * pull).sum().backward()
    alpha = made.alpha.detach().clone().requires_grad_(True)
    (0.3 * (1 - (2 * plain(alpha) - 1).abs().pow(beta)).sum()).backward()
    assert alpha.grad.abs().max() > 0
    assert torch.allclose(made.alpha.grad - without, alpha.grad, atol=1e-5)


def test_an_undecided_rounding_has_no_pull(soft):
    made, _ = soft
    made.alpha.data.zero_()  # exactly one half, where the logarithm would be infinite
    made.penalty = (1.0, 2.0)
    (made.weight() * 0).sum().backward()
    assert torch.equal(made.alpha.grad, torch.zeros_like(made.alpha))


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_native_sweeps_are_torchs(beta, monkeypatch):
    native = soft_weight.find(torch.ones(1))
    if native is None:
        pytest.skip("the native library is not there")
    weight = torch.randn(37, 101) * torch.logspace(-6, 6, 37).unsqueeze(1)
    found = {}
    for name in ("native", "torch"):
        if name == "torch":
            monkeypatch.setattr(soft_weight, "find", lambda *tensors: None)
        made = SoftRounding(weight, minmax_range(weight, 3, axis=0))
        made.alpha.data = torch.linspace(-30, 30, weight.numel()).reshape(weight.shape)
        made.penalty = (0.1, beta)
        value = made.weight()
        value.backward(torch.ones_like(value))
        found[name] = value.detach(), made.alpha.grad
    for ours, theirs in zip(*found.values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7 * float(theirs.abs().max()))
