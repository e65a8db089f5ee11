"""The states of Python and of the operating system's process."""

import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from typing import Any

import numpy as np

from quantarena.bench.files import umask
from quantarena.bench.process_state.states import State, attribute

_FATAL = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_LIMITS = tuple(  # OFILE is NOFILE by another name
    sorted(n for n in vars(resource) if n.startswith("RLIMIT_") and n != "RLIMIT_OFILE")
)
_SLACK_SECONDS = 1.0
Timer = tuple[float, float]
"""When a timer ends, by ``time.monotonic`` (0: it does not run), and its interval."""


def python_states() -> list[State]:
    """The states, those first that would disturb the others' restoring."""
    return [*_interpreter(), *_process(), *_libraries()]


def _interpreter() -> list[State]:
    return [
        State("the trace function", sys.gettrace, sys.settrace),
        State("the profile function", sys.getprofile, sys.setprofile),
        State("the trace function of threads", threading.gettrace, _settrace_threads),
        State("the profile function of threads", threading.getprofile, _setprofile_threads),
        attribute("the standard input", sys, "stdin"),
        attribute("the standard output", sys, "stdout"),
        attribute("the standard error", sys, "stderr"),
        attribute("sys.excepthook", sys, "excepthook"),
        attribute("sys.unraisablehook", sys, "unraisablehook"),
        attribute("sys.displayhook", sys, "displayhook"),
        attribute("threading.excepthook", threading, "excepthook"),
        _listed("the search path", sys, "path"),
        _hooks("the import finders", sys, "meta_path"),
        _hooks("the path hooks", sys, "path_hooks"),
        _hooks("the garbage collector's callbacks", gc, "callbacks"),
        State(
            "the garbage collector", gc.isenabled, lambda on: gc.enable() if on else gc.disable()
        ),
        State(
            "the garbage collector's thresholds",
            gc.get_threshold,
            lambda numbers: gc.set_threshold(*numbers),
        ),
        State("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        State("the switch interval", sys.getswitchinterval, sys.setswitchinterval),
        State("the limit of an integer's digits", sys.get_int_max_str_digits, _set_digits),
        State("the stack size of threads", _stack_size, threading.stack_size),
    ]


def _process() -> list[State]:
    return [
        State("the timers", _timers, _put_timers, _same_timers),
        State("the signal handlers", _handlers, _put_handlers),
        State("the signal mask", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()), _put_mask),
        State("the CPU affinity", lambda: os.sched_getaffinity(0), _put_affinity, inherited=True),
        State(
            "the niceness",
            lambda: os.getpriority(os.PRIO_PROCESS, 0),
            lambda value: os.setpriority(os.PRIO_PROCESS, 0, value),
            inherited=True,
        ),
        *(_limit(name) for name in _LIMITS),
        State("the umask", umask, os.umask),
        State("the environment", lambda: dict(os.environ), _put_environment),
        State("the working directory", _folder, _put_folder),
    ]


def _libraries() -> list[State]:
    root = logging.getLogger()
    return [
        State("Python's random state", random.getstate, random.setstate),
        State("numpy's random state", np.random.get_state, np.random.set_state, _same_numpy),
        State("numpy's handling of errors", np.geterr, lambda kinds: np.seterr(**kinds)),
        State(
            "the locale",
            lambda: locale.setlocale(locale.LC_ALL),
            lambda name: locale.setlocale(locale.LC_ALL, name),
        ),
        State("the level of the root logger", lambda: root.level, root.setLevel),
        _listed("the handlers of the root logger", root, "handlers"),
        State("the disabled logging", lambda: root.manager.disable, logging.disable),
        attribute("the folder of temporary files", tempfile, "tempdir"),
        State("the timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
        State(
            "the decimal context",
            lambda: decimal.getcontext().copy(),
            decimal.setcontext,
            lambda before, now: repr(before) == repr(now),
        ),
        State(
            "the start method of processes",
            lambda: multiprocessing.get_start_method(allow_none=True),
            lambda method: multiprocessing.set_start_method(method, force=True),
        ),
    ]


def _settrace_threads(function: Any) -> None:
    threading.settrace(function)


def _setprofile_threads(function: Any) -> None:
    threading.setprofile(function)


def _put_collector(on: bool) -> None:
    if on:
        gc.enable()
    else:
        gc.disable()


def _stack_size() -> int:
    """The size, set again, since asking for it sets it to 0."""
    size = threading.stack_size()
    threading.stack_size(size)
    return size


def _set_digits(number: int) -> None:
    sys.set_int_max_str_digits(number)


def _listed(name: str, owner: Any, field: str) -> State:
    """A list, which may be changed in place or replaced."""
    items: list[Any] = getattr(owner, field)

    def write(before: list[Any]) -> None:
        items[:] = before
        setattr(owner, field, items)

    return State(name, lambda: list(getattr(owner, field)), write)


def _hooks(name: str, owner: Any, field: str) -> State:
    """A list of hooks. One that a library adds stays: it does so once, when it is imported."""
    hooks: list[Any] = getattr(owner, field)

    def kept(before: list[Any], now: list[Any]) -> list[Any]:
        return [hook for hook in now if _is_of_library(hook) and not _among(hook, before)]

    def same(before: list[Any], now: list[Any]) -> bool:
        added = kept(before, now)
        rest = [hook for hook in now if not _among(hook, added)]
        return len(rest) == len(before) and all(map(_is, rest, before))

    def write(before: list[Any]) -> None:
        hooks[:] = [*before, *kept(before, getattr(owner, field))]
        setattr(owner, field, hooks)

    return State(name, lambda: list(getattr(owner, field)), write, same)


def _is(one: object, other: object) -> bool:
    return one is other


def _among(hook: object, hooks: list[Any]) -> bool:
    return any(hook is other for other in hooks)


def _is_of_library(hook: Any) -> bool:
    module = sys.modules.get(getattr(hook, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.startswith(_LIBRARIES)


def _timers() -> list[Timer]:
    ends = []
    for timer in _TIMERS:
        now = time.monotonic()
        left, interval = signal.getitimer(timer)
        ends.append((now + left if left else 0.0, interval))
    return ends


def _left(timer: Timer) -> float:
    return max(timer[0] - time.monotonic(), 0.0)


def _same_timers(before: list[Timer], now: list[Timer]) -> bool:
    return all(map(_is_same_timer, _TIMERS, before, now))


def _is_same_timer(kind: int, before: Timer, now: Timer) -> bool:
    """Whether a timer runs as before. Those of CPU time, if they run, cannot be compared."""
    if (not _left(before) and kind == signal.ITIMER_REAL) or not before[0]:
        return not now[0]
    if kind != signal.ITIMER_REAL:
        return True
    return bool(now[0]) and abs(_left(before) - _left(now)) < _SLACK_SECONDS


def _put_timers(before: list[Timer]) -> None:
    for kind, old, now in zip(_TIMERS, before, _timers(), strict=True):
        if not _is_same_timer(kind, old, now):
            left = _left(old)
            signal.setitimer(kind, left, old[1] if left else 0.0)


def _handlers() -> dict[int, Any]:
    """The handlers; none in another thread than the main one, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {int(number): signal.getsignal(number) for number in signal.valid_signals()}


def _put_handlers(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        # None stands for a handler that was not set from Python and cannot be set again.
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _put_mask(mask: set[int]) -> None:
    """Restore the mask; what the block left pending is dropped, unless it asks for the end."""
    for number in signal.sigpending() - mask - _FATAL:
        signal.sigtimedwait((number,), 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _put_affinity(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def _limit(name: str) -> State:
    kind: int = getattr(resource, name)

    def write(before: tuple[int, int]) -> None:
        try:
            resource.setrlimit(kind, before)
        except (OSError, ValueError):  # a lower hard limit stays; below it, there is a choice
            hard = resource.getrlimit(kind)[1]
            soft = hard if before[0] == resource.RLIM_INFINITY else min(before[0], hard)
            resource.setrlimit(kind, (soft, hard))

    return State(f"the limit {name}", lambda: resource.getrlimit(kind), write, inherited=True)


def _put_environment(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _folder() -> str | None:
    """The working directory; None where it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _put_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _same_numpy(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return before[0] == now[0] and bool((before[1] == now[1]).all()) and before[2:] == now[2:]
