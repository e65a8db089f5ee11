import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import (
    SCALE_FLOOR,
    QuantParams,
    affine_params,
    dequantize,
    fake_quantize,
    fake_quantize_ste,
    quantize,
    unsigned_params,
)

values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40).map(torch.tensor)
widths = st.integers(1, 8)


def params_for(x, bits, symmetric):
    return affine_params(x.min(), x.max(), bits, symmetric)


@settings(max_examples=150, deadline=None)
@given(x=values, bits=widths, symmetric=st.booleans())
def test_codes_are_integers_in_range(x, bits, symmetric):
    params = params_for(x, bits, symmetric)
    codes = quantize(x, params)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert params.scale > 0
    assert params.zero_point == params.zero_point.round()
    assert 0 <= params.zero_point <= 2**bits - 1


@settings(max_examples=150, deadline=None)
@given(x=values, bits=widths, symmetric=st.booleans())
def test_error_is_half_a_step_and_zero_is_exact(x, bits, symmetric):
    params = params_for(x, bits, symmetric)
    step = float(params.scale)
    # rounding the zero point may push either end half a step out of the grid
    slack = 1e-5 * float(x.abs().max())
    assert (fake_quantize(x, params) - x).abs().max() <= step * 1.0 + slack
    inside = (x / params.scale + params.zero_point >= 0) & (
        x / params.scale + params.zero_point <= params.levels - 1
    )
    error = (fake_quantize(x, params) - x).abs()[inside]
    assert (error <= step / 2 + slack).all()
    assert fake_quantize(torch.zeros(1), params) == 0


@settings(max_examples=60, deadline=None)
@given(x=values, bits=widths, symmetric=st.booleans())
def test_gradient_version_has_equal_values(x, bits, symmetric):
    params = params_for(x, bits, symmetric)
    assert torch.equal(fake_quantize_ste(x, params), fake_quantize(x, params))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_grid_is_centred(bits):
    params = affine_params(torch.tensor(-3.0), torch.tensor(3.0), bits, symmetric=True)
    assert params.zero_point == 2 ** (bits - 1)
    x = torch.linspace(-3, 3, 101)
    assert (fake_quantize(x, params) - x).abs().max() <= params.scale / 2 + 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-12])
def test_constant_tensors(value, symmetric):
    x = torch.full((5,), value)
    params = params_for(x, 4, symmetric)
    assert params.scale >= SCALE_FLOOR
    assert torch.allclose(fake_quantize(x, params), x, rtol=1e-6, atol=SCALE_FLOOR)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_signed_tensors_keep_their_far_end(sign, symmetric):
    # a range that is not widened to zero would clip here
    x = sign * torch.linspace(5, 6, 50)
    params = params_for(x, 8, symmetric)
    assert (fake_quantize(x, params) - x).abs().max() <= params.scale / 2 + 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(bad):
    low, high = (torch.tensor(v) for v in ((bad, 1.0) if bad < 0 or bad != bad else (-1.0, bad)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        affine_params(low, high, 8, symmetric=False)


def test_range_wider_than_float32_is_refused():
    with pytest.raises(ValueError, match="infinity"):
        affine_params(torch.tensor(-3e38), torch.tensor(3e38), 8, symmetric=False)


def test_scale_gradient_is_lsq():
    scale = torch.tensor(0.5, requires_grad=True)
    params = QuantParams(scale, torch.tensor(4.0), 3)
    x = torch.tensor([0.6, -0.3, 100.0, -100.0], requires_grad=True)
    out = fake_quantize_ste(x, params)
    for index, expected in enumerate((1 - 1.2, -1 + 0.6, 3.0, -4.0)):
        (grad,) = torch.autograd.grad(out[index], scale, retain_graph=True)
        assert grad == pytest.approx(expected, abs=1e-5)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)


def test_end_codes_have_the_gradients_of_all_codes():
    scale = torch.tensor(1.0, requires_grad=True)
    x = torch.tensor([254.7, 0.3, 100.2], requires_grad=True)
    fake_quantize_ste(x, QuantParams(scale, torch.tensor(0.0), 8)).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert float(scale.grad) == pytest.approx(-0.2, abs=1e-4)  # the rounding errors alone


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("mixed", [False, True])
def test_gradient_is_one_at_every_code_and_zero_beyond(bits, mixed):
    codes = torch.arange(-2.0, 2**bits + 2).requires_grad_()
    widths = torch.tensor([float(bits)]) if mixed else None
    params = QuantParams(torch.tensor(1.0), torch.tensor(0.0), 8 if mixed else bits, widths)
    params.clip(codes).sum().backward()
    assert codes.grad.tolist() == [0, 0, *[1] * 2**bits, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_codes_are_those_of_float32_whatever_the_dtype(dtype):
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    params = affine_params(x.min(), x.max(), 8, symmetric=False)
    assert torch.equal(quantize(x, params), quantize(x.float(), params))
    assert torch.equal(fake_quantize_ste(x, params), fake_quantize(x.float(), params))


def test_codes_mean_what_dequantize_says():
    params = QuantParams(torch.tensor(0.25), torch.tensor(3.0), 3)
    assert dequantize(torch.tensor([0.0, 3.0, 7.0]), params).tolist() == [-0.75, 0.0, 1.0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_unsigned_grid_reaches_from_zero_to_the_bound(bits):
    params = unsigned_params(torch.tensor([[0.5], [3.0], [0.0]]), bits)
    assert params.scale.shape == (3, 1)
    assert (params.zero_point == 0).all()
    top = torch.full((3, 1), float(2**bits - 1))
    assert dequantize(top, params).flatten().tolist() == pytest.approx([0.5, 3.0, 0.0], abs=1e-5)
    assert params.scale[2] == SCALE_FLOOR
    x = torch.rand(3, 500) * torch.tensor([[0.5], [3.0], [0.0]])
    assert ((fake_quantize(x, params) - x).abs() <= params.scale / 2 + 1e-6).all()


def test_unsigned_grid_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        unsigned_params(torch.tensor([1.0, float("nan")]), 8)
