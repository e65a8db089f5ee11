"""A sampler's step from recordings: its own coefficients come back, and so does its walk."""

import dataclasses

import pytest
import torch

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.steps import PerCall, WholeWalks
from quantarena.methods.core.record.trajectory import Trajectory
from quantarena.methods.techniques.distill.sampler_fit import (
    TOLERANCE,
    by_image,
    fit_step,
    weighted,
)

CALLS, IMAGES = 6, 3
SHARES = torch.tensor([-2.0, 3.0])


def predict(sample):
    """Two guidance halves that differ."""
    return torch.stack([torch.tanh(sample), torch.sin(sample.flip(-1))], 1)


def recorded(step, halves=2):
    """Samples and predictions of a walk whose next sample is ``step(call, x, guided ones)``."""
    x = torch.randn(IMAGES, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    samples, predictions, guided = [x], [], []
    for call in range(CALLS):
        predictions.append(predict(samples[-1])[:, :halves])
        guided.append(weighted(predictions[-1], SHARES if halves == 2 else torch.ones(1)))
        samples.append(step(call, samples[-1], guided))
    return torch.stack(samples[:-1]), torch.stack(predictions)


def replayed(fit, samples, predictions, images):
    """The walk that the fit makes of predictions on its own samples."""
    x, past, walk = samples[0][images], [], []
    for call in range(CALLS):
        walk.append(x)
        past.append(predict(x)[:, : predictions.shape[2]])
        if call + 1 < CALLS:
            x = fit.next(call, x, past, images)
    return torch.stack(walk)


def linear(call, x, guided):
    return (1 + 0.1 * call) * x - 0.2 * guided[-1]


def multistep(call, x, guided):
    recent = guided[-1] if call == 0 else 1.5 * guided[-1] - 0.5 * guided[-2]
    return 0.9 * x + 0.3 * recent


def ancestral(call, x, guided):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(call))
    return linear(call, x, guided) + 0.5 * noise


def clipped(call, x, guided):
    return (1.2 * x - 0.4 * guided[-1]).clamp(-1, 1)


def test_a_linear_sampler_gives_its_coefficients_and_guidance():
    fit = fit_step(*recorded(linear))
    assert torch.allclose(fit.keep, 1 + 0.1 * torch.arange(CALLS - 1), atol=1e-4)
    assert torch.allclose(fit.halves, -0.2 * SHARES.expand(CALLS - 1, 2), atol=1e-4)
    for call in range(CALLS):  # the last call has the guidance of the one before
        assert torch.allclose(fit.guidance(call), SHARES, atol=1e-3)
    assert float(fit.error.max()) < 1e-5
    assert not fit.past.any()


def test_a_multistep_sampler_needs_past_predictions():
    fit = fit_step(*recorded(multistep))
    assert float(fit.error.max()) <= TOLERANCE
    assert fit.past[0].tolist() == [0, 0, 0]
    assert torch.allclose(fit.past[1:, 0], torch.full((CALLS - 2,), -0.15), atol=1e-3)


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("step", [linear, multistep, ancestral, clipped])
def test_who_predicts_as_full_precision_walks_as_recorded(step, halves):
    samples, predictions = recorded(step, halves)
    fit = fit_step(samples, predictions)
    for images in (torch.arange(IMAGES), torch.tensor([2, 0])):
        walk = replayed(fit, samples, predictions, images)
        assert torch.allclose(walk, samples[:, images], atol=1e-3)
    assert (float(fit.error.max()) > 0.01) == (step in (ancestral, clipped))


def test_another_prediction_moves_the_walk_by_the_samplers_own_coefficient():
    samples, predictions = recorded(ancestral)
    fit = fit_step(samples, predictions)
    every = torch.arange(IMAGES)
    other = fit.next(0, samples[0], [predictions[0] + 1.0], every)
    # both halves one higher: guidance sums to 1, the step takes -0.2 of it; the noise is the same
    assert torch.allclose(other - samples[1], torch.tensor(-0.2), atol=0.1)
    assert float((other - samples[1]).std()) < 1e-4


def test_what_is_no_walk_is_refused():
    samples, _ = recorded(linear)
    doubled = torch.cat([samples, samples], 1)
    walks = Trajectory(doubled, torch.arange(CALLS).flip(0), {}, halves=2)
    points = WholeWalks(4).draw(walks, seed=0)
    assert by_image(points) == (CALLS, 2, 2)
    with pytest.raises(Unsupported, match="whole recorded walks"):
        by_image(WholeWalks(3).draw(walks, seed=0))
    with pytest.raises(Unsupported, match="whole recorded walks"):
        by_image(points.rows(torch.arange(len(points)).flip(0)))
    moved = dataclasses.replace(
        points, sample=points.sample + torch.arange(4).repeat(CALLS)[:, None, None, None]
    )
    with pytest.raises(Unsupported, match="the same sample"):
        by_image(moved)
    single = PerCall(2).draw(Trajectory(samples, torch.arange(CALLS), {}), seed=0)
    assert by_image(single) == (CALLS, 2, 1)
    with pytest.raises(ValueError, match="two recorded calls"):
        fit_step(samples[:1], predict(samples[0])[None])
