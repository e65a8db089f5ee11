"""The code that a number depends on: the import closure of a module, as one hash. No torch.

The closure of a module is the set of files that run when it is imported and when its functions
import more: the module, every file that it imports, every file that those import. It is read from
the syntax trees, so nothing is imported to find it, and it cannot forget a file as a list kept by
hand can.

Three rules keep it true without making it wider than it is:

- A *facade* is a module that holds nothing but a docstring, imports and ``__all__``. A name that is
  imported from a facade is followed to the module that defines it. The facade adds nothing but what
  the name is bound to.
- A library (anything that is installed for others, such as torch) enters by its version. A plug-in
  that is installed enters with the files of its own package.
- A module may name files beside Python that decide what it computes, in a constant
  ``__sources__``: glob patterns below its folder, such as C++ sources.
"""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_paths

from quantarena.bench.content import bytes_sha256
from quantarena.bench.source_imports import Import, forget_source, source
from quantarena.bench.spec import content_key

PACKAGE = "quantarena"
_ROOT = Path(__file__).resolve().parent.parent
_ROOTS = {f"{PACKAGE}.{name}": _ROOT / name for name in ("bench", "methods", "leaderboard")}
_INSTALLED = tuple(Path(get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib"))
_PLUGIN = "quantarena_plugin_"
"""Start of the names of modules that are plug-in files; what follows differs by their place."""
_SITES = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True, slots=True)
class Closure:
    """Everything that a module's numbers depend on as far as code goes.

    Attributes:
        files: SHA-256 of every file by its name: dotted for modules, the path for other files.
        libraries: version of every library by the name under which it is imported.
    """

    files: dict[str, str]
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        """One hash of the closure."""
        return content_key([self.files, self.libraries], 32)

    def __contains__(self, module: str) -> bool:
        return module in self.files


@cache
def closure(module: str) -> Closure:
    """The closure of a module, read once a process.

    Args:
        module: dotted name of a module of quantarena, or of any module that can be found.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    file = _locate(module, None) or _installed_file(module)
    if file is None:
        raise ModuleNotFoundError(module)
    return _walk(module, file)


@cache
def file_closure(file: Path, module: str = "") -> Closure:
    """The closure of a plug-in file: the file and all that it imports.

    Args:
        file: the plug-in. Modules beside it are found as well, since plug-ins put their own folder
            on ``sys.path``.
        module: dotted name under which it is imported; its stem by default.
    """
    return _walk(module or file.stem, file.resolve())


def method_closure(kind: type) -> Closure:
    """The closure of the module that defines a class, wherever it came from.

    A class that has no file, as in an interactive session, is known by its name alone.
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return Closure({kind.__qualname__: ""}, {})
    if kind.__module__.partition(".")[0] == PACKAGE:
        return closure(kind.__module__)
    if kind.__module__.startswith(_PLUGIN):
        return file_closure(Path(file))  # its module's name has the hash of its path
    return file_closure(Path(file), kind.__module__)


def closures_key(closures: Iterable[Closure]) -> str:
    """One hash of several closures; a file in two of them counts once."""
    files: dict[str, str] = {}
    libraries: dict[str, str] = {}
    for found in closures:
        files |= found.files
        libraries |= found.libraries
    return Closure(dict(sorted(files.items())), dict(sorted(libraries.items()))).key


def forget(file: Path | None = None) -> None:
    """Drop what was read, of one file or of all, for callers that change files in one process."""
    for function in (closure, file_closure):
        function.cache_clear()
    if file is None:
        _locate.cache_clear()
    forget_source(file)


def _walk(module: str, file: Path) -> Closure:
    own = _own(module, file)
    files: dict[str, str] = {}
    libraries: dict[str, str] = {}
    waiting: list[tuple[str, Path, bool]] = [(module, file, True)]
    visited: set[tuple[Path, bool]] = set()
    while waiting:
        name, path, whole = waiting.pop()
        if (path, whole) in visited:
            continue
        visited.add((path, whole))
        found = source(path, name)
        if not found.facade or path == file:
            files[name] = found.sha256
            files |= {_shown(data): bytes_sha256(data) for data in found.data}
        waiting += ((p, f, False) for p, f in _parents(name, own))
        for each in found.imports if whole else (i for i in found.imports if i.at_import):
            if found.facade and not whole:
                continue  # names of a facade are followed from those who ask for them
            target, bindings = _follow(each, own)
            files |= bindings
            if target is None:
                libraries |= _library(each.module)
            else:
                waiting.append((*target, True))
    return Closure(dict(sorted(files.items())), dict(sorted(libraries.items())))


_Own = tuple[Path, str] | None
"""The folder of a plug-in's modules, and the one package in it that is its own, or "" for all."""


def _follow(each: Import, own: _Own) -> tuple[tuple[str, Path] | None, dict[str, str]]:
    """Module and file that an import runs, None for a library; and what facades bind it to."""
    module, name = each.module, each.name
    bindings: dict[str, str] = {}
    for _ in range(20):  # a facade may import from a facade
        if name and (file := _locate(f"{module}.{name}", own)):
            return (f"{module}.{name}", file), bindings
        file = _locate(module, own)
        if file is None:
            return None, bindings
        found = source(file, module)
        # of two bindings of one name the last one counts
        origin = next((i for i in reversed(found.imports) if name and i.alias == name), None)
        if not found.facade or origin is None:
            return (module, file), bindings
        bindings[f"{module}:{name}"] = f"{origin.module}:{origin.name}"
        module, name = origin.module, origin.name
    return None, bindings


@cache
def _locate(module: str, own: _Own) -> Path | None:
    """The file of a module that belongs to quantarena or to the plug-in; None for a library."""
    parts = module.split(".")
    top = parts[0]
    if top == PACKAGE:
        return _of_quantarena(module)
    if own is not None and own[1] in ("", top) and (file := _below(own[0], parts)):
        return file
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return None
    base = _found_by_python(top)
    if base is None or _is_installed(base):
        return None
    return _below(base.parent.parent if base.name == "__init__.py" else base.parent, parts)


def _is_installed(file: Path) -> bool:
    return any(folder in file.parents for folder in _INSTALLED) or bool(_SITES & set(file.parts))


def _installed_file(module: str) -> Path | None:
    """The file of a module that is installed; None where there is none."""
    parts = module.split(".")
    base = _found_by_python(parts[0])
    if base is None:
        return None
    return _below(base.parent.parent if base.name == "__init__.py" else base.parent, parts)


def _of_quantarena(module: str) -> Path | None:
    if module == PACKAGE:  # a source tree keeps it in bench/_root, an installed package above bench
        choices = (_ROOTS[f"{PACKAGE}.bench"] / "_root", _ROOT)
        return next((f for c in choices if (f := c / "__init__.py").is_file()), None)
    room, *rest = module.split(".")[1:]
    root = _ROOTS.get(f"{PACKAGE}.{room}")
    return _below(root, rest) if root is not None else None


def _below(folder: Path, parts: list[str]) -> Path | None:
    base = folder.joinpath(*parts)
    choices = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((file for file in choices if file.is_file()), None)


@cache
def _found_by_python(module: str) -> Path | None:
    """Where Python would find a module without dots; nothing is imported for it."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded).resolve()
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec.origin if spec is not None else None
    return Path(origin).resolve() if origin and Path(origin).is_file() else None


def _own(module: str, file: Path) -> _Own:
    """Where a plug-in's own modules are found; None for quantarena's."""
    top = module.partition(".")[0]
    if top == PACKAGE:
        return None
    depth = len(module.split(".")) - (file.name != "__init__.py")
    folder = file.parents[depth] if depth < len(file.parents) else file.parent
    # beside an installed package lie all libraries, beside a file of the user's his other modules
    return folder, top if _is_installed(file) else ""


def _parents(module: str, own: _Own) -> list[tuple[str, Path]]:
    """The packages around a module, whose ``__init__`` runs before it."""
    names = module.split(".")[:-1]
    dotted = [".".join(names[: n + 1]) for n in range(len(names))]
    found = ((name, _locate(name, own)) for name in dotted)
    return [(name, file) for name, file in found if file is not None]


@cache
def _library(module: str) -> dict[str, str]:
    """Version of the library that a module belongs to; nothing for the standard library."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top == PACKAGE:
        return {}
    # optimum.quanto is a part of a namespace: optimum-quanto has its version
    for name in (top, _distributions().get(top, top), "-".join(module.split(".")[:2])):
        with contextlib.suppress(PackageNotFoundError):
            return {top: version(name)}
    return {top: "absent"}


@cache
def _distributions() -> dict[str, str]:
    """Name of the distribution by the name of its module, where the two differ.

    Read from ``top_level.txt`` files; ``importlib.metadata.packages_distributions`` knows more and
    takes a second, which a plan would feel.
    """
    found: dict[str, str] = {}
    for folder in {_INSTALLED[1], _INSTALLED[2]}:
        for file in folder.glob("*.dist-info/top_level.txt"):
            name = file.parent.name.split("-")[0]
            found |= dict.fromkeys(file.read_text(encoding="utf-8").split(), name)
    return found


def _shown(file: Path) -> str:
    return str(file.relative_to(_ROOT)) if file.is_relative_to(_ROOT) else str(file)
