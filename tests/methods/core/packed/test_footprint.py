"""Coverage, bit operations and mean bits by hand; declared widths that are not observed fail."""

import pytest
import torch
from torch import nn

from quantarena.methods import published
from quantarena.methods.core.bits import AttentionBits, Bits
from quantarena.methods.core.errors import QuantArenaError
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.packed.footprint import footprint
from quantarena.methods.core.trace.network import AttentionKind, trace

W4A4 = Bits(4, 4)


def accounted(model, original, *, widths=None, **given):
    widths = widths or {name: layer.bits for name, layer in model.layers.items()}
    return footprint(
        model.graph, widths, original, 1000, layers=model.layers, attention=model.attention, **given
    )


def small():
    """Two linears over 5 tokens: 5 * (8 * 6 + 6 * 4) MACs."""
    network = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    return network, trace(network, torch.randn(2, 5, 8))


def test_bit_operations_by_hand():
    network, graph = small()
    model = wrap(network, graph, {"0": Bits(4, 8), "1": Bits(2, 16)})
    seen = accounted(model, network)
    assert seen.bops == 5 * 48 * 4 * 8 + 5 * 24 * 2 * 32
    assert seen.fp_bops == 5 * (48 + 24) * 32 * 32
    assert seen.code_bits == pytest.approx((48 * 4 + 24 * 2) / 72)
    assert seen.act_bits == pytest.approx((48 * 8 + 24 * 32) / 72)
    assert seen.coverage == {"w4a8": pytest.approx(2 / 3), "w2a16": pytest.approx(1 / 3)}
    assert seen.branch_macs == seen.attention == 0


def test_a_layer_left_in_floating_point():
    network, graph = small()
    model = wrap(network, graph, {"0": Bits(4, 8), "1": Bits(16, 16)})
    seen = accounted(model, network)
    assert seen.bops == 5 * 48 * 4 * 8 + 5 * 24 * 32 * 32
    assert seen.code_bits == pytest.approx((48 * 4 + 24 * 32) / 72)
    assert seen.coverage["fp"] == pytest.approx(1 / 3)


def test_a_branch_adds_its_own_work():
    network, graph = small()
    model = wrap(network, graph, dict.fromkeys(graph.layers, W4A4))
    before = accounted(model, network)
    model.layers["0"].set_low_rank(torch.randn(2, 8), torch.randn(6, 2))
    seen = accounted(model, network)
    assert seen.branch_macs == 5 * (8 * 2 + 2 * 6)
    assert seen.bops == before.bops + seen.branch_macs * 32 * 32
    assert seen.coverage["fp"] == pytest.approx(140 / (360 + 140))


def test_the_branch_of_a_convolution():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
    graph = trace(network, torch.randn(2, 3, 4, 4))
    model = wrap(network, graph, dict.fromkeys(graph.layers, W4A4))
    model.layers["0"].set_low_rank(torch.randn(2, 3, 3, 3), torch.randn(8, 2))
    assert accounted(model, network).branch_macs == 16 * (2 * 27 + 8 * 2)


def test_attention_products_count_at_the_widths_of_both_factors(conditional):
    graph = conditional.graph
    model = wrap(
        conditional.model,
        graph,
        dict.fromkeys(graph.layers, W4A4),
        attention=dict.fromkeys(graph.attention, AttentionBits(4, 4, 6, 8)),
    )
    seen = accounted(model, conditional.model)
    qk = sum(info.qk_macs for info in graph.attention.values())
    av = sum(info.av_macs for info in graph.attention.values())
    assert seen.attention == len(graph.attention)
    assert seen.coverage["a4a4"] == pytest.approx(qk / graph.total_macs)
    assert seen.coverage["a8a6"] == pytest.approx(av / graph.total_macs)
    assert "fp" not in seen.coverage
    layers = sum(info.macs for info in graph.layers.values())
    assert seen.bops == layers * 16 + qk * 16 + av * 48
    assert sum(seen.coverage.values()) == pytest.approx(1.0)


def test_excluded_key_tokens_leave_one_factor_in_floating_point(conditional):
    graph = conditional.graph
    widths = dict.fromkeys(graph.attention, AttentionBits(8, 8, 8, 8))
    model = wrap(conditional.model, graph, dict.fromkeys(graph.layers, W4A4), attention=widths)
    before = accounted(model, conditional.model)
    cross = [q for q in model.attention.values() if q.info.kind is AttentionKind.CROSS]
    for quant in cross:
        quant.excluded = 1
    seen = accounted(model, conditional.model)
    moved = sum(q.info.macs for q in cross) / 5
    assert seen.coverage["a16a8"] == pytest.approx(moved / graph.total_macs)
    assert seen.bops == before.bops + round(moved * 8 * (32 - 8))


def test_tabulated_layers_do_no_work(pixel):
    model = wrap(pixel.model, pixel.graph, UNIFORM.assign(pixel.graph, W4A4))
    whole = accounted(model, pixel.model)
    gone = [name for name in model.layers if name.startswith("time_embedding.")]
    macs = sum(pixel.graph.layers[name].macs for name in gone)
    for name in gone:
        del model.layers[name]
    seen = accounted(model, pixel.model, tabulated=["time_embedding"])
    assert seen.bops == whole.bops - macs * 64
    assert seen.fp_bops == whole.fp_bops


def test_a_bit_map_counts_by_its_mean():
    network, graph = small()
    model = wrap(network, graph, {"0": Bits(3, 8), "1": Bits(4, 8)})
    widths = {"0": Bits(4, 8), "1": Bits(4, 8)}  # the widest channel of layer 0
    seen = accounted(model, network, widths=widths, means={"0": 3.0, "1": 4.0})
    assert seen.bops == 5 * 48 * 3 * 8 + 5 * 24 * 4 * 8


@pytest.mark.parametrize("found", [Bits(8, 4), Bits(4, 8), None])
def test_other_widths_than_declared_fail(found):
    network, graph = small()
    model = wrap(network, graph, dict.fromkeys(graph.layers, W4A4))
    widths = {"0": W4A4} if found is None else {"0": W4A4, "1": found}
    with pytest.raises(QuantArenaError, match="1: declared w4a4, packed is"):
        accounted(model, network, widths=widths)


def test_other_attention_widths_than_declared_fail(conditional):
    graph = conditional.graph
    model = wrap(
        conditional.model,
        graph,
        dict.fromkeys(graph.layers, W4A4),
        attention=dict.fromkeys(graph.attention, AttentionBits(8, 8, 8, 4)),
    )
    quant = next(iter(model.attention.values()))
    quant.static("softmax").bits = 8
    with pytest.raises(QuantArenaError, match="declared attention q8k8v8s4"):
        accounted(model, conditional.model)


def test_published_policies_differ_in_work(pixel):
    """One request, w4a4; the papers' own exceptions move the bit operations."""
    found = {}
    for table in (published.Q_DIFFUSION, published.PTQ4DM, published.MPQ_DM):
        model = wrap(
            pixel.model,
            pixel.graph,
            table.assign(pixel.graph, W4A4),
            attention=table.assign_attention(pixel.graph, W4A4),
        )
        found[table.source] = accounted(model, pixel.model).bops
    least, middle, most = found.values()
    assert least * 1.5 < middle
    assert middle * 1.1 < most
