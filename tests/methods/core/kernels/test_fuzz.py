"""Random layers on random views of inputs: integers as the oracle's, bit for bit, on every unit."""

import random
import time
from math import prod

import pytest
import torch

from quantarena.methods.core.kernels import formats, native, oracle
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.nodes.dense import packed_leaf
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

FEW, MANY = 100, 3000
DEEP = (21_931, 33_025, 65_000)
"""Documented limits of K at 8 bits: zero points anywhere, within the codes, and proven codes."""


def shape_of(make):
    """Shape of the codes, and settings of the layer."""
    if make.random() < 0.03:
        return (
            make.randint(1, 3),
            make.choice(DEEP) - make.choice((0, 0, make.randint(1, 50))),
        ), {}
    if make.random() < 0.35:
        return (make.randint(1, 70), make.randint(1, make.choice((20, 90, 400)))), {}
    groups = make.choice((1, 1, 1, 2, 3, make.randint(2, 40)))
    inputs = 1 if groups > 3 else make.randint(1, 40)  # many groups: a filter for each channel
    outputs = groups * make.randint(1, 3 if groups > 3 else 24)
    kernel = [make.choice((1, 1, 2, 3, 3, make.randint(1, 6))) for _ in range(2)]
    pairs = {
        "stride": (1, 4),
        "padding": (0, make.choice((2, 7))),
        "dilation": (1, make.choice((1, 3))),
    }
    geometry = {k: (make.randint(*v), make.randint(*v)) for k, v in pairs.items()}
    return (outputs, inputs, *kernel), {"groups": groups, **geometry}


def codes_of(make, shape, bits):
    low, high = formats.code_range(bits)
    match make.choice(("uniform", "uniform", "low", "high", "ends")):
        case "uniform":
            return torch.randint(low, high + 1, shape)
        case "ends":
            return torch.where(torch.rand(shape) < 0.5, low, high)
        case end:
            return torch.full(shape, low if end == "low" else high)


def zeros_of(make, rows, bits):
    """Zero points of weights: none, within the codes, at the ends that are allowed, or any."""
    low, high = formats.code_range(bits)
    match make.choice(("none", "inside", "ends", "any")):
        case "none":
            return torch.zeros(rows)
        case "inside":
            return torch.randint(low, high + 1, (rows,))
        case "ends":
            return torch.full((rows,), make.choice((-1, 1)) << bits)
    return torch.randint(-(1 << bits), (1 << bits) + 1, (rows,))


def random_layer(make):
    """A layer of any form; where no proof holds, other codes, and then fewer products."""
    shape, settings = shape_of(make)
    for attempt in range(100):
        bits, act_bits, steps = make.randint(1, 8), make.randint(1, 8), make.choice((0, 0, 3))
        if attempt > 8:
            shape = (shape[0], shape[1] // 2, *shape[2:])
        rows, top, table = shape[0], (1 << act_bits) - 1, (steps,) if steps else ()
        zero = make.choice((0, top, make.randint(0, top)))
        try:
            return IntegerLayer(
                kind="linear" if len(shape) == 2 else "conv2d",
                weight_codes=codes_of(make, shape, bits),
                weight_bits=bits,
                weight_scale=torch.rand(rows) * 0.1 + 0.01,
                weight_zero=zeros_of(make, rows, bits),
                act_bits=act_bits,
                act_scale=torch.rand(table) * 6 / top + 0.01,
                act_zero=torch.full(table, zero),
                in_mult=torch.rand(shape[1] * settings.get("groups", 1)) + 0.5
                if make.random() < 0.3
                else None,
                bias=torch.randn(rows) if make.random() < 0.5 else None,
                **settings,
            )
        except ValueError as error:
            if "split the input channels" not in str(error):  # the proof, and nothing else
                raise
    raise AssertionError("no layer has a proof")


def random_input(make, layer):
    """A contiguous, permuted, sliced or expanded tensor with values that saturate, or none."""
    if layer.kind == "linear":
        size = [make.choice((0, 1, 2, 5, 33)) for _ in range(make.randint(0, 3))]
        size = [make.randint(1, 3)] if layer.depth > 9000 else size
        size.append(layer.in_features)
    else:
        least = [
            max(1, dilation * (kernel - 1) + 1 - 2 * pad)
            for dilation, kernel, pad in zip(
                layer.dilation, layer.kernel_size, layer.padding, strict=True
            )
        ]
        size = [make.choice((0, 1, 1, 2, 3)), layer.in_features]
        size += [n + make.randint(0, make.choice((3, 20))) for n in least]
    order = list(range(len(size)))
    step, start = [1] * len(size), [0] * len(size)
    match make.choice(("plain", "last", "slice", "any", "any")):
        case "last" if len(size) == 4:
            order = [0, 2, 3, 1]
        case "slice":
            start = [make.randint(0, 2) for _ in size]
        case "any":
            make.shuffle(order)
            step = [make.randint(1, 2) for _ in size]
            start = [make.randint(0, 1) for _ in size]
    stored = torch.randn([size[d] * step[d] + start[d] + 1 for d in order]) * 3
    if make.random() < 0.3:
        stored = torch.where(stored > 0, *make.choice(((1e9, -1e9), (1e9, 1e9), (-1e9, -1e9))))
    elif make.random() < 0.3:
        places = torch.randint(stored.numel(), (5,))
        stored.view(-1)[places] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -0.0])
    view = stored.permute([order.index(d) for d in range(len(size))])
    view = view[tuple(slice(s, s + n * k, k) for s, n, k in zip(start, size, step, strict=True))]
    assert list(view.shape) == size
    if size[0] and len(size) > 1 and make.random() < 0.1:
        view = view[:1].expand(size)
    return view


def one_layer(seed, library):
    """A random layer on a random input; complains of the first difference."""
    make = random.Random(seed)
    torch.manual_seed(seed)
    layer = random_layer(make)
    module, x = PackedLayer(layer, library), random_input(make, layer)
    step = make.randrange(layer.steps)
    want = oracle.accumulators(layer, x, step)
    outputs = oracle.forward(layer, x, step)
    for leaf in {module, packed_leaf(layer, library)}:
        found = leaf.accumulators(x, step)
        assert torch.equal(found.long(), want), (seed, layer.metadata(), x.stride())
        y = leaf(x, step)
        assert y.shape == outputs.shape
        limit = 1e-5 * float(outputs.abs().max()) + 1e-6 if prod(y.shape) else 0.0
        assert not prod(y.shape) or float((y - outputs).abs().max()) <= limit, seed
    assert torch.equal(module.integer_layer().weight_codes, layer.weight_codes), seed


def test_random_layers_are_exact(library):
    for seed in range(FEW):
        one_layer(seed, library)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_random_layers_are_exact(library):
    """``pytest -s`` shows how many and how long."""
    started = time.monotonic()
    for seed in range(MANY):
        one_layer(10_000 + seed, library)
    seconds = time.monotonic() - started
    print(f"\n{library.status.isa}: {MANY} random layers exact, {seconds:.0f} s")


VECTOR = ("amx", "avx512wide", "avxvnni", "avx512vnni", "avx2")
"""Units of one processor family whose outputs must not tell which of them ran."""


def test_vector_units_give_the_same_floats():
    """The measurement that chooses a unit may choose another one tomorrow."""
    libraries = [native.load(n) for n in native.load().status.available if n in VECTOR]
    if len(libraries) < 2:
        pytest.skip("one vector unit")
    for seed in range(40):
        make = random.Random(seed)
        torch.manual_seed(seed)
        layer = random_layer(make)
        x = random_input(make, layer)
        first, *others = [PackedLayer(layer, library)(x) for library in libraries]
        assert all(torch.equal(first, other) for other in others), seed


@pytest.mark.slow
def test_random_layers_are_exact_on_emulated_tiles(emulated):
    for seed in range(4 * FEW):
        one_layer(seed, emulated)


def test_random_layers_reach_the_corners():
    """What the fuzzing promises to contain is in its first layers."""
    layers, inputs = [], []
    for seed in range(FEW):
        make = random.Random(seed)
        torch.manual_seed(seed)
        layers.append(random_layer(make))
        inputs.append(random_input(make, layers[-1]))
    assert {layer.weight_bits for layer in layers} == set(range(1, 9))
    assert {layer.act_bits for layer in layers} == set(range(1, 9))
    assert any(layer.groups == layer.in_features > 3 for layer in layers)
    assert any(max(layer.padding) >= max(layer.kernel_size) for layer in layers)
    assert any(max(layer.dilation) > 1 and max(layer.kernel_size) > 1 for layer in layers)
    assert any(max(layer.stride) > 1 for layer in layers)
    assert any(int(layer.weight_zero.abs().max()) == 1 << layer.weight_bits for layer in layers)
    assert any(layer.depth > DEEP[0] - 60 for layer in layers)
    assert {0, 1} <= {x.shape[0] for x in inputs}
    assert any(0 in x.stride() for x in inputs)
    assert any(not x.is_contiguous() for x in inputs)
    assert native.load().status.available or native.load().run is None
