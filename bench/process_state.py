"""The state of the process around one piece of work: fixed before it, restored after it.

A method is foreign code. It may change torch's default dtype, the number of threads, a random
generator, the working directory, the environment or the warning filters. None of that may reach the
next cell, whose numbers would then depend on what ran before it in the same process.
"""

import contextlib
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from quantarena.bench.files import umask

THREADS = 1
"""Torch's CPU threads in every stage: one thread sums in one order, on every machine."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)
_PREFIXES = ("torch.nn.modules.", "diffusers.models.", "diffusers.schedulers.")
_MODULES = (
    "numpy",
    "numpy.random",
    "torch",
    "torch.linalg",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim",
)
_MISSING = object()
_lasting: dict[str, None] = {}


def lasting_changes() -> tuple[str, ...]:
    """The changes of this process so far that cannot be undone; a process with any is replaced."""
    return tuple(_lasting)


@contextlib.contextmanager
def process_state(threads: int = THREADS) -> Iterator[None]:
    """Run the block on ``threads`` torch threads, and restore the state of the process after it.

    Restored are torch's number of threads, default dtype and device, modes, flags of its backends
    and hooks on all modules; functions of torch and numpy that were replaced; the global random
    generators of Python, numpy and torch; numpy's handling of errors; the warning filters, the
    root logger, the locale, the signal handlers, the search path, the standard streams, the
    garbage collector, the umask, the working directory and the environment. The block starts in
    fp32 on the CPU with gradients enabled, whatever held before. What cannot be restored is named
    by ``lasting_changes``.

    Torch is imported by this function, not by the module.
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.callback(_note_lasting, _fixed_state())
        stack.callback(_restore, _python_settings(), _values(_python_settings()))
        stack.callback(_restore, _torch_settings(), _values(_torch_settings()))
        stack.callback(_restore_hooks, _hooks())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(warnings.catch_warnings())
        stack.callback(_restore_environment, dict(os.environ))
        stack.callback(_restore_folder, _folder())
        stack.callback(_restore_signals, {s: signal.getsignal(s) for s in _SIGNALS})
        stack.enter_context(undo_patches())  # first, so that the others call what torch has
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        yield


Setting = tuple[Callable[[], Any], Callable[[Any], object]]
"""How a setting of the process is read, and how it is written."""


def _torch_settings() -> dict[str, Setting]:
    import torch

    def deterministic() -> tuple[bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only

    def put_device(device: torch.device) -> None:
        # None is the usual state; naming the CPU would make every call of torch slower.
        torch.set_default_device(None if device.type == "cpu" else device)

    backends = torch.backends
    return {
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "device": (torch.get_default_device, put_device),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "deterministic": (
            deterministic,
            lambda pair: torch.use_deterministic_algorithms(pair[0], warn_only=pair[1]),
        ),
        "denormals": (_flushes_denormals, torch.set_flush_denormal),
        "anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        "autocast": (
            lambda: torch.is_autocast_enabled("cpu"),
            lambda value: torch.set_autocast_enabled("cpu", value),
        ),
        "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "onednn": _flag(backends.mkldnn, "enabled"),
        "cudnn": _flag(backends.cudnn, "enabled"),
        "cudnn.benchmark": _flag(backends.cudnn, "benchmark"),
        "cudnn.deterministic": _flag(backends.cudnn, "deterministic"),
        "flash attention": (backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp),
        "math attention": (backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp),
    }


def _python_settings() -> dict[str, Setting]:
    root = logging.getLogger()

    def put_handlers(handlers: list[logging.Handler]) -> None:
        root.handlers[:] = handlers

    return {
        "numpy errors": (np.geterr, lambda kinds: np.seterr(**kinds)),
        "umask": (umask, os.umask),
        "locale": (
            lambda: locale.setlocale(locale.LC_ALL),
            lambda name: locale.setlocale(locale.LC_ALL, name),
        ),
        "path": (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
        "stdout": (lambda: sys.stdout, lambda stream: setattr(sys, "stdout", stream)),
        "stderr": (lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
        "excepthook": (lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)),
        "collector": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
        "log level": (lambda: root.level, root.setLevel),
        "log handlers": (lambda: list(root.handlers), put_handlers),
        "logging": (lambda: root.manager.disable, logging.disable),
    }


def _flag(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _values(settings: dict[str, Setting]) -> dict[str, Any]:
    return {name: read() for name, (read, _) in settings.items()}


def _restore(settings: dict[str, Setting], before: dict[str, Any]) -> None:
    for name, (read, write) in settings.items():
        if read() != before[name]:
            write(before[name])


def _flushes_denormals() -> bool:
    """Whether torch's arithmetic rounds denormal numbers to 0, which it does not say itself."""
    import torch

    return bool((torch.full((1,), 1e-38, dtype=torch.float32, device="cpu") * 0.5 == 0).item())


def _hooks() -> dict[str, dict[int, Any]]:
    """The hooks that torch calls for every module, by the name of their list."""
    from torch.nn.modules import module

    return {name: dict(getattr(module, name)) for name in _HOOKS if hasattr(module, name)}


def _restore_hooks(before: dict[str, dict[int, Any]]) -> None:
    from torch.nn.modules import module

    for name, hooks in before.items():
        present = getattr(module, name)
        if dict(present) != hooks:
            present.clear()
            present.update(hooks)


def _fixed_state() -> dict[str, Any]:
    """What a process can change once and never take back."""
    import torch

    return {
        "the number of torch's inter-op threads": torch.get_num_interop_threads(),
        "torch's inference mode": torch.is_inference_mode_enabled(),
    }


def _note_lasting(before: dict[str, Any]) -> None:
    for name, value in _fixed_state().items():
        if value != before[name]:
            _lasting[f"{name} ({before[name]}, now {value})"] = None


def _restore_environment(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _restore_signals(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers, and so only it can have changed them
    for number, handler in handlers.items():
        # None stands for a handler that was not set from Python and cannot be set again.
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _folder() -> str | None:
    """The working directory; None where it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _restore_folder(folder: str | None) -> None:
    if folder is not None and _folder() != folder:
        os.chdir(folder)


@contextlib.contextmanager
def undo_patches() -> Iterator[None]:
    """Put back each function, method and class of torch, numpy and diffusers that was replaced.

    A name that is new after the block stays, unless it hides a method of a base class: libraries
    import parts of themselves when these are first used. A module that the block imports first
    cannot be told from one that it has changed.
    """
    before = [(owner, _callables(owner)) for owner in _owners()]
    try:
        yield
    finally:
        for owner, values in before:
            present = dict(vars(owner))
            with contextlib.suppress(AttributeError, TypeError):
                for name, value in values.items():
                    if present.get(name, _MISSING) is not value:
                        setattr(owner, name, value)
                for name in set(present) - set(values):
                    if callable(present[name]) and _is_inherited(owner, name):
                        delattr(owner, name)


def _owners() -> list[Any]:
    """The modules, and the classes that are defined in them."""
    modules = [
        module
        for name, module in tuple(sys.modules.items())
        if module is not None and (name in _MODULES or name.startswith(_PREFIXES))
    ]
    classes = [
        value
        for module in modules
        for value in tuple(vars(module).values())
        if isinstance(value, type) and value.__module__.startswith(("torch", "diffusers"))
    ]
    return modules + list(dict.fromkeys(classes))


def _is_inherited(owner: Any, name: str) -> bool:
    """Whether a class has the name from another class, which its own definition hides."""
    return isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:-1])


def _callables(owner: Any) -> dict[str, Any]:
    kinds = (staticmethod, classmethod, property)
    return {
        name: value
        for name, value in tuple(vars(owner).items())
        if callable(value) or isinstance(value, kinds)
    }
