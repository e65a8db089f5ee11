"""Names that a user can give, looked up without importing torch where that can be avoided."""

import functools
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantarena.bench.code_hash import class_sha256, file_sha256, package_sha256
from quantarena.bench.errors import UnknownName, UserError, did_you_mean
from quantarena.bench.plan import presets
from quantarena.bench.plan.plan import Facts
from quantarena.bench.spec import Grid, content_key

UNKNOWN_RESOLUTION = 32
SMALL_FILE = 1_000_000
NUMBER_MAKERS = (
    "quantarena.methods.core",
    "quantarena.methods.api",
    "quantarena.bench.metrics",
    "quantarena.bench.workloads",
    "quantarena.bench.stages.ground",
    "quantarena.bench.stages.sequence",
    "quantarena.bench.stages.latency",
)
"""Code whose change makes finished rows stale."""


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
    built_in = {name for p in presets.PRESETS.values() for name in p.grid.all_methods}
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


def paper_workloads() -> dict[str, Any]:
    """Settings of papers by name; their models may have to be downloaded."""
    found = importlib.import_module("quantarena.bench.workloads.papers").PAPERS
    return dict(found)


def canonical_workload(name_or_path: str, options: tuple[str, ...] = ()) -> str:
    """What goes into a cell: name, hub id or absolute path, with the settings that were given.

    Args:
        name_or_path: as given.
        options: ``KEY=VALUE`` settings.

    Raises:
        UserError: no such workload, or no such setting.
    """
    workload_name = importlib.import_module("quantarena.bench.workloads.workload_name")
    return str(workload(workload_name.with_options(name_or_path, options)).name)


def shown_workload(name: str) -> str:
    """A cell's workload as a command repeats it elsewhere: paths by their last name."""
    return str(importlib.import_module("quantarena.bench.workloads.workload_name").shown(name))


def facts(grid: Grid, plugins: Sequence[str] = (), *, prefer_plugin: bool = False) -> Facts:
    """What a plan asks about the names in a grid."""
    infos = {name: workload(name) for name in grid.workloads}

    @functools.cache
    def stamp(method_name: str, workload_name: str) -> str:
        return content_key(
            [
                [package_sha256(name) for name in NUMBER_MAKERS],
                _method_code(method_name, plugins, prefer_plugin),
                _folder_stamp(Path(infos[workload_name].path)),
                infos[workload_name].prompts,
            ]
        )

    def resolution(name: str) -> int:
        return int(infos[name].resolution) or UNKNOWN_RESOLUTION

    return Facts(
        lambda cell: stamp(cell.method, cell.workload),
        resolution,
        lambda name: float(infos[name].megabytes),
    )


def _method_code(name: str, plugins: Sequence[str], prefer_plugin: bool) -> str:
    """Hash of the file of a method; a built-in is found without importing it."""
    package = Path(__file__).parent.parent / "methods"
    built_in = package / f"{name}.py"
    if built_in.is_file() and not (prefer_plugin and plugins):
        return file_sha256(built_in)
    return class_sha256(method(name, plugins, prefer_plugin=prefer_plugin).method)


def _folder_stamp(folder: Path) -> str:
    """Hash of a pipeline folder's small files and of the sizes of all; it reads no weights.

    The zoo's manifest is a small file and holds the weights' own hashes.
    """
    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        content = file_sha256(path) if size < SMALL_FILE else ""
        parts.append([str(path.relative_to(folder)), size, content])
    return content_key(parts)
