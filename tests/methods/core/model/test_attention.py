"""Quantized attention products: their integers, gradients and ranges."""

import diffusers
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.affine import QuantParams, fake_quantize
from quantarena.methods.core.bits import AttentionBits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.attention import QuantAttention
from quantarena.methods.core.model.attention_hooks import install, wrap_attention
from quantarena.methods.core.model.attention_mode import IntegerOracle, Plain
from quantarena.methods.core.model.attention_products import OperandCodes, code_product, exact_dtype
from quantarena.methods.core.quantizers.activation import ActQuantizer
from quantarena.methods.core.trace.network import AttentionInfo, AttentionKind, trace
from quantarena.methods.techniques.ranges.minmax import minmax_range

EIGHT = AttentionBits(8, 8, 8, 8)


def info(heads=2, products=1):
    names = ("q",), ("k",), ("v",)
    return AttentionInfo(
        "", AttentionKind.SELF, 0, heads, 6, 6, 1, 1, *names, fused=True, products=products
    )


def tensors(batch=3, heads=2, queries=6, keys=6, width=8, seed=0):
    make = torch.Generator().manual_seed(seed)
    shapes = ((queries, width), (keys, width), (keys, width))
    return [torch.randn(batch, heads, *shape, generator=make) for shape in shapes]


def ready(bits, q, k, v, *, heads=2, clock=None):
    """With min-max ranges of these tensors."""
    quant = QuantAttention(info(heads), bits, clock or CallClock())
    probs = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)
    for name, x in zip(("query", "key", "value", "softmax"), (q, k, v, probs), strict=True):
        if (quantizer := quant.static(name)) is not None:
            quantizer.set_params(minmax_range(x, quantizer.bits))
    return quant


def test_products_by_hand_on_integers():
    q, k, v = tensors()
    quant = ready(EIGHT, q, k, v)

    def parts(name, x):
        params = quant.static(name).params
        codes = torch.round(x / params.scale) + params.zero_point
        return (codes.clamp(0, 255) - params.zero_point).long(), params.scale.double()

    (qi, qs), (ki, ks), (vi, vs) = parts("query", q), parts("key", k), parts("value", v)
    probs = torch.softmax((qi @ ki.mT) * (qs * ks) * 8**-0.5, dim=-1)
    pi, ps = parts("softmax", probs)
    expected = (pi @ vi) * (ps * vs)
    assert torch.allclose(quant.attend(q, k, v).double(), expected, rtol=0, atol=1e-5)
    assert int(quant.static("softmax").zero_point) == 0


@pytest.mark.parametrize("bits", [EIGHT, AttentionBits(4, 4, 4, 8), AttentionBits(3, 5, 2, 6)])
@pytest.mark.parametrize("keys", [6, 300])
def test_float_sums_are_the_integer_sums(bits, keys):
    q, k, v = tensors(keys=keys, width=300)
    quant = ready(bits, q.abs(), k.abs(), v.abs())  # one-signed: the largest sums
    fake = quant.attend(q.abs(), k.abs(), v.abs())
    quant.mode = IntegerOracle()
    assert torch.equal(quant.attend(q.abs(), k.abs(), v.abs()), fake)


def test_exactness_bound():
    assert exact_dtype(257, 255 * 255) is torch.float32
    assert exact_dtype(259, 255 * 255) is torch.float64
    with pytest.raises(ValueError, match="exact in no float"):
        exact_dtype(1 << 40, 255 * 255)
    codes = OperandCodes(torch.full((1, 1, 600), 255.0), torch.ones(1, 1, 1), 255)
    assert float(code_product(codes, codes.transposed)) == 600 * 255 * 255


@pytest.mark.parametrize("axis", [-1, -2, 1])
@pytest.mark.parametrize("operand", ["query", "key", "value"])
def test_groups_on_any_axis(axis, operand):
    """Channels are the inner axis of q k, tokens that of softmax v: one accumulator a group."""
    q, k, v = tensors()
    quant = ready(EIGHT, q, k, v)
    x = {"query": q, "key": k, "value": v}[operand]
    ids = torch.arange(x.shape[axis]) % 2
    scale = torch.tensor([0.02, 0.05])
    quant.static(operand).set_groups(axis, ids, scale, torch.tensor([128.0, 100.0]))

    def fake(name, y):
        return quant.static(name)(y)

    scores = fake("query", q) @ fake("key", k).mT * 8**-0.5
    expected = fake("softmax", torch.softmax(scores, -1)) @ fake("value", v)
    found = quant.attend(q, k, v)
    quant.mode = IntegerOracle()
    assert torch.allclose(found, expected, atol=2e-5)
    assert torch.allclose(quant.attend(q, k, v), found, atol=1e-6)


@pytest.mark.parametrize("per_octave", [1, 2])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("excluded", [0, 1])
def test_log_codes_by_shifts(per_octave, axes, excluded):
    q, k, v = tensors(keys=9)
    quant = ready(EIGHT, q, k, v)
    quant.use_log(per_octave=per_octave, axes=axes)
    quant.excluded = excluded
    fake = quant.attend(q, k, v)
    quant.mode = IntegerOracle()
    exact = quant.attend(q, k, v)
    assert float((fake - exact).abs().max()) <= 1e-5 * float(fake.abs().max())
    plain = F.scaled_dot_product_attention(q, k, v)
    assert 1e-3 < float((fake - plain).abs().max()) < 0.5


def test_log_result_does_not_depend_on_batch_mates():
    q, k, v = tensors(batch=4)
    q[0] *= 9  # peaked scores: one scale for the whole batch would be theirs
    quant = ready(AttentionBits(8, 8, 8, 4), q, k, v)
    quant.use_log()
    together = quant.attend(q, k, v)
    for row in range(4):
        one = slice(row, row + 1)
        assert torch.equal(quant.attend(q[one], k[one], v[one])[0], together[row])


def test_excluded_column_stays_and_does_not_set_the_scale():
    quant = ready(AttentionBits(16, 16, 16, 4), *tensors())
    quant.use_log()
    quant.excluded = 1
    probs = torch.softmax(torch.randn(1, 2, 6, 6), dim=-1)
    identity = torch.eye(6).expand(1, 2, 6, 6)
    out = quant.mix(probs, identity)
    assert torch.equal(out[..., 0], probs[..., 0])
    assert not torch.allclose(out[..., 1:], probs[..., 1:], rtol=1e-3)
    louder = torch.cat([probs[..., :1] * 50, probs[..., 1:]], dim=-1)
    assert torch.equal(quant.mix(louder, identity)[..., 1:], out[..., 1:])


def test_excluded_key_row_is_not_quantized():
    q, k, v = tensors()
    k[:, :, 0] *= 1000
    quant = ready(AttentionBits(16, 8, 16, 16), q, k[..., 1:, :], v[..., 1:, :])
    quant.excluded = 1
    scores = quant.scores(q, k)
    assert torch.allclose(scores[..., 0], (q @ k.mT)[..., 0], rtol=1e-5, atol=1e-3)
    assert torch.allclose(scores[..., 1:], (q @ k.mT)[..., 1:], atol=0.2)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(6, 6)},
        {"attn_mask": torch.eye(6, dtype=torch.bool).roll(1, 0)},
        {"attn_mask": torch.zeros(6, 6, dtype=torch.bool)},
    ],
)
def test_arguments_mean_what_torch_says(given):
    q, k, v = tensors()
    quant = ready(EIGHT, q, k, v)
    quant.mode = Plain()
    assert torch.allclose(
        quant.attend(q, k, v, **given), F.scaled_dot_product_attention(q, k, v, **given), atol=1e-6
    )


def test_grouped_queries_and_other_lengths():
    q, k, v = tensors(heads=4, keys=9)
    quant = QuantAttention(info(4), EIGHT, CallClock())
    quant.mode = Plain()
    k, v = k[:, :2], v[:, :2]
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(quant.attend(q, k, v, enable_gqa=True), expected, atol=1e-6)


def test_what_cannot_be_quantized_is_refused_by_name():
    q, k, v = tensors()
    quant = ready(EIGHT, q, k, v)
    with pytest.raises(Unsupported, match="dropout"):
        quant.attend(q, k, v, dropout_p=0.1)
    with pytest.raises(Unsupported, match=r"2 heads on a tensor of shape \(3, 6, 8\)"):
        quant.attend(q[:, 0], k[:, 0], v[:, 0])
    with pytest.raises(Unsupported, match="2 attentions in one call"):
        install(nn.Sequential(), QuantAttention(info(products=2), EIGHT, CallClock()))


def test_gradients_are_those_of_fake_quantization():
    q, k, v = (x.requires_grad_() for x in tensors())
    quant = ready(AttentionBits(4, 4, 4, 4), q.detach(), k.detach(), v.detach())
    scales = [quant.static(n).learn()["act_scale"] for n in ("query", "key", "value", "softmax")]
    weight = torch.randn(3, 2, 6, 8)

    def gradients(out):
        return torch.autograd.grad((out * weight).sum(), [q, k, v, *scales])

    def fake(name, x):
        return quant.static(name)(x)

    probs = torch.softmax(fake("query", q) @ fake("key", k).mT * 8**-0.5, dim=-1)
    expected = gradients(fake("softmax", probs) @ fake("value", v))
    for found, wanted in zip(gradients(quant.attend(q, k, v)), expected, strict=True):
        assert float(wanted.abs().max()) > 0
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_log_gradient_passes_straight_through():
    q, k, v = tensors()
    quant = ready(AttentionBits(16, 16, 16, 4), q, k, v)
    quant.use_log()
    q.requires_grad_()
    quant.attend(q, k, v).square().sum().backward()
    assert float(q.grad.abs().max()) > 0
    assert bool(torch.isfinite(q.grad).all())


def test_a_range_for_each_head_where_heads_differ():
    q, k, v = tensors()
    k[:, 1], q[:, 1] = k[:, 1] * 60, q[:, 1] / 60
    bits = AttentionBits(8, 4, 16, 16)

    def gap(quant):
        return float((quant.scores(q, k) - q @ k.mT).square().mean())

    plain = ready(bits, q, k, v)
    by_head = ready(bits, q, k, v)
    for name, x in (("query", q), ("key", k)):
        found = minmax_range(x.transpose(0, 1).flatten(1), getattr(bits, name), axis=0)
        by_head.static(name).set_groups(
            1, torch.arange(2), found.scale.flatten(), found.zero_point.flatten()
        )
    assert gap(by_head) * 5 < gap(plain)


def test_a_range_for_each_call_where_calls_differ():
    clock = CallClock()
    q, k, v = tensors(batch=4)
    factors = torch.tensor([1.0, 1.0, 40.0, 40.0])[:, None, None, None]
    quant = ready(AttentionBits(16, 16, 4, 16), q, k, v * factors, clock=clock)
    plain = (quant.mix(q @ k.mT, v * factors) - (q @ k.mT) @ (v * factors))[:2].square().mean()
    ranges = [minmax_range(v[:2], 4), minmax_range(v[2:] * 40, 4)]
    quant.static("value").set_bank(
        torch.stack([r.scale.reshape(()) for r in ranges]),
        torch.stack([r.zero_point.reshape(()) for r in ranges]),
    )
    with clock.at(torch.tensor([0, 0, 1, 1])):
        mixed = quant.mix(q @ k.mT, v * factors)
    banked = (mixed - (q @ k.mT) @ (v * factors))[:2].square().mean()
    assert float(banked) * 10 < float(plain)
    for row, call in enumerate((0, 0, 1, 1)):
        one = slice(row, row + 1)
        with clock.at(call):
            alone = quant.mix((q @ k.mT)[one], (v * factors)[one])
        assert torch.equal(alone[0], mixed[row])


def test_codes_of_a_quantizer_are_its_fake_values():
    x = torch.randn(2, 2, 5, 4)
    quantizer = ActQuantizer(4)
    quantizer.set_params(QuantParams(torch.tensor(0.3), torch.tensor(7.0), 4))
    codes = OperandCodes.of(quantizer, x)
    assert codes.top == 8
    assert torch.equal(codes.value(), fake_quantize(x, quantizer.params))
    assert codes.rows(slice(1, 3)).values.shape == (2, 2, 2, 4)


def test_joint_attention_in_a_network():
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
    ).eval()
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([5, 5]),
    }
    x = torch.randn(2, 4, 8, 8)
    graph = trace(model, x, **given)
    with torch.no_grad():
        clean = model(x, **given).sample
        for quant in wrap_attention(
            model, graph, dict.fromkeys(graph.attention, AttentionBits(softmax=3)), CallClock()
        ).values():
            quant.use_log()
        rough = model(x, **given).sample
    assert 0 < float((rough - clean).abs().max()) < float(clean.abs().max())


class Transposed(nn.Module):
    """``v @ softmax^T``, channels before tokens, as in the pixel U-Nets of 2020."""

    def __init__(self):
        super().__init__()
        self.qkv, self.last = nn.Conv1d(8, 24, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=1)
        scores = torch.softmax(torch.bmm(q.permute(0, 2, 1), k) * 8**-0.5, dim=2)
        return self.last(torch.bmm(v, scores.permute(0, 2, 1)))


def test_transposed_products():
    model, x = Transposed(), torch.randn(3, 8, 6)
    graph = trace(model, x)
    clean = model(x)
    quant = wrap_attention(model, graph, {"": EIGHT}, CallClock())[""]
    q, k, v = (t.mT.unsqueeze(1) for t in model.qkv(x).chunk(3, dim=1))
    quant.load({**ready(EIGHT, q, k, v, heads=1).state()})
    expected = model.last(quant.attend(q, k, v)[:, 0].mT)
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert not torch.equal(model(x), clean)
