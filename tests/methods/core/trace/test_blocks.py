import functools

import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.model import wrap
from quantarena.methods.core.model.policy import UNIFORM
from quantarena.methods.core.trace.blocks import Block, partition


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
@pytest.mark.parametrize("limit", [2, 12])
def test_replay_reproduces_the_network(replay, probe, splits, limit):
    model = wrap(probe.model, probe.graph, UNIFORM.assign(probe.graph, Bits(4, 8)), splits=splits)
    points = probe.heldout.rows(slice(0, 4))

    def run():
        return points.call(model.module)

    with model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, run, limit)
        found = replay(model.module, blocks, run)
    assert found.exact
    assert torch.equal(found.output, found.expected)
    with torch.no_grad():
        assert torch.allclose(found.expected, points.call(probe.model), rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(m) for m in model.module.modules())


@pytest.mark.parametrize("name", ["pixel", "conditional"])
def test_the_temporal_block_takes_the_embedding_and_its_projections(replay, name, request):
    probe = request.getfixturevalue(name)
    temporal = [n for n in probe.graph.layers if "time_emb" in n]
    model, plain, points = cut(probe)
    with model.using(weights=False, acts=False):
        run = functools.partial(points.call, model.module)
        blocks = partition(model.module, model.layers, run, temporal=temporal)
        found = replay(model.module, blocks, run)
    assert found.exact
    block = blocks[0]
    assert block.name == "time_embedding"
    assert sorted(block.layers) == sorted(temporal)
    assert {tail.between for tail in block.tails} == {"silu"}
    assert sorted(x for b in blocks for x in b.layers) == sorted(probe.graph.layers)
    assert {b.name for b in plain} >= {b.name for b in blocks if len(b.layers) > 1}


def test_temporal_blocks_are_as_many_as_there_are_embeddings(replay, transformer):
    temporal = [n for n in transformer.graph.layers if "norm1" in n or n == "proj_out_1"]
    model, _, points = cut(transformer)
    with model.using(weights=False, acts=False):
        run = functools.partial(points.call, model.module)
        blocks = partition(model.module, model.layers, run, temporal=temporal)
    apart = [block for block in blocks if set(block.layers) <= set(temporal)]
    assert [b.name for b in apart] == [f"transformer_blocks.{i}.norm1.emb" for i in range(2)]
    # the first embedding runs again at the end, for the shift and gain before the last layer
    assert [b.calls for b in apart] == [2, 1]
    assert [[t.name for t in b.tails] for b in apart] == [
        ["transformer_blocks.0.norm1.linear", "proj_out_1"],
        ["transformer_blocks.1.norm1.linear"],
    ]
    assert sorted(x for b in blocks for x in b.layers) == sorted(transformer.graph.layers)


def test_a_temporal_layer_that_no_embedding_feeds_is_a_block_of_its_own(pixel):
    model, _, points = cut(pixel)
    run = functools.partial(points.call, model.module)
    odd = ["time_embedding.linear_1", "time_embedding.linear_2", "conv_out"]
    with model.using(weights=False, acts=False):
        blocks = partition(model.module, model.layers, run, temporal=odd)
    found = {block.name: (block.layers, block.tails) for block in blocks}
    assert found["time_embedding"] == (tuple(odd[:2]), ())
    assert found["conv_out"] == (("conv_out",), ())


class Uneven(nn.Module):
    """Its embedding runs twice, on different inputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.embed(x) + self.embed(x + 1))


def test_a_temporal_layer_with_several_outputs_is_refused():
    network = Uneven()
    layers = {name: network.get_submodule(name) for name in ("embed", "last")}
    run = functools.partial(network, torch.ones(2, 3))
    with pytest.raises(Unsupported, match="embed gives different outputs"):
        partition(network, layers, run, temporal=["embed"])


class Sly(nn.Module):
    """Its block reads something that does not arrive as an argument."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3)
        self.count = 0
        self.body.register_forward_hook(self.drift)

    def drift(self, module, args, output):
        self.count += 1
        return output + self.count

    def forward(self, x):
        return self.last(self.body(x))


def test_replay_names_a_block_that_depends_on_more_than_its_input(replay):
    model = Sly()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    x = torch.randn(2, 3)
    blocks = partition(model, layers, lambda: model(x))
    found = replay(model, blocks, lambda: model(x))
    assert not found.exact
    assert found.broken[0] == "body"


def test_a_layer_called_twice_is_replayed_call_by_call(replay):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    model, x = Twice(), torch.randn(2, 3)
    (block,) = partition(model, {"layer": model.layer}, lambda: model(x))
    assert block.calls == 2
    assert replay(model, [block], lambda: model(x)).exact


def test_what_could_hide_a_tensor_is_refused_by_name(replay):
    class Box:
        pass

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
            self.inner.forward = lambda x, box: x

        def forward(self, x):
            return self.inner(x, Box())

    model = Odd()
    with pytest.raises(Unsupported, match=r"inner: .*Box"):
        replay(model, [Block("inner", ("inner.0",))], lambda: model(torch.randn(2, 3)))
