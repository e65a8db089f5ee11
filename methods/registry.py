"""The registry of methods: built-in, installed under the entry-point group, or in a file."""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from quantarena.methods.builtin import GROUP, SETTING, builtins
from quantarena.methods.contestant import Contestant
from quantarena.methods.contract import Method
from quantarena.methods.core.errors import Stop, UnknownName, UserError, did_you_mean, is_interrupt
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import check_declaration

_NAME = re.compile(rf"(?:{SETTING})?[A-Za-z0-9][A-Za-z0-9_.+-]{{0,63}}")
"""Names of methods: command lines join them by commas, and rows by ``@`` and ``/``. Settings of
full precision are named ``fp@SETTING``."""
M = TypeVar("M", bound=type[Contestant])


@dataclass(frozen=True, slots=True)
class RegisteredMethod:
    """A registered method or rival, its class, and where it came from."""

    method: type[Contestant]
    origin: str
    """``builtin``, ``plugin FILE`` or ``package NAME VERSION``."""


_entries: dict[str, list[RegisteredMethod]] = {}
_loading: list[str] = ["builtin"]
_loaded: set[str] = set()


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known under ``name``.

    Raises:
        UserError: the name is taken by another class of the same origin, or is no name; or the
            class is no method, or lacks a description, or its options cannot be read.
    """

    def add(method: M) -> M:
        _require_method(name, method)
        check_declaration(name, method.Options, method.switches)
        # a plug-in may import a built-in to build on it; that does not make it the plug-in's
        known = builtins().get(name)
        builtin = known is not None and known.module == method.__module__
        origin = "builtin" if builtin else _loading[-1]
        for entry in _entries.get(name, []):
            other = (entry.method.__module__, entry.method.__qualname__)
            if entry.origin == origin and other != (method.__module__, method.__qualname__):
                raise UserError(
                    f"method name {name!r} is taken by {entry.method.__module__}, "
                    f"{method.__module__} wants it too: rename one"
                )
        kept = [entry for entry in _entries.get(name, []) if entry.origin != origin]
        method.name = name
        _entries[name] = [*kept, RegisteredMethod(method, origin)]
        return method

    return add


def _require_method(name: object, method: object) -> None:
    """Refuse what cannot be run as a method, with a line for its author."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"method name {str(name)[:80]!r}: take up to 64 letters, digits and any of _ . + -"
        )
    if not isinstance(method, type) or not issubclass(method, Contestant):
        raise UserError(f"method {name!r}: {method!r} is no class derived from Method or Rival")
    for attribute, kind in (("info", MethodInfo), ("supports", Capabilities)):
        if not isinstance(getattr(method, attribute, None), kind):
            raise UserError(
                f"method {name!r}: class {method.__name__} needs {attribute} = {kind.__name__}(...)"
            )
    if method.__abstractmethods__:
        missing = ", ".join(sorted(method.__abstractmethods__))
        raise UserError(f"method {name!r}: class {method.__name__} does not define {missing}")


def require_one(name: str, *, prefer_plugin: bool = False) -> None:
    """Check that a name means one method, among the built-in ones, plug-in files and packages.

    Args:
        name: a name that is registered.
        prefer_plugin: whether a plug-in wins over a built-in of the same name.

    Raises:
        UserError: two plug-ins register it, or a plug-in and a built-in; the line says what to do.
    """
    origins = [e.origin for e in _entries.get(name, ()) if e.origin != "builtin"]
    if len(origins) > 1:
        raise UserError(f"{' and '.join(origins)} both register method {name!r}: rename one")
    if origins and name in builtins() and not prefer_plugin:
        what = "uninstall it" if origins[0].startswith("package ") else "rename it"
        raise UserError(
            f"{origins[0]} registers method {name!r}, which is built in: add --prefer-plugin to "
            f"run the plug-in's, or {what}"
        )


def plugin_module(file: Path, prefix: str, what: str) -> tuple[str, Callable[[], None]]:
    """Make a module of a plug-in file, methods or metrics, known to Python but not executed yet.

    Args:
        file: resolved.
        prefix: start of the module's name.
        what: how messages refer to the file.

    Returns:
        The module's name, in which the path's hash keeps two files of one name apart, and a
        function that executes the module.

    Raises:
        UserError: there is no such file, or it is no Python file.
    """
    if not file.is_file():
        raise UserError(f"{what} is no file")
    name = f"{prefix}_{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} is no Python file")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module
    return name, lambda: loader.exec_module(module)


def load_plugin(path: str | Path) -> None:
    """Import a file that registers methods.

    Raises:
        UserError: there is no such file, it fails to import, or it registers no method.
    """
    file = Path(path).resolve()
    if str(file) in _loaded:
        return
    module_name, execute = plugin_module(file, "quantarena_plugin", f"plug-in {path}")
    origin = f"plugin {file.name}"
    _loading.append(origin)
    try:
        execute()
    except BaseException as error:  # a file may raise anything, SystemExit too
        _forget(module_name)
        if isinstance(error, (UserError, Stop)) or is_interrupt(error):
            raise
        raise UserError(
            f"plug-in {path} fails to import: {type(error).__name__}: {error}"
        ) from error
    finally:
        _loading.pop()
    if not _of(module_name):
        _forget(module_name)
        raise UserError(f"plug-in {path} registers no method: use @register('name') on a class")
    _loaded.add(str(file))


def _of(module_name: str) -> list[str]:
    """The names under which a module's classes are registered."""
    return [
        name
        for name, entries in _entries.items()
        if any(entry.method.__module__ == module_name for entry in entries)
    ]


def _forget(module_name: str) -> None:
    """Undo a failed import, so that no part of a plug-in stays registered."""
    sys.modules.pop(module_name, None)
    for name in _of(module_name):
        left = [e for e in _entries.pop(name) if e.method.__module__ != module_name]
        if left:
            _entries[name] = left


def broken_packages() -> dict[str, str]:
    """Installed plug-in packages that failed to import, with the reason."""
    _load_packages()
    return dict(_broken)


_broken: dict[str, str] = {}


def _load_packages() -> None:
    if "packages" in _loaded:
        return
    _loaded.add("packages")
    for point in entry_points(group=GROUP):
        dist = point.dist
        origin = f"package {dist.name} {dist.version}" if dist else f"package {point.module}"
        _loading.append(origin)
        try:
            found = point.load()
            if (
                isinstance(found, type)
                and issubclass(found, Contestant)
                and not hasattr(found, "name")
            ):
                register(point.name)(found)
        except BaseException as error:  # a broken package must not take the others down
            if isinstance(error, Stop) or is_interrupt(error):
                raise
            _broken[point.name] = f"{type(error).__name__}: {error}"
        finally:
            _loading.pop()


def names(plugins: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """All method names, built-in first."""
    for plugin in plugins:
        load_plugin(plugin)
    _load_packages()
    others = sorted(set(_entries) - set(builtins()))
    return (*builtins(), *others)


def entry(
    name: str, plugins: Sequence[str | Path] = (), *, prefer_plugin: bool = False
) -> RegisteredMethod:
    """The method of that name; a built-in wins a clash unless plug-ins are preferred.

    Raises:
        UnknownName: there is none; the message suggests near names.
        UserError: a plug-in cannot be loaded.
    """
    known = names(plugins)
    if name in builtins():
        importlib.import_module(builtins()[name].module)
    found = _entries.get(name)
    if not found:
        raise UnknownName(f"unknown method {name!r}: {did_you_mean(name, known)}")
    ordered = sorted(found, key=lambda e: (e.origin == "builtin") == prefer_plugin)
    return ordered[0]


def method_entry(
    name: str, plugins: Sequence[str | Path] = (), *, prefer_plugin: bool = False
) -> type[Method]:
    """The method of that name, for work that needs a model that can be packed.

    Raises:
        UnknownName: there is none; the message suggests near names.
        UserError: it is a rival, or a plug-in cannot be loaded.
    """
    found = entry(name, plugins, prefer_plugin=prefer_plugin).method
    if not issubclass(found, Method):
        raise UserError(
            f"{name} is a rival, with a network and kernels of its own: only models of methods can "
            "be checked, packed and exported"
        )
    return found
