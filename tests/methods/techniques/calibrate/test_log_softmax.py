"""The static scale of logarithmic softmax quantizers."""

import torch

from quantarena.methods.core.bits import FP, AttentionBits
from quantarena.methods.core.model.attention_mode import Fake
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.quantizers.log import LogParams, LogQuantizer, log_fake_quantize
from quantarena.methods.techniques.calibrate.log_softmax import best_log_scale, calibrate_log_scales


def error(x, scale, bits):
    return float((log_fake_quantize(x, LogParams(scale, bits, 2)) - x).square().mean())


def test_a_lone_peak_does_not_set_the_scale():
    quantizer = LogQuantizer(3, per_octave=2)
    x = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.01
    x[7] = 0.2
    scale = best_log_scale(x, quantizer)
    assert float(scale) < 0.03
    assert 2 * error(x, scale, 3) < error(x, x.max(), 3)


def test_the_largest_value_stays_a_candidate():
    quantizer = LogQuantizer(4, per_octave=2)
    x = torch.tensor([1.0] * 5 + [0.5] * 3000 + [0.25] * 3000)
    assert float(best_log_scale(x, quantizer)) == 1.0
    assert float(best_log_scale(torch.zeros(10), quantizer)) > 0


def test_every_logarithmic_softmax_gets_one_and_keeps_it(transformer):
    graph = transformer.graph
    widths = dict.fromkeys(graph.attention, AttentionBits(16, 16, 16, 4))
    made = [
        wrap(transformer.model, graph, dict.fromkeys(graph.layers, FP), attention=widths)
        for _ in range(2)
    ]
    for products in made[0].attention.values():
        products.use_log(per_octave=2)
    calibrate_log_scales(made[0], transformer.heldout)
    for products in made[0].attention.values():
        assert products.mode == Fake()
        assert 0 < float(products.quantizers["softmax"].scale) <= 1
    made[1].load_state(made[0].state())
    with torch.no_grad():
        one, other = (model.run(transformer.heldout) for model in made)
    assert torch.equal(one, other)


def test_plain_softmaxes_are_left_alone(transformer):
    graph = transformer.graph
    widths = dict.fromkeys(graph.attention, AttentionBits(16, 16, 16, 4))
    model = wrap(transformer.model, graph, dict.fromkeys(graph.layers, FP), attention=widths)
    calibrate_log_scales(model, transformer.heldout)
    assert all(p.unset() == ["softmax"] for p in model.attention.values())
