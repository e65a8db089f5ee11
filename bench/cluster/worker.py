"""The part of a cluster's run that lives on its nodes: what a node says of itself, its workers."""

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantarena.bench import closure as code
from quantarena.bench import machine
from quantarena.bench.cluster import travel
from quantarena.bench.content import bytes_sha256, index_file, tree_sha256
from quantarena.bench.files import waited
from quantarena.bench.run.attempt import attempt
from quantarena.bench.run.executors import Outcome, Setting, Task
from quantarena.bench.run.ray_worker import spaced
from quantarena.bench.spec import content_key

NAMESPACE = b"quantarena"
_NOTE_SECONDS = 1.0
_OTHER = frozenset({"quantarena"})
"""Distributions whose version may differ: the package itself travels."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the driver tells and asks a node before any worker starts there.

    Attributes:
        results: folder that the node must see, too.
        token: name of a file in it that the driver wrote for this run.
        versions: of libraries; the node must have the same, or numbers would differ.
        python: version of Python.
        models: absolute paths of folders and files that cells name, which do not travel.
        kernels: whether to build the native kernels.
    """

    results: str
    token: str
    versions: dict[str, str]
    python: str
    models: tuple[str, ...] = ()
    kernels: bool = True


def asked_here(
    results: Path, token: str, models: tuple[str, ...] = (), *, kernels: bool = True
) -> Asked:
    """What a node is asked by a driver in this process."""
    python = platform.python_version()
    return Asked(str(results), token, machine.versions(), python, models, kernels)


def describe_node(asked: Asked) -> dict[str, Any]:
    """What the node of this process is, after its kernels were built; runs as a task of Ray.

    Returns:
        ``machine``: its fingerprint; ``refused``: why it cannot take part, empty where it can;
        ``kernels``: what was done about them; ``nice``: niceness of its workers; ``oom_kills``.
    """
    refused = _refused(asked)
    kernels = ensure_kernels() if asked.kernels and not refused else ""
    facts: dict[str, Any] = {"machine": machine.fingerprint(), "refused": refused}
    return facts | {"kernels": kernels, "nice": os.nice(0), "oom_kills": machine.oom_kills()}


def count_oom_kills() -> int:
    """How many processes of this node's machine were killed for lack of memory; a task of Ray."""
    return machine.oom_kills()


def _refused(asked: Asked) -> str:
    """Why this node cannot do what the driver's machine would do; empty where it can."""
    token = Path(asked.results) / asked.token
    if not token.is_file():
        return (
            f"it does not see {asked.results}: put --results on a folder that all nodes share at "
            "the same path"
        )
    here = machine.versions()
    for name, wanted in asked.versions.items():
        if name not in _OTHER and here.get(name) != wanted:
            return f"it has {name} {here.get(name, 'not at all')}, the driver has {wanted}"
    if platform.python_version() != asked.python:
        return f"it has Python {platform.python_version()}, the driver has {asked.python}"
    absent = [path for path in asked.models if not os.path.exists(path)]
    if absent:
        return f"it has no {absent[0]}: put models on a folder that all nodes share"
    return ""


class ClusterWorker:
    """An object in a worker process that does one task after another; Ray makes an actor of it.

    Args:
        setting: settings of the run; plug-ins by their places in the bundle.
        bundle: name of the folder of plug-ins that has travelled here, or "".
        metrics: places of plug-ins of metrics in it.
        key: under which the worker says how far its task is.
    """

    def __init__(self, setting: Setting, bundle: str, metrics: tuple[str, ...], key: bytes) -> None:
        # Ctrl-C reaches the driver, which decides what it means.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._key = key
        self._tell("worker starts", 0, 1)  # so that the driver knows that there was room for it
        ensure_kernels()  # again: Ray may have unpacked the package anew since the node was asked
        self._setting = _arrived(setting, bundle, metrics)

    def pid(self) -> int:
        """The id of the worker's process; the answer comes once the process is up."""
        return os.getpid()

    def do(self, task: Task) -> Outcome:
        """Do a task; a timing waits until no other is going on on this machine."""
        progress = spaced(self._tell, _NOTE_SECONDS)
        progress("starting", 0, 1)
        quiet = alone_on_machine(lambda: progress("waiting for another timing", 0, 1))
        with quiet if task.kind == "time" else contextlib.nullcontext():
            return attempt(task, self._setting, progress)

    def _tell(self, stage: str, done: int, total: int) -> None:
        # Ray's own store of small values: no file system between the driver and this node.
        from ray.experimental.internal_kv import _internal_kv_put

        with contextlib.suppress(Exception):
            note = json.dumps([stage, done, total]).encode()
            _internal_kv_put(self._key, note, overwrite=True, namespace=NAMESPACE)


def _arrived(setting: Setting, bundle: str, metrics: tuple[str, ...]) -> Setting:
    """The setting with the plug-ins' paths on this node; their modules can be imported."""
    if not bundle:
        return setting
    folder = travel.unpacked(bundle)
    places = (*setting.plugins, *metrics)
    sys.path += [str((folder / place).parent) for place in places]
    if metrics:
        os.environ[travel.METRICS] = os.pathsep.join(str(folder / place) for place in metrics)
    return replace(setting, plugins=tuple(str(folder / place) for place in setting.plugins))


def alone_on_machine(
    waiting: Callable[[], None] = lambda: None,
) -> contextlib.AbstractContextManager[None]:
    """Keep every other timing of this user off this machine, whichever run it belongs to."""
    path = Path(tempfile.gettempdir()) / f"quantarena-timing-{os.getuid()}.lock"
    return waited(path, waiting=waiting)


def ensure_kernels() -> str:
    """Put the native library beside the kernels' sources, built once on each machine.

    A library that is there stays. Otherwise it comes from this user's cache, under a hash of the
    sources, the processor's architecture and the compiler; the first process to ask builds it.

    Returns:
        What was done, in one line.
    """
    build = _builder()
    package = Path(build.__file__).resolve().parent
    library = package / build.LIBRARY_NAME
    if library.exists() or (package / build.REASON_NAME).exists():
        return ""
    kept = index_file().parent / "kernels" / _library_key(package, build.find_compiler())
    with waited(kept.with_suffix(".lock")):
        if library.exists() or (package / build.REASON_NAME).exists():
            return ""
        if (kept / build.LIBRARY_NAME).exists():
            said = "kernels from the cache"
        else:
            kept.mkdir(parents=True, exist_ok=True)
            said = build.build_into(kept, package / "csrc")
        for name in (build.LIBRARY_NAME, build.REASON_NAME):
            if (kept / name).exists():
                draft = package / f"{name}.{os.getpid()}.tmp"
                shutil.copyfile(kept / name, draft)
                draft.replace(package / name)
        # A failure is told now and tried again by the next run.
        (kept / build.REASON_NAME).unlink(missing_ok=True)
    return said


def _builder() -> Any:
    """The module that builds kernels, by its path: its package imports torch, for many seconds."""
    file = Path(code.__file__).resolve().parents[1] / "methods" / "core" / "kernels" / "build.py"
    name = "_quantarena_build"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _library_key(package: Path, compiler: list[str] | None) -> str:
    told = ""
    if compiler is not None:
        with contextlib.suppress(OSError):
            done = subprocess.run([*compiler, "--version"], capture_output=True, text=True)
            told = done.stdout.partition("\n")[0]
    flags = os.environ.get("QUANTARENA_CXXFLAGS", "")
    sources = [tree_sha256(package / "csrc"), bytes_sha256(package / "build.py")]
    return content_key([*sources, compiler, told, flags, platform.machine(), platform.libc_ver()])
