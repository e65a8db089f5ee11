"""Packed networks under ``torch.compile``."""

import pytest
import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import custom_op
from quantarena.methods.core.kernels.groups.custom_op import BUFFERS
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer, one_call
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.wrappers import LowRankLayer

OPERATOR = getattr(torch.ops.quantarena, custom_op.NAME.rpartition("::")[2])


@torch.no_grad()
def test_a_network_compiles_to_one_graph_and_keeps_its_values(probe, packed_of):
    packed, points = packed_of(probe, Bits(4, 8)), probe.heldout
    for _ in range(8):  # outputs are watched for some calls, then norms and activations are fused
        eager = points.call(packed.module)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(packed.module, fullgraph=True, backend=backend)
    found = points.call(compiled)
    # the hook that turns images channels_last is a graph of its own; it holds no layer
    layers = [sum(node.target is OPERATOR for node in graph.graph.nodes) for graph in graphs]
    assert [count for count in layers if count] == [max(layers)]
    assert max(layers) >= len(packed.layers)
    assert torch.allclose(found, eager, rtol=0, atol=1e-5 * float(eager.abs().max()))


GROUPED = torch.ops.quantarena.grouped_layer.default


@pytest.fixture(params=["linear", "conv2d"])
def grouped(request, make_layer, make_input):
    """A layer of three groups in another order than the input's, and an input."""
    sizes, steps = (5, 12, 3), 4
    if request.param == "linear":
        shapes, x, more = [(24, size) for size in sizes], make_input((3, 7, 20)), {}
    else:
        shapes = [(24, size, 3, 3) for size in sizes]
        x, more = make_input((2, 20, 6, 5)), {"padding": (1, 1)}
    layers = [
        make_layer(shape, 4, 8, seed=i, steps=steps, bias=i == 0, **more)
        for i, shape in enumerate(shapes)
    ]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    node = one_call(SplitPackedLayer(layers, order=order))
    if not isinstance(node, GroupedLayer):
        pytest.skip("needs native kernels")
    return node, x


@torch.no_grad()
def test_a_layer_with_groups_is_one_operator(grouped):
    node, x = grouped
    buffers = [node._buffers.get(name) for name in BUFFERS]
    form = custom_op.form_of(node.metadata, node._pair)
    torch.library.opcheck(GROUPED, (x, *buffers, form, 1, False))
    images = [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else []
    for image in (x, *images):
        for step in range(node.entries):
            want, found = node(image, step), GROUPED(image, *buffers, form, step, False)
            assert torch.equal(found, want)
            assert found.stride() == want.stride()
    torch._dynamo.reset()
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    program = torch.export.export(node, (x, 2)).module()
    for step in range(node.entries):
        assert torch.equal(compiled(x, step), node(x, step))
    assert torch.equal(program(x, 2), node(x, 2))


@torch.no_grad()
def test_a_branch_beside_a_compiled_layer_is_torch_s(make_layer, make_input):
    inner = PackedLayer(make_layer((24, 20), 4, 8))
    make = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 20, generator=make), torch.randn(24, 3, generator=make)
    node, x = LowRankLayer(inner, down, up, {}), make_input((5, 20))
    torch._dynamo.reset()
    found, want = torch.compile(node, fullgraph=True, backend="aot_eager")(x), node(x)
    assert torch.allclose(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))
