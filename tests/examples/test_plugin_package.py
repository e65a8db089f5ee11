"""The example package: installed without a network, found by its entry point, used by workers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CLI = "import sys; from quantarena.bench.cli.main import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the package into."""
    root = tmp_path_factory.mktemp("plugin")
    # pip builds inside of the sources
    shutil.copytree(EXAMPLES / "plugin-package", root / "source")
    target = root / "target"
    command = (*("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"), "--no-index")
    done = subprocess.run(
        [sys.executable, *command, "--target", str(target), str(root / "source")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def python(installed, *words, **options):
    path = os.pathsep.join([str(installed), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "RAY_worker_niceness": "0"}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def test_it_is_listed_with_its_origin(installed):
    done = python(installed, "-c", CLI, "ls", "methods", "--json")
    assert done.returncode == 0, done.stderr
    assert "weighted_ranges" in done.stdout


@pytest.mark.slow
def test_its_own_tests_pass(installed, tmp_path):
    tests = EXAMPLES / "plugin-package" / "tests"
    words = ("-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tests), str(tests))
    done = python(installed, *words, "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_it_runs_in_workers_of_ray(installed, pixel_folder, tmp_path):
    words = (
        *("run", "smoke", "--name", "mine", "--workload", str(pixel_folder)),
        *("--method", "rtn,weighted_ranges", "--bits", "w4a4", "--images", "4", "--batch", "2"),
        *("--calibration-images", "4", "--samples", "8", "--range-samples", "8"),
        *("--executor", "ray", "--workers", "2", "--results", str(tmp_path / "results"), "-q"),
    )
    done = python(installed, "-c", CLI, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        json.loads(path.read_text()) for path in (tmp_path / "results/mine/rows").glob("*.json")
    ]
    (row,) = [row for row in rows if row["cell"]["method"] == "weighted_ranges"]
    assert row["status"] == "ok"
    assert row["backend"] == "packed"
    assert row["method"]["origin"] == "package quantarena-weighted-ranges 0.1.0"
