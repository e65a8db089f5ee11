"""The AMX unit: on emulated tiles, and on real ones where the processor has them."""

import random
import threading
from pathlib import Path

import pytest
import torch

from quantarena.methods.core.kernels import native, oracle
from quantarena.methods.core.kernels.formats import IntegerLayer, code_range
from quantarena.methods.core.packed.nodes.leaf import PackedLayer

ROWS = (1, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49)
OUTPUTS = (1, 15, 16, 17, 31, 32, 33, 48)
DEPTHS = (1, 3, 4, 60, 63, 64, 65, 68, 128, 288, 2880)


def layer_of(shape, *, bits=8, extreme=None, bias=True, zero=0, act_zero=100, **settings):
    low, high = code_range(bits)
    codes = torch.randint(low, high + 1, shape)
    if extreme is not None:
        codes = torch.full(shape, extreme)
    return IntegerLayer(
        kind="linear" if len(shape) == 2 else "conv2d",
        weight_codes=codes.to(torch.int8),
        weight_bits=bits,
        weight_scale=torch.rand(shape[0]) + 0.1,
        weight_zero=torch.full((shape[0],), zero, dtype=torch.int32),
        act_bits=8,
        act_scale=torch.tensor(0.04),
        act_zero=torch.tensor(act_zero),
        bias=torch.randn(shape[0]) if bias else None,
        **settings,
    )


def exact(layer, x, library):
    module = PackedLayer(layer, library)
    assert torch.equal(module.accumulators(x).long(), oracle.accumulators(layer, x))
    want = oracle.forward(layer, x)
    y = module(x)
    limit = 1e-5 * float(want.abs().max()) + 1e-6
    assert float((y - want).abs().max()) <= limit
    twice = module.add_to(y.clone(), x)
    assert float((twice - 2 * y).abs().max()) <= 2 * limit


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
def test_sizes_around_a_tile(emulated, depth):
    torch.manual_seed(depth)
    make = random.Random(depth)
    for rows, outputs in [*zip(ROWS, OUTPUTS * 2, strict=False), (49, 48), (33, 33)]:
        bits = make.randint(1, 8)
        zero = make.choice((0, 0, 1 << (bits - 1)))
        exact(layer_of((outputs, depth), bits=bits, zero=zero), torch.randn(rows, depth), emulated)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((1, 1), {}),
        ((4, 4), {}),
        ((8, 8), {}),
        ((8, 8), {"dilation": (2, 2), "padding": (2, 2)}),
        ((15, 17), {"stride": (2, 2)}),
        ((16, 16), {"groups": 2}),
        ((3, 40), {"dilation": (1, 3), "padding": (1, 3)}),
    ],
)
def test_images_whose_rows_are_no_tiles(emulated, size, settings, last):
    torch.manual_seed(0)
    settings = {"padding": (1, 1), **settings}
    for channels in (4, 20, 64, 96):
        x = torch.randn(2, channels, *size)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        shape = (40, channels // settings.get("groups", 1), 3, 3)
        exact(layer_of(shape, bits=4, **settings), x, emulated)


@pytest.mark.slow
@pytest.mark.parametrize("code", [-128, 127])
def test_the_largest_sums_do_not_wrap(emulated, code):
    depth = 65_000
    layer = layer_of((3, depth), extreme=code, bias=False, act_zero=0)
    x = torch.full((17, depth), 1e9)
    want = oracle.accumulators(layer, x)
    assert int(want.abs().max()) > 0.97 * 2**31
    module = PackedLayer(layer, emulated)
    assert torch.equal(module.accumulators(x).long(), want)
    with pytest.raises(ValueError, match="split the input channels"):
        layer_of((3, depth + 2000), extreme=code, bias=False, act_zero=0)


@pytest.mark.slow
def test_peaks_run_on_tiles(emulated):
    """Also those of the instruction alone; other forms are refused."""
    assert emulated.peak(0, 24, 64) == emulated.peak(0, 0, 64) == 0
    assert emulated.peak(1, 24, 64) != 0


@pytest.mark.slow
def test_layers_that_tiles_do_not_take(emulated):
    """The emulation leaves a seventh of the layers to the micro-kernels: 56 outputs."""
    torch.manual_seed(0)
    for bits in (3, 8):
        exact(layer_of((56, 96), bits=bits), torch.randn(21, 96), emulated)
        x = torch.randn(2, 20, 9, 9)
        exact(layer_of((56, 20, 3, 3), bits=bits, padding=(1, 1)), x, emulated)


@pytest.mark.slow
def test_a_refused_permission_leaves_the_unit_out(emulated_folder, run_python):
    code = f"""
from quantarena.methods.core.kernels import native
native.__file__ = {str(emulated_folder / "native.py")!r}
print(native.load().status.available, native.load().status.absent)
"""
    assert run_python(code) == "('amx', 'scalar') ()"
    told = run_python(code, QA_REFUSE_AMX="1")
    assert told == "('scalar',) ('amx: the system does not permit tile registers to this process',)"


@pytest.fixture
def amx():
    """The unit on the processor's own tiles."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "amx_int8" not in flags.read_text(encoding="utf-8").split():
        pytest.skip("this processor has no amx_int8 in /proc/cpuinfo")
    status = native.load().status
    if "amx" not in status.available:
        pytest.skip(f"the AMX unit cannot run: {status.absent or 'not compiled in'}")
    return native.load("amx")


def test_tiles_of_the_processor(amx):
    torch.manual_seed(0)
    for rows, outputs, depth in [(48, 320, 320), (1024, 160, 288), (7, 1280, 1280), (33, 48, 2880)]:
        for bits in (2, 4, 8):
            exact(layer_of((outputs, depth), bits=bits), torch.randn(rows, depth), amx)
    for size in (4, 8, 17, 32):
        x = torch.randn(2, 96, size, size)
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            exact(layer_of((64, 96, 3, 3), bits=4, padding=(1, 1)), image, amx)


def test_others_may_configure_tiles_between_two_calls(amx):
    """torch's bfloat16 products run on tiles of their own, in the same threads."""
    torch.manual_seed(0)
    layer = layer_of((320, 320))
    module, x = PackedLayer(layer, amx), torch.randn(256, 320)
    want = module.accumulators(x)
    other, weight = torch.randn(256, 256).bfloat16(), torch.randn(256, 256).bfloat16()
    product = torch.nn.functional.linear(other, weight)
    wrong = []

    def call():
        for _ in range(20):
            mine = torch.nn.functional.linear(other, weight)
            if not (torch.equal(module.accumulators(x), want) and torch.equal(mine, product)):
                wrong.append(1)

    call()
    team = [threading.Thread(target=call) for _ in range(4)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert not wrong
