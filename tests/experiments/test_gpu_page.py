"""The page that ``make gpu`` writes, from rows that a GPU would give."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from quantarena.bench.schema import Device, Latency, Measurement, Row, Status
from quantarena.bench.spec import Cell
from quantarena.bench.target import Target

ROOT = Path(__file__).parents[2]
GPU = Device("cuda", "Some Card", "550.1", 80 * 2**30, 1980.0, 2619.0, 700.0)
TIME = Latency(
    2.5, 0.1, 5, "bf16 eager", 2, 1.9, 2.1, 9, 16, 20, 1, "packed", "cuda_event", 3 * 2**20
)
ROW = Row(
    Cell("emoji-t2i", "rtn", "w4a8", target=Target("cuda")),
    Status.OK,
    backend="packed",
    measurements=(Measurement("lpips/alex-v0.1", 0.0123),),
    latency=TIME,
    device=GPU,
    machine={"versions": {"torch": "2.9"}},
)
KERNELS = {
    "rows": [
        {
            "name": "linear 4096",
            "bits": "w4a8",
            "bf16_seconds": 2e-4,
            "seconds": 1e-4,
            "ratio": 2.0,
        }
    ]
}


@pytest.fixture(scope="module")
def gpu_page():
    path = ROOT / "docs/experiments/gpu_page.py"
    spec = importlib.util.spec_from_file_location("gpu_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_the_card_and_every_number(gpu_page):
    text = gpu_page.page(
        [ROW, replace(ROW, status=Status.SKIPPED, reason="no", latency=None)], KERNELS
    )
    assert "Some Card, driver 550.1, 80 GiB, multiprocessors at most 1980 MHz" in text
    assert "power cap 700 W; torch 2.9" in text
    assert "| rtn | w4a8 | packed | 0.0123 | 2.5 ms | 2.00 of bf16 eager | 3 MiB |" in text
    assert "| rtn | w4a8 | skipped: no | 0.0123 | - | - | - |" in text
    assert "| linear 4096 | w4a8 | 200.0 | 100.0 | 2.00 |" in text


def test_rows_of_a_cpu_or_of_two_cards_are_refused(gpu_page):
    cpu = replace(ROW, device=Device("cpu", "Some Processor"))
    other = replace(ROW, device=replace(GPU, name="Another Card"))
    for rows in ([cpu], [ROW, other]):
        with pytest.raises(SystemExit, match="rows of one GPU are needed"):
            gpu_page.page(rows, KERNELS)


def test_the_verb_runs_tests_preset_kernels_and_page():
    recipe = (ROOT / "Makefile").read_text().split("\ngpu: ")[1].split("\n\n")[0]
    for part in (
        "pytest -m gpu",
        "pytest tests/methods/core/cuda",
        "run smoke --device cuda",
        "timing.cuda",
        "gpu_page.py",
    ):
        assert part in recipe
