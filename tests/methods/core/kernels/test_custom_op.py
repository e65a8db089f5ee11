"""Packed layers under compilers: one operator a layer, no graph break, outputs as without."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from quantarena.methods.core.kernels import custom_op, native
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

CALLS = 5
IMAGE = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1)}
OP = torch.ops.quantarena.packed_layer.default


@pytest.fixture(params=["linear", "conv2d", "plain"])
def case(request, make_layer, make_input):
    """A module and an input; the last has neither zero points, multipliers, bias nor a table."""
    if request.param == "linear":
        layer = make_layer((24, 36), 4, 8, asymmetric=True, steps=CALLS, multiplier=True)
        return PackedLayer(layer), make_input((3, 7, 36))
    if request.param == "conv2d":
        layer = make_layer((24, 20, 3, 3), 3, 8, asymmetric=True, steps=CALLS, **IMAGE)
        return PackedLayer(layer), make_input((2, 20, 9, 8))
    return PackedLayer(make_layer((8, 20), 8, 8, bias=False)), make_input((2, 20))


def arguments(module, x, step=0, *, last=False, integer=False):
    buffers = [getattr(module, name) for name in custom_op.BUFFERS]
    form = custom_op.form_of(module.metadata, module.uses_pairs)
    return (x, *buffers, form, step, last, integer)


def test_the_operator_obeys_torch_s_rules(case):
    module, x = case
    torch.library.opcheck(OP, arguments(module, x))
    torch.library.opcheck(OP, arguments(module, x, integer=True))


@pytest.mark.parametrize("last", [False, True])
def test_values_and_layout_are_those_of_the_layer(case, last):
    module, x = case
    module.writes_last = last
    images = [x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
    for image in (x, *images):
        for step in range(max(1, module.entries)):
            want, found = module(image, step), OP(*arguments(module, image, step, last=last))
            assert torch.equal(found, want)
            assert found.stride() == want.stride()
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = OP(*arguments(module, mode.from_tensor(image), step, last=last))
            assert (fake.shape, fake.stride()) == (want.shape, want.stride())


def test_integers_are_the_accumulators(case):
    module, x = case
    found = OP(*arguments(module, x, integer=True))
    assert found.dtype == torch.int32
    assert torch.equal(found, module.accumulators(x, 0))


def test_without_kernels_the_operator_is_the_oracle(case, monkeypatch):
    module, x = case
    want = module(x, 0)
    reference = native.load("reference")
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: reference)
        found = OP(*arguments(module, x))
    assert found.stride() == want.stride()
    assert torch.allclose(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_a_repacked_layer_is_not_taken_for_the_old_one(make_layer, make_input):
    """Calls are kept by addresses, which a freed buffer gives to its successor."""
    x = make_input((3, 36))
    for seed in range(20):
        module = PackedLayer(make_layer((16, 36), 4, 8, seed=seed, steps=1 + seed % 3))
        assert torch.equal(OP(*arguments(module, x)), module(x, 0))


def test_an_exported_layer_carries_its_weights(case, tmp_path):
    module, x = case
    program = torch.export.export(module, (x, 0))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [OP]
    torch.export.save(program, tmp_path / "layer.pt2")
    again = torch.export.load(tmp_path / "layer.pt2").module()
    assert torch.equal(again(x, 0), module(x, 0))


@torch.no_grad()
def test_sampler_calls_do_not_compile_again_and_again(case):
    module, x = case
    torch._dynamo.reset()
    count = []

    def backend(graph, inputs):
        count.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for step in range(max(1, module.entries)):
        assert torch.equal(compiled(x, step), module(x, step))
    assert len(count) <= 3  # call 0, call 1, then any call
