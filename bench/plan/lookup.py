"""Names that a user can give, looked up without importing torch where that can be avoided."""

import dataclasses
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from quantarena.bench.adapters.request import LoraRequest
from quantarena.bench.closure import Closure, closure, closures_key, file_closure, method_closure
from quantarena.bench.content import file_sha256, tree_sha256
from quantarena.bench.errors import UnknownName, UserError, did_you_mean
from quantarena.bench.plan.network_size import Size, network_size
from quantarena.bench.plan.plan import Facts
from quantarena.bench.plan.usable import require_usable
from quantarena.bench.process_state import process_state
from quantarena.bench.spec import Grid, OptionPairs, content_key
from quantarena.bench.target import Target, absent_library
from quantarena.bench.workloads.inputs.condition_images import content as images_content
from quantarena.methods.builtin import INSTALL, builtins, full_precision_settings, packaged_names

UNKNOWN_RESOLUTION = 32
KERNELS = "QUANTARENA_KERNELS"
METRICS = "QUANTARENA_METRICS"
METRIC_WEIGHTS = ("QUANTARENA_CLIP", "QUANTARENA_INCEPTION")
"""Environment variables, named here as well because the modules that read them import torch."""
KERNELS = "QUANTARENA_KERNELS"
METRIC_PLUGINS = "quantarena.bench.metrics.plugins"
FOR_PEOPLE = (".md", ".png", ".jpg", ".jpeg", ".gif")
"""Files of a pipeline folder that no image depends on: its card and its pictures."""
STAGES = "quantarena.bench.stages.sequence"
"""The module whose closure holds every stage of a cell."""


def plugin_paths(given: Iterable[str]) -> tuple[str, ...]:
    """Plug-in files as absolute paths, for workers that live elsewhere.

    Raises:
        UserError: no such file.
    """
    paths = []
    for name in given:
        path = Path(name).expanduser().resolve()
        if not os.path.isfile(path):
            raise UserError(f"plug-in {name} is no file")
        paths.append(str(path))
    return tuple(dict.fromkeys(paths))


def check_kernels() -> None:
    """See that the instruction set in ``QUANTARENA_KERNELS`` exists here, if one is named.

    Raises:
        UserError: it does not.
    """
    if os.environ.get(KERNELS):
        importlib.import_module("quantarena.methods.core.kernels.native").library()


def check_target(target: Target) -> None:
    """See that this machine has the target's device and runtime.

    Raises:
        UserError: it does not.
    """
    if absent := absent_library(target.runtime):
        raise UserError(f"{absent} is not installed: {INSTALL}")
    if target.kind != "cpu":  # torch knows
        importlib.import_module("quantarena.bench.devices.device").require(target)


def check_methods(
    names: Sequence[str], plugins: Sequence[str] = (), *, prefer_plugin: bool = False
) -> None:
    """See that every method exists and every plug-in loads, and that each name means one method.

    Args:
        names: the methods that will run.
        plugins: files that register methods.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.

    Raises:
        UserError: one does not; the line says which.
    """
    clashes = packaged_names().intersection(names)  # a package may not shadow a built-in unseen
    if not plugins and set(builtins()).issuperset(names) and not clashes:
        return
    registry = importlib.import_module("quantarena.methods.registry")
    with process_state():  # a plug-in runs its code when it is imported
        known = registry.names(plugins)
    for name in names:
        if name not in known:
            raise UnknownName(f"unknown method {name!r}: {did_you_mean(name, known)}")
        registry.require_one(name, prefer_plugin=prefer_plugin)


def method(name: str, plugins: Sequence[str] = (), *, prefer_plugin: bool = False) -> Any:
    """The registry's entry of a method: its class and its origin.

    Raises:
        UserError: there is none.
    """
    registry = importlib.import_module("quantarena.methods.registry")
    with process_state():
        return registry.entry(name, plugins, prefer_plugin=prefer_plugin)


def method_options(
    given: Sequence[str],
    methods: Sequence[str],
    plugins: Sequence[str] = (),
    *,
    prefer_plugin: bool = False,
) -> tuple[tuple[str, OptionPairs], ...]:
    """Read ``METHOD.NAME=VALUE`` options and check them against their methods.

    Args:
        given: as on the command line.
        methods: the methods that will run.
        plugins: files that register methods.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.

    Returns:
        By method, the options that are not at their default.

    Raises:
        UserError: an option without a method of this run, one that its method does not have, or a
            value that it cannot have.
    """
    by_method: dict[str, list[tuple[str, str]]] = {}
    for text in given:
        target, equals, value = text.partition("=")
        name, dot, option = target.strip().partition(".")
        if not (equals and dot and name and option):
            raise UserError(f"--option {text}: write METHOD.NAME=VALUE, such as dgq.groups=4")
        if name not in methods:
            hint = did_you_mean(name, methods)
            raise UserError(f"--option {text}: method {name!r} does not run here: {hint}")
        by_method.setdefault(name, []).append((option, value))
    if not by_method:
        return ()
    read = importlib.import_module("quantarena.methods.options")
    checked = {}
    for name, pairs in by_method.items():
        kind = method(name, plugins, prefer_plugin=prefer_plugin).method
        checked[name] = read.pairs_of(read.parse(name, kind.Options, pairs))
    return tuple((name, pairs) for name, pairs in sorted(checked.items()) if pairs)


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


def canonical_workload(
    name_or_path: str, options: tuple[str, ...] = (), *, packed: bool = False
) -> str:
    """What goes into a cell: name, hub id or absolute path, with the settings that were given.

    Args:
        name_or_path: as given.
        options: ``KEY=VALUE`` settings.
        packed: take an export of ours, too.

    Raises:
        UserError: no such workload, no such setting, or one that its pipeline cannot use.
    """
    workload_name = importlib.import_module("quantarena.bench.workloads.workload_name")
    info = workload(workload_name.with_options(name_or_path, options))
    require_usable(info, packed=packed)
    return str(info.name)


def shown_workload(name: str) -> str:
    """A cell's workload as a command repeats it elsewhere: paths by their last name."""
    return str(importlib.import_module("quantarena.bench.workloads.workload_name").shown(name))


def facts(grid: Grid, plugins: Sequence[str] = (), *, prefer_plugin: bool = False) -> Facts:
    """What a plan asks about the names in a grid."""
    infos = {name: workload(name) for name in grid.workloads}

    @functools.cache
    def stamp(method_name: str, workload_name: str) -> str:
        code = [closure(STAGES), _method_closure(method_name, plugins, prefer_plugin)]
        return content_key([closures_key(code), everywhere(), content(workload_name)])

    @functools.cache
    def everywhere() -> list[Any]:
        return [_metrics(plugins), _surroundings(), _baseline()]

    @functools.cache
    def content(workload_name: str) -> str:
        return content_of(infos[workload_name])

    def resolution(name: str) -> int:
        return max(infos[name].size or (UNKNOWN_RESOLUTION,))

    @functools.cache
    def size(name: str) -> Size:
        if name not in infos:  # a row of another folder, whose model may be gone
            return Size()
        info = infos[name]
        return network_size(Path(info.path), max(info.size or (0,)), info.guidance, info.steps)

    return Facts(
        lambda cell: stamp(cell.method, cell.workload),
        resolution,
        lambda name: float(infos[name].megabytes),
        size,
    )


def content_of(info: Any) -> str:
    """Content hash of a workload: weights, every setting, prompts and real images.

    Raises:
        UserError: a file cannot be read.
    """
    settings = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    for name in ("name", "title", "path", "licence", "megabytes", "hub"):
        settings.pop(name)
    settings["inputs"] = images_content(info.inputs)
    if info.lora:
        asked = LoraRequest.read(info.lora)
        settings["lora"] = [file_sha256(asked.file()), asked.scale]
    real = info.reference_path if info.reference else None
    pictures = ""
    if real is not None and real.exists():
        pictures = tree_sha256(real) if real.is_dir() else file_sha256(real)
    weights = tree_sha256(Path(info.path), without=FOR_PEOPLE)
    return content_key([weights, settings, pictures])


def _method_closure(name: str, plugins: Sequence[str], prefer_plugin: bool) -> Closure:
    """The code of a method; that of a built-in is found without importing it."""
    built_in = builtins().get(name)
    other = bool(plugins) or name in packaged_names()
    if built_in is not None and not (prefer_plugin and other):
        return closure(built_in.module)
    return method_closure(method(name, plugins, prefer_plugin=prefer_plugin).method)


def _baseline() -> str:
    """The code and the libraries of full precision's settings, which every speed-up rests on."""
    modules = (builtins()[name].module for name in full_precision_settings())
    return closures_key(map(closure, modules))


def _surroundings() -> list[str]:
    """What enters by environment variables: the unit of the kernels, and weights of metrics."""
    found = [os.environ.get(KERNELS, "")]
    for name in METRIC_WEIGHTS:
        path = Path(os.environ.get(name) or "/nonexistent")
        found.append(tree_sha256(path) if path.is_dir() else "")
        found.append(file_sha256(path) if path.is_file() else "")
    return found


def _metrics(plugins: Sequence[str]) -> list[str]:
    """The code of all metric plug-ins, which score every cell: files and installed packages."""
    named = [Path(p).expanduser() for p in os.environ.get(METRICS, "").split(os.pathsep) if p]
    given = [file_closure(file.resolve()) for file in named if os.path.isfile(file)]
    beside = (file_closure(Path(file)) for file in plugins)
    given += [code for code in beside if METRIC_PLUGINS in code]
    installed = entry_points(group="quantarena.metrics")
    given += [closure(point.module) for point in installed]
    return sorted(code.key for code in given)
