"""A deck deals everything equally often, and nothing twice at a time."""

import pytest
import torch

from quantarena.methods.techniques.distill.deck import Deck


@pytest.mark.parametrize("count", [1, 3, 5, 8, 20])
def test_it_deals_evenly_and_nothing_twice_at_a_time(count):
    deck, generator = Deck(8), torch.Generator().manual_seed(0)
    dealt = [deck.deal(count, generator) for _ in range(16)]
    assert all(len(each.unique()) == len(each) == min(count, 8) for each in dealt)
    counts = torch.bincount(torch.cat(dealt), minlength=8)
    assert int(counts.max() - counts.min()) <= 1


def test_the_generator_decides_the_order():
    first, again, other = (
        Deck(50).deal(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
