"""Channel-wise ranges of norm outputs: where they are, and both ends learned."""

import pytest
import torch

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model.model import wrap
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.mse import mse_range
from quantarena.methods.techniques.scaling.channel_clips import (
    Clips,
    channel_rows,
    clip_error,
    learn_clips,
    search_clips,
)


def rows(count=600, width=8, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=make)


def test_ranges_do_not_reach_for_zero():
    x = rows() * 0.1 + torch.arange(8) * 3.0
    clips = search_clips(x, 4, minmax_range)
    assert torch.allclose(clips.low, x.amin(0), atol=0.03)
    assert torch.allclose(clips.high, x.amax(0), atol=0.03)
    params = clips.params(4)
    assert torch.equal(params.zero_point, params.zero_point.round())
    assert int(params.zero_point.min()) < -100, "outside the codes: the fold moves it in"
    error = (fake_quantize(x, params) - x).square().mean()
    wide = minmax_range(x.T.contiguous(), 4, axis=0)
    reaching = (fake_quantize(x.T, wide) - x.T).square().mean()
    assert 50 * error < reaching


def test_both_ends_learn_apart_and_never_lose():
    # one far value on one side of each channel, in turn above and below
    x = rows(5000)
    x[0] = 8.0 * (1 - 2 * (torch.arange(8) % 2))
    start, gram = search_clips(x, 3, minmax_range), torch.eye(8)
    learned = learn_clips(x, gram, start, 3, steps=200, lr=0.05, seed=0)
    assert clip_error(x, gram, learned, 3) < 0.6 * clip_error(x, gram, start, 3)
    upper = (start.high - learned.high) > (learned.low - start.low) + 1
    assert upper.tolist() == [True, False] * 4
    good = search_clips(rows(), 8, minmax_range)
    wild = learn_clips(rows(), gram, good, 8, steps=3, lr=5.0, seed=0)
    assert wild is good, "a worse result is not taken"
    assert learn_clips(x, gram, start, 3, steps=0, lr=0.1, seed=0) is start
    again = learn_clips(x, gram, start, 3, steps=200, lr=0.05, seed=0)
    assert torch.equal(again.low, learned.low)


def test_the_error_is_that_of_the_readers():
    x, weight = rows(), torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    clips = Clips(x.amin(0) / 2, x.amax(0) / 2)
    gap = (fake_quantize(x, clips.params(4)) - x) @ weight.T
    found = clip_error(x, weight.T @ weight, clips, 4)
    assert found == pytest.approx(float(gap.square().sum(1).mean()), rel=1e-4)


def test_learning_follows_the_readers_not_the_input():
    # channels 0 to 3 are read hard, the others hardly: only the former are worth codes
    x = rows()
    start, gram = search_clips(x, 3, mse_range), torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4))
    learned = learn_clips(x, gram, start, 3, steps=50, lr=0.05, seed=0)
    moved = (learned.high - start.high).abs()
    assert float(moved[:4].min()) > 0
    assert float(moved[4:].max()) == 0


def test_rows_come_from_all_points_with_their_extremes(probe):
    model = wrap(probe.model, probe.graph, dict.fromkeys(probe.graph.layers, Bits(8, 8)))
    names = [n for n, x in model.layers.items() if not x.is_conv or x.weight[0, 0].numel() == 1][:3]
    found = channel_rows(model, probe.heldout, set(names))
    assert set(found) == set(names)
    seen = {}
    hooks = [
        model.layers[n].register_forward_pre_hook(lambda m, a, n=n: seen.update({n: a[0]}))
        for n in names
    ]
    with torch.no_grad(), model.using(weights=False, acts=False):
        model.run(probe.heldout)
    for hook in hooks:
        hook.remove()
    for name in names:
        x = seen[name]
        flat = (x.movedim(1, -1) if model.layers[name].is_conv else x).flatten(0, -2)
        assert torch.equal(found[name].amax(0), flat.amax(0))
        assert torch.equal(found[name].amin(0), flat.amin(0))
        assert found[name].shape[1] == model.layers[name].in_channels
