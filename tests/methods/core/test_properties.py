"""What holds for any tensor: codes, their meaning, and their packed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarena.methods.core.affine import (
    SCALE_FLOOR,
    affine_params,
    dequantize,
    fake_quantize,
    quantize,
    unsigned_params,
)
from quantarena.methods.core.kernels.formats import code_range, pack_codes, unpack_codes
from quantarena.methods.techniques.ranges.minmax import minmax_range
from quantarena.methods.techniques.ranges.named import unsigned

BOUNDED = settings(max_examples=80, deadline=None, derandomize=True)
HUGE = 1.7e38  # half of float32's largest, so that a range has a width
widths = st.integers(1, 8)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
kinds = st.sampled_from(["any", "constant", "zero", "denormal", "huge", "positive", "outlier"])
grids = st.sampled_from(["affine", "symmetric", "unsigned"])


@st.composite
def tensors(draw, kind=kinds):
    """A tensor and an axis of it, or None."""
    shape = draw(shapes)
    axis = draw(st.none() | st.integers(0, len(shape) - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    x = torch.randn(shape, generator=generator)
    match draw(kind):
        case "constant":
            x = torch.full(shape, draw(st.floats(-1e6, 1e6, width=32)))
        case "zero":
            x = torch.zeros(shape)
        case "denormal":
            x = x * 1e-41
        case "huge":
            x = x.clamp(-1, 1) * HUGE
        case "positive":
            x = x.abs()
        case "outlier":
            x.view(-1)[0] = draw(st.floats(-1e6, 1e6, width=32))
    return x, axis


def params_of(x, axis, bits, grid):
    if grid == "unsigned":
        return unsigned(minmax_range)(x, bits, axis=axis)
    return minmax_range(x, bits, axis=axis, symmetric=grid == "symmetric")


@BOUNDED
@given(sample=tensors(), bits=widths, grid=grids)
def test_codes_are_integers_in_range_and_parameters_broadcast(sample, bits, grid):
    x, axis = sample
    x = x.abs() if grid == "unsigned" else x
    params = params_of(x, axis, bits, grid)
    codes = quantize(x, params)
    assert codes.shape == dequantize(codes, params).shape == x.shape
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert params.scale.numel() == (1 if axis is None else x.shape[axis])
    assert torch.isfinite(params.scale).all()
    assert (params.scale >= SCALE_FLOOR).all()
    assert torch.isfinite(dequantize(codes, params)).all()


@BOUNDED
@given(sample=tensors(), bits=widths, grid=grids)
def test_minmax_error_is_a_step_at_most_and_half_a_step_inside(sample, bits, grid):
    x, axis = sample
    x = x.abs() if grid == "unsigned" else x
    params = params_of(x, axis, bits, grid)
    error = (fake_quantize(x, params) - x).abs().double()
    step = params.scale.double()
    slack = 1e-5 * float(x.abs().max())
    # rounding the zero point may push one end out of the grid, by half a step
    assert (error <= step + slack).all()
    place = x.double() / step + params.zero_point
    inside = (place >= 0) & (place <= params.levels - 1)
    assert (error[inside] <= (step / 2 + slack).expand_as(error)[inside]).all()


@BOUNDED
@given(sample=tensors(), bits=widths, grid=grids)
def test_quantizing_again_changes_nothing(sample, bits, grid):
    x, axis = sample
    x = x.abs() if grid == "unsigned" else x
    params = params_of(x, axis, bits, grid)
    once = quantize(x, params)
    assert torch.equal(quantize(dequantize(once, params), params), once)
    # a larger value never has a smaller code
    flat = x.movedim(axis or 0, 0)[0].flatten().sort().values
    scalar = params_of(flat, None, bits, grid)
    codes = quantize(flat, scalar)
    assert (codes[1:] >= codes[:-1]).all()


@BOUNDED
@given(sample=tensors(st.sampled_from(["any", "positive"])), bits=st.integers(1, 7))
def test_one_bit_more_has_at_most_the_step(sample, bits):
    x, axis = sample
    few, more = (minmax_range(x, width, axis=axis).scale for width in (bits, bits + 1))
    assert (more <= few).all()
    assert torch.allclose(few * (2**bits - 1), more * (2 ** (bits + 1) - 1), rtol=1e-5, atol=1e-7)


@BOUNDED
@given(
    sample=tensors(st.just("any")),
    bits=widths,
    symmetric=st.booleans(),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    place=st.integers(0, 10_000),
)
def test_nan_and_infinity_are_refused_by_name(sample, bits, symmetric, bad, place):
    x, axis = sample
    x.view(-1)[place % x.numel()] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        minmax_range(x, bits, axis=axis, symmetric=symmetric)
    with pytest.raises(ValueError, match="NaN or infinity"):
        affine_params(x, x, bits, symmetric)
    with pytest.raises(ValueError, match="NaN or infinity"):
        unsigned_params(x.abs(), bits)


@BOUNDED
@given(shape=shapes, empty=st.integers(0, 3), axis=st.none() | st.just(0), grid=grids, bits=widths)
def test_empty_tensors_have_no_range_and_no_codes(shape, empty, axis, grid, bits):
    dims = list(shape)
    dims[empty % len(dims)] = 0
    x = torch.empty(dims)
    with pytest.raises(ValueError, match="empty"):
        params_of(x, axis, bits, grid)
    assert quantize(x, unsigned_params(torch.tensor(1.0), bits)).shape == x.shape
    stream = pack_codes(torch.empty(dims, dtype=torch.int8), bits)
    assert stream.numel() == 0
    assert unpack_codes(stream, bits, tuple(dims)).shape == x.shape


@BOUNDED
@given(sample=tensors(), bits=widths, symmetric=st.booleans())
def test_codes_of_a_tensor_come_back_from_their_packed_form(sample, bits, symmetric):
    x, axis = sample
    params = minmax_range(x, bits, axis=axis, symmetric=symmetric)
    codes = quantize(x, params)
    offset = 2 ** (bits - 1)
    stream = pack_codes((codes - offset).to(torch.int16), bits)
    assert stream.dtype == torch.uint8
    assert stream.numel() == math.ceil(x.numel() * bits / 8)
    back = unpack_codes(stream, bits, x.shape).float() + offset
    assert torch.equal(back, codes)
    assert torch.equal(dequantize(back, params), fake_quantize(x, params))


@BOUNDED
@given(
    shape=st.lists(st.integers(0, 7), max_size=4).map(tuple),
    bits=widths,
    dtype=st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
    transposed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_packing_is_exact_and_bit_by_bit_as_written(shape, bits, dtype, transposed, seed):
    low, high = code_range(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, shape, generator=generator).to(dtype)
    if transposed and codes.dim() > 1:
        codes = codes.transpose(0, 1)
    stream = pack_codes(codes, bits)
    back = unpack_codes(stream, bits, codes.shape)
    assert back.dtype == torch.int8
    assert torch.equal(back, codes.to(torch.int8))
    # the format in one line: code + 2**(bits-1), least significant bit first, no gaps
    number = sum((int(code) - low) << (bits * i) for i, code in enumerate(codes.flatten()))
    assert bytes(stream.tolist()) == number.to_bytes(stream.numel(), "little")


@BOUNDED
@given(bits=widths, above=st.booleans(), seed=st.integers(0, 99))
def test_codes_out_of_range_and_streams_of_another_length_are_refused(bits, above, seed):
    low, high = code_range(bits)
    codes = torch.full((9,), low, dtype=torch.int16)
    codes[seed % 9] = high + 1 if above else low - 1
    with pytest.raises(ValueError, match="must lie in"):
        pack_codes(codes, bits)
    stream = pack_codes(codes.clamp(low, high), bits)
    with pytest.raises(ValueError, match="9 codes"):
        unpack_codes(stream[:-1], bits, (9,))
    with pytest.raises(ValueError, match="must be integers"):
        pack_codes(codes.float(), bits)
