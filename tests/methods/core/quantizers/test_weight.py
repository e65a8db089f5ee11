"""Weight quantizers: widths by channel, K-groups, and the four ways of rounding."""

import pytest
import torch

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.quantizers.weight import Rounding, WeightQuantizer
from quantarena.methods.techniques.ranges.minmax import minmax_range


def made(weight, bits=4, **options):
    quantizer = WeightQuantizer(bits, **options)
    quantizer.find_params(weight, minmax_range, symmetric=False)
    return quantizer


def descend(quantizer, weight, groups, x, steps=300, lr=1e-2):
    """Fit ``x @ Q(w)`` to ``x @ w``; returns the errors before and after, as frozen codes.

    The rate falls to zero: where rounding jumps to and fro at a fixed one, the last step is chance,
    and each CPU's own.
    """
    target = x @ weight.T
    before = float((x @ quantizer(weight).T - target).square().mean().detach())
    optimiser = torch.optim.Adam([p for group in groups.values() for p in group], lr=lr)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (x @ quantizer(weight).T - target).square().mean().backward()
        optimiser.step()
        falling.step()
    quantizer.freeze(weight)
    return before, float((x @ quantizer(weight).T - target).square().mean())


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 32, generator=generator)
    shared = torch.randn(256, 1, generator=generator)
    return weight, torch.randn(256, 32, generator=generator) + 2 * shared


def test_channels_have_their_own_width():
    weight = torch.randn(6, 40)
    quantizer = WeightQuantizer(4)
    quantizer.set_bit_map(torch.tensor([1, 2, 3, 4, 5, 8]))
    quantizer.find_params(weight, minmax_range, symmetric=False)
    quantizer.freeze(weight)
    for row, bits in enumerate((1, 2, 3, 4, 5, 8)):
        assert int(quantizer.codes[row].max()) < 2**bits
        assert len(quantizer.codes[row].unique()) <= 2**bits
        alone = fake_quantize(weight[row], minmax_range(weight[row], bits))
        assert torch.equal(quantizer(weight)[row], alone)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("mixed", [False, True])
def test_every_weight_inside_the_grid_has_a_gradient(bits, mixed):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(bits)
    if mixed:
        quantizer.set_bit_map(torch.tensor([bits, bits, 4, 8]))
    quantizer.find_params(weight, minmax_range, symmetric=False)
    (master,) = quantizer.learn(weight, rounding=Rounding.STE)["weight"]
    quantizer(weight).sum().backward()
    assert bool((master.grad[:2] == 1).all())


@pytest.mark.parametrize("widths", [[0, 4], [4, 9]])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match="1 to 8 bits"):
        WeightQuantizer(4).set_bit_map(torch.tensor(widths))


@pytest.mark.parametrize("shape", [(8, 32), (8, 32, 3, 3)])
def test_k_groups_isolate_an_outlier(shape):
    weight = torch.randn(shape)
    weight[:, 3] *= 100
    rest = torch.arange(32) >= 16
    error = {}
    for group in (0, 16):
        quantizer = made(weight, group_size=group)
        quantizer.freeze(weight)
        assert quantizer.codes.shape == weight.shape
        error[group] = (quantizer(weight) - weight)[:, rest].square().mean()
    assert error[16] < error[0] / 50


def test_straight_through_learns_the_weight_itself(case):
    weight, x = case
    quantizer = made(weight, 3)
    groups = quantizer.learn(weight, rounding=Rounding.STE, scale=True)
    assert set(groups) == {"weight", "weight_scale"}
    before, after = descend(quantizer, weight, groups, x, lr=3e-3)
    assert after < 0.7 * before


def test_lora_is_merged_before_quantization(case):
    weight, x = case
    quantizer = made(weight, 3)
    first = quantizer(weight)
    groups = quantizer.learn(weight, rounding=Rounding.LORA, rank=4)
    assert torch.equal(quantizer(weight), first)  # starts as no change
    before, after = descend(quantizer, weight, groups, x)
    assert after < 0.7 * before
    # codes hold the merged weight: nothing is left to add at run time
    assert quantizer.lora_up is None
    assert int(quantizer.codes.max()) < 8


def test_merge_then_quantize_is_not_quantize_then_add(case):
    weight, _ = case
    quantizer = made(weight, 3)
    quantizer.learn(weight, rounding=Rounding.LORA, rank=4)
    with torch.no_grad():
        quantizer.lora_up.normal_(std=0.3)
    change = quantizer.latent(weight) - weight
    merged, added = quantizer(weight), made(weight, 3)(weight) + change
    assert (merged - added).abs().max() > 0.1 * quantizer.scale.min()


def test_adaround_learns_up_or_down(case):
    weight, x = case
    quantizer = made(weight, 3)
    groups = quantizer.learn(weight, rounding=Rounding.SOFT)
    assert set(groups) == {"rounding"}
    floor = torch.floor(weight / quantizer.scale) + quantizer.zero_point
    descend(quantizer, weight, groups, x)
    assert set((quantizer.codes - floor).clamp(-1, 2).unique().tolist()) <= {-1.0, 0.0, 1.0}
    with pytest.raises(ValueError, match="once"):
        made(weight).learn(weight, rounding=Rounding.SOFT, scale=True)


@pytest.mark.parametrize("widths", [None, [2] * 8 + [4] * 8])
def test_adaround_stays_inside_the_grid(case, widths):
    weight, x = case
    quantizer = WeightQuantizer(4)
    if widths is not None:
        quantizer.set_bit_map(torch.tensor(widths))
    quantizer.find_params(weight, minmax_range, symmetric=False)
    groups = quantizer.learn(weight, rounding=Rounding.SOFT)
    descend(quantizer, weight, groups, x, steps=50)
    for row, bits in enumerate(widths or [4] * 16):
        assert int(quantizer.codes[row].max()) < 2**bits


def test_learned_zero_point_is_frozen_as_an_integer(case):
    weight, _ = case
    quantizer = made(weight)
    groups = quantizer.learn(weight, zero_point=True)
    with torch.no_grad():
        groups["weight_zero"][0].add_(0.25)
    quantizer.freeze(weight)
    assert quantizer.drift == pytest.approx(0.25, abs=1e-6)
    assert torch.equal(quantizer.zero_point, quantizer.zero_point.round())


def test_nothing_learns_unasked(case):
    weight, _ = case
    assert not made(weight)(weight).requires_grad


@pytest.mark.parametrize("rounding", list(Rounding))
def test_another_weight_is_rounded_and_learned_from(case, rounding):
    weight, x = case
    other = weight + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    quantizer = made(weight, 3)
    quantizer.start_from(other)
    wanted = fake_quantize(other, quantizer.params)
    assert torch.equal(quantizer(weight), wanted)
    groups = quantizer.learn(weight, rounding=rounding)
    if rounding is not Rounding.SOFT:
        assert torch.equal(quantizer(weight), wanted), "learning starts from it too"
    if groups:
        descend(quantizer, weight, groups, x, steps=3)
    else:
        quantizer.freeze(weight)
    assert (quantizer(weight) - other).abs().max() <= 2 * quantizer.scale.max()
    assert float((quantizer(weight) != wanted).float().mean()) < 0.5
    with pytest.raises(ValueError, match="fixed"):
        quantizer.start_from(other)


@pytest.mark.parametrize("group_size", [0, 4])
def test_thawed_codes_keep_the_way_that_they_round(group_size):
    weight = torch.randn(6, 8)
    quantizer = made(weight, 3, group_size=group_size)
    with pytest.raises(ValueError, match="only fixed codes"):
        quantizer.thaw(weight)
    quantizer.soften(weight).alpha.data = torch.randn(quantizer._view(weight).shape)
    quantizer.freeze(weight)
    codes, value = quantizer.codes.clone(), quantizer(weight).clone()
    quantizer.thaw(weight)
    assert torch.equal(quantizer(weight), value)
    (master,) = quantizer.learn(weight, rounding=Rounding.STE)["weight"]
    steps = quantizer._back(quantizer.scale.expand_as(quantizer._view(weight)))
    with torch.no_grad():
        master += 0.3 * steps  # the weight moves by 0.3 steps, its floor by 0 or 1
    quantizer.freeze(weight)
    position = weight / steps
    moved = torch.floor(position + 0.3) - torch.floor(position)
    on_border = (position + 0.3 - (position + 0.3).round()).abs() < 0.01
    inside = (codes > 0) & (codes < 7) & ~on_border & ((position - position.round()).abs() > 0.01)
    assert torch.equal(quantizer.codes[inside].float(), (codes + moved)[inside])
    assert bool(moved.any())
    assert not bool(moved.all())
