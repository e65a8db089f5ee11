"""Checks of what works on this machine and what does not, one line each."""

import importlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench import machine
from quantarena.bench.errors import QuantArenaError
from quantarena.bench.plan import lookup

LEAST_DISK, LEAST_MEMORY = 1e9, 4e9


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        state: ``ok``, ``note`` (it works, with a limitation) or ``broken``.
        detail: what is there, and what to do where it is broken.
    """

    name: str
    state: str
    detail: str


def examine(results: Path, plugins: tuple[str, ...] = ()) -> tuple[Check, ...]:
    """The outcomes of all checks; a check that raises has the outcome ``broken``.

    Args:
        results: folder that is to hold the results.
        plugins: files that register methods.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("machine", _machine),
        ("libraries", _libraries),
        ("kernels", _kernels),
        ("workloads", _workloads),
        ("methods", lambda: _methods(plugins)),
        ("disk", lambda: _disk(results)),
    )
    outcomes: list[Check] = []
    for name, check in checks:
        try:
            outcomes += check()
        except QuantArenaError as error:
            outcomes.append(Check(name, "broken", str(error)))
        except Exception as error:  # the other checks still have to run
            outcomes.append(Check(name, "broken", f"{type(error).__name__}: {error}"))
    return tuple(outcomes)


def _machine() -> Iterator[Check]:
    facts = machine.fingerprint()
    isa = ", ".join(facts["isa"]) or "no vector extensions known to the kernels"
    yield Check("processor", "ok", f"{facts['cpu']}, {facts['cores']} cores, {isa}")
    enough = facts["ram_bytes"] >= LEAST_MEMORY
    text = f"{facts['ram_bytes'] / 1e9:.1f} GB" + ("" if enough else ": use --workers 1")
    yield Check("memory", "ok" if enough else "note", text)
    gpu = facts["gpu"]
    yield Check(
        "gpu", "ok" if gpu else "note", gpu["name"] if gpu else "none: latency is of the CPU"
    )


def _libraries() -> Iterator[Check]:
    for name in ("torch", "diffusers", "transformers", "torchmetrics", "ray"):
        try:
            module = importlib.import_module(name)
            yield Check(name, "ok", str(getattr(module, "__version__", "unknown version")))
        except ImportError as error:
            fix = "run in this process with --executor local" if name == "ray" else "make install"
            state = "note" if name == "ray" else "broken"
            yield Check(name, state, f"cannot be imported ({error}): {fix}")


def _kernels() -> Iterator[Check]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    yield Check("compiler", "ok" if compiler else "note", compiler or "none: no native kernels")
    status = importlib.import_module("quantarena.methods.core.kernels").status()
    if status.backend == "packed":
        told = f"{status.isa} (of {', '.join(status.available)}), {status.chosen}"
        yield Check("kernels", "ok", "; ".join((told, *status.absent)))
    else:
        less = "rows are labelled reference, their latency is not ranked"
        yield Check("kernels", "note", f"torch reference, {status.reason}: {less}")


def _workloads() -> Iterator[Check]:
    names = lookup.workload_names()
    if not names:
        yield Check("workloads", "broken", "none: the package data is missing, make install")
    for name in names:
        info = lookup.workload(name)
        yield Check(f"workload {name}", "ok", f"{info.title}, {info.megabytes:.1f} MB")


def _methods(plugins: tuple[str, ...]) -> Iterator[Check]:
    registry = importlib.import_module("quantarena.methods.registry")
    names = registry.names(plugins)
    yield Check("methods", "ok", ", ".join(names))
    for name, reason in registry.broken_packages().items():
        yield Check(f"plug-in {name}", "broken", f"cannot be imported: {reason}")


def _disk(results: Path) -> Iterator[Check]:
    folder = next(path for path in (results, *results.resolve().parents) if path.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass
    free = shutil.disk_usage(folder).free
    enough = free >= LEAST_DISK
    more = "" if enough else ": little for images and cached stages"
    yield Check("disk", "ok" if enough else "note", f"{free / 1e9:.1f} GB free at {folder}{more}")
