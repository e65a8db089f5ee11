"""Less fresh noise keeps the variance of a sampler whose predictions are noisy."""

import pytest
import torch

from quantarena.methods.techniques.correct.fresh_noise import fresh_noise_share
from quantarena.methods.techniques.correct.prediction_noise import PredictionNoise

VARIANCE = 0.25
ROWS = 100_000


def noise_of(deviation, calls, slope=0.0):
    flat = torch.zeros(calls)
    return PredictionNoise(
        torch.full((calls,), slope), flat[:, None], torch.full((calls,), deviation), flat, flat
    )


def grid(calls, eta):
    """Cumulative alphas at each call and after the last, and DDIM's deviations."""
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.double), 0)
    a = torch.cat([alphas[torch.arange(999, -1, -(1000 // calls))], torch.ones(1).double()])
    now, after = a[:-1], a[1:]
    return a, eta * ((1 - after) / (1 - now) * (1 - now / after)).clamp(min=0).sqrt()


def sampled(a, sigmas, deviation, share):
    """The variance of what DDIM draws when exact predictions for N(0, VARIANCE) are noisy."""
    make = torch.Generator().manual_seed(0)

    def fresh():
        return torch.randn(ROWS, generator=make, dtype=torch.double)

    x = fresh() * (a[0] * VARIANCE + 1 - a[0]).sqrt()
    for call, sigma in enumerate(sigmas):
        now, after = a[call], a[call + 1]
        exact = (1 - now).sqrt() / (now * VARIANCE + 1 - now) * x
        e = exact + deviation * fresh()
        clean = (x - (1 - now).sqrt() * e) / now.sqrt()
        x = after.sqrt() * clean + (1 - after - sigma**2).clamp(min=0).sqrt() * e
        x = x + sigma * share[call] * fresh()
    return float(x.var())


def test_variance_is_kept_where_the_noise_can_be_absorbed():
    a, sigmas = grid(20, 1.0)
    noise = noise_of(0.2, 20)
    share = fresh_noise_share(noise, a, sigmas)
    assert int((share == 0).sum()) <= 2, "more than the sampler adds"
    assert bool(((share >= 0) & (share <= 1)).all())
    ones = torch.ones(20)
    ideal = sampled(a, sigmas, 0.0, ones)
    plain, ours = (sampled(a, sigmas, 0.2, s) for s in (ones, share))
    assert abs(ours - ideal) <= 0.2 * abs(plain - ideal)


def test_a_deterministic_sampler_has_nothing_to_give():
    a, sigmas = grid(20, 0.0)
    assert torch.equal(fresh_noise_share(noise_of(0.4, 20), a, sigmas), torch.ones(20))


def test_without_noise_nothing_changes():
    a, sigmas = grid(20, 1.0)
    assert torch.allclose(fresh_noise_share(noise_of(0.0, 20), a, sigmas), torch.ones(20))


def test_the_correction_makes_the_rest_smaller():
    a, sigmas = grid(20, 1.0)
    one, other = (fresh_noise_share(noise_of(0.1, 20, slope=k), a, sigmas) for k in (0.0, 0.5))
    assert bool((other >= one).all() and (other > one).any())


def test_misfits_are_refused():
    a, sigmas = grid(20, 1.0)
    with pytest.raises(ValueError, match="noise of 10 sampler calls, 21 alphas"):
        fresh_noise_share(noise_of(0.1, 10), a, sigmas)
    with pytest.raises(ValueError, match="between 0 and"):
        fresh_noise_share(noise_of(0.1, 20), a, sigmas + 2)
