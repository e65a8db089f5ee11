import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.model import wrap
from quantarena.methods.core.partition import partition
from quantarena.methods.core.policy import UNIFORM


def cut(probe, limit=12):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(4, 8)))
    points = probe.heldout.rows(slice(0, 2))
    with model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, lambda: points.call(model.module), limit)
    return model, blocks, points


def test_every_layer_in_exactly_one_block_in_execution_order(probe):
    _, blocks, _ = cut(probe)
    flat = [layer for block in blocks for layer in block.layers]
    assert sorted(flat) == sorted(probe.graph.layers)
    firsts = [probe.graph.layers[block.layers[0]].order for block in blocks]
    assert firsts == sorted(firsts)
    for block in blocks:
        orders = [probe.graph.layers[name].order for name in block.layers]
        assert orders == sorted(orders)
        assert all(n == block.name or n.startswith(f"{block.name}.") for n in block.layers)


def test_one_stream_in_and_out_and_called_once(probe):
    model, blocks, points = cut(probe)
    calls = dict.fromkeys((b.name for b in blocks if len(b.layers) > 1), 0)

    def note(name):
        def hook(module, args, kwargs, output):
            calls[name] += 1
            assert isinstance(output, Tensor)
            assert not any(isinstance(a, tuple | list) for a in (*args, *kwargs.values()))

        return hook

    for name in calls:
        model.module.get_submodule(name).register_forward_hook(note(name), with_kwargs=True)
    with torch.no_grad(), model.using(weights=False, acts=False):
        points.call(model.module)
    assert set(calls.values()) == {1}


def test_known_blocks(pixel, conditional, transformer):
    names = {b.name: len(b.layers) for b in cut(pixel)[1]}
    assert names["time_embedding"] == 2
    assert names["down_blocks.0.resnets.0"] == 3
    assert names["mid_block"] == 10
    assert names["conv_in"] == names["conv_out"] == 1
    assert not any(name.startswith("mid_block.") for name in names)
    names = {b.name: len(b.layers) for b in cut(conditional)[1]}
    assert names["down_blocks.0.attentions.0.transformer_blocks.0"] == 10
    names = {b.name: len(b.layers) for b in cut(transformer)[1]}
    assert names["transformer_blocks.1"] == 9


def test_limit_is_held(pixel):
    _, blocks, _ = cut(pixel, limit=4)
    assert max(len(block.layers) for block in blocks) <= 4
    assert {b.name for b in blocks} >= {"mid_block.resnets.0", "mid_block.attentions.0"}


def test_layers_that_never_run_are_left_out():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model = Half()
    blocks = partition(
        model, {"used": model.used, "idle": model.idle}, lambda: model(torch.randn(2, 3))
    )
    assert [block.layers for block in blocks] == [("used",)]


def test_a_module_called_twice_is_no_block():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

        def forward(self, x):
            return self.body(self.body(x))

    model = Twice()
    layers = {"body.0": model.body[0], "body.1": model.body[1]}
    blocks = partition(model, layers, lambda: model(torch.randn(2, 3)))
    assert [block.name for block in blocks] == ["body.0", "body.1"]


@pytest.mark.parametrize("splits", [True, False])
def test_replaying_a_block_reproduces_its_output(probe, splits):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(4, 8)), splits=splits)
    points = probe.heldout.rows(slice(0, 4))
    with torch.no_grad(), model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, lambda: points.call(model.module))
        seen = {}
        for block in blocks:
            module = model.module.get_submodule(block.name)

            def keep(module, args, kwargs, output, name=block.name):
                seen.setdefault(name, (args, kwargs, output))

            module.register_forward_hook(keep, with_kwargs=True)
        expected = points.call(model.module)
        for name, (args, kwargs, output) in dict(seen).items():
            again = model.module.get_submodule(name)(*args, **kwargs)
            assert torch.equal(again, output), name
    with torch.no_grad():
        plain = points.call(probe.model)
    assert torch.allclose(expected, plain, rtol=1e-5, atol=1e-5)
