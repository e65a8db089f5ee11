"""Planted noise is measured: slopes and biases by call, of the guided prediction, both readings."""

import pytest
import torch
from torch import nn

from quantarena.methods.core.bits import FP
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.core.trace.network import trace
from quantarena.methods.techniques.correct.prediction_noise import guided, measure_noise

CALLS, ROWS, CHANNELS = 3, 96, 3
SLOPES = torch.tensor([0.12, 0.0, -0.2])
BIASES = torch.tensor([[0.5, -0.3, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, -0.4]])
MEANS = torch.tensor([0.5, -0.3, 0.1])
DEVIATION = 0.1


class Passing(nn.Module):
    """Predicts the sample, with one channel more that is no prediction of noise."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(CHANNELS, CHANNELS + 1, 1)

    def forward(self, sample, timestep=None, return_dict=True):
        return (self.last(sample),)


class Noisy:
    """A stand-in for a quantized model: the planted noise on top of full-precision predictions."""

    def __init__(self, full, points):
        make = torch.Generator().manual_seed(1)
        slope = SLOPES[points.step].reshape(-1, 1, 1, 1)
        bias = BIASES[points.step].reshape(-1, CHANNELS, 1, 1)
        clean = full[:, :CHANNELS]
        rest = DEVIATION * torch.randn(clean.shape, generator=make)
        noisy = clean + slope * clean + bias + rest
        self.rows = {key(p): row for p, row in zip(points.sample, noisy, strict=True)}

    def run(self, points):
        rows = torch.stack([self.rows[key(sample)] for sample in points.sample])
        return torch.cat([rows, torch.full_like(rows[:, :1], 9.0)], 1)


def key(sample):
    return float(sample.flatten()[0])


def planted(halves=1):
    make = torch.Generator().manual_seed(0)
    sample = torch.randn(CALLS, ROWS, CHANNELS, 16, 16, generator=make)
    points = Trajectory(sample, torch.arange(CALLS).float(), {}).pick(
        torch.arange(CALLS).repeat_interleave(ROWS), torch.arange(ROWS).repeat(CALLS)
    )
    full = torch.cat([points.sample + MEANS.reshape(-1, 1, 1), points.sample[:, :1]], 1)
    return Noisy(full, points), points, full


def test_slopes_biases_and_the_rest_are_found_at_every_call():
    noise = measure_noise(*planted(), negative=True)
    assert torch.allclose(noise.slope, SLOPES, atol=0.0012)  # 1 % of the first
    assert torch.allclose(noise.bias, BIASES, atol=0.005)
    assert torch.allclose(noise.deviation, torch.full((CALLS,), DEVIATION), rtol=0.01)
    assert noise.left[0] == pytest.approx(
        DEVIATION**2 / 1.12**2 / float(1 + MEANS.square().mean()), rel=0.03
    )
    assert noise.error[0] > 4 * noise.left[0]


def test_the_correction_undoes_it():
    model, points, full = planted()
    gain, shift = measure_noise(model, points, full, negative=True).correction()
    noisy = model.run(points)[:, :CHANNELS]
    fixed = (
        noisy * gain[points.step][..., None, None] + shift[points.step][..., None, None]
    ) - full[:, :CHANNELS]
    for call in range(CALLS):
        here = fixed[points.step == call]
        assert float(here.square().mean()) == pytest.approx(
            (DEVIATION / (1 + float(SLOPES[call]))) ** 2, rel=0.03
        )
        assert float(here.mean((0, 2, 3)).abs().max()) <= 1e-5


def test_parts_can_be_left_alone():
    model, points, full = planted()
    assert measure_noise(model, points, full).slope[2] == 0  # negative
    none = measure_noise(model, points, full, correlated=False, biased=False)
    gain, shift = none.correction()
    assert torch.equal(gain, torch.ones(CALLS, CHANNELS))
    assert torch.equal(shift, torch.zeros(CALLS, CHANNELS))
    assert torch.allclose(none.error, none.left)


def test_the_released_bias_leaves_a_part_of_the_channel_means():
    """It takes the mean of the whole noise, of which the slope has already taken a share."""
    model, points, full = planted()
    noise = measure_noise(model, points, full, residual_bias=False)
    here = points.step == 0
    gain, shift = noise.correction()
    fixed = model.run(points)[here, :CHANNELS] * gain[0, 0] + shift[0, :, None, None]
    slope = float(noise.slope[0])
    means = full[here, :CHANNELS].mean((0, 2, 3))
    left = (fixed - full[here, :CHANNELS]).mean((0, 2, 3))
    assert torch.allclose(left, -slope * means / (1 + slope), atol=1e-5)
    assert float(left.abs().max()) > 0.03


def test_guided_noise_is_that_of_the_weighted_halves():
    model, points, full = planted()
    weights = torch.tensor([-2.0, 3.0])
    noise = measure_noise(model, points, full, guidance=weights.expand(CALLS, 2), negative=True)
    # weights sum to 1, so slope and bias are those of the halves; the rest adds up
    assert torch.allclose(noise.slope, SLOPES, atol=0.004)
    assert torch.allclose(noise.bias, BIASES, atol=0.02)
    assert torch.allclose(noise.deviation, torch.full((CALLS,), DEVIATION * 13**0.5), rtol=0.02)
    rows = torch.arange(8.0).reshape(4, 2)
    assert guided(rows, weights).tolist() == [[6.0, 7.0], [10.0, 11.0]]


def test_a_model_without_noise_has_none():
    network = Passing()
    _, points, _ = planted()
    graph = trace(network, points.sample[:2], timestep=points.timestep[:2])
    model = wrap(network, graph, {"last": FP})
    with torch.no_grad():
        full = points.call(network)
    noise = measure_noise(model, points, full)
    gain, shift = noise.correction()
    assert torch.equal(gain, torch.ones(CALLS, CHANNELS))
    assert torch.equal(shift, torch.zeros(CALLS, CHANNELS))
