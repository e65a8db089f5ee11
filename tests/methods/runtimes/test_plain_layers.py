"""A packed network has a plain twin that computes the same once its layers get the codes."""

import pytest
import torch

from quantarena.methods.core.bits import parse_bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.packed.pack import pack
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry
from quantarena.methods.runtimes.plain_layers import plain_network
from quantarena.methods.testing.networks import probes

NAMES = ("pixel-unet", "conditional-unet", "transformer")


@pytest.fixture(scope="module")
def networks():
    return {probe.name: probe for probe in probes()}


def packed_by(probe, method, bits, **options):
    kind = entry(method).method
    made = kind(kind.Options(**options)) if options else kind()
    return pack(made.run(probe.context(parse_bits(bits), "paper", Effort(16, 2))))


def by_point(probe, module, other):
    """The relative difference of two networks' outputs at each of 8 points, (8,)."""
    points = probe.trajectory.pick(torch.zeros(8, dtype=torch.long), torch.arange(8))
    with torch.no_grad():
        wanted, found = points.call(module).flatten(1), points.call(other).flatten(1)
    return (found - wanted).norm(dim=1) / wanted.norm(dim=1)


def filled(plain):
    """The plain network with the true weights, and inputs rounded as the kernels round them."""
    for path, layer in plain.layers.items():
        module = plain.module.get_submodule(path)
        rows = [-1] + [1] * (layer.weight_codes.dim() - 1)
        centred = layer.weight_codes.float() - layer.weight_zero.float().reshape(rows)
        module.weight.data.copy_(centred * layer.weight_scale.reshape(rows))
        module.register_forward_pre_hook(lambda _, args, layer=layer: (rounded(args[0], layer),))
    return plain.module


def rounded(x, layer):
    scale, zero = layer.act_scale.reshape(-1)[0], int(layer.act_zero.reshape(-1)[0])
    value = x * (1 / scale)
    if layer.in_mult is not None:
        value = value * layer.in_mult.reshape([-1] if layer.kind == "linear" else [1, -1, 1, 1])
    return (value.round() + zero).clamp(0, 2**layer.act_bits - 1).sub(zero).mul(scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("method", "bits"), [("rtn", "w8a8"), ("q_diffusion", "w4a4"), ("mpq_dm", "w4a8")]
)
def test_the_twin_computes_what_the_kernels_compute(networks, name, method, bits):
    probe = networks[name]
    options = {"per_call": False} if method == "mpq_dm" else {}
    packed = packed_by(probe, method, bits, **options)
    plain = plain_network(packed)
    errors = by_point(probe, packed.module, filled(plain))
    # sums in another order put a code on the other side now and then; a tiny network amplifies it
    assert errors.median() < 1e-5
    assert errors.max() < 0.1
    assert len(plain.layers) >= len(packed.layers)


def test_layers_of_several_widths_and_halves_are_told_apart(networks):
    split = plain_network(packed_by(networks["pixel-unet"], "q_diffusion", "w4a8"))
    assert any(".parts.1" in path for path in split.layers)
    mixed = plain_network(packed_by(networks["transformer"], "mpq_dm", "w4a8", per_call=False))
    assert {layer.weight_bits for layer in mixed.layers.values()} >= {3, 4, 5}


@pytest.mark.parametrize(
    ("method", "bits", "said"),
    [
        ("efficient_dm", "w4a8", "has ranges by sampler call"),
        ("vidit_q", "w4a8", "is packed as"),
        ("tuneqdm", "w4a16", "has ranges by sampler call"),
    ],
)
def test_what_has_no_plain_layer_is_refused_by_name(networks, method, bits, said):
    packed = packed_by(networks["transformer"], method, bits)
    with pytest.raises(Unsupported, match=said) as error:
        plain_network(packed)
    assert any(path in str(error.value) for path in packed.layers)


@pytest.mark.parametrize("method", ["rtn", "q_diffusion"])
def test_symmetric_weights_fit_a_byte_less_their_zero_points(networks, method):
    """So that a graph needs no sum over the input to take zero points off."""
    reach = {}
    for symmetric in (False, True):
        packed = packed_by(networks["transformer"], method, "w8a8", symmetric_weights=symmetric)
        layers = plain_network(packed).layers.values()
        parts = [(layer.weight_codes.int().flatten(1), layer.weight_zero.int()) for layer in layers]
        reach[symmetric] = max(int((codes - zero.view(-1, 1)).max()) for codes, zero in parts)
    assert reach[False] > 127 >= reach[True] > 100
