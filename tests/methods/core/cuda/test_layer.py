"""The CUDA kernels against the oracle: on the GPU, or without one in Triton's interpreter."""

import copy
import dataclasses
import json
import pickle
import random

import pytest
import torch
from torch import Tensor, nn

from quantarena.methods.core.bits import Bits
from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.cuda.device import interpreted_without_gpu, status
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels import oracle
from quantarena.methods.core.kernels.formats import IntegerLayer
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.packed.nodes.row_ranges import RowScaledLayer, SampleScaledLayer
from quantarena.methods.core.packed.nodes.wrappers import MixedWidthLayer
from quantarena.methods.core.packed.pack import PackedModel, pack
from quantarena.methods.core.quantizers.activation import DynamicActQuantizer
from quantarena.methods.core.record.points import CalibrationSet
from quantarena.methods.info import Effort
from quantarena.methods.registry import entry

pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")
with interpreted_without_gpu():
    from quantarena.methods.core.cuda.layer import INTERPRETED, CudaPackedLayer
    from quantarena.methods.core.cuda.place import on_cuda
    from quantarena.methods.core.cuda.tuning import Config
    from quantarena.methods.timing import cuda as timing
    from quantarena.methods.timing.cases import Case

DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL = Config(rows=16, columns=32, depth=32, warps=4, stages=2)
WIDTHS = [(w, a) for w in range(1, 9) for a in (4, 8)] + [(4, 1), (8, 2), (3, 7)]
CONVOLUTIONS = {
    "3x3": ((20, 12, 3, 3), (2, 12, 5, 4), {"padding": (1, 1)}),
    "3x3 of 3 channels, stride 2": ((5, 3, 3, 3), (1, 3, 8, 7), {"stride": (2, 2)}),
    "3x3 on 1x1": ((9, 16, 3, 3), (3, 16, 1, 1), {"padding": (1, 1)}),
    "1x1": ((33, 12, 1, 1), (2, 12, 3, 5), {}),
    "1x1 stride 2, padding": ((8, 6, 1, 1), (1, 6, 6, 5), {"stride": (2, 2), "padding": (1, 2)}),
    "5x2 odd": ((7, 5, 5, 2), (1, 5, 8, 7), {"stride": (3, 1), "padding": (2, 1)}),
    "dilated": ((8, 4, 3, 3), (1, 4, 7, 9), {"padding": (2, 3), "dilation": (2, 3)}),
    "groups": ((12, 4, 3, 3), (1, 12, 4, 4), {"padding": (1, 1), "groups": 3}),
    "depthwise": ((4, 1, 3, 3), (1, 4, 3, 3), {"padding": (1, 1), "groups": 4}),
}


def cuda(layer: IntegerLayer, config: Config | None = SMALL) -> CudaPackedLayer:
    return CudaPackedLayer(layer, config).to(DEVICE)


def check(layer: IntegerLayer, module: nn.Module, x: Tensor, step: int = 0):
    """Accumulators bit for bit, outputs to rounding, memory format kept."""
    there = x.to(DEVICE)
    assert torch.equal(
        oracle.accumulators(layer, x, step), module.accumulators(there, step).cpu().long()
    )
    y, z = oracle.forward(layer, x, step), module(there, step).cpu()
    if y.numel():
        assert float((y - z).abs().max()) <= 1e-5 * float(y.abs().max())
    assert (y.shape, y.stride()) == (z.shape, z.stride())


@pytest.mark.parametrize(("weight_bits", "act_bits"), WIDTHS)
def test_every_width_pair_is_exact(make_layer, make_input, weight_bits, act_bits):
    for codes, extreme in (("uniform", False), ("extreme", True)):
        layer = make_layer((19, 70), weight_bits, act_bits, codes=codes, asymmetric=extreme)
        check(layer, cuda(layer), make_input((9, 70), extreme=extreme))
    layer = make_layer((6, 5, 3, 3), weight_bits, act_bits, asymmetric=True, padding=(1, 1))
    check(layer, cuda(layer), make_input((1, 5, 4, 3)))


@pytest.mark.parametrize("weight_bits", [3, 8])
def test_long_sums_of_extreme_codes_do_not_overflow(make_layer, weight_bits):
    deep = dataclasses.replace(SMALL, depth=2048 if INTERPRETED else 128)
    for codes, sign in (("low", 1.0), ("extreme", -1.0)):
        asymmetric = codes == "extreme"
        layer = make_layer((3, 300, 10, 10), weight_bits, 8, codes=codes, asymmetric=asymmetric)
        x = torch.full((1, 300, 10, 10), sign * 1e9)
        got = cuda(layer, deep).accumulators(x.to(DEVICE)).cpu()
        assert torch.equal(got.long(), oracle.accumulators(layer, x))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_exact_in_both_formats(make_layer, make_input, name):
    shape, size, options = CONVOLUTIONS[name]
    for bits, asymmetric in (((8, 8), False), ((4, 8), True)):
        layer = make_layer(shape, *bits, asymmetric=asymmetric, multiplier=asymmetric, **options)
        x = make_input(size)
        x = x.to(memory_format=torch.channels_last) if asymmetric else x
        check(layer, cuda(layer), x)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("depth", [1, 4, 31, 33, 128, 261])
def test_depths_that_fill_no_block(make_layer, make_input, bits, depth):
    layer = make_layer((33, depth), bits, 8, asymmetric=True)
    check(layer, cuda(layer), make_input((17, depth)))


def test_fuzzed_layers_and_tiles(make_layer, make_input):
    draw = random.Random(7)
    for seed in range(12):
        bits, act_bits = draw.randint(1, 8), draw.choice((4, 8))
        tile = Config(draw.choice((32, 64)), draw.choice((16, 32)), draw.choice((32, 64)), 4, 3)
        groups = draw.choice((1, 1, 2))
        settings = {
            "seed": seed,
            "codes": draw.choice(("normal", "uniform", "extreme")),
            "asymmetric": draw.random() < 0.5,
            "multiplier": draw.random() < 0.5,
            "bias": draw.random() < 0.5,
        }
        if draw.random() < 0.4:
            shape = (draw.randint(1, 40), draw.randint(1, 90))
            x = make_input((draw.randint(1, 40), shape[1]), seed)
        else:
            kernel = (draw.randint(1, 3), draw.randint(1, 3))
            shape = (groups * draw.randint(1, 9), draw.randint(1, 9), *kernel)
            settings |= {
                "groups": groups,
                "stride": (draw.randint(1, 3), draw.randint(1, 2)),
                "padding": (draw.randint(0, 2), draw.randint(0, 2)),
                "dilation": (draw.randint(1, 2), draw.randint(1, 2)),
            }
            size = (draw.randint(1, 2), shape[1] * groups, draw.randint(5, 7), draw.randint(5, 7))
            x = make_input(size, seed)
            if draw.random() < 0.5:
                x = x.to(memory_format=torch.channels_last)
        layer = make_layer(shape, bits, act_bits, **settings)
        check(layer, cuda(layer, tile), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_out(make_layer, make_input, dtype):
    for shape, size, options in (
        ((19, 40), (7, 40), {}),
        ((5, 8, 3, 3), (1, 8, 4, 5), {"padding": (1, 1)}),
    ):
        layer = make_layer(shape, 4, 8, asymmetric=True, **options)
        x = make_input(size).to(dtype)
        module = cuda(layer)
        got = module(x.to(DEVICE)).cpu()
        want = oracle.forward(layer, x.float())
        assert got.dtype == dtype
        assert torch.allclose(got.float(), want, rtol=torch.finfo(dtype).eps, atol=1e-5)
        total = module.accumulators(x.to(DEVICE)).cpu()
        assert torch.equal(total.long(), oracle.accumulators(layer, x.float()))


@pytest.mark.parametrize("size", [(33,), (0, 33), (2, 0, 33), (2, 3, 4, 33)])
def test_linear_takes_any_leading_dimensions(make_layer, make_input, size):
    layer = make_layer((5, 33), 4, 8)
    check(layer, cuda(layer), make_input(size))


def test_strided_inputs_are_read_in_place(make_layer, make_input):
    layer = make_layer((9, 33), 4, 8)
    module, wide = cuda(layer), make_input((6, 2, 70))
    for x in (
        wide[..., 3:36],
        wide[::2, :, 1:34],
        make_input((33, 9)).t(),
        wide[0, :, 66:].sum().expand(4, 33),
    ):
        check(layer, module, x)
    layer = make_layer((9, 6, 3, 3), 4, 8, padding=(1, 1))
    module, image = cuda(layer), make_input((2, 13, 4, 5))
    slices = image.to(memory_format=torch.channels_last)[:, 2:8]
    want = oracle.accumulators(layer, image[:, 2:8])
    for x in (image[:, 2:8], slices):
        assert torch.equal(module.accumulators(x.to(DEVICE)).cpu().long(), want)
    assert module(slices.to(DEVICE)).is_contiguous(memory_format=torch.channels_last)
    empty = torch.empty(0, 6, 4, 5, device=DEVICE)
    assert module(empty).shape == (0, 9, 4, 5)


def test_not_a_number_gives_code_zero_and_halves_round_to_even(make_layer):
    layer = dataclasses.replace(
        make_layer((5, 64), 4, 8), act_scale=torch.tensor(0.5), act_zero=torch.tensor(9)
    )
    x = (torch.arange(-32, 32) * 0.25).repeat(4, 1)
    x[1], x[2], x[3] = torch.nan, torch.inf, -torch.inf
    check(layer, cuda(layer), x)
    assert oracle.quantize(layer, x)[0, 33:36].tolist() == [9, 10, 11]  # 0.5, 1.0, 1.5


def test_step_table_selects_without_repacking(make_layer, make_input):
    layer = make_layer((9, 33), 4, 8, steps=3, asymmetric=True)
    module, x = cuda(layer), make_input((6, 33))
    before = module.weights.data_ptr()
    for step in range(3):
        check(layer, module, x, step)
    module.set_step(2)
    assert torch.equal(module(x.to(DEVICE)), module(x.to(DEVICE), 2))
    module.set_clock(CallClock())
    with module.clock.at(1):
        assert torch.equal(module(x.to(DEVICE)), module(x.to(DEVICE), 1))
    assert module.weights.data_ptr() == before
    with pytest.raises(IndexError, match="not in the table"):
        module(x.to(DEVICE), 3)


def test_add_to_adds_in_place_and_refuses_other_layouts(make_layer, make_input):
    layer = make_layer((9, 6, 3, 3), 4, 8, padding=(1, 1))
    module, x = cuda(layer), make_input((1, 6, 4, 5)).to(DEVICE)
    y = torch.ones(1, 9, 4, 5, device=DEVICE)
    assert module.add_to(y, x) is y
    assert torch.allclose(y, 1 + module(x), atol=1e-5)
    for bad in (y[:, :8], y.to(memory_format=torch.channels_last), y.double()):
        with pytest.raises(ValueError, match="cannot add"):
            module.add_to(bad, x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 34, device=DEVICE), r"\(3, 34\) does not fit"),
        (torch.zeros(3, 33, dtype=torch.float64, device=DEVICE), "float32, bfloat16"),
        (torch.zeros(3, 33, device="meta"), "take CUDA tensors"),
    ],
)
def test_bad_inputs_are_refused(make_layer, x, message):
    with pytest.raises(ValueError, match=message):
        cuda(make_layer((20, 33), 4, 8))(x)


def test_layers_with_unknown_parts_are_refused(make_layer):
    @dataclasses.dataclass(frozen=True, slots=True, eq=False)
    class Extended(IntegerLayer):
        group_scale: Tensor | None = None

    known = make_layer((5, 33), 4, 8)
    values = {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
    CudaPackedLayer(Extended(**values))
    with pytest.raises(Unsupported, match="group_scale"):
        CudaPackedLayer(Extended(**values, group_scale=torch.ones(1)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bytes_are_what_the_bits_promise(make_layer, bits):
    layer = make_layer((64, 64, 3, 3), bits, 8, codes="uniform", padding=(1, 1))
    module = cuda(layer)
    assert torch.equal(module.integer_layer().weight_codes, layer.weight_codes)
    assert module.weight_bits_observed == bits
    assert module.packed_bytes <= 1.1 * (64 * 64 * 9 * bits / 8 + 64 * (4 + 4))
    floats = [b for b in module.buffers() if b.is_floating_point()]
    assert sum(b.numel() for b in floats) == 2 * 64 + 2


def test_state_is_the_native_layers_and_loads_from_it(make_layer, make_input):
    layer = make_layer((10, 6, 3, 3), 3, 8, asymmetric=True, multiplier=True, padding=(1, 1))
    native, module = PackedLayer(layer), cuda(layer)
    state = native.state_dict()
    assert list(state) == list(module.state_dict())
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert module.describe() == native.describe()
    fresh = CudaPackedLayer.from_metadata(module.metadata).to(DEVICE)
    fresh.load_state_dict(state)
    x = make_input((1, 6, 4, 4)).to(DEVICE)
    assert fresh.weights.device.type == DEVICE
    assert torch.equal(fresh(x), module(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({k: v for k, v in state.items() if k != "codes"})


def test_copies_and_conversions_keep_working(make_layer, make_input):
    module = cuda(make_layer((20, 33), 4, 8))
    x = make_input((5, 33)).to(DEVICE)
    want = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), module.bfloat16()):
        assert torch.equal(other(x), want)
    assert module.weight_scale.dtype == torch.float32


def test_trees_run_on_cuda_leaves(make_layer, make_input):
    parts = [
        make_layer((8, n, 3, 3), b, 8, bias=n == 5, padding=(1, 1)) for n, b in ((5, 4), (3, 8))
    ]
    split = SplitPackedLayer(parts)
    mixed = MixedWidthLayer(
        [PackedLayer(make_layer((n, 8, 1, 1), n, 8)) for n in (2, 4)],
        torch.tensor([5, 0, 3, 1, 2, 4]),
    )
    network, x = nn.Sequential(split, mixed), make_input((2, 8, 4, 4))
    want = network(x)
    leaf = cuda(make_layer((4, 4), 8, 8))
    moved = on_cuda(nn.Sequential(network, nn.Flatten()), DEVICE)[0]
    leaves = [m for m in moved.modules() if isinstance(m, PackedLayer)]
    assert len(leaves) == 4
    assert all(isinstance(m, CudaPackedLayer) for m in leaves)
    assert torch.allclose(moved(x.to(DEVICE)).cpu(), want, rtol=0, atol=1e-5 * want.abs().max())
    assert on_cuda(leaf, DEVICE) is leaf


def test_leaves_below_ranges_found_at_run_time(make_layer, make_input):
    def unit(layer, zeros):
        return dataclasses.replace(layer, act_scale=torch.ones(zeros.shape), act_zero=zeros)

    rows = make_layer((3 * 6, 8, 1, 1), 4, 8, asymmetric=True, bias=False, groups=3)
    images = make_layer((6, 4, 3, 3), 4, 4, asymmetric=True, bias=False, padding=(1, 1))
    by_row = RowScaledLayer(
        PackedLayer(unit(rows, torch.tensor(0))), DynamicActQuantizer(8, group_size=8), None, None
    )
    by_sample = SampleScaledLayer(
        [PackedLayer(unit(images, torch.arange(16)))], DynamicActQuantizer(4), None, None
    )
    for node, x in ((by_row, make_input((2, 3, 24))), (by_sample, make_input((2, 4, 4, 4)))):
        moved = on_cuda(copy.deepcopy(node), DEVICE)
        assert any(isinstance(m, CudaPackedLayer) for m in moved.modules())
        want = node(x)
        limit = 1e-5 * float(want.abs().max())
        assert torch.allclose(moved(x.to(DEVICE)).cpu(), want, rtol=0, atol=limit)


def test_shared_leaves_stay_shared_and_keep_their_clock(make_layer):
    leaf = PackedLayer(make_layer((6, 6), 4, 8, steps=3))
    leaf.set_clock(CallClock())
    leaf.set_step(2)
    moved = on_cuda(nn.ModuleList([leaf, nn.Sequential(leaf)]), DEVICE)
    assert moved[0] is moved[1][0]
    assert moved[0].clock is leaf.clock
    assert moved[0]._step == 2


def test_a_whole_network_equals_its_native_twin(pixel):
    model = entry("rtn").method().run(pixel.context(Bits(4, 8), "paper", Effort(32, 0)))
    packed, points = pack(model), pixel.heldout.rows(slice(0, 1))
    network = on_cuda(copy.deepcopy(packed.module), DEVICE)
    assert sum(isinstance(m, CudaPackedLayer) for m in network.modules()) == len(packed.layers)
    batch = dataclasses.replace(
        points, sample=points.sample.to(DEVICE), timestep=points.timestep.to(DEVICE)
    )
    with torch.no_grad():
        want, got = points.call(packed.module), batch.call(network).cpu()
    assert torch.allclose(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


def timed(runs):
    """A clock that runs all, and says 2, 3, 4 ... seconds."""
    for run in runs.values():
        run()
    return {name: float(2 + i) for i, name in enumerate(runs)}


def test_benchmark_rows_hold_what_was_timed():
    case = Case("linear", (4, 32, 8))
    row = timing.measure(case, (4, 8), timed, DEVICE, tune=False)
    assert (row.seconds, row.product_seconds, row.bf16_seconds) == (2.0, 3.0, 4.0)
    assert row.ratio == 2.0
    assert row.tera_ops == pytest.approx(2e-12 * 4 * 32 * 8 / 3)
    found = json.loads(json.dumps(timing.document([row])))
    assert found["rows"][0]["ratio"] == 2.0
    assert found["rows"][0]["config"]["rows"] == row.config.rows
    assert "lin 4x32x8" in timing.line(row)


def test_benchmark_of_a_step_runs_all_contestants_on_the_same_batch(make_layer, make_input):
    class Network(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, sample, timestep, scale, return_dict):
            seen.append((sample.dtype, timestep.dtype, scale.dtype, scale[0].item()))
            return (self.conv(sample),)

    seen, clock = [], CallClock()
    leaf = PackedLayer(make_layer((3, 3, 1, 1), 4, 8, steps=5))
    leaf.set_clock(clock)
    network = Network(leaf)
    points = CalibrationSet(
        make_input((2, 3, 2, 2)),
        torch.tensor([7, 7]),
        torch.tensor([4, 4]),
        {"scale": torch.tensor([2.0, 3.0])},
    )
    row = timing.measure_step(
        "tiny",
        "w4a8",
        PackedModel(network, {"conv": leaf}, "packed", clock),
        Network(nn.Conv2d(3, 3, 1)),
        points,
        timed,
        DEVICE,
        lambda step, _: step,
        lambda step: step,
    )
    assert isinstance(network.conv, CudaPackedLayer)
    assert seen == [(torch.bfloat16, torch.int64, torch.bfloat16, 2.0)] * 3
    assert (row.seconds, row.bf16_seconds, row.bf16_eager_seconds) == (2.0, 3.0, 4.0)
    assert (row.batch, row.ratio) == (2, 1.5)


@pytest.mark.skipif(not status().reason, reason="there is a GPU to time")
def test_benchmark_without_a_gpu_says_so(capsys):
    assert timing.main([]) == 2
    assert "nothing to time: no CUDA device" in capsys.readouterr().err
