"""Cells on other targets than the default: number formats, batches, runtimes, threads."""

import importlib.util
from dataclasses import replace

import pytest
import torch

from quantarena.bench.cache import StageCache
from quantarena.bench.schema import Status
from quantarena.bench.stages import latency, sequence
from quantarena.bench.target import Target


def quiet(stage, done, total):
    """Progress that nobody watches."""


def ran(cell, paths):
    row = sequence.run_cell(cell, paths, progress=quiet)
    assert row.status is Status.OK, row.reason
    return row


def lpips(row):
    return next(m.value for m in row.measurements if m.name.startswith("lpips"))


@pytest.fixture(scope="module")
def plain(cell, paths):
    return ran(cell, paths)


@pytest.fixture
def no_baseline(monkeypatch):
    """Speed-ups against fp32 alone: the other settings are tested elsewhere."""

    def fp32(workspace, recorded, cell, batch, cache, progress):
        denoiser = workspace.loaded.denoiser
        return latency.Baseline("fp32 eager", denoiser, denoiser, "fp32 eager", ("fp32 eager",))

    monkeypatch.setattr(sequence, "baseline", fp32)


def test_a_setting_that_fails_is_told_where_speedups_are(cell, paths, monkeypatch, tmp_path):
    """A library's error keeps a setting out of the choice; a reader must know."""

    def fails(*given):
        raise RuntimeError("no such primitive")

    monkeypatch.setattr(latency, "make_network", fails)
    elsewhere = replace(paths, cache=tmp_path)  # other tests have chosen already
    row = ran(replace(cell, method="fp", bits="fp"), elsewhere)
    timed = sequence.time_cell(row, elsewhere, progress=quiet)
    told = [line for line in timed.warnings if "no such primitive" in line]
    assert told
    assert all(line.startswith("latency: fp@") and "no candidate" in line for line in told)
    assert len(set(told)) == len(told)


def test_bfloat16_draws_other_images_of_the_same_model(cell, paths, plain):
    short = ran(replace(cell, target=Target(dtype="bf16")), paths)
    assert short.backend == plain.backend
    assert short.parity == plain.parity, "the packed layers are the same"
    bits = ("weight_bits", "packed_bytes")  # what stays unquantized takes half the bytes
    assert all(getattr(short.observed, n) < getattr(plain.observed, n) for n in bits)
    same = {name: getattr(plain.observed, name) for name in bits}
    assert replace(short.observed, **same) == plain.observed
    assert short.stage_keys["images"] != plain.stage_keys["images"]
    assert lpips(short) != lpips(plain)
    assert lpips(short) < lpips(plain) + 0.05
    fp = ran(replace(cell, method="fp", bits="fp", target=Target(dtype="bf16")), paths)
    assert lpips(fp) == 0, "full precision stays in fp32: others are compared with it"


def test_a_model_is_made_once_for_all_formats(cell, paths, plain):
    cache = StageCache(paths.cache)
    before = {path.name for path in cache.root.glob("quantize-*")}
    ran(replace(cell, target=Target(dtype="bf16", threads=2)), paths)
    assert {path.name for path in cache.root.glob("quantize-*")} == before


def test_steps_are_timed_at_each_batch_and_number_of_threads(cell, paths, no_baseline):
    asked = replace(
        cell,
        budget=replace(cell.budget, latency_batches=(1, 2)),
        target=Target(threads=2),
    )
    before = torch.get_num_threads()
    row = sequence.time_cell(ran(asked, paths), paths, progress=quiet)
    assert torch.get_num_threads() == before
    assert (row.latency.batch, row.latency.threads) == (4, 2)
    assert [time.batch for time in row.latency_by_batch] == [1, 2]
    assert {time.step.form for time in (row.latency, *row.latency_by_batch)} <= {
        "recorded",
        "eager",
    }
    assert all(time.threads == 2 and time.peak_bytes >= 0 for time in row.latency_by_batch)
    assert row.latency_by_batch[0].step_ms < row.latency.step_ms * 2
    assert row.device.kind == "cpu"


def needs(library):
    absent = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(absent, reason=f"{library} is absent")


OTHERS = [
    pytest.param("openvino", "fp32", marks=needs("openvino")),
    pytest.param("openvino", "bf16", marks=needs("openvino")),
    pytest.param("onnx", "fp32", marks=needs("onnxruntime")),
]


@pytest.mark.parametrize(("runtime", "dtype"), OTHERS)
def test_another_runtime_runs_the_same_codes(cell, paths, plain, no_baseline, runtime, dtype):
    asked = replace(cell, target=Target(dtype=dtype, runtime=runtime))
    row = ran(asked, paths)
    assert row.backend == f"{runtime} packed"
    assert row.parity == plain.parity
    assert row.observed == plain.observed
    assert abs(lpips(row) - lpips(plain)) < 0.05
    timed = sequence.time_cell(row, paths, progress=quiet)
    assert timed.latency.backend == f"{runtime} packed"
    assert ran(asked, paths).stage_keys == row.stage_keys


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param("openvino", marks=needs("openvino")),
        pytest.param("onnx", marks=needs("onnxruntime")),
    ],
)
def test_what_a_runtime_cannot_express_is_a_skipped_row(cell, paths, runtime):
    asked = replace(cell, method="svdquant", target=Target(runtime=runtime))
    row = sequence.run_cell(asked, paths, progress=quiet)
    assert row.status is Status.SKIPPED
    assert row.reason
