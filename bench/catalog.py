"""Names that a user can give, looked up without importing torch where that can be avoided."""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantarena.bench import presets
from quantarena.bench.errors import UnknownName, UserError, did_you_mean
from quantarena.bench.plan import Facts
from quantarena.bench.spec import Grid

UNKNOWN_RESOLUTION = 32


def plugin_paths(given: Iterable[str]) -> tuple[str, ...]:
    """Plug-in files as absolute paths, for workers that live elsewhere.

    Raises:
        UserError: no such file.
    """
    paths = []
    for name in given:
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"plug-in {name} is no file")
        paths.append(str(path))
    return tuple(dict.fromkeys(paths))


def check_methods(names: Sequence[str], plugins: Sequence[str] = ()) -> None:
    """See that every method exists and every plug-in loads.

    Raises:
        UserError: one does not; the line says which.
    """
    built_in = {name for p in presets.PRESETS.values() for name in p.grid.methods}
    if not plugins and built_in.issuperset(names):
        return
    known = importlib.import_module("quantarena.methods.registry").names(plugins)
    for name in names:
        if name not in known:
            raise UnknownName(f"unknown method {name!r}: {did_you_mean(name, known)}")


def method(name: str, plugins: Sequence[str] = (), *, prefer_plugin: bool = False) -> Any:
    """The registry's entry of a method: its class and its origin.

    Raises:
        UserError: there is none.
    """
    registry = importlib.import_module("quantarena.methods.registry")
    return registry.entry(name, plugins, prefer_plugin=prefer_plugin)


def workload(name_or_path: str) -> Any:
    """What is known of a workload.

    Raises:
        UserError: there is none, or its folder is no intact diffusers pipeline.
    """
    return importlib.import_module("quantarena.bench.workloads.registry").resolve(name_or_path)


def workload_names() -> tuple[str, ...]:
    """Workloads that come with the harness."""
    found = importlib.import_module("quantarena.bench.workloads.registry").names()
    return tuple(found)


def canonical_workload(name_or_path: str) -> str:
    """What goes into a cell: the name of a known workload, or the absolute path of a folder.

    Raises:
        UserError: neither.
    """
    info = workload(name_or_path)
    if info.name in workload_names():
        return str(info.name)
    return str(Path(info.path).resolve())


def facts(grid: Grid, plugins: Sequence[str] = (), *, versions: bool) -> Facts:
    """What a plan asks about the names in a grid.

    Args:
        grid: whose names.
        plugins: plug-in files.
        versions: whether to import methods for their versions, which imports torch.
    """
    infos = {name: workload(name) for name in grid.workloads}

    def version(name: str) -> int | None:
        return int(method(name, plugins).method.info.version) if versions else None

    def resolution(name: str) -> int:
        return int(infos[name].resolution) or UNKNOWN_RESOLUTION

    return Facts(version, resolution, lambda name: float(infos[name].megabytes))
