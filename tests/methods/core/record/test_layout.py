"""Guidance halves of separate network calls, and texts of several lengths."""

import pytest
import torch

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.record.layout import half_places, padded_lengths
from quantarena.methods.core.record.recorder import recording


@pytest.mark.parametrize(
    ("samples", "halves", "places"),
    [
        ([7, 8], 1, [(0, 0, 1), (1, 0, 1)]),
        ([7, 8], 2, [(0, 0, 2), (1, 0, 2), (0, 1, 2), (1, 1, 2)]),
        ([7, 7, 8, 8], 2, [(0, 0, 1), (2, 0, 1), (1, 0, 1), (3, 0, 1)]),
        ([7, 7], 4, [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]),
        ([7, 7], 1, [(0, 0, 1), (1, 0, 1)]),
    ],
)
def test_where_the_halves_lie(samples, halves, places):
    assert half_places(samples, halves) == places


def test_padding_needs_a_mask_and_one_axis():
    text, mask, other = [(2, 3, 8), (2, 5, 8)], [(2, 3), (2, 5)], [(2, 3, 8), (2, 5, 9)]
    found = padded_lengths({"text": text, "mask": mask, "other": other}, lambda name: True)
    assert found == {"text": 5, "mask": 5}
    assert padded_lengths({"text": text, "mask": mask}, lambda name: False) == {}
    assert padded_lengths({"mask": mask}, lambda name: True) == {}, "it masks nothing"
    assert padded_lengths({"text": text[:1] * 2, "mask": mask}, lambda name: True) == {}


def test_one_network_call_for_each_half(diffusers, stub, noise):
    """Lumina 2 calls its network first with the prompt, then without, on the same sample."""
    model, scheduler = stub(), diffusers.DDIMScheduler()
    with recording(model, scheduler) as done:
        for first in (0, 2):  # two batches of two images
            scheduler.set_timesteps(2)
            for timestep in scheduler.timesteps:
                sample = noise(2) + first
                for half in (0.0, 1.0):
                    image = torch.tensor([[first], [first + 1]], dtype=torch.float32)
                    model(sample, timestep, context=torch.cat([image, image * 0 + half], 1))
                scheduler.step(sample, timestep, sample)
    found = done(2)
    points = found.pick(torch.zeros(8, dtype=torch.long), torch.arange(8))
    assert points.conditions["context"][:, 0].tolist() == points.image.tolist()
    assert points.conditions["context"][:, 1].tolist() == points.half.tolist()
    assert torch.equal(points.sample[:4], points.sample[4:])


def test_texts_of_two_batches_are_padded_where_a_mask_says_so(stub, noise):
    model = stub()
    with recording(model) as done:
        for timestep in (9, 5):
            for length in (2, 3):
                text, mask = torch.ones(1, length, 4), torch.ones(1, length, dtype=torch.bool)
                model(noise(1), timestep, context=text, added={"mask": mask})
    # without a scheduler, the two calls of a timestep are told apart by the period alone
    found = done()
    assert found.conditions["added"]["mask"].sum(-1).unique().tolist() == [2, 3]
    assert found.conditions["context"].shape[-2:] == (3, 4)
    assert found.conditions["context"].sum((-1, -2)).unique().tolist() == [8, 12]


def test_without_a_mask_they_are_refused(stub, noise):
    model = stub()
    with recording(model) as done:
        for length in (2, 3):
            model(noise(1), 9 - length, context=torch.rand(1, length, 4))
    with pytest.raises(BrokenModel, match="pad it"):
        done()
