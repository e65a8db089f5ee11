import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantarena.bench.metrics.fidelity import last_latents
from quantarena.bench.metrics.fidelity.last_latents import latent_mse, watching
from quantarena.bench.metrics.fidelity.noise_error import SQNR_CAP, predictions, sqnr


def test_equal_predictions_are_at_the_cap():
    answers = torch.randn(3, 4, 2, 5, 5)
    assert (sqnr(answers, answers) == SQNR_CAP).all()
    assert sqnr(answers, answers, halves=2).shape == (3, 2)
    assert (sqnr(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)) == SQNR_CAP).all()


@pytest.mark.parametrize("db", [10.0, 20.0, 40.0])
def test_sqnr_of_known_noise(db):
    signal = torch.ones(2, 3, 4, 8, 8)
    noise = 10 ** (-db / 20) * torch.where(torch.rand(signal.shape) < 0.5, -1.0, 1.0)
    np.testing.assert_allclose(sqnr(signal, signal + noise), db, atol=1e-3)


def test_sqnr_by_hand_adds_the_guidance_halves_of_an_image():
    reference, test = torch.zeros(1, 4, 1), torch.zeros(1, 4, 1)
    reference[0, :, 0] = torch.tensor([3.0, 1.0, 4.0, 1.0])  # rows: images 0 1, halves 0 0 1 1
    test[0, :, 0] = torch.tensor([3.0, 1.5, 5.0, 1.0])
    want = 10 * np.log10([(9 + 16) / 1, (1 + 1) / 0.25])
    np.testing.assert_allclose(sqnr(reference, test, halves=2)[0], want)


def test_no_prediction_at_all_is_at_0_db():
    reference = torch.randn(1, 2, 3)
    np.testing.assert_allclose(sqnr(reference, torch.zeros_like(reference)), 0, atol=1e-6)


def test_predictions_that_are_not_numbers_name_their_call():
    reference = torch.ones(3, 2, 4)
    broken = reference.clone()
    broken[1, 0, 2] = float("nan")
    with pytest.raises(ValueError, match="sampler call 1 are not finite"):
        sqnr(reference, broken)
    with pytest.raises(ValueError, match="differ in shape"):
        sqnr(reference, broken[:2])


def test_latent_mse():
    latents = torch.randn(3, 4, 8, 8)
    assert (latent_mse(latents, latents) == 0).all()
    shifted = latents + torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    np.testing.assert_allclose(latent_mse(latents, shifted), [0, 1, 4], rtol=1e-5)
    with pytest.raises(ValueError, match="not finite"):
        latent_mse(latents, latents * float("inf"))
    with pytest.raises(ValueError, match="differ in shape"):
        latent_mse(latents, latents[:2])


def test_predictions_are_asked_at_their_own_calls_and_without_the_variance(pixel):
    recorded = pixel.trajectory
    calls = []

    class Twice(torch.nn.Module):
        """Predicts noise and, behind it, a variance."""

        def forward(self, sample, timestep, return_dict=True):
            return (torch.cat([sample * timestep.view(-1, 1, 1, 1), sample], 1),)

    def at(call):
        calls.append(call)
        return torch.no_grad()

    found = predictions(Twice(), recorded, at)
    assert calls == list(range(recorded.calls))
    times = recorded.timestep.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(found, (recorded.sample * times).float())


class Sampler:
    """Two runs of three steps."""

    def __init__(self, named):
        self.named = named

    def set_timesteps(self, count):
        self.timesteps = list(range(count))

    def step(self, output, timestep, sample, eta=0.0):
        after = sample + output
        return SimpleNamespace(prev_sample=after) if self.named else (after,)


@pytest.mark.parametrize("named", [True, False])
def test_the_last_step_of_every_run_is_kept(named):
    sampler = Sampler(named)
    with watching(sampler, 4, 2) as seen:
        assert list(inspect.signature(sampler.step).parameters) == [
            "output",
            "timestep",
            "sample",
            "eta",
        ]
        for start in (0.0, 10.0):
            sampler.set_timesteps(3)
            x = torch.full((2, 1), start)
            for t in sampler.timesteps:
                out = sampler.step(torch.ones(2, 1), t, x)
                x = out.prev_sample if named else out[0]
    assert seen.tensor.flatten().tolist() == [3, 3, 13, 13]
    assert "step" not in vars(sampler)


def test_latents_of_many_images_are_cut(monkeypatch):
    monkeypatch.setattr(last_latents, "KEPT_LATENTS", 3)
    sampler = Sampler(True)
    with watching(sampler, 8, 2) as seen:
        for _ in range(4):
            sampler.set_timesteps(1)
            sampler.step(torch.zeros(2, 1), 0, torch.zeros(2, 1))
    assert len(seen.tensor) == 3


def test_what_is_no_sampler_is_not_watched():
    with watching(object(), 1, 1) as seen:
        pass
    assert seen.tensor is None


def test_guidance_halves_that_a_pipeline_steps_are_cut_off():
    sampler = Sampler(True)
    with watching(sampler, 3, 2) as seen:
        for rows in ([1.0, 2, 1, 2], [3.0, 3]):  # two images, then one
            sampler.set_timesteps(1)
            sampler.step(torch.zeros(len(rows)), 0, torch.tensor(rows))
    assert seen.tensor.tolist() == [1, 2, 3]


def test_runs_that_do_not_fit_the_images_give_nothing():
    sampler = Sampler(True)
    with watching(sampler, 4, 2) as seen:
        sampler.set_timesteps(1)
        sampler.step(torch.zeros(2, 1), 0, torch.zeros(2, 1))
    assert seen.tensor is None
