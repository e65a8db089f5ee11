"""Roles and attention products of architectures that the project ships no probe of."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantarena.methods.core.trace.network import AttentionKind, Role, trace

STEP = torch.tensor([5, 5])


def pixart():
    import diffusers

    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=4,
    )
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "encoder_attention_mask": torch.ones(2, 5),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return trace(model.eval(), torch.randn(2, 4, 8, 8), timestep=STEP, **given)


def joint():
    import diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
    }
    return trace(model.eval(), torch.randn(2, 4, 8, 8), timestep=STEP, **given)


def flux():
    import diffusers

    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return trace(model.eval(), torch.randn(2, 16, 4), timestep=STEP.float(), **given)


def two_encoders(processor=None):
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=34,
    )
    if processor:
        model.set_attn_processor(processor)
    given = {
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 10), "time_ids": torch.randn(2, 6)},
    }
    return trace(model.eval(), torch.randn(2, 4, 8, 8), timestep=STEP, **given)


def roles(graph):
    return {name: layer.role for name, layer in graph.layers.items()}


def test_pixart_shares_one_modulation_linear():
    graph = pixart()
    found = roles(graph)
    assert found["adaln_single.linear"] is Role.ADALN
    assert found["adaln_single.emb.timestep_embedder.linear_2"] is Role.TIME_EMBED
    assert found["caption_projection.linear_1"] is Role.CONTEXT
    assert found["caption_projection.linear_2"] is Role.CONTEXT
    assert found["pos_embed.proj"] is Role.INPUT
    assert found["proj_out"] is Role.OUTPUT
    counts = Counter(found.values())
    assert counts[Role.QKV] == 12
    assert counts[Role.ATTN_OUT] == counts[Role.FF] == 4
    kinds = {name: info.kind for name, info in graph.attention.items()}
    assert kinds["transformer_blocks.1.attn1"] is AttentionKind.SELF
    assert kinds["transformer_blocks.1.attn2"] is AttentionKind.CROSS


def test_joint_attention_knows_both_streams():
    graph = joint()
    found = roles(graph)
    first = graph.attention["transformer_blocks.0.attn"]
    assert first.kind is AttentionKind.JOINT
    assert first.queries == first.keys == 16 + 5
    prefix = "transformer_blocks.0.attn."
    assert set(first.key) == {f"{prefix}to_k", f"{prefix}add_k_proj"}
    assert graph.attention["transformer_blocks.0.attn2"].kind is AttentionKind.SELF
    assert found[f"{prefix}to_add_out"] is found[f"{prefix}to_out.0"] is Role.ATTN_OUT
    assert found["transformer_blocks.0.norm1_context.linear"] is Role.ADALN
    assert found["norm_out.linear"] is Role.ADALN
    assert found["context_embedder"] is Role.CONTEXT
    assert found["time_text_embed.text_embedder.linear_2"] is Role.TIME_EMBED
    assert found["transformer_blocks.0.ff_context.net.2"] is Role.FF


def test_parallel_attention_and_feedforward():
    graph = flux()
    found = roles(graph)
    single = "single_transformer_blocks.0"
    assert found[f"{single}.proj_out"] is Role.ATTN_OUT
    assert graph.layers[f"{single}.proj_out"].splits == (16, 64)
    assert found[f"{single}.proj_mlp"] is Role.FF
    assert found[f"{single}.norm.linear"] is Role.ADALN
    assert found["x_embedder"] is Role.INPUT
    assert [i.kind for i in graph.attention.values()] == [AttentionKind.JOINT, AttentionKind.SELF]


def test_added_embedding_is_time_embedding():
    found = roles(two_encoders())
    assert {n for n, role in found.items() if role is Role.TIME_EMBED} == {
        f"{name}.linear_{i}" for name in ("time_embedding", "add_embedding") for i in (1, 2)
    }
    assert found["mid_block.attentions.0.proj_in"] is Role.LINEAR


def test_written_out_attention_is_the_same_graph():
    from diffusers.models.attention_processor import AttnProcessor

    fused, written = two_encoders(), two_encoders(AttnProcessor())
    assert roles(fused) == roles(written)
    assert fused.other_macs == written.other_macs
    assert fused.attention.keys() == written.attention.keys()
    for one, other in zip(fused.attention.values(), written.attention.values(), strict=True):
        assert (one.fused, other.fused) == (True, False)
        for field in ("kind", "heads", "queries", "keys", "qk_macs", "av_macs", "query", "value"):
            assert getattr(one, field) == getattr(other, field)


def test_attention_by_hand(conditional):
    self_, cross = (
        conditional.graph.attention[f"mid_block.attentions.0.transformer_blocks.0.attn{i}"]
        for i in (1, 2)
    )
    assert (self_.kind, cross.kind) == (AttentionKind.SELF, AttentionKind.CROSS)
    assert (self_.queries, self_.keys) == (16, 16)
    assert (cross.queries, cross.keys, cross.heads) == (16, 5, 2)
    assert cross.qk_macs == cross.av_macs == 16 * 5 * 16
    assert cross.key == ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k",)
    orders = [info.order for info in conditional.graph.attention.values()]
    assert orders == list(range(len(orders)))
    total = sum(info.macs for info in conditional.graph.attention.values())
    assert total == conditional.graph.other_macs


class Attend1d(nn.Module):
    """Attention with one Conv1d for q, k and v, as in the latent U-Nets of 2021."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.qkv, self.mix = nn.Conv1d(8, 24, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x):
        rows, _, *size = x.shape
        flat = x.reshape(rows, 8, -1)
        q, k, v = self.qkv(flat).reshape(rows * 2, 12, -1).split(4, dim=1)
        if self.form == "einsum":
            scores = torch.einsum("bct,bcs->bts", q * 0.7, k * 0.7).softmax(-1)
            y = torch.einsum("bts,bcs->bct", scores, v)
        else:
            scores = torch.softmax(torch.bmm(q.transpose(1, 2), k) * 0.5, dim=-1)
            y = torch.bmm(v, scores.permute(0, 2, 1))
        return x + self.mix(y.reshape(rows, 8, -1)).reshape(rows, 8, *size)


@pytest.mark.parametrize("form", ["einsum", "bmm"])
def test_conv1d_attention(form):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Attend1d(form), nn.Conv2d(8, 3, 1))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    assert roles(graph) == {
        "0": Role.INPUT,
        "1.qkv": Role.QKV,
        "1.mix": Role.ATTN_OUT,
        "2": Role.OUTPUT,
    }
    info = graph.attention["1"]
    assert info.query == info.key == info.value == ("1.qkv",)
    assert (info.heads, info.queries, info.keys) == (2, 16, 16)
    assert info.qk_macs == info.av_macs == 2 * 16 * 16 * 4
    assert graph.layers["1.qkv"].macs == 24 * 8 * 16
    assert [layer.kind for layer in graph.layers.values()] == [
        "conv2d",
        "conv1d",
        "conv1d",
        "conv2d",
    ]
    assert graph.other_macs == info.macs


class Block(nn.Module):
    """A residual block whose names say nothing."""

    def __init__(self, kernel):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(4, 6, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.c(x) + self.b(F.silu(self.a(x)))


@pytest.mark.parametrize("kernel", [1, 3])
def test_shortcut_is_what_goes_around(kernel):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Block(kernel), nn.Conv2d(6, 3, 1))
    found = roles(trace(model, torch.randn(2, 3, 4, 4)))
    assert found["1.c"] is Role.SHORTCUT
    assert found["1.a"] is found["1.b"] is Role.CONV


def test_a_shift_of_tokens_is_modulation():
    """As in HunyuanDiT, whose norms have a shift and no scale from the time embedding."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.shift = nn.Linear(4, 8), nn.Linear(8, 8)
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x, t):
            emb = self.shift(F.silu(self.embed(t[:, None] * torch.ones(4))))
            return self.last(F.layer_norm(self.first(x), (8,)) + emb[:, None])

    found = roles(trace(Shifted(), torch.randn(2, 5, 3), torch.rand(2)))
    assert found == {
        "embed": Role.TIME_EMBED,
        "shift": Role.ADALN,
        "first": Role.INPUT,
        "last": Role.OUTPUT,
    }


def test_film_and_plain_time_projections():
    class Timed(nn.Module):
        def __init__(self, scales):
            super().__init__()
            self.scales = scales
            self.embed, self.project = nn.Linear(4, 8), nn.Linear(8, 16)
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x, t):
            emb = self.project(F.silu(self.embed(t[:, None] * torch.ones(4))))
            scale, shift = emb[:, :, None, None].chunk(2, dim=1)
            x = self.first(x)
            return self.last(F.silu(x * (1 + scale) + shift if self.scales else x + shift))

    for scales in (True, False):
        found = roles(trace(Timed(scales), torch.randn(2, 3, 4, 4), torch.rand(2)))
        assert found["embed"] is Role.TIME_EMBED
        assert found["project"] is Role.EMB_PROJ
        assert found["first"] is Role.INPUT


def test_trace_keeps_nothing_alive(pixel):
    import gc
    import weakref

    kept = []
    layer = pixel.model.get_submodule("mid_block.resnets.0.conv1")
    handle = layer.register_forward_hook(lambda m, a, output: kept.append(weakref.ref(output)))
    try:
        trace(pixel.model, torch.randn(2, 3, 8, 8), timestep=STEP)
    finally:
        handle.remove()
    gc.collect()
    assert kept
    assert all(ref() is None for ref in kept)
