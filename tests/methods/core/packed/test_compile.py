"""Packed networks under ``torch.compile``."""

import torch

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.kernels import custom_op

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
