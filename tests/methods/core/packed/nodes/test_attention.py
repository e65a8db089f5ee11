"""Native integer attention: its integers against 64-bit sums, its outputs against fake codes."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams
from quantarena.methods.core.bits import AttentionBits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.kernels import native
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_mode import Fake, IntegerOracle, Plain
from quantarena.methods.core.model.attention_products import OperandCodes
from quantarena.methods.core.packed.native_attention import Native, kernel_products
from quantarena.methods.core.packed.nodes import attention as native_attention
from quantarena.methods.core.packed.nodes.attention import MOST_PRODUCTS, Products
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.quantizers.log import log_accumulate
from quantarena.methods.core.trace.network import AttentionInfo, AttentionKind
from quantarena.methods.techniques.ranges.minmax import minmax_range

pytestmark = pytest.mark.skipif(native.library().run is None, reason="no native library")

SHAPES = [  # samples, heads, queries, keys, width
    (1, 1, 1, 1, 1),
    (2, 2, 6, 6, 8),
    (1, 2, 7, 21, 13),
    (2, 3, 64, 20, 32),
    (1, 1, 70, 300, 40),
    (1, 2, 5, 1030, 4),
]


def operands(shape, seed=0, spread=2.0):
    batch, heads, queries, keys, width = shape
    make = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, rows, heads, width, generator=make).transpose(1, 2) * spread
        for rows in (queries, keys, keys)
    ]


def quantized(q, k, v, bits=(8, 8, 8, 8), *, clock=None, excluded=0, log=None):
    """The Python form, min-max ranges of these tensors."""
    heads = q.shape[1]
    info = AttentionInfo(
        "",
        AttentionKind.SELF,
        0,
        heads,
        6,
        6,
        1,
        1,
        ("q",),
        ("k",),
        ("v",),
        fused=True,
        products=1,
    )
    quant = QuantAttention(info, AttentionBits(*bits), clock or CallClock())
    probs = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
    for name, x in zip(("query", "key", "value", "softmax"), (q, k, v, probs), strict=True):
        found = minmax_range(x, quant.static(name).bits)
        zero = torch.zeros(()) if name == "softmax" else found.zero_point
        quant.static(name).set_params(QuantParams(found.scale, zero, found.bits))
    if log is not None:
        quant.use_log(**log)
    quant.excluded = excluded
    return quant


def products(quant, library=None):
    found = dict(quant.quantizers.items())
    return Products(
        found["query"], found["key"], found["value"], found["softmax"], quant.excluded, library
    )


def integers(quant, q, k):
    left = OperandCodes.of(quant.static("query"), q)
    right = OperandCodes.of(quant.static("key"), k[..., quant.excluded :, :])
    return left.values.long() @ right.values.long().mT


def mixed_integers(quant, probs, v):
    inside = probs[..., quant.excluded :]
    values = OperandCodes.of(quant.static("value"), v[..., quant.excluded :, :]).values
    softmax = dict(quant.quantizers.items())["softmax"]
    if isinstance(softmax, ActQuantizer):
        return OperandCodes.of(softmax, inside).values.long() @ values.long()
    codes, params = softmax.codes(inside)
    return torch.stack(log_accumulate(codes, values.to(torch.int16), params))


def check(quant, q, k, v, library, mask=None):
    """Both products and their integers; then all of it, where a last bit may move a code."""
    given = products(quant, library)
    found = native_attention.scores(given, q, k, integer=True)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), integers(quant, q, k))
    scores = quant.scores(q, k)
    near(native_attention.scores(given, q, k), scores, 1e-6)
    probs = torch.softmax(scores * q.shape[-1] ** -0.5, dim=-1)
    found = native_attention.mix(given, probs, v, integer=True)
    assert torch.equal(found.long(), mixed_integers(quant, probs, v))
    quant.mode = IntegerOracle()
    near(native_attention.mix(given, probs, v), quant.mix(probs, v), 1e-6)
    expected = quant.attend(q, k, v, mask)
    quant.mode = Fake()
    found = native_attention.attend(given, q, k, v, mask, q.shape[-1] ** -0.5)
    gap = (found - expected).abs()
    # codes that lie within float rounding of a tie may differ: few, and by one step
    assert float((gap > 1e-5 * expected.abs().max()).float().mean()) < 0.05
    if (softmax := quant.static("softmax")) is not None:
        assert float(gap.max()) <= 1.01 * float(softmax.scale.max()) * float(v.abs().max())


def near(found, expected, limit):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= limit * float(expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("excluded", [0, 1])
def test_integers_are_the_64_bit_sums(library, shape, excluded):
    q, k, v = operands(shape)
    check(quantized(q, k, v, excluded=excluded), q, k, v, library)


@pytest.mark.parametrize("per_octave", [1, 2])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("bits", [1, 3, 4, 5, 6, 8])
def test_logarithmic_codes(library, per_octave, axes, bits):
    for shape, excluded, zero in ((SHAPES[2], 1, True), (SHAPES[4], 0, False)):
        q, k, v = operands(shape, spread=4.0)  # peaked rows: deep codes too
        log = {"per_octave": per_octave, "axes": axes, "zero_code": zero}
        quant = quantized(q, k, v, (8, 8, 8, bits), excluded=excluded, log=log)
        check(quant, q, k, v, library)


@pytest.mark.parametrize("per_octave", [1, 2])
def test_static_logarithmic_scale_and_every_code(library, per_octave):
    """Each probability is one code's value: all planes of octaves, all parities."""
    top = 32 * per_octave
    probs = torch.exp2(-torch.arange(top + 1.0) / per_octave).expand(1, 1, 1, -1)
    q, k, v = operands((1, 1, 1, top + 1, 19))
    quant = quantized(q, k, v, log={"per_octave": per_octave})
    quant.quantizers["softmax"].scale = torch.tensor(1.0)
    given = products(quant, library)
    found = native_attention.mix(given, probs, v, integer=True)
    assert torch.equal(found, mixed_integers(quant, probs, v))
    near(native_attention.mix(given, probs, v), probs @ quant.static("value")(v), 1e-6)
    louder = native_attention.mix(given, probs * 1e30, v, integer=True)
    assert torch.equal(louder, mixed_integers(quant, probs.clamp(min=1), v))


WIDTHS = [(8, 8, 8, 8), *itertools.permutations((2, 3, 4, 8), 4), (5, 6, 7, 5), (1, 1, 1, 1)]


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width(library, bits):
    q, k, v = operands((1, 2, 9, 18, 10))
    check(quantized(q, k, v, bits), q, k, v, library)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ends", list(itertools.product((0, 1), repeat=3)))
def test_the_largest_sums(library, bits, ends):
    """Every code at one end of its range, every zero point at the other."""
    top = 2**bits - 1
    wide, keys = 300, 520
    quant = quantized(*operands((1, 1, 7, keys, wide)), (bits,) * 4)
    tensors = []
    for name, end, rows in zip(("query", "key", "value"), ends, (7, keys, keys), strict=True):
        quant.static(name).set_params(
            QuantParams(torch.tensor(1.0), torch.tensor(float(top * end)), bits)
        )
        tensors.append(torch.full((1, 1, rows, wide), -1e9 if end else 1e9))
    quant.static("softmax").set_params(QuantParams(torch.tensor(1.0), torch.tensor(0.0), bits))
    q, k, v = tensors
    given = products(quant, library)
    sign = (-1) ** (ends[0] + ends[1])
    found = native_attention.scores(given, q, k, integer=True)
    assert torch.equal(found, torch.full_like(found, sign * wide * top * top))
    probs = torch.full((1, 1, 7, keys), 1e9)
    found = native_attention.mix(given, probs, v, integer=True)
    assert torch.equal(found, torch.full_like(found, (-1) ** ends[2] * keys * top * top))
    quant.use_log()
    quant.quantizers["softmax"].scale = torch.tensor(1e-9)
    found = native_attention.mix(products(quant, library), probs, v, integer=True)
    assert torch.equal(found, torch.full_like(found, ((-1) ** ends[2] * keys * top) << 32))


def test_too_long_a_sum_is_left_to_the_float_form():
    q, k, v = operands((1, 1, 1, 2, 2))
    given = products(quantized(q, k, v))
    far = torch.zeros(1, 1, 1, MOST_PRODUCTS + 1)
    assert native_attention.scores(given, far, far) is None
    assert native_attention.scores(given, far[..., :-1], far[..., :-1]) is not None
    assert MOST_PRODUCTS * 255 * 255 < 2**31 - 1


@pytest.mark.parametrize("log", [None, {"per_octave": 2}])
@pytest.mark.parametrize("excluded", [0, 2])
def test_masks(library, log, excluded):
    q, k, v = operands((2, 2, 6, 9, 8))
    quant = quantized(q, k, v, excluded=excluded, log=log)
    make = torch.Generator().manual_seed(3)
    seen = torch.rand(6, 9, generator=make) < 0.6
    seen[2] = False  # sees nothing
    seen[3] = True
    for mask in (
        seen,
        torch.randn(2, 1, 6, 9, generator=make),
        torch.randn(2, 1, 1, 9, generator=make),
        torch.where(seen, 0.0, -torch.inf),
        seen[None, None].expand(2, 2, 6, 9),
    ):
        expected = quant.attend(q, k, v, mask)
        found = native_attention.attend(products(quant, library), q, k, v, mask, 8**-0.5)
        near(found, expected, 2e-3 if log is None else 2e-2)
        assert (found - expected).abs().median() < 1e-5
        if mask.dtype == torch.bool and log is None:
            assert not bool(found[:, :, 2].any())


@pytest.mark.parametrize("banked", ["one", "rows"])
def test_ranges_by_call_and_head(library, banked):
    """Tables of two calls and two groups of three heads, chosen by the clock, row by row."""
    clock = CallClock()
    q, k, v = operands((4, 3, 6, 7, 8))
    quant = quantized(q, k, v, clock=clock)
    make = torch.Generator().manual_seed(1)
    for name in ("query", "key", "value", "softmax"):
        scale = torch.rand(2, 2, generator=make) * (0.004 if name == "softmax" else 0.05) + 0.002
        zero = torch.randint(0, 2 if name == "softmax" else 200, (2, 2), generator=make).float()
        quant.static(name).set_groups(1, torch.tensor([1, 0, 1]), scale, zero)
    with clock.at(1 if banked == "one" else torch.tensor([0, 1, 1, 0])):
        check(quant, q, k, v, library)
    with pytest.raises(UserError, match="sampler call 2"), clock.at(2):
        native_attention.scores(products(quant, library), q, k)
    with pytest.raises(ValueError, match="2 heads, ranges were calibrated for 3"), clock.at(0):
        native_attention.scores(products(quant, library), q[:, :2], k[:, :2])


@pytest.mark.parametrize("axes", [1, 2])
def test_a_result_does_not_depend_on_batch_mates(library, axes):
    q, k, v = operands((4, 2, 12, 12, 8))
    q[0] *= 9
    quant = quantized(q, k, v, (8, 8, 8, 4), log={"axes": axes})
    given = products(quant, library)
    together = native_attention.attend(given, q, k, v, None, 8**-0.5)
    for row in range(4):
        one = slice(row, row + 1)
        alone = native_attention.attend(given, q[one], k[one], v[one], None, 8**-0.5)
        assert torch.equal(alone[0], together[row])


def test_codes_of_odd_values(library):
    """As layers do: infinities saturate, NaN gives the lowest code."""
    q, k, v = operands((1, 1, 3, 4, 5))
    quant = quantized(q, k, v)
    low = -float(quant.static("query").zero_point) * float(quant.static("query").scale)
    q[0, 0, 0, 0], k[0, 0, 1, 1], k[0, 0, 2, 1] = torch.nan, torch.inf, -torch.inf
    found = native_attention.scores(products(quant, library), q, k, integer=True)
    q[0, 0, 0, 0] = low * 2
    assert torch.equal(found.long(), integers(quant, q, k))


def test_a_range_at_run_time_refuses_what_is_no_number(library):
    q, k, v = operands((1, 1, 3, 4, 5))
    quant = quantized(q, k, v, log={})
    probs = torch.full((1, 1, 3, 4), 0.25)
    probs[0, 0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        native_attention.mix(products(quant, library), probs, v)
    mask = torch.zeros(3, 4)
    mask[1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        native_attention.attend(products(quant, library), q, k, v, mask, 1.0)


def test_what_the_kernels_leave_to_the_float_form():
    q, k, v = operands((1, 2, 3, 4, 6))
    quant = quantized(q, k, v)
    given = products(quant)
    assert native_attention.scores(given, q.double(), k.double()) is None
    assert native_attention.scores(given, q.requires_grad_(), k) is None
    with torch.no_grad():
        assert native_attention.scores(given, q, k) is not None
    q = q.detach()
    assert native_attention.attend(given, q, k[:, :1], v[:, :1], None, 1.0) is None
    assert native_attention.attend(given, q[:0], k[:0], v[:0], None, 1.0).shape == (0, 2, 3, 6)
    quant.mode = Native()
    plain = F.scaled_dot_product_attention(q, k, v)
    by_channel = quantized(q, k, v)
    by_channel.mode = Native()
    for axis, count in ((-1, 6), (-2, 4)):
        by_channel.static("value").set_groups(
            axis, torch.arange(count) % 2, torch.tensor([0.05, 0.06]), torch.tensor([128.0, 99.0])
        )
        assert not kernel_products(by_channel).apply()
        near(by_channel.attend(q, k, v), plain, 0.2)
    half = QuantAttention(quant.info, AttentionBits(softmax=8), CallClock())
    half.mode = Native()
    half.static("softmax").set_params(quant.static("softmax").params)
    assert kernel_products(half) is None
    near(half.attend(q, k, v), plain, 0.05)
    assert kernel_products(quant).apply()
    quant.mode = Plain()
    assert torch.allclose(quant.attend(q, k, v), plain, atol=1e-6)


def test_the_module_runs_what_the_functions_compute():
    q, k, v = operands((2, 2, 6, 7, 8))
    quant = quantized(q, k, v)
    quant.mode = Native()
    found = quant.attend(q, k, v, scale=0.3)
    assert torch.equal(found, native_attention.attend(products(quant), q, k, v, None, 0.3))
    folded = quant.attend(*(x.reshape(4, *x.shape[2:]) for x in (q, k, v)), scale=0.3)
    assert torch.equal(folded.reshape(found.shape), found)
    repeated = quant.attend(q, k[:, :1], v[:, :1], scale=0.3, enable_gqa=True)
    twice = [x[:, :1].expand(-1, 2, -1, -1) for x in (k, v)]
    assert torch.equal(repeated, quant.attend(q, *twice, scale=0.3))
    assert torch.equal(quant.scores(q, k), native_attention.scores(products(quant), q, k))
    causal = quant.attend(q, k, v, is_causal=True)
    near(causal, F.scaled_dot_product_attention(q, k, v, is_causal=True), 0.05)


def test_threads_and_strides_do_not_change_a_bit(library):
    q, k, v = operands((3, 4, 64, 64, 32))
    given = products(quantized(q, k, v, log={"per_octave": 2}), library)
    first = native_attention.attend(given, q, k, v, None, 0.2)
    torch.set_num_threads(3)
    dense = [x.contiguous() for x in (q, k, v)]
    turned = [x.mT.contiguous().mT for x in (q, k, v)]
    with ThreadPoolExecutor(3) as pool:
        calls = [
            pool.submit(native_attention.attend, given, *x, None, 0.2)
            for x in ((q, k, v), dense, turned) * 2
        ]
        assert all(torch.equal(call.result(), first) for call in calls)
