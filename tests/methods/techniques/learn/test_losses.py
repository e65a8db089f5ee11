import pytest
import torch

from quantarena.methods.techniques.learn.losses import RoundingTerm, reconstruction_loss
from quantarena.methods.techniques.learn.param_groups import Group
from quantarena.methods.techniques.learn.reconstruct import reconstruct
from quantarena.methods.techniques.learn.schedule import Schedule


def test_loss_sums_channels_and_means_the_rest():
    output = torch.zeros(2, 3, 4, 4)
    assert reconstruction_loss(output, output + 2, 2.0) == pytest.approx(12.0)
    assert reconstruction_loss(torch.zeros(2, 5, 7), torch.ones(2, 5, 7), 2.4) == pytest.approx(7.0)


def test_the_rounding_term_acts_from_the_iteration_of_the_official_code():
    # its counter starts at 1, and the term is off while the counter is below warmup * iterations
    at = [RoundingTerm().at((index + 1) / 300) for index in range(300)]
    assert [strength for strength, _ in at] == [0.0] * 59 + [0.01] * 241
    assert at[59][1] == pytest.approx(20.0)
    assert at[299][1] == pytest.approx(2.0)
    assert at[179][1] == pytest.approx(11.0)


def test_the_rounding_term_counts_iterations_from_one(ground, monkeypatch):
    model, blocks, points = ground
    shares, at = [], RoundingTerm.at

    def noted(term, done):
        shares.append(done)
        return at(term, done)

    monkeypatch.setattr(RoundingTerm, "at", noted)
    reconstruct(
        model,
        list(blocks.values()),
        points,
        Schedule(5, {"rounding": Group(0.1)}),
        acts=False,
        seed=0,
    )
    assert sorted(set(shares)) == [0.2, 0.4, 0.6, 0.8, 1.0]
