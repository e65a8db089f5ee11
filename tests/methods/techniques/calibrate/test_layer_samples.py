import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.record.points import evenly
from quantarena.methods.info import Effort
from quantarena.methods.techniques.calibrate.layer_samples import layer_inputs


@pytest.fixture
def model(probe):
    return probe.context(Bits(4, 4), "paper", Effort(8, 0)).wrap()


def test_inputs_are_what_reaches_the_layers_in_floating_point(probe, model):
    chosen = probe.heldout.rows(evenly(len(probe.heldout), 3))
    seen = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, args, n=name: seen.__setitem__(n, args[0]))
        for name, layer in model.layers.items()
    ]
    with torch.no_grad(), model.using(weights=False, acts=False):
        model.run(chosen)
    for handle in handles:
        handle.remove()
    found = layer_inputs(model, probe.heldout, 3)
    assert found.keys() == model.layers.keys()
    assert all(torch.equal(found[name], seen[name]) for name in seen)


def test_large_inputs_keep_fewer_rows_but_one(model, probe):
    whole, few, one = (layer_inputs(model, probe.heldout, 4, most=m) for m in (1 << 20, 600, 1))
    for name, x in whole.items():
        assert len(one[name]) == 1
        fit = max(1, 600 // x[0].numel())
        assert torch.equal(few[name], x[evenly(len(x), fit)])
        assert few[name].numel() <= max(600, x[0].numel())
    assert len({len(x) for x in few.values()}) > 1


@pytest.mark.parametrize(
    ("total", "count", "wanted"), [(5, 3, [0, 2, 4]), (3, 9, [0, 1, 2]), (7, 1, [0])]
)
def test_rows_are_evenly_spread(total, count, wanted):
    assert evenly(total, count).tolist() == wanted
