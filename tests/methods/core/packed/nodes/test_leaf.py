import copy
import dataclasses
import pickle
import random
import threading

import pytest
import torch

from quantarena.methods.core.kernels import native, oracle
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

WIDTHS = [(w, a) for w in range(1, 9) for a in (4, 8)] + [(4, 1), (8, 2), (3, 6)]

CONVOLUTIONS = {
    "3x3": ((20, 20, 3, 3), (2, 20, 9, 8), {"padding": (1, 1)}),
    "3x3 of 3 channels": ((18, 3, 3, 3), (2, 3, 8, 8), {"padding": (1, 1)}),
    "3x3 stride 2": ((17, 8, 3, 3), (1, 8, 16, 16), {"padding": (1, 1), "stride": (2, 2)}),
    "3x3 stride 2, no padding": ((4, 6, 3, 3), (2, 6, 17, 13), {"stride": (2, 2)}),
    "3x3 on 4x4": ((16, 32, 3, 3), (3, 32, 4, 4), {"padding": (1, 1)}),
    "3x3 on 1x1": ((16, 32, 3, 3), (3, 32, 1, 1), {"padding": (1, 1)}),
    "3x3 on 2x12": ((9, 16, 3, 3), (2, 16, 2, 12), {"padding": (1, 1)}),
    "3x3 on 20x20": ((9, 4, 3, 3), (3, 4, 20, 20), {"padding": (1, 1)}),
    "1x1": ((33, 12, 1, 1), (3, 12, 5, 7), {}),
    "1x1 stride 2": ((8, 12, 1, 1), (2, 12, 6, 9), {"stride": (2, 2)}),
    "1x1 with padding": ((8, 12, 1, 1), (2, 12, 6, 5), {"padding": (1, 2)}),
    "4x4 stride 4": ((24, 3, 4, 4), (2, 3, 16, 16), {"stride": (4, 4)}),
    "1x3": ((8, 8, 1, 3), (2, 8, 1, 30), {"padding": (0, 1)}),
    "5x2 odd": ((7, 5, 5, 2), (1, 5, 11, 10), {"stride": (3, 1), "padding": (2, 1)}),
    "dilated": ((8, 8, 3, 3), (1, 8, 12, 12), {"padding": (2, 3), "dilation": (2, 3)}),
    "groups": ((12, 4, 3, 3), (2, 12, 8, 8), {"padding": (1, 1), "groups": 3}),
    "depthwise": ((10, 1, 3, 3), (2, 10, 8, 8), {"padding": (1, 1), "groups": 10}),
    "all at once": (
        (8, 6, 3, 2),
        (1, 12, 13, 12),
        {"stride": (1, 3), "padding": (2, 1), "dilation": (2, 1), "groups": 2},
    ),
}


def check(layer, module, x, step=0):
    """Accumulators bit for bit, outputs to rounding, memory format kept."""
    want, got = oracle.accumulators(layer, x, step), module.accumulators(x, step)
    assert torch.equal(want, got.long())
    y, z = oracle.forward(layer, x, step), module(x, step)
    if y.numel():
        assert float((y - z).abs().max()) <= 1e-5 * float(y.abs().max())
    assert y.shape == z.shape
    assert y.stride() == z.stride()


@pytest.mark.parametrize(("weight_bits", "act_bits"), WIDTHS)
def test_every_width_pair_is_exact(make_layer, make_input, library, weight_bits, act_bits):
    for seed, codes in enumerate(("normal", "uniform", "low", "high", "extreme")):
        for asymmetric in (False, True):
            settings = {"seed": seed, "codes": codes, "asymmetric": asymmetric}
            layer = make_layer((35, 70), weight_bits, act_bits, **settings)
            check(layer, PackedLayer(layer, library), make_input((13, 70), seed, codes != "normal"))
            layer = make_layer((20, 12, 3, 3), weight_bits, act_bits, padding=(1, 1), **settings)
            x = make_input((1, 12, 5, 9), seed, codes != "normal")
            check(layer, PackedLayer(layer, library), x)
            check(layer, PackedLayer(layer, library), x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
def test_long_sums_of_extreme_codes_do_not_overflow(make_layer, library, weight_bits, sign):
    for codes in ("low", "high", "extreme"):
        layer = make_layer((17, 2900), weight_bits, 8, codes=codes)
        check(layer, PackedLayer(layer, library), torch.full((3, 2900), sign * 1e9))


@pytest.mark.parametrize("bits", [1, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("sign", [1, -1])
def test_zero_points_far_outside_of_the_codes(make_layer, make_input, library, bits, sign):
    """Few rows and many, channels that fill no step, both memory formats."""
    far = {"weight_zero": torch.full((20,), sign << bits, dtype=torch.int32)}
    for inputs in (70, 72, 3):
        layer = dataclasses.replace(make_layer((20, inputs), bits, 8, codes="extreme"), **far)
        for rows in (1, 5, 40):
            check(layer, PackedLayer(layer, library), make_input((rows, inputs), rows, True))
        layer = dataclasses.replace(make_layer((20, inputs, 3, 3), bits, 8, padding=(1, 1)), **far)
        x = make_input((2, inputs, 7, 9))
        check(layer, PackedLayer(layer, library), x)
        check(layer, PackedLayer(layer, library), x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (2, 4)])
def test_convolutions_are_exact_in_both_formats(make_layer, make_input, library, name, bits):
    shape, size, options = CONVOLUTIONS[name]
    for asymmetric in (False, True):
        layer = make_layer(shape, *bits, asymmetric=asymmetric, multiplier=asymmetric, **options)
        module = PackedLayer(layer, library)
        x = make_input(size)
        check(layer, module, x)
        check(layer, module, x.to(memory_format=torch.channels_last))


def test_convolution_in_column_blocks_is_exact(make_layer, make_input, library):
    for options in ({"padding": (1, 1)}, {"padding": (1, 1), "stride": (2, 2)}):
        layer = make_layer((6, 96, 3, 3), 4, 8, asymmetric=True, **options)
        check(layer, PackedLayer(layer, library), make_input((1, 96, 5, 70)))
        check(layer, PackedLayer(layer, library), make_input((1, 96, 40, 48)))


@pytest.mark.parametrize("size", [(70,), (1, 70), (0, 70), (2, 0, 70), (2, 3, 5, 70)])
def test_linear_takes_any_leading_dimensions(make_layer, make_input, library, size):
    layer = make_layer((35, 70), 4, 8)
    module = PackedLayer(layer, library)
    check(layer, module, make_input(size))
    assert module(make_input(size)).shape == (*size[:-1], 35)


def test_empty_batch_of_images(make_layer, library):
    module = PackedLayer(make_layer((8, 4, 3, 3), 4, 8, padding=(1, 1)), library)
    assert module(torch.empty(0, 4, 5, 5)).shape == (0, 8, 5, 5)


def test_strided_and_misaligned_inputs(make_layer, make_input, library):
    layer = make_layer((20, 33), 4, 8)
    module = PackedLayer(layer, library)
    wide = make_input((6, 5, 70))
    for x in (wide[..., 3:36], wide[::2, :, 1:34], wide.transpose(0, 1)[..., :33]):
        check(layer, module, x)
    check(layer, module, make_input((33, 9)).t())
    check(layer, module, wide[0, 0, :33].expand(4, 33))
    flat = make_input((1 + 7 * 33,))
    check(layer, module, flat[1:].view(7, 33))

    layer = make_layer((9, 6, 3, 3), 4, 8, padding=(1, 1))
    module = PackedLayer(layer, library)
    image = make_input((2, 13, 9, 11))
    assert torch.equal(module(image[:, 2:8]), module(image[:, 2:8].contiguous()))
    last = image.to(memory_format=torch.channels_last)
    got = module(last[:, 2:8])
    assert torch.equal(got, module(image[:, 2:8].contiguous()))
    assert got.is_contiguous(memory_format=torch.channels_last)
    for odd in (image[:, 2:8, :, ::2], image[:, 2:8].transpose(2, 3), image[:, 2:8, 1:, 2:7]):
        assert torch.equal(module(odd), module(odd.contiguous()))


@pytest.mark.parametrize("seed", range(6))
def test_any_view_of_any_size_is_computed(make_layer, library, seed):
    """Every second channel, transposed, expanded, empty: each is what its own copy gives."""
    make = random.Random(seed)
    layers = [make_layer((9, 6), 4, 8), make_layer((9, 6, 3, 3), 4, 8, padding=(1, 1))]
    for layer in layers:
        module, dims = PackedLayer(layer, library), layer.weight_codes.dim()
        channels = 1 if dims == 4 else dims - 1
        for _ in range(60):
            size = [make.choice((0, 1, 2, 5)) for _ in range(dims)]
            size[channels] = 6
            if dims == 4:  # an image has pixels
                size[2:] = [max(1, n) for n in size[2:]]
            order, step = make.sample(range(dims), dims), [make.randint(1, 3) for _ in size]
            whole = torch.randn([size[d] * step[d] for d in order]).permute(
                [order.index(d) for d in range(dims)]
            )
            x = whole[tuple(slice(None, None, s) for s in step)]
            if len(x) and make.random() < 0.2:
                x = x[:1].expand(4, *x.shape[1:])
            assert list(x.shape[1:]) == size[1:]
            got, want = module(x), module(torch.empty(x.shape).copy_(x))
            assert torch.equal(got, want)
            assert torch.equal(module.accumulators(x).long(), oracle.accumulators(layer, x))


def test_not_a_number_gives_code_zero_and_infinities_saturate(make_layer, library):
    layer = make_layer((5, 40), 4, 8)
    x = torch.zeros(4, 40)
    x[0], x[1], x[2] = torch.nan, torch.inf, -torch.inf
    check(layer, PackedLayer(layer, library), x)
    assert torch.equal(oracle.quantize(layer, x)[0], oracle.quantize(layer, x)[2])
    assert int(oracle.quantize(layer, x)[1].min()) == 255


def test_rounding_is_half_to_even(make_layer, library):
    layer = dataclasses.replace(
        make_layer((5, 64), 4, 8), act_scale=torch.tensor(0.5), act_zero=torch.tensor(9)
    )
    x = (torch.arange(-32, 32) * 0.25).reshape(1, 64)
    check(layer, PackedLayer(layer, library), x)
    assert oracle.quantize(layer, x)[0, 33:36].tolist() == [9, 10, 11]  # 0.5, 1.0, 1.5


def test_step_table_selects_without_repacking(make_layer, make_input, library):
    layer = make_layer((20, 33), 4, 8, steps=5, asymmetric=True)
    module = PackedLayer(layer, library)
    x, before = make_input((6, 33)), module.panels.data_ptr()
    for step in range(5):
        check(layer, module, x, step)
        module.set_step(step)
        assert torch.equal(module(x), module(x, step))
    assert module.panels.data_ptr() == before
    for bad in (-1, 5):
        with pytest.raises(IndexError, match="not in the table"):
            module.set_step(bad)
        with pytest.raises(IndexError, match="not in the table"):
            module(x, bad)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 34), "does not fit"),
        (torch.zeros(3, 33, dtype=torch.float64), "float32"),
        (torch.zeros(3, 33, device="meta"), "float32 on the CPU"),
    ],
)
def test_bad_inputs_are_refused(make_layer, x, message):
    with pytest.raises(ValueError, match=message):
        PackedLayer(make_layer((20, 33), 4, 8))(x)


def test_image_smaller_than_the_kernel_is_refused(make_layer):
    with pytest.raises(ValueError, match="smaller than the kernel"):
        PackedLayer(make_layer((8, 4, 3, 3), 4, 8))(torch.zeros(1, 4, 2, 5))


def test_number_of_threads_does_not_matter(make_layer, make_input, library):
    linear = PackedLayer(make_layer((200, 300), 4, 8), library)
    conv = PackedLayer(make_layer((40, 36, 3, 3), 8, 8, padding=(1, 1)), library)
    rows, images = make_input((700, 300)), make_input((3, 36, 24, 24))
    single = linear(rows), conv(images), linear(rows[:2])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for one, many in zip(single, (linear(rows), conv(images), linear(rows[:2])), strict=True):
            assert torch.equal(one, many)


def test_python_threads_share_a_layer(make_layer, make_input, library):
    linear = PackedLayer(make_layer((64, 96), 4, 8, steps=2), library)
    conv = PackedLayer(make_layer((24, 12, 3, 3), 4, 8, padding=(1, 1)), library)
    rows, images = make_input((100, 96)), make_input((2, 12, 16, 16))
    want = [linear(rows, 0), linear(rows, 1), conv(images)]
    wrong = []

    def work():
        for _ in range(30):
            got = [linear(rows, 0), linear(rows, 1), conv(images)]
            wrong.extend(1 for a, b in zip(want, got, strict=True) if not torch.equal(a, b))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_read_back_and_bytes_are_what_the_bits_promise(make_layer, library, bits):
    layer = make_layer((64, 64, 3, 3), bits, 8, codes="uniform", padding=(1, 1))
    module = PackedLayer(layer, library)
    assert torch.equal(module.integer_layer().weight_codes, layer.weight_codes)
    assert module.weight_bits_observed == bits
    assert module.panels.numel() == 64 * 64 * 9 * bits // 8
    promised = module.panels.numel() + 64 * (4 + 4)  # codes, scales, bias
    assert module.packed_bytes <= 1.1 * promised
    floats = [b for b in module.buffers() if b.is_floating_point()]
    assert sum(b.numel() for b in floats) == 2 * 64 + 1


def test_state_is_canonical_and_loads_on_any_backend(make_layer, make_input):
    layer = make_layer((20, 12, 3, 3), 3, 8, asymmetric=True, multiplier=True, padding=(1, 1))
    x = make_input((2, 12, 8, 8))
    names = [*native.load().status.available, "reference"]
    modules = [PackedLayer(layer, native.load(name)) for name in names]
    state = modules[0].state_dict()
    assert state["codes"].numel() == -(-20 * 12 * 9 * 3 // 8)
    for module, name in zip(modules, names, strict=True):
        assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
        fresh = PackedLayer.from_metadata(module.metadata, native.load(name))
        assert not torch.equal(fresh(x), module(x))
        fresh.load_state_dict(state)
        assert torch.equal(fresh(x), module(x))


def test_state_with_wrong_entries_is_refused(make_layer):
    module = PackedLayer(make_layer((20, 33), 4, 8))
    state = module.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({k: v for k, v in state.items() if k != "codes"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        module.load_state_dict({**state, "extra": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="need 330 uint8"):
        module.load_state_dict({**state, "codes": state["codes"][:-1]})


def test_copies_and_conversions_keep_working(make_layer, make_input):
    module = PackedLayer(make_layer((20, 33), 4, 8))
    x = make_input((5, 33))
    want = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.half()):
        assert torch.equal(other(x), want)


def test_reference_backend_answers_alike(make_layer, make_input):
    layer = make_layer((20, 12, 3, 3), 4, 8, asymmetric=True, padding=(1, 1))
    module = PackedLayer(layer, native.load("reference"))
    assert module.backend == "reference"
    for x in (
        make_input((2, 12, 8, 8)),
        make_input((2, 12, 8, 8)).to(memory_format=torch.channels_last),
    ):
        check(layer, module, x)


def test_repacking_keeps_the_numbers_or_refuses(make_layer, make_input, library):
    """Units that have byte products alone refuse pairs, and the layer runs as before."""
    layer = make_layer((20, 33), 4, 8, steps=3, asymmetric=True)
    module, x = PackedLayer(layer, library), make_input((6, 33))
    before = module._pair
    if library.pairs:
        module.repack(True)
    else:
        with pytest.raises(ValueError, match="have no 16-bit products"):
            module.repack(True)
        assert module._pair == before
    for step in range(3):
        check(layer, module, x, step)
    module.repack(False)
    check(layer, module, x, 2)


@pytest.mark.parametrize("name", native.load().status.available)
def test_a_layer_in_pairs_comes_back_on_kernels_without_them(
    make_layer, make_input, monkeypatch, name
):
    layer, x = make_layer((20, 33), 4, 8), make_input((6, 33))
    module = PackedLayer(layer, native.load("scalar"))
    module.repack(True)
    monkeypatch.setattr(native, "library", lambda: native.load(name))
    check(layer, pickle.loads(pickle.dumps(module)), x)
