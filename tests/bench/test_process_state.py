import contextlib
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from quantarena.bench.process_state import process_state


def rude(folder):
    """A method that leaves its mark on everything a process has one of."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    os.environ["QUANTARENA_TEST_NEW"] = "1"
    os.environ["QUANTARENA_TEST_OLD"] = "changed"
    del os.environ["QUANTARENA_TEST_GONE"]


def state():
    return {
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "filters": list(warnings.filters),
        "folder": Path.cwd(),
        "environment": dict(os.environ),
    }


@pytest.fixture(autouse=True)
def marks(monkeypatch):
    monkeypatch.setenv("QUANTARENA_TEST_OLD", "before")
    monkeypatch.setenv("QUANTARENA_TEST_GONE", "before")


@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt])
def test_a_method_leaves_nothing_behind(tmp_path, failure):
    before, changed = state(), {}
    with pytest.raises(failure) if failure else contextlib.nullcontext():  # noqa: SIM117
        with process_state():
            rude(tmp_path)
            changed = state()
            if failure is not None:
                raise failure
    assert state() == before
    assert all(changed[name] != before[name] for name in before)


def test_a_cell_starts_in_fp32_on_its_threads():
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        with process_state(threads + 1), torch.no_grad():
            assert torch.get_num_threads() == threads + 1
            assert torch.get_default_dtype() is torch.float32
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_it_decorates_a_stage(tmp_path):
    @process_state(1)
    def stage(folder):
        rude(folder)
        return torch.ones(1).dtype

    before = state()
    assert stage(tmp_path) is torch.float64
    assert stage(tmp_path) is torch.float64
    assert state() == before


def test_a_deleted_working_directory_is_no_error(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with process_state():
        os.chdir(tmp_path)


def test_the_module_needs_no_torch():
    code = "import sys, quantarena.bench.process_state; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
