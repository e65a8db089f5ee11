from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.trace.network import Role, trace


def test_pixel_unet_roles(pixel):
    roles = {name: layer.role for name, layer in pixel.graph.layers.items()}
    assert roles["time_embedding.linear_1"] is Role.TIME_EMBED
    assert roles["conv_in"] is Role.INPUT
    assert roles["conv_out"] is Role.OUTPUT
    assert roles["down_blocks.0.downsamplers.0.conv"] is Role.DOWNSAMPLE
    assert roles["down_blocks.1.resnets.0.conv_shortcut"] is Role.SHORTCUT
    assert roles["down_blocks.1.resnets.0.time_emb_proj"] is Role.EMB_PROJ
    assert roles["mid_block.attentions.0.to_q"] is Role.QKV
    assert roles["mid_block.attentions.0.to_out.0"] is Role.ATTN_OUT
    assert roles["up_blocks.0.upsamplers.0.conv"] is Role.UPSAMPLE
    counts = Counter(roles.values())
    assert counts[Role.INPUT] == counts[Role.OUTPUT] == 1
    assert counts[Role.TIME_EMBED] == 2
    assert counts[Role.QKV] == 3 * counts[Role.ATTN_OUT]
    assert set(roles) == {
        n for n, m in pixel.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }


def test_conditional_unet_roles(conditional):
    roles = {name: layer.role for name, layer in conditional.graph.layers.items()}
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert roles[f"{block}.attn2.to_k"] is Role.QKV
    assert roles[f"{block}.attn2.to_out.0"] is Role.ATTN_OUT
    assert roles[f"{block}.ff.net.0.proj"] is roles[f"{block}.ff.net.2"] is Role.FF
    assert roles["mid_block.attentions.0.proj_in"] is Role.CONV
    assert roles["conv_in"] is Role.INPUT
    assert roles["conv_out"] is Role.OUTPUT


def test_transformer_roles(transformer):
    roles = {name: layer.role for name, layer in transformer.graph.layers.items()}
    assert roles["pos_embed.proj"] is Role.INPUT
    assert roles["proj_out_2"] is Role.OUTPUT
    assert roles["transformer_blocks.0.norm1.linear"] is Role.ADALN
    assert roles["proj_out_1"] is Role.ADALN
    assert roles["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"] is Role.TIME_EMBED
    assert roles["transformer_blocks.1.ff.net.2"] is Role.FF


@pytest.mark.parametrize("name", ["pixel", "conditional"])
def test_splits_are_at_the_width_of_the_deep_half(name, request):
    graph = request.getfixturevalue(name).graph
    found = {n: layer.splits for n, layer in graph.layers.items() if layer.splits}
    assert found == {
        "up_blocks.0.resnets.0.conv_shortcut": (16, 16),
        "up_blocks.0.resnets.1.conv_shortcut": (16, 8),
        "up_blocks.1.resnets.0.conv_shortcut": (16, 8),
        "up_blocks.1.resnets.1.conv_shortcut": (8, 8),
    }
    assert {graph.layers[n].role for n in found} == {Role.SHORTCUT}


def test_macs_by_hand(pixel, conditional, transformer):
    # 8x8 images, 8 and 16 channels
    layers = pixel.graph.layers
    assert layers["conv_in"].macs == 8 * 3 * 9 * 64
    assert layers["down_blocks.0.downsamplers.0.conv"].macs == 8 * 8 * 9 * 16
    assert layers["time_embedding.linear_1"].macs == 8 * 32
    assert layers["mid_block.attentions.0.to_q"].macs == 16 * 16 * 16
    assert layers["up_blocks.1.resnets.0.conv_shortcut"].macs == 24 * 8 * 64
    # five attention layers at 4x4 pixels, 16 channels wide: QK and AV
    assert pixel.graph.other_macs == 4 * 2 * 16 * 16 * 16
    cond = conditional.graph
    wide = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert cond.layers[f"{wide}.attn2.to_k"].macs == 5 * 16 * 8
    assert cond.layers[f"{wide}.ff.net.0.proj"].macs == 64 * 8 * 64
    at_8, at_4 = 3 * 2 * 64 * 8 * (64 + 5), 2 * 16 * 16 * (16 + 5)
    assert cond.other_macs == at_8 + at_4
    # 16 patches, width 32
    dit = transformer.graph
    assert dit.layers["pos_embed.proj"].macs == 16 * 32 * 4 * 4
    assert dit.layers["transformer_blocks.0.ff.net.0.proj"].macs == 16 * 32 * 128
    # the last layer's modulation uses the embedding of block 0 a second time
    emb = "transformer_blocks.{}.norm1.emb.timestep_embedder.linear_2"
    assert dit.layers[emb.format(0)].macs == 2 * dit.layers[emb.format(1)].macs == 2 * 32 * 32
    assert dit.other_macs == 2 * 2 * 16 * 16 * 32


def test_macs_agree_with_torch_flop_counter(probe):
    points = probe.heldout.rows(slice(0, 2))
    counter = FlopCounterMode(display=False)
    # the counter knows attention only as the plain products of the math backend
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        points.call(probe.model)
    assert counter.get_total_flops() == 2 * 2 * probe.graph.total_macs


def test_execution_order(probe):
    orders = [layer.order for layer in probe.graph.layers.values()]
    assert orders == list(range(len(orders)))


@pytest.mark.parametrize("product", ["matmul", "operator", "bmm", "method", "baddbmm"])
def test_every_way_to_write_an_attention_product_counts(product):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(6, 4)

        def forward(self, x):
            x = self.first(x)
            other = x.transpose(1, 2)
            if product == "matmul":
                y = torch.matmul(x, other)
            elif product == "operator":
                y = x @ other
            elif product == "bmm":
                y = torch.bmm(x, other)
            elif product == "method":
                y = x.bmm(other)
            else:
                y = torch.baddbmm(torch.zeros(1), x, other)
            return self.last(y)

    assert trace(Attention(), torch.randn(2, 6, 8)).other_macs == 6 * 8 * 6


def test_network_without_layers():
    with pytest.raises(BrokenModel, match="no convolution or linear"):
        trace(nn.Sequential(nn.SiLU()), torch.randn(2, 3))


def test_network_that_is_nan():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(BrokenModel, match="NaN"):
        trace(model, torch.randn(2, 3))


def test_trace_leaves_no_hooks(pixel):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pixel.model.modules())


def test_depthwise_convolution_macs():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1))
    layers = trace(model, torch.randn(2, 8, 5, 5)).layers
    assert layers["0"].macs == 8 * 9 * 25


def test_a_layer_that_is_fed_no_tokens_did_not_run():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.extra, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x, tokens):
            x = self.first(x)
            return self.last(torch.cat([x, self.extra(x[:, :tokens])], 1))

    model, x = Sometimes(), torch.randn(2, 6, 4)
    assert set(trace(model, x, 0).layers) == {"first", "last"}
    assert trace(model, x, 2).layers["extra"].macs == 2 * 4 * 4
