"""Activation quantizers: banks, groups, mixed batches, learning, dynamic ranges."""

import pytest
import torch

from quantarena.methods.core.affine import QuantParams, fake_quantize
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.quantizers.activation import ActQuantizer, DynamicActQuantizer
from quantarena.methods.techniques.ranges.minmax import minmax_range


def bank(x, bits=4):
    """A bank with the min-max range of each row of ``x`` at its call."""
    clock = CallClock()
    quantizer = ActQuantizer(bits, clock)
    found = [minmax_range(row, bits) for row in x]
    quantizer.set_bank(
        torch.stack([f.scale.reshape(()) for f in found]),
        torch.stack([f.zero_point.reshape(()) for f in found]),
    )
    return quantizer, clock


def growing(steps=5):
    """Rows whose values grow tenfold from the first to the last."""
    gain = torch.logspace(0, 1, steps).reshape(-1, 1, 1)
    return gain * torch.randn(steps, 7, 6, generator=torch.Generator().manual_seed(0))


def test_mixed_batch_equals_the_loop_over_its_calls():
    x = growing()
    quantizer, clock = bank(x)
    order = torch.tensor([3, 0, 4, 1, 1, 2])
    with clock.at(order):
        mixed = quantizer(x[order])
    for row, call in enumerate(order.tolist()):
        with clock.at(call):
            assert torch.equal(mixed[row], quantizer(x[order[row : row + 1]])[0])


def test_bank_pays_where_the_scale_changes_over_calls():
    x = growing()
    quantizer, clock = bank(x)
    with clock.at(torch.arange(len(x))):
        banked = (quantizer(x) - x).square().mean((1, 2))
    shared = (fake_quantize(x, minmax_range(x, 4)) - x).square().mean((1, 2))
    assert banked[0] < shared[0] / 20
    assert bool((banked <= shared * 1.01).all())


def test_heads_folded_into_the_batch_keep_their_call():
    x = growing(2)
    quantizer, clock = bank(x)
    folded = x.repeat_interleave(3, 0)  # three heads a row
    with clock.at(torch.tensor([0, 1])):
        assert torch.equal(quantizer(folded)[::3], quantizer(x))


def test_only_the_calls_in_the_batch_learn():
    x = growing()
    quantizer, clock = bank(x)
    groups = quantizer.learn(scale=True, zero_point=True)
    assert set(groups) == {"act_scale", "act_zero"}
    with clock.at(torch.tensor([1, 3])):
        (1.7 * quantizer(x[[1, 3]])).square().sum().backward()
    touched = groups["act_scale"].grad != 0
    assert touched.tolist() == [False, True, False, True, False]


def test_learned_zero_points_become_integers_and_the_drift_is_told():
    quantizer = ActQuantizer(4)
    quantizer.set_params(QuantParams(torch.tensor(0.1), torch.tensor(7.0), 4))
    quantizer.learn(zero_point=True)
    with torch.no_grad():
        quantizer.zero_point.add_(0.3)
    assert quantizer.settle() == pytest.approx(0.3, abs=1e-6)
    assert float(quantizer.zero_point) == 7.0
    assert not quantizer.scale.requires_grad


def test_lsq_gradient_of_the_scale():
    # inside: (q - x/s), above: the top code, below: the bottom one
    quantizer = ActQuantizer(2)
    quantizer.set_params(QuantParams(torch.tensor(1.0), torch.tensor(1.0), 2))
    parameter = quantizer.learn()["act_scale"]
    quantizer(torch.tensor([0.3, 9.0, -9.0])).sum().backward()
    assert float(parameter.grad) == pytest.approx((0 - 0.3) + 2 - 1, abs=1e-6)


def test_unannounced_call_and_call_beyond_the_bank_are_refused():
    quantizer, clock = bank(growing())
    with pytest.raises(UserError, match="nobody said which"):
        quantizer(growing())
    with clock.at(5), pytest.raises(UserError, match="calibrated for 5 calls"):
        quantizer(growing()[:1])


def test_groups_are_ranges_of_their_slices():
    x = torch.randn(4, 6, 3, 3) * torch.tensor([1.0, 1, 50, 1, 50, 1]).reshape(6, 1, 1)
    ids = torch.tensor([0, 0, 1, 0, 1, 0])
    quantizer = ActQuantizer(4)
    found = [minmax_range(x[:, ids == g], 4) for g in (0, 1)]
    quantizer.set_groups(
        1,
        ids,
        torch.stack([f.scale.reshape(()) for f in found]),
        torch.stack([f.zero_point.reshape(()) for f in found]),
    )
    y = quantizer(x)
    for group, params in enumerate(found):
        assert torch.equal(y[:, ids == group], fake_quantize(x[:, ids == group], params))
    with pytest.raises(ValueError, match="calibrated for 6"):
        quantizer(torch.randn(4, 5, 3, 3))


def test_bank_of_heads():
    clock = CallClock()
    quantizer = ActQuantizer(8, clock)
    scale = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    quantizer.set_groups(1, torch.arange(2), scale, torch.full_like(scale, 128.0))
    x = torch.randn(2, 2, 5, 4)
    with clock.at(torch.tensor([1, 0])):
        y = quantizer(x)
    for row, call in ((0, 1), (1, 0)):
        for head in (0, 1):
            params = QuantParams(scale[call, head], torch.tensor(128.0), 8)
            assert torch.equal(y[row, head], fake_quantize(x[row, head], params))


def test_groups_that_differ_by_call():
    quantizer = ActQuantizer(4, CallClock())
    scale = torch.tensor([[0.1, 1.0], [0.2, 2.0]])
    ids = torch.tensor([[0, 0, 1], [1, 0, 0]])
    quantizer.set_groups(-2, ids, scale, torch.full_like(scale, 8.0))
    x = torch.randn(4, 3, 5)
    calls = torch.tensor([1, 0, 0, 1])
    with quantizer.clock.at(calls):
        y = quantizer(x)
    for row, call in enumerate(calls.tolist()):
        for token in range(3):
            params = QuantParams(scale[call, ids[call, token]], torch.tensor(8.0), 4)
            assert torch.equal(y[row, token], fake_quantize(x[row, token], params))
        with quantizer.clock.at(call):
            assert torch.equal(quantizer(x[row : row + 1])[0], y[row])
    with pytest.raises(ValueError, match="groups of 2 sampler calls, ranges of 3"):
        quantizer.set_groups(-2, ids, torch.rand(3, 2), torch.rand(3, 2))


@pytest.mark.parametrize("kind", ["tensor", "bank", "groups", "both", "by call"])
def test_state_round_trip(kind):
    clock = CallClock()
    one, other = ActQuantizer(8, clock), ActQuantizer(8, clock)
    scale = torch.rand(3, 2) + 0.1
    zero = torch.full_like(scale, 9.0)
    if kind == "tensor":
        one.set_params(QuantParams(scale[0, 0], zero[0, 0], 8))
    elif kind == "bank":
        one.set_bank(scale[:, 0], zero[:, 0])
    elif kind == "by call":
        one.set_groups(-1, torch.randint(2, (3, 4)), scale, zero)
    else:
        kept = (scale, zero) if kind == "both" else (scale[0], zero[0])
        one.set_groups(-1, torch.tensor([0, 1, 1, 0]), *kept)
    other.load(one.state())
    x = torch.randn(5, 3, 4)
    with clock.at(torch.tensor([0, 1, 2, 2, 1])):
        assert torch.equal(one(x), other(x))


def test_dynamic_token_is_independent_of_other_tokens():
    x = torch.randn(2, 5, 8)
    quantizer = DynamicActQuantizer(4)
    alone = quantizer(x[:1, 2:3])
    x[0, 3] *= 100
    x[1] *= 100
    assert torch.equal(quantizer(x)[:1, 2:3], alone)


def test_dynamic_groups_isolate_an_outlier_channel():
    x = torch.randn(16, 64)
    x[:, 5] *= 100
    kept = torch.ones(64, dtype=torch.bool)
    kept[:32] = False  # the other group
    whole = (DynamicActQuantizer(4)(x) - x)[:, kept].square().mean()
    grouped = (DynamicActQuantizer(4, group_size=32)(x) - x)[:, kept].square().mean()
    assert grouped < whole / 100


def test_dynamic_image_has_one_range_a_sample():
    x = torch.randn(3, 4, 5, 5)
    y = DynamicActQuantizer(8)(x)
    for row in range(3):
        assert torch.equal(y[row], fake_quantize(x[row], minmax_range(x[row], 8)))


def test_multiplier_is_applied_after_the_reciprocal_scale():
    quantizer = ActQuantizer(8)
    quantizer.set_params(QuantParams(torch.tensor(0.0371), torch.tensor(128.0), 8))
    x, mult = torch.randn(1000, 16), torch.rand(16) + 0.5
    inverse = torch.tensor(0.0371).reciprocal()
    codes = (torch.round(x * inverse * mult) + 128).clamp(0, 255)
    assert torch.equal(quantizer(x, mult), (codes - 128) * quantizer.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dynamic", [False, True])
def test_codes_are_those_of_float32_whatever_the_dtype(dtype, dynamic):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantizer = DynamicActQuantizer(8) if dynamic else ActQuantizer(8)
    if isinstance(quantizer, ActQuantizer):
        quantizer.set_params(minmax_range(x, 8))
    codes, _ = quantizer.codes(x)
    assert torch.equal(codes, quantizer.codes(x.float())[0])
    mult = torch.full((64,), 0.7)
    assert torch.equal(quantizer(x, mult), quantizer(x.float(), mult))
