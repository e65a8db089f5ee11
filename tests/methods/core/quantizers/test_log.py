import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import fake_quantize
from quantarena.methods.core.quantizers.log import (
    DEEPEST,
    LogParams,
    log_accumulate,
    log_dequantize,
    log_fake_quantize,
    log_matmul,
    log_params,
    log_quantize,
)
from quantarena.methods.techniques.ranges.minmax import minmax_range

widths = st.integers(1, 8)
bases = st.sampled_from([1, 2])


def scores(shape, seed, sharpness=4.0):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sharpness
    return logits.softmax(-1)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    bits=widths,
    per_octave=bases,
    axes=st.integers(0, 4),
    zero_code=st.booleans(),
    power=st.sampled_from([1e-44, 1e-20, 1.0, 1e30]),
    seed=st.integers(0, 999),
)
def test_any_shape_and_size(shape, bits, per_octave, axes, zero_code, power, seed):
    x = scores(shape, seed) * power
    axes = min(axes, len(shape))
    params = log_params(x, bits, per_octave=per_octave, axes=axes, zero_code=zero_code)
    assert params.scale.shape == (*shape[:axes], *[1] * (len(shape) - axes))
    codes = log_quantize(x, params)
    assert codes.shape == x.shape
    assert codes.dtype == torch.uint8
    assert codes.max() <= params.top <= 2**bits - 1
    found = log_dequantize(codes, params)
    assert torch.isfinite(found).all()
    assert (found >= 0).all()
    assert (found <= params.scale).all()


@settings(max_examples=40, deadline=None)
@given(bits=widths, per_octave=bases, scale=st.floats(2**-20, 2**20, width=32))
def test_round_trip_on_the_grid_is_exact(bits, per_octave, scale):
    params = LogParams(torch.tensor(scale), bits, per_octave)
    codes = torch.arange(params.top + 1).to(torch.uint8)
    values = log_dequantize(codes, params)
    assert torch.equal(log_quantize(values, params), codes)
    assert torch.equal(log_fake_quantize(values, params), values)
    exact = params.scale.double() * torch.exp2(-codes.double() / per_octave)
    assert torch.allclose(values.double(), exact, rtol=2e-7, atol=0)
    if per_octave == 1:
        assert torch.equal(values.double(), exact)


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(3, 8), per_octave=bases, seed=st.integers(0, 999))
def test_error_is_half_a_code_and_order_is_kept(bits, per_octave, seed):
    x = scores((400,), seed).sort().values
    params = log_params(x, bits, per_octave=per_octave)
    codes = log_quantize(x, params)
    assert (codes.int().diff() <= 0).all()
    inside = x >= params.scale * 2 ** (-(params.top + 0.4) / per_octave)
    ratio = (log_dequantize(codes, params) / x)[inside]
    half = 2 ** (0.5 / per_octave) * (1 + 1e-5)
    assert ratio.max() <= half
    assert ratio.min() >= 1 / half


@pytest.mark.parametrize("per_octave", [1, 2])
def test_zeros_and_all_zero_tensors(per_octave):
    x = torch.tensor([1.0, 0.5, 0.0])
    params = log_params(x, 3, per_octave=per_octave)
    assert log_fake_quantize(x, params).tolist()[:2] == [1.0, 0.5]
    assert log_fake_quantize(x, params)[2] == pytest.approx(2 ** (-7 / per_octave))
    with_zero = log_params(x, 3, per_octave=per_octave, zero_code=True)
    assert log_fake_quantize(x, with_zero).tolist() == [1.0, 0.5, 0.0]
    empty = torch.zeros(4)
    assert (log_fake_quantize(empty, log_params(empty, 4)) < 1e-37).all()
    constant = torch.full((4,), 0.3)
    assert torch.equal(log_fake_quantize(constant, log_params(constant, 1)), constant)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (float("nan"), "NaN or infinity"),
        (float("inf"), "NaN or infinity"),
        (-0.1, "negative"),
    ],
)
def test_what_has_no_logarithm_is_refused_by_name(bad, message):
    with pytest.raises(ValueError, match=message):
        log_params(torch.tensor([0.5, bad]), 4)


def test_other_refusals():
    with pytest.raises(ValueError, match="empty"):
        log_params(torch.empty(0, 2), 4)
    with pytest.raises(ValueError, match="bits"):
        log_params(torch.ones(2), 9)
    codes, params = torch.zeros(2, 2, dtype=torch.uint8), LogParams(torch.tensor(1.0), 4)
    with pytest.raises(ValueError, match="int8"):
        log_accumulate(codes, torch.ones(2, 2), params)
    with pytest.raises(ValueError, match="overflow"):
        log_accumulate(
            codes[:1, :1].expand(1, 1 << 17), torch.ones(1 << 17, 1, dtype=torch.int16), params
        )
    with pytest.raises(ValueError, match="inner"):
        log_matmul(
            codes,
            torch.ones(2, 2, dtype=torch.int8),
            LogParams(torch.ones(2), 4),
            torch.tensor(1.0),
        )


@settings(max_examples=40, deadline=None)
@given(
    bits=widths,
    per_octave=bases,
    zero_code=st.booleans(),
    axes=st.integers(0, 3),
    inner=st.integers(1, 40),
    seed=st.integers(0, 999),
)
def test_integer_form_equals_float_product(bits, per_octave, zero_code, axes, inner, seed):
    generator = torch.Generator().manual_seed(seed)
    x = scores((2, 3, inner), seed)
    values = torch.randint(-128, 128, (2, inner, 4), generator=generator).to(torch.int8)
    value_scale = torch.tensor(0.013)
    params = log_params(x, bits, per_octave=per_octave, axes=min(axes, 2), zero_code=zero_code)
    codes = log_quantize(x, params)
    got = log_matmul(codes, values, params, value_scale)
    weights = log_dequantize(codes, params).double()
    want = weights @ (values.double() * value_scale.double())
    size = weights @ (values.double().abs() * value_scale.double())
    assert got.dtype == torch.float64
    assert ((got - want).abs() <= 1e-6 * size + 1e-30).all()


@pytest.mark.parametrize("per_octave", [1, 2])
def test_accumulators_are_python_integer_shifts(per_octave):
    codes = torch.randint(0, 64 if per_octave == 2 else 32, (3, 7)).to(torch.uint8)
    values = torch.randint(-128, 128, (7, 2)).to(torch.int8)
    params = LogParams(torch.tensor(1.0), 6, per_octave)
    found = log_accumulate(codes, values, params)
    assert len(found) == per_octave
    for parity, accumulator in enumerate(found):
        for row in range(3):
            for column in range(2):
                total = 0
                for code, value in zip(
                    codes[row].tolist(), values[:, column].tolist(), strict=True
                ):
                    if code % per_octave == parity:
                        total += value << (DEEPEST - math.ceil(code / per_octave))
                assert int(accumulator[row, column]) == total


def test_zero_point_of_values_fits_the_same_accumulators():
    x = scores((5, 9), 1)
    params = log_params(x, 4, per_octave=2)
    codes = log_quantize(x, params)
    values = torch.randint(-128, 128, (9, 3)).to(torch.int16)
    shifted = log_accumulate(codes, values - 37, params)
    plain = log_accumulate(codes, values, params)
    ones = log_accumulate(codes, torch.ones_like(values), params)
    for a, b, c in zip(shifted, plain, ones, strict=True):
        assert torch.equal(a, b - 37 * c)


def test_one_scale_for_each_sample_does_not_see_batch_mates():
    x = torch.stack([scores((6, 6), 1), scores((6, 6), 2) * 0.1])
    alone = log_fake_quantize(x[1:], log_params(x[1:], 4, axes=1))
    assert torch.equal(log_fake_quantize(x, log_params(x, 4, axes=1))[1:], alone)


def test_planted_peak_log_beats_uniform_and_finer_base_beats_log2():

    # one score near 1 and a long tail of small ones: relative errors of the tail
    x = scores((64, 256), 3)

    def error(y):
        return float(((y - x).abs() / x)[x > 1e-3].mean())

    uniform = error(fake_quantize(x, minmax_range(x, 4)))
    log2 = error(log_fake_quantize(x, log_params(x, 4)))
    fine = error(log_fake_quantize(x, log_params(x, 5, per_octave=2)))
    assert log2 < 0.3 * uniform
    assert fine < 0.6 * log2
