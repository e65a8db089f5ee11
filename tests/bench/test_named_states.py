"""Every named state is put back, or named; every replaced function is put back."""

import builtins
import contextlib
import decimal
import gc
import io
import json
import locale
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
import torch

from quantarena.bench.process_state import inherited_changes, lasting_changes, process_state
from quantarena.bench.process_state.python_states import python_states
from quantarena.bench.process_state.states import UNREADABLE, State, restore, values
from quantarena.bench.process_state.torch_states import torch_states

STATES = {state.name: state for state in (*python_states(), *torch_states())}
FOR_GOOD = {
    "the niceness": "os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 1)",
    "the limit RLIMIT_NOFILE": "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))",
    "the limit RLIMIT_FSIZE": "resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))",
    "torch's inference mode": "mode = torch.inference_mode(); mode.__enter__()",
    "the number of torch's inter-op threads": "torch.set_num_interop_threads(7)",
}
"""What a process without rights cannot take back."""


def nothing(*_, **__):
    return None


def flip(read, write):
    return lambda: write(not read())


CHANGES = {
    "the trace function": lambda: sys.settrace(nothing),
    "the profile function": lambda: sys.setprofile(nothing),
    "the trace function of threads": lambda: threading.settrace(nothing),
    "the profile function of threads": lambda: threading.setprofile(nothing),
    "the standard input": lambda: setattr(sys, "stdin", io.StringIO()),
    "the standard output": lambda: setattr(sys, "stdout", io.StringIO()),
    "the standard error": lambda: setattr(sys, "stderr", io.StringIO()),
    "sys.excepthook": lambda: setattr(sys, "excepthook", nothing),
    "sys.unraisablehook": lambda: setattr(sys, "unraisablehook", nothing),
    "sys.displayhook": lambda: setattr(sys, "displayhook", nothing),
    "threading.excepthook": lambda: setattr(threading, "excepthook", nothing),
    "the search path": lambda: setattr(sys, "path", ["/nowhere", *sys.path]),
    "the import finders": lambda: sys.meta_path.insert(0, nothing),
    "the path hooks": lambda: setattr(sys, "path_hooks", [nothing]),
    "the garbage collector's callbacks": lambda: gc.callbacks.append(nothing),
    "the garbage collector": gc.disable,
    "the garbage collector's thresholds": lambda: gc.set_threshold(7, 7, 7),
    "the recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "the switch interval": lambda: sys.setswitchinterval(0.125),
    "the limit of an integer's digits": lambda: sys.set_int_max_str_digits(0),
    "the stack size of threads": lambda: threading.stack_size(1 << 20),
    "the timers": lambda: signal.alarm(500),
    "the signal handlers": lambda: [
        signal.signal(number, nothing)
        for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM)
    ],
    "the signal mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),
    "the CPU affinity": lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    "the umask": lambda: os.umask(0o070),
    "the environment": lambda: os.environ.update(QUANTARENA_TEST="1"),
    "the working directory": lambda: os.chdir("/"),
    "Python's random state": random.random,
    "numpy's random state": np.random.rand,
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the locale": lambda: locale.setlocale(
        locale.LC_ALL, "C" if locale.setlocale(locale.LC_ALL) != "C" else "C.UTF-8"
    ),
    "the level of the root logger": lambda: logging.root.setLevel(1),
    "the handlers of the root logger": lambda: setattr(logging.root, "handlers", []),
    "the disabled logging": lambda: logging.disable(17),
    "the folder of temporary files": lambda: setattr(tempfile, "tempdir", "/nowhere"),
    "the timeout of sockets": lambda: socket.setdefaulttimeout(0.125),
    "the decimal context": lambda: setattr(decimal.getcontext(), "prec", 3),
    "the start method of processes": lambda: multiprocessing.set_start_method(
        "forkserver", force=True
    ),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 2),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's gradients": lambda: torch.set_grad_enabled(False),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's detection of anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's TF32 of cuDNN": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "torch's oneDNN": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "torch's cuDNN": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch's benchmarks of cuDNN": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's deterministic cuDNN": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "torch's flash attention": flip(
        torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp
    ),
    "torch's plain attention": flip(
        torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp
    ),
    "torch's sharing of tensors": lambda: torch.multiprocessing.set_sharing_strategy("file_system"),
    "torch's hooks on all modules": lambda: torch.nn.modules.module.register_module_forward_hook(
        nothing
    ),
    "torch's random state": lambda: torch.rand(1),
}


def change(name):
    """Change a state to any other value."""
    state = STATES[name]
    if name.startswith("the limit RLIMIT_"):
        soft, hard = state.read()
        if soft == 0:
            pytest.skip("it is 0")
        state.write((10**6 if soft == resource.RLIM_INFINITY else soft - 1, hard))
    elif name.endswith("fp32_precision"):
        state.write("ieee" if state.read() == "tf32" else "tf32")
    else:
        if name == "the CPU affinity" and len(os.sched_getaffinity(0)) == 1:
            pytest.skip("one core")
        CHANGES[name]()


@contextlib.contextmanager
def nothing_lasting():
    before = lasting_changes()
    yield
    assert lasting_changes() == before


@pytest.mark.parametrize("name", [n for n in STATES if n not in FOR_GOOD or "RLIMIT" in n])
def test_each_state_is_put_back(name):
    state = STATES[name]
    before = values([state])
    with nothing_lasting(), process_state():
        change(name)
        now = values([state])[0]
        assert now is UNREADABLE or not state.same(before[0], now)
    assert restore([State(name, state.read, None, state.same)], before) == {}


PRECISIONS = [("mkldnn.matmul", "bf16"), ("mkldnn.conv", "bf16"), ("mkldnn", "bf16")]
PRECISIONS += [("cuda.matmul", "tf32"), ("cudnn.conv", "ieee"), ("", "tf32"), ("", "bf16")]


@pytest.mark.parametrize(("where", "value"), PRECISIONS)
def test_a_precision_that_torch_cannot_say_in_its_old_words(where, value):
    names = [name for name in STATES if "precision" in name or "TF32" in name]
    before = values(STATES[name] for name in names)
    assert UNREADABLE not in before
    for _ in range(2):
        with nothing_lasting(), process_state():
            owner = torch.backends
            for part in where.split(".") if where else ():
                owner = getattr(owner, part)
            owner.fp32_precision = value
        assert values(STATES[name] for name in names) == before


REPLACED = [
    (builtins, "open"),
    (io, "open"),
    (json, "dumps"),
    (json.JSONEncoder, "encode"),
    (os, "replace"),
    (os.path, "join"),
    (pathlib.Path, "read_text"),
    (random, "random"),
    (shutil, "copy"),
    (tempfile, "mkstemp"),
    (time, "perf_counter"),
]


@pytest.mark.parametrize(("owner", "name"), REPLACED)
def test_each_replaced_function_is_put_back(owner, name):
    before = vars(owner)[name]
    try:
        with process_state():
            setattr(owner, name, nothing)
        assert vars(owner)[name] is before
    finally:
        setattr(owner, name, before)


def in_a_process(code):
    """Lines that a process without root's rights prints."""
    head = """
import os, resource, torch
from quantarena.bench.process_state import inherited_changes, lasting_changes, process_state
with process_state():
    pass
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
"""
    run = [sys.executable, "-c", head + code]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", FOR_GOOD)
def test_what_cannot_be_put_back_is_named(name):
    code = f"""
print(lasting_changes())
with process_state():
    {FOR_GOOD[name]}
print([line for line in lasting_changes() if line.startswith({name!r})] != [])
print(lasting_changes() == inherited_changes(), len(lasting_changes()))
with process_state():
    pass
print(len(lasting_changes()))
"""
    inherited = str(STATES[name].inherited)
    assert in_a_process(code) == ["()", "True", f"{inherited} 1", "1"]


def test_restoring_never_raises():
    def fail(*_):
        raise RuntimeError

    place = {"a": 1}
    states = [
        State("cannot be read", fail, fail),
        State("cannot be written", lambda: place["a"], fail),
        State("cannot be compared", lambda: 1, nothing, fail),
        State("is refused in silence", lambda: place["a"], nothing),
    ]
    before = values(states)
    place["a"] = 2
    assert list(restore(states, before)) == [
        "cannot be written (1, now 2)",
        "cannot be compared (1, now 1)",
        "is refused in silence (1, now 2)",
    ]
    del place["a"]
    assert "cannot be written (1, now unreadable)" in restore(states, before)


def test_a_deleted_working_directory_is_named_and_no_error(tmp_path, monkeypatch):
    from quantarena.bench import process_state as package

    monkeypatch.setattr(package, "_lasting", {})
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with process_state():
        os.chdir(tmp_path)
        folder.rmdir()
    assert [line.partition(" (")[0] for line in lasting_changes()] == ["the working directory"]
    assert inherited_changes() == ()


def test_a_finder_of_a_library_stays():
    """Such as that of six, which is added when six is imported, and never again."""
    ours, library = type("Ours", (), {}), type("Theirs", (), {"__module__": "json"})
    before = list(sys.meta_path)
    try:
        with nothing_lasting(), process_state():
            sys.meta_path[:] = [ours, library]
        assert sys.meta_path == [*before, library]
    finally:
        sys.meta_path[:] = before


def test_the_alarm_of_a_timeout_is_set_again():
    signal.setitimer(signal.ITIMER_REAL, 300)
    try:
        with nothing_lasting(), process_state():
            signal.alarm(0)
        assert 290 < signal.getitimer(signal.ITIMER_REAL)[0] <= 300
        with nothing_lasting(), process_state():
            signal.setitimer(signal.ITIMER_REAL, 20, 1)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert (290 < left <= 300, interval) == (True, 0.0)
    finally:
        signal.alarm(0)


def test_a_signal_left_pending_ends_nothing(monkeypatch):
    """In a process of one thread: of several, one that does not block the signal would get it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = """
import signal, time
with process_state():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    print(len(signal.sigpending()))
print(signal.sigpending() == set(), lasting_changes() == ())
"""
    assert in_a_process(code) == ["2", "True True"]


def test_it_takes_little_time():
    def once():
        began = time.perf_counter()
        states = [*python_states(), *torch_states()]
        restore(states, values(states))
        return time.perf_counter() - began

    assert min(once() for _ in range(20)) < 0.004  # 1 ms where nothing else runs
