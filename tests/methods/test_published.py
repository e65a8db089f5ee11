"""Tables of policy ``published``: what they protect, and that coverage differs as the papers do."""

import pytest
import torch
from torch import nn

from quantarena.methods import published
from quantarena.methods.core.bits import FP, AttentionBits, Bits
from quantarena.methods.core.errors import UnknownName, Unsupported
from quantarena.methods.core.model.policy import (
    EIGHT,
    FLOAT,
    AttentionRule,
    Policy,
    Rule,
    policy,
)
from quantarena.methods.core.trace.network import Role, trace

W4A4, W4A8, W4 = Bits(4, 4), Bits(4, 8), Bits(4, 16)
TABLES = {name: value for name, value in vars(published).items() if isinstance(value, Policy)}


def by_role(table, graph, bits=W4A4):
    found: dict[Role, set[Bits]] = {}
    for name, width in table.assign(graph, bits).items():
        found.setdefault(graph.layers[name].role, set()).add(width)
    return found


def share(table, graph, bits, wanted):
    macs = sum(graph.layers[n].macs for n, b in table.assign(graph, bits).items() if b == wanted)
    return macs / graph.total_macs


def test_tables_say_where_they_were_read():
    assert len(TABLES) >= 10
    assert all(table.name == "published" and table.source for table in TABLES.values())


def test_policy_by_name():
    assert policy("published", "ptq4dm", published.PTQ4DM) is published.PTQ4DM
    with pytest.raises(Unsupported, match="rtn has no published policy: use uniform"):
        policy("published", "rtn")
    with pytest.raises(UnknownName, match="did you mean published"):
        policy("publisched")


def test_a_rule_is_exact_and_never_adds_quantization():
    assert EIGHT.of(W4A4) == Bits(8, 8)
    assert Rule(2, None).of(W4A8) == Bits(2, 8)
    assert EIGHT.of(W4) == Bits(8, 16)
    assert FLOAT.of(W4A8) == FP
    assert AttentionRule(None, 8).of(W4A4) == AttentionBits(4, 4, 4, 8)
    assert AttentionRule(None, 8).of(W4).is_fp


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_full_precision_request_leaves_everything(table, pixel):
    assert set(table.assign(pixel.graph, FP).values()) == {FP}
    assert table.assign_attention(pixel.graph, FP) == {}


def test_q_diffusion_protects_nothing(probe):
    graph = probe.graph
    assert set(published.Q_DIFFUSION.assign(graph, W4A4).values()) == {W4A4}
    widths = published.Q_DIFFUSION.assign_attention(graph, W4A4)
    assert widths == dict.fromkeys(graph.attention, AttentionBits(4, 4, 4, 8))


def test_ptq4dm_protects_the_first_time_linear_and_the_output(pixel):
    graph, table = pixel.graph, published.PTQ4DM
    widths = table.assign(graph, W4A4)
    special = {name: b for name, b in widths.items() if b != W4A4}
    assert special == {"time_embedding.linear_1": Bits(8, 4), "conv_out": Bits(8, 8)}
    assert widths["conv_in"] == W4A4
    assert table.assign_attention(graph, W4A4) == {}


def test_eda_dm_leaves_the_output_input_in_floating_point(pixel):
    widths = published.EDA_DM.assign(pixel.graph, W4A4)
    assert widths["conv_out"] == Bits(8, 16)
    assert widths["time_embedding.linear_1"] == Bits(8, 4)
    assert widths["time_embedding.linear_2"] == W4A4
    assert published.EDA_DM.assign_attention(pixel.graph, W4A4)


def test_mpq_dm_skips_shortcuts_and_downsampling(pixel):
    found = by_role(published.MPQ_DM, pixel.graph)
    for role in (Role.TIME_EMBED, Role.INPUT, Role.OUTPUT):
        assert found[role] == {Bits(8, 8)}
    assert found[Role.SHORTCUT] == found[Role.DOWNSAMPLE] == {FP}
    assert found[Role.UPSAMPLE] == found[Role.QKV] == {W4A4}
    assert published.MPQ_DM.assign_attention(pixel.graph, W4A4) == {}


def test_dgq_keeps_both_ends_and_quantizes_scores_as_activations(conditional):
    found = by_role(published.DGQ, conditional.graph, W4A8)
    assert found.pop(Role.INPUT) == found.pop(Role.OUTPUT) == {FP}
    assert set().union(*found.values()) == {W4A8}
    widths = published.DGQ.assign_attention(conditional.graph, Bits(4, 6))
    assert set(widths.values()) == {AttentionBits(6, 6, 6, 6)}


def test_serial_parallel_takes_the_time_layers_out(conditional):
    found = by_role(published.SERIAL_PARALLEL, conditional.graph, W4A8)
    assert found[Role.TIME_EMBED] == found[Role.EMB_PROJ] == {FP}
    assert found[Role.INPUT] == found[Role.OUTPUT] == {Bits(8, 8)}
    assert found[Role.FF] == {W4A8}


def test_tune_qdm_is_weight_only(conditional):
    assert set(published.TUNE_QDM.assign(conditional.graph, W4).values()) == {W4}
    assert published.TUNE_QDM.assign_attention(conditional.graph, W4) == {}


def test_svdquant_quantizes_what_the_release_does(conditional, transformer):
    for network in (conditional, transformer):
        found = by_role(published.SVDQUANT, network.graph)
        floating = {role for role, widths in found.items() if widths == {FP}}
        assert floating >= {Role.INPUT, Role.OUTPUT, Role.TIME_EMBED} & set(found)
        assert {Role.QKV, Role.FF}.isdisjoint(floating)
        assert published.SVDQUANT.assign_attention(network.graph, W4A4) == {}
    assert found[Role.ADALN] == {FP}


def test_repquant_raises_the_patch_embedding(transformer):
    found = by_role(published.REPQUANT, transformer.graph)
    assert found.pop(Role.INPUT) == {Bits(4, 8)}
    assert set().union(*found.values()) == {W4A4}
    widths = published.REPQUANT.assign_attention(transformer.graph, W4A4)
    assert set(widths.values()) == {AttentionBits(4, 4, 4, 4)}


def test_coverage_differs_more_than_bits_say(pixel):
    """Share of MACs at the requested 4 bits: one request, four answers."""
    shares = [
        share(TABLES[name], pixel.graph, W4A4, W4A4)
        for name in ("Q_DIFFUSION", "PTQ4DM", "DGQ", "MPQ_DM")
    ]
    assert shares == sorted(shares, reverse=True)
    assert len(set(shares)) == 4
    assert shares[0] - shares[-1] > 0.05


def test_conv1d_attention_is_skipped_where_releases_skip_it():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.mix = nn.Conv1d(8, 24, 1), nn.Conv1d(8, 8, 1)

        def forward(self, x):
            q, k, v = self.qkv(x.flatten(2)).chunk(3, dim=1)
            out = nn.functional.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
            return x + self.mix(out).reshape(x.shape)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Attend(), nn.Conv2d(8, 3, 1))
    graph = trace(model, torch.randn(2, 3, 4, 4))
    for name, skipped in (("PTQ4DM", True), ("MPQ_DM", True), ("Q_DIFFUSION", False)):
        widths = TABLES[name].assign(graph, W4A4)
        assert (widths["1.qkv"] == FP) is (widths["1.mix"] == FP) is skipped


def test_a_skip_list_is_a_table(conditional):
    """Such as SVDQuant's: embedders, time projections, shortcuts and resampling stay."""
    skipped = (Role.TIME_EMBED, Role.EMB_PROJ, Role.SHORTCUT, Role.DOWNSAMPLE, Role.UPSAMPLE)
    table = Policy("mine", roles=dict.fromkeys(skipped, FLOAT))
    found = by_role(table, conditional.graph)
    assert {role for role, widths in found.items() if widths == {FP}} == set(skipped)
