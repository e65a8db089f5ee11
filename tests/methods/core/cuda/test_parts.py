"""What the CUDA backend does on the host: packing, tile choice, capture.  No kernel runs here."""

import os
import subprocess
import sys

import pytest
import torch

from quantarena.methods.core.clock import CallClock
from quantarena.methods.core.cuda import device, packing, tuning
from quantarena.methods.core.cuda.step_graph import CudaRecorder, StepGraph
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.kernels import formats


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("depth", [1, 5, 64, 320, 333])
def test_rows_read_back(bits, depth):
    low, high = formats.code_range(bits)
    codes = torch.randint(low, high + 1, (7, depth), dtype=torch.int8)
    rows = packing.pack_rows(codes, bits)
    length, count = packing.segment_length(depth, bits), packing.segments(bits)
    assert rows.shape == (7, bits * count * length // 8)
    assert torch.equal(packing.unpack_rows(rows, bits, depth), codes)
    padding = packing.unpack_rows(rows, bits, count * length)[:, depth:]
    assert not padding.any()


def test_a_byte_holds_one_place_of_every_segment():
    codes = torch.zeros(1, 128, dtype=torch.int8)
    codes[0, 5], codes[0, 64 + 5] = 3, -1
    row = packing.pack_rows(codes, 4)[0]
    assert row[5] == 3 | (15 << 4)
    assert int((row != 0).sum()) == 1
    three = torch.zeros(1, 256, dtype=torch.int8)
    three[0, 32 * 6 + 2] = -3  # 101 in binary: segment 6, high plane 10, low plane 1
    row = packing.pack_rows(three, 3)[0]
    assert row.nonzero().flatten().tolist() == [2, 64 + 2]  # run 0 of the high plane, low plane
    assert row[2] == 0b10 << 6
    assert row[66] == 1 << 6


@pytest.mark.parametrize("bits", range(1, 9))
def test_padding_is_small_and_aligned(bits):
    for depth in (320, 576, 640, 1280, 2880, 11520):
        length = packing.segment_length(depth, bits)
        assert length % 4 == 0
        assert length * packing.segments(bits) <= 1.05 * depth
        assert length % 16 == 0 or depth < 1280  # deep layers get the widest loads


def test_weights_turn_to_depth_order_and_back():
    codes = torch.arange(2 * 3 * 2 * 2, dtype=torch.int8).view(2, 3, 2, 2)
    rows = packing.depth_major(codes)
    assert rows[0, :3].tolist() == [0, 4, 8]  # the channels of the first tap
    assert torch.equal(packing.weight_shaped(rows, (2, 3, 2, 2)), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_tiles_are_chosen_by_shape(bits):
    small, large = tuning.default(1, 1280, bits), tuning.default(8192, 8192, bits, 80)
    assert small.rows < large.rows
    assert len(set(tuning.candidates(bits))) == len(tuning.candidates(bits)) >= 6
    assert all(config.depth >= 32 for config in [small, large, *tuning.candidates(bits)])


def test_the_fastest_configuration_is_kept(monkeypatch):
    monkeypatch.setattr(tuning, "TUNED", {})
    configs = tuning.candidates(8)
    times = {config: 1.0 + i for i, config in enumerate(reversed(configs))}
    best = tuning.tune((64, 64, 64, 8), times.__getitem__, configs)
    assert best is configs[-1]
    assert tuning.choose(64, 64, 64, 8) is best
    assert tuning.choose(64, 64, 65, 8) == tuning.default(64, 64, 8)


def replaying(run):
    """Captures as a graph does: one output tensor that each replay rewrites."""
    output = run()
    replaying.captures += 1
    return (lambda: output["y"].copy_(run()["y"])), output


@pytest.fixture
def record():
    replaying.captures = 0
    return replaying


def test_graph_replays_with_new_values_and_copies_its_outputs(record):
    graph = StepGraph(lambda x, *, scale: {"y": x * scale["by"]}, "cpu", record=record)
    x, by = torch.ones(3), torch.tensor(2.0)
    first = graph(x, scale={"by": by})["y"]
    second = graph(x + 4, scale={"by": by + 1})["y"]
    assert (first.tolist(), second.tolist()) == ([2.0] * 3, [15.0] * 3)
    assert (len(graph), record.captures) == (1, 1)


def test_graph_captured_in_inference_mode_replays_outside(record):
    graph = StepGraph(lambda x: {"y": x + 1}, "cpu", record=record)
    with torch.inference_mode():
        assert graph(torch.zeros(2))["y"].tolist() == [1, 1]
    assert graph(torch.ones(2))["y"].tolist() == [2, 2]
    assert record.captures == 1


def test_another_shape_type_constant_or_call_makes_another_graph(record):
    clock = CallClock()
    offset = [10.0, 20.0]
    graph = StepGraph(
        lambda x, n: {"y": x * n + (offset[clock.index] if clock.is_set else 0)},
        "cpu",
        clock=clock,
        limit=6,
        record=record,
    )
    x = torch.ones(2)
    for args, want in (((x, 1), 1), ((x, 3), 3), ((x.double(), 3), 3), ((x.repeat(2), 3), 3)):
        assert graph(*args)["y"].tolist() == [want] * len(args[0])
    for call in (0, 1, 0):
        with clock.at(call):
            assert graph(x, 3)["y"].tolist() == [3 + offset[call]] * 2
    assert len(graph) == 6
    with pytest.raises(Unsupported, match="more than 6 different calls"):
        graph(x, 4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_graph_and_status_say_so():
    with pytest.raises(Unsupported, match="needs a CUDA device"):
        StepGraph(lambda x: x)
    assert device.status() == device.CudaStatus(None, None, "no CUDA device")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graph_equals_the_step():
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).cuda()
    graph = StepGraph(network)
    for _ in range(3):
        x = torch.randn(4, 8, device="cuda")
        assert torch.equal(graph(x), network(x).detach())
    assert len(graph) == 1
    with pytest.raises(Unsupported, match="read values back"):
        CudaRecorder(torch.device("cuda"))(lambda: torch.ones(3, device="cuda").sum().item())


def test_the_interpreter_is_asked_for_only_inside(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(device, "status", lambda: device.CudaStatus(None, None, "no CUDA device"))
    with device.interpreted_without_gpu():
        assert os.environ["TRITON_INTERPRET"] == "1"
    assert "TRITON_INTERPRET" not in os.environ
    monkeypatch.setattr(device, "status", lambda: device.CudaStatus("a GPU", (9, 0), ""))
    with device.interpreted_without_gpu():
        assert "TRITON_INTERPRET" not in os.environ


AOT = """
from quantarena.methods.core.cuda import aot, tuning
def vars_of(made):
    return made.name, made.arch, made.integer_products, made.spills, made.shared
print(*vars_of(aot.compile_quantize(90, channels_last=False)), sep="|")
for arch, widths in ((90, (8, 3)), (80, (8, 4, 3)), (89, (5,))):
    for bits in widths:
        config = tuning.default(4096, 4096, bits, arch)
        made = aot.compile_multiply(arch, bits, config, windowed=True, asymmetric=True)
        print(*vars_of(made), sep="|")
print(*vars_of(aot.compile_multiply(80, 4, tuning.default(64, 64, 4, 80), ones=True)), sep="|")
"""
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Bytes of shared memory that one program can have, by compute capability times ten."""


@pytest.mark.slow
def test_kernels_compile_for_gpus_to_integer_products_without_spills(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed; torch's CUDA wheels bring it")
    env = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AOT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [line.split("|") for line in done.stdout.splitlines()]
    assert len(made) == 8
    for name, arch, products, spills, shared in made:
        assert (int(products) > 0) == (not name.startswith("quantize"))
        assert int(spills) <= 32, name
        assert int(shared) <= SHARED[int(arch)], name
