import dataclasses

import pytest
import torch

from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer


def parts_of(make_layer, shapes, **options):
    layers = [
        make_layer(shape, bits, 8, seed=i, asymmetric=i == 1, bias=i == 0, **options)
        for i, (shape, bits) in enumerate(shapes)
    ]
    return layers


@pytest.mark.parametrize("last", [False, True])
def test_convolution_parts_add_up(make_layer, make_input, library, last):
    shapes = [((20, 8, 3, 3), 4), ((20, 5, 3, 3), 8), ((20, 12, 3, 3), 2)]
    parts = parts_of(make_layer, shapes, padding=(1, 1))
    module = SplitPackedLayer(parts, library)
    x = make_input((2, 25, 9, 8))
    if last:
        x = x.to(memory_format=torch.channels_last)
    pieces = zip(parts, torch.split(x, [8, 5, 12], 1), strict=True)
    want = sum(oracle.forward(part, piece.contiguous()) for part, piece in pieces)
    got = module(x)
    assert torch.allclose(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    assert got.is_contiguous(memory_format=torch.channels_last) == last
    assert module.packed_bytes == sum(part.packed_bytes for part in module.parts)


def test_linear_parts_add_up(make_layer, make_input, library):
    parts = parts_of(make_layer, [((20, 8), 4), ((20, 25), 3)], steps=3)
    module = SplitPackedLayer(parts, library)
    x = make_input((3, 4, 33))
    for step in range(3):
        module.set_step(step)
        want = oracle.forward(parts[0], x[..., :8], step) + oracle.forward(
            parts[1], x[..., 8:], step
        )
        assert torch.allclose(module(x), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_state_round_trip(make_layer, make_input):
    shapes = [((20, 8), 4), ((20, 25), 3)]
    module = SplitPackedLayer(parts_of(make_layer, shapes))
    other = SplitPackedLayer(
        [
            dataclasses.replace(p, weight_scale=p.weight_scale * 2)
            for p in parts_of(make_layer, shapes)
        ]
    )
    x = make_input((4, 33))
    assert not torch.equal(module(x), other(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x), other(x))


def test_parts_that_do_not_agree_are_refused(make_layer, make_input):
    one, two = parts_of(make_layer, [((20, 8), 4), ((20, 25), 3)])
    with pytest.raises(ValueError, match="at least one"):
        SplitPackedLayer([])
    with pytest.raises(ValueError, match="differ in out_features"):
        SplitPackedLayer([one, make_layer((21, 8), 4, 8, bias=False)])
    with pytest.raises(ValueError, match="bias belongs"):
        SplitPackedLayer([one, make_layer((20, 8), 4, 8)])
    with pytest.raises(ValueError, match="does not have 33 channels"):
        SplitPackedLayer([one, two])(make_input((4, 32)))
