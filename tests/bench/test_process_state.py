import contextlib
import gc
import io
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from quantarena.bench.files import umask
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


def patched_everywhere():
    """Each kind of thing that a plug-in may replace or set, by name: how it is read and changed."""
    functional, tensor = torch.nn.functional, torch.Tensor
    return {
        "a function": (lambda: functional.linear, lambda: setattr(functional, "linear", None)),
        "a method": (
            lambda: torch.nn.Linear.forward,
            lambda: setattr(torch.nn.Linear, "forward", lambda self, x: x),
        ),
        "an inherited method": (lambda: tensor.add, lambda: setattr(tensor, "add", lambda *a: 0)),
        "numpy": (lambda: np.mean, lambda: setattr(np, "mean", lambda *a: 0)),
        "numpy errors": (np.geterr, lambda: np.seterr(all="raise")),
        "device": (torch.get_default_device, lambda: torch.set_default_device("meta")),
        "denormals": (
            lambda: float(torch.full((1,), 1e-38, device="cpu") * 0.5),
            lambda: torch.set_flush_denormal(True),
        ),
        "autocast": (
            lambda: torch.is_autocast_enabled("cpu"),
            lambda: torch.set_autocast_enabled("cpu", True),
        ),
        "precision": (
            torch.get_float32_matmul_precision,
            lambda: torch.set_float32_matmul_precision("medium"),
        ),
        "hooks": (
            lambda: len(torch.nn.modules.module._global_forward_hooks),
            lambda: torch.nn.modules.module.register_module_forward_hook(lambda *a: None),
        ),
        "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/nowhere")),
        "stdout": (lambda: sys.stdout, lambda: setattr(sys, "stdout", io.StringIO())),
        "umask": (umask, lambda: os.umask(0o077)),
        "collector": (gc.isenabled, gc.disable),
        "signals": (
            lambda: signal.getsignal(signal.SIGTERM),
            lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        ),
        "logging": (lambda: logging.root.level, lambda: logging.root.setLevel(1)),
    }


@pytest.mark.parametrize("name", patched_everywhere())
def test_what_a_plug_in_sets_or_replaces_is_put_back(name):
    read, change = patched_everywhere()[name]
    before = read()
    with process_state():
        change()
        assert read() != before
    assert read() == before


def test_what_cannot_be_undone_is_named():
    code = """
import torch
from quantarena.bench.files import umask
from quantarena.bench.process_state import lasting_changes, process_state
with process_state():
    torch.set_num_threads(2)
print(lasting_changes())
with process_state():
    torch.set_num_interop_threads(torch.get_num_interop_threads() + 3)
print(lasting_changes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nothing, change = done.stdout.splitlines()
    assert nothing == "()"
    assert "the number of torch's inter-op threads" in change
