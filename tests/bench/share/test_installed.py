"""Facts that this installation knows itself, and those that a row's own cell states."""

from dataclasses import replace

import pytest

from quantarena.bench.metrics.names import LPIPS
from quantarena.bench.schema import Device
from quantarena.bench.share.provenance import Standing
from quantarena.bench.share.verify import verify
from quantarena.bench.spec import Budget, Cell
from quantarena.bench.workloads import pipeline, registry
from quantarena.bench.workloads.sampling import Draw, draw_images, noise_sha256

BUDGET = Budget(images=4, batch=2, calibration_images=2, calibration_samples=8)
KEY = Cell("emoji-dit", "rtn", "w4a8", budget=BUDGET).key


def found(folder):
    return [str(problem) for problem in verify(folder, share=1.0).problems]


# ---- what this installation knows itself ------------------------------------------------------


def standing(submission):
    (one,) = [one for one in verify(submission, share=1.0).rows if one.row.key == KEY]
    return one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pipeline", "Nonsense"),
        ("scheduler", "EulerDiscreteScheduler"),
        ("reference", "mine"),
        ("noise_sha256", "1" * 64),
        ("frames", 4),
        ("lora", {"name": "mine"}),
    ],
)
def test_facts_of_a_shipped_workload(edit, submission, name, value):
    edit("rtn", "w4a8", lambda row: replace(row, workload=row.workload | {name: value}))
    assert any(f"its {name} is {str(value)[:20]}" in line for line in found(submission))


def elsewhere(row, **machine):
    facts = row.workload | {"noise_sha256": "1" * 64}
    return replace(row, workload=facts, machine=row.machine | machine)


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        ({"arch": "other"}, "another kind of processor"),
        ({"isa": []}, "another kind of processor"),
        ({"versions": {}}, "it is of quantarena None, here is"),
    ],
)
def test_noise_of_other_machines_is_self_reported(edit, submission, machine, line):
    edit("rtn", "w4a8", lambda row: elsewhere(row, **machine))
    assert standing(submission).standing is Standing.SELF_REPORTED
    assert any("noise_sha256" in text and line in text for text in standing(submission).doubts)


def test_equal_noise_of_another_version_is_verified(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, machine=row.machine | {"arch": "other"}))
    assert standing(submission).standing is Standing.VERIFIED


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        (LPIPS, {"extractor_sha256": "f" * 64}, f"the network of {LPIPS} is ffff"),
        (LPIPS, {"extractor_sha256": None}, f"the network of {LPIPS} is None"),
        ("psnr", {"reference": "mine"}, "psnr is against 'mine', here it is against 'fp'"),
    ],
)
def test_networks_and_references_of_this_package(edit, submission, name, change, line):
    def other(row):
        figures = (replace(m, **change) if m.name == name else m for m in row.measurements)
        return replace(row, measurements=tuple(figures))

    edit("rtn", "w4a8", other)
    assert any(line in text for text in found(submission))
    versions = {"versions": {"quantarena": "99.0"}}
    edit("rtn", "w4a8", lambda row: replace(other(row), machine=row.machine | versions))
    assert found(submission) == []
    assert standing(submission).standing is Standing.SELF_REPORTED


@pytest.mark.parametrize(
    "workload", ["cifar10-uncond", "emoji-t2i", "emoji-t2i?sampler=DPMSolverMultistep"]
)
def test_noise_without_drawing_is_that_of_a_draw(workload):
    info = registry.resolve(workload)
    loaded, draw = pipeline.load(info), Draw("evaluate", 3, 1, 1, 2)
    assert noise_sha256(loaded, info, draw) == draw_images(loaded, info, draw).noise_sha256


# ---- times and the cell's target ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"threads": 64}, "its times are of 64 threads, its target has 1"),
        ({"batch": 1}, "its times are of batches 1, its cell asks for 2"),
        ({"clock": "cuda_event"}, "the clock 'cuda_event', its target has perf_counter"),
    ],
)
def test_times_are_those_of_the_target(edit, submission, change, line):
    edit("rtn", "w4a8", lambda row: replace(row, latency=replace(row.latency, **change)))
    assert any(line in text for text in found(submission))


def test_times_of_further_batches_are_those_of_the_budget(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, latency_by_batch=(row.latency,)))
    assert any("of batches 2, 2, its cell asks for 2" in text for text in found(submission))
    edit("rtn", "w4a8", lambda row: replace(row, latency=None))
    assert any("times of further batches and none of its own" in line for line in found(submission))


def test_the_device_is_that_of_the_target(edit, submission):
    edit("rtn", "w4a8", lambda row: replace(row, device=Device("cpu", "Second CPU")))
    assert found(submission) == []
    edit("rtn", "w4a8", lambda row: replace(row, device=Device("cuda", "H200")))
    assert any("its device is cuda, its target cpu" in line for line in found(submission))
