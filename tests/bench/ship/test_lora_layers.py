"""Adapters beside packed layers of every form: their mathematics, fused and not, and refusals."""

import pytest
import torch

from quantarena.bench.adapters.branch import geometry_of, with_branch, without_branch
from quantarena.bench.ship.pipeline_folder import open_exported
from quantarena.methods.core.errors import UserError
from quantarena.methods.core.packed.nodes.node import Node

FORMS = {
    "rtn": ("w4a8", {"PackedLayer"}),
    "q_diffusion": ("w4a8", {"PackedLayer", "SplitPackedLayer"}),
    "svdquant": ("w4a8", {"LowRankLayer"}),
    "vidit_q": ("w4a8", {"RotationLayer"}),
    "mpq_dm": ("w4a8", {"MixedWidthLayer"}),
    "tuneqdm": ("w4a16", {"GainsLayer"}),
}
QUICK = ("rtn", "q_diffusion")


@pytest.fixture(
    params=[m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in FORMS]
)
def layers(request, text_folder, ship):
    """Packed layers of a method by name, float layers in their places, and a sampler call."""
    from diffusers import UNet2DConditionModel

    bits, forms = FORMS[request.param]
    exported = open_exported(
        ship(text_folder, f"forms-{request.param}", request.param, bits, "--force")
    )
    found = exported.packed.layers
    assert forms <= {type(node).__name__ for node in found.values()}
    full = UNet2DConditionModel.from_pretrained(text_folder / "unet")
    with exported.packed.clock.at(0), torch.no_grad():
        yield found, {name: full.get_submodule(name) for name in found}


def given(layer):
    """An input of a float layer."""
    if isinstance(layer, torch.nn.Linear):
        return torch.randn(2, 5, layer.in_features)
    return torch.randn(2, layer.in_channels, 6, 6)


def factors(layer, rank, seed):
    """Random factors of a branch beside a float layer, and what the branch adds."""
    torch.manual_seed(seed)
    down = torch.randn(rank, *layer.weight.shape[1:]) / 4
    up = torch.randn(len(layer.weight), rank) / 4
    delta = torch.tensordot(up, down, 1)
    return (down, up), delta


def product(layer, weight, x):
    if isinstance(layer, torch.nn.Linear):
        return torch.nn.functional.linear(x, weight)
    meta = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return torch.nn.functional.conv2d(x, weight, None, *meta)


def near(one, other):
    return float((one - other).abs().max() / other.abs().max()) < 2e-5


def test_geometry_is_that_of_the_float_layer(layers):
    packed, full = layers
    for name, node in packed.items():
        found, wanted = geometry_of(node), full[name]
        assert found.is_conv is (not isinstance(wanted, torch.nn.Linear)), name
        if found.is_conv:
            said = (found.stride, found.padding, found.dilation, found.groups)
            meta = (wanted.stride, wanted.padding, wanted.dilation, wanted.groups)
            assert said == meta, name


def test_branches_add_their_product_and_leave_no_trace(layers):
    packed, full = layers
    for number, (name, node) in enumerate(packed.items()):
        layer = full[name]
        torch.manual_seed(number)
        x = given(layer)
        pairs = [factors(layer, rank, seed) for rank, seed in ((3, 1), (2, 2))]
        before = node.value(x)
        fused = with_branch(node, [pair for pair, _ in pairs])
        added = product(layer, sum(delta for _, delta in pairs), x)
        assert near(fused.value(x) - before, added), name
        after = without_branch(fused, 5)
        assert torch.equal(after.value(x), before), name
        assert torch.equal(node.value(x), before), name


def test_peft_layers_compute_the_sum_and_fuse_to_the_same(layers):
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    packed, full = layers
    config = lora.LoraConfig(r=3, lora_alpha=6, init_lora_weights=False)
    for name, node in packed.items():
        layer = full[name]
        x = given(layer)
        before = node.value(x)
        held = PackedLora(node, "a", config, r=3, lora_alpha=6, target_name=name).eval()
        held.update_layer("b", 2, 2, config)
        held.set_adapter(["a", "b"])
        wanted = before
        for adapter, scale in (("a", 2.0), ("b", 1.0)):
            wanted = wanted + scale * held.lora_B[adapter](held.lora_A[adapter](x))
        assert torch.equal(held(x), wanted), name
        held.merge()
        assert held.merged_adapters == ["a", "b"]
        assert near(held(x) - before, wanted - before), name
        held.unmerge()
        assert torch.equal(held(x), wanted), name
        assert torch.equal(held.get_base_layer().value(x), before), name


def conv(groups=1, dilation=1):
    """A packed convolution of eight channels."""
    from quantarena.methods.core.kernels.formats import IntegerLayer
    from quantarena.methods.core.packed.nodes.dense import packed_leaf

    torch.manual_seed(3)
    return packed_leaf(
        IntegerLayer(
            kind="conv2d",
            weight_codes=torch.randint(-8, 8, (8, 8 // groups, 3, 3), dtype=torch.int8),
            weight_bits=4,
            weight_scale=torch.rand(8) / 16 + 0.01,
            weight_zero=torch.zeros(8, dtype=torch.int32),
            act_bits=8,
            act_scale=torch.tensor(0.05),
            act_zero=torch.tensor(128, dtype=torch.int32),
            stride=(1, 1),
            padding=(dilation, dilation),
            dilation=(dilation, dilation),
            groups=groups,
        )
    )


def test_dilated_convolutions_keep_their_dilation():
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    node, x = conv(dilation=2), torch.randn(1, 8, 7, 7)
    config = lora.LoraConfig(r=2, init_lora_weights=False)
    held = PackedLora(node, "a", config, r=2, lora_alpha=2).eval()
    with torch.no_grad():
        assert held.lora_A["a"].dilation == (2, 2)
        alone = held(x)
        held.merge()
        assert near(held(x), alone)


def test_convolutions_in_groups_take_adapters_that_are_not_fused():
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    node, x = conv(groups=4), torch.randn(1, 8, 7, 7)
    config = lora.LoraConfig(r=4, init_lora_weights=False)
    held = PackedLora(node, "a", config, r=4, lora_alpha=4).eval()
    with torch.no_grad():
        wanted = node.value(x) + held.lora_B["a"](held.lora_A["a"](x))
        assert torch.equal(held(x), wanted)
    with pytest.raises(UserError, match="a is on a convolution in groups: do not fuse"):
        held.merge()
    with pytest.raises(UserError, match=r"rank 3: a rank is at least 1, and of a conv.* 4 groups"):
        PackedLora(node, "a", config, r=3)
    with pytest.raises(ValueError, match="in groups"):
        with_branch(node, [(torch.zeros(2, 8, 3, 3), torch.zeros(8, 2))])


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ],
)
def test_adapters_that_read_float_weights_are_refused_by_name(settings, kind):
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    with pytest.raises(UserError, match=f"mid.conv is packed, and {kind} reads or changes float"):
        PackedLora(conv(), "a", lora.LoraConfig(r=2, **settings), r=2, target_name="mid.conv")


def test_a_bias_acts_but_is_not_fused():
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    held = PackedLora(conv(), "a", lora.LoraConfig(r=2, lora_bias=True), r=2, lora_alpha=2).eval()
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        held.lora_B["a"].bias.fill_(0.5)
        assert near(held(x) - held.base_layer.value(x), torch.full((1, 8, 5, 5), 0.5))
    with pytest.raises(UserError, match=r"has a bias \(lora_bias\): do not fuse it"):
        held.merge()


def test_broken_factors_are_not_fused_safely():
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    node = conv()
    held = PackedLora(node, "a", lora.LoraConfig(r=2), r=2, lora_alpha=2)
    held.lora_A["a"].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected in the adapter a"):
        held.merge(safe_merge=True)
    assert held.base_layer is node
    assert not held.merged


def test_scales_come_back_to_the_last_bit():
    lora = pytest.importorskip("peft")
    from quantarena.bench.adapters.layer import PackedLora

    held = PackedLora(conv(), "a", lora.LoraConfig(r=3), r=3, lora_alpha=1)
    held.set_scale("a", 0.7)
    before = held.scaling["a"]
    spoiled = [s / 100 for s in range(1, 100) if before * (s / 100) / (s / 100) != before]
    assert spoiled  # plain arithmetic would not do
    for scale in spoiled:
        held.scale_layer(scale)
        held.unscale_layer(scale)
        assert held.scaling["a"] == before
    held.unscale_layer()
    assert held.scaling["a"] == 1 / 3


def test_a_node_says_its_geometry_or_that_it_does_not():
    class Silent(Node):
        weight_shape = (4, 4, 3, 3)

    with pytest.raises(ValueError, match="a Silent does not say how it moves"):
        geometry_of(Silent())
