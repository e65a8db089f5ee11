"""The code that a number depends on: the import closure of a module, as one hash. No torch.

The closure of a module is the set of files that run when it is imported and when its functions
import more: the module, every file that it imports, every file that those import. It is read from
the syntax trees, so nothing is imported to find it, and it cannot forget a file as a list kept by
hand can.

Three rules keep it true without making it wider than it is:

- A *facade* is a module that holds nothing but a docstring, imports and ``__all__``. A name that is
  imported from a facade is followed to the module that defines it; the facade itself adds nothing.
- A library (anything that is installed for others, such as torch) enters by its version.
- A module may name files beside Python that decide what it computes, in a constant
  ``__sources__``: glob patterns below its folder, such as C++ sources.
"""

import ast
import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_paths

from quantarena.bench.content import bytes_sha256
from quantarena.bench.spec import content_key

PACKAGE = "quantarena"
_ROOT = Path(__file__).resolve().parent.parent
_ROOTS = {f"{PACKAGE}.{name}": _ROOT / name for name in ("bench", "methods", "leaderboard")}
_INSTALLED = tuple(Path(get_paths()[name]).resolve() for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement, or one call of ``import_module`` with a constant name.

    Attributes:
        module: absolute dotted name of the module.
        name: what is taken from it; empty where the module itself is imported.
        alias: the name that it has in the importing module.
        at_import: whether it runs when the importing module is imported, not inside a function.
    """

    module: str
    name: str
    alias: str
    at_import: bool


@dataclass(frozen=True, slots=True)
class Source:
    """What one Python file says about its imports.

    Attributes:
        file: the file.
        sha256: hash of its bytes.
        imports: its imports, those for type checkers alone left out.
        facade: whether it holds nothing but a docstring, imports and ``__all__``.
        data: files beside Python that it names in ``__sources__``.
    """

    file: Path
    sha256: str
    imports: tuple[Import, ...]
    facade: bool
    data: tuple[Path, ...]


_sources: dict[tuple[Path, str], Source] = {}


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
    file = _locate(module, ())
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
        _sources.clear()
    else:
        for key in [key for key in _sources if key[0] == file]:
            del _sources[key]


def _walk(module: str, file: Path) -> Closure:
    own = _own_folder(module, file)
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
        waiting += ((p, f, False) for p, f in _parents(name))
        for each in found.imports if whole else (i for i in found.imports if i.at_import):
            if found.facade and not whole:
                continue  # names of a facade are followed from those who ask for them
            target = _follow(each, own)
            if target is None:
                libraries |= _library(each.module)
            else:
                waiting.append((*target, True))
    return Closure(dict(sorted(files.items())), dict(sorted(libraries.items())))


def source(file: Path, module: str) -> Source:
    """What a Python file imports, read once a process; a file that is no Python has no imports."""
    if (file, module) not in _sources:
        _sources[file, module] = _read_source(file, module)
    return _sources[file, module]


def _read_source(file: Path, module: str) -> Source:
    text = file.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return Source(file, bytes_sha256(file), (), False, ())
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    patterns = [p for node in tree.body for p in _patterns(node)]
    return Source(
        file,
        bytes_sha256(file),
        tuple(_imports(tree.body, package, True)),
        file.name != "__main__.py" and all(_is_facade_line(node) for node in tree.body),
        tuple(sorted(f for p in patterns for f in file.parent.glob(p) if f.is_file())),
    )


def _imports(nodes: Iterable[ast.AST], package: str, at_import: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                yield Import(alias.name, "", name, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            for alias in node.names:
                yield Import(base, alias.name, alias.asname or alias.name, at_import)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imports(node.orelse, package, at_import)
        else:
            if isinstance(node, ast.Call) and (name := _imported_by_call(node)):
                yield Import(name, "", "", at_import)
            inside = at_import and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            yield from _imports(ast.iter_child_nodes(node), package, inside)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imported_by_call(node: ast.Call) -> str:
    """The constant name in ``import_module("name")`` or ``importlib.import_module("name")``."""
    function = node.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = node.args[0] if node.args else None
    if called == "import_module" and isinstance(first, ast.Constant):
        return str(first.value)
    return ""


def _is_facade_line(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    return isinstance(node, ast.Import | ast.ImportFrom)


def _patterns(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__sources__":
        return [str(pattern) for pattern in ast.literal_eval(node.value)]
    return []


def _follow(each: Import, own: Path | None) -> tuple[str, Path] | None:
    """Module and file that an import runs; None for a library."""
    module, name = each.module, each.name
    for _ in range(20):  # a facade may import from a facade
        if name and (file := _locate(f"{module}.{name}", (own,) if own else ())):
            return f"{module}.{name}", file
        file = _locate(module, (own,) if own else ())
        if file is None:
            return None
        found = source(file, module)
        origin = next((i for i in found.imports if name and i.alias == name), None)
        if not found.facade or origin is None:
            return module, file
        module, name = origin.module, origin.name
    return None


@cache
def _locate(module: str, folders: tuple[Path, ...]) -> Path | None:
    """The file of a module that belongs to quantarena or to the plug-in; None for a library."""
    parts = module.split(".")
    top = parts[0]
    if top == PACKAGE:
        return _of_quantarena(module)
    for folder in folders:
        if file := _below(folder, parts):
            return file
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return None
    base = _found_by_python(top)
    if base is None or any(folder in base.parents for folder in _INSTALLED):
        return None
    return _below(base.parent.parent if base.name == "__init__.py" else base.parent, parts)


def _of_quantarena(module: str) -> Path | None:
    if module == PACKAGE:
        return _ROOTS[f"{PACKAGE}.bench"] / "_root" / "__init__.py"
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


def _own_folder(module: str, file: Path) -> Path | None:
    """The folder in which a plug-in's own modules are found; None for quantarena's."""
    if module == PACKAGE or module.startswith(f"{PACKAGE}."):
        return None
    depth = len(module.split(".")) - (file.name != "__init__.py")
    return file.parents[depth] if depth < len(file.parents) else file.parent


def _parents(module: str) -> list[tuple[str, Path]]:
    """The packages around a module of quantarena, whose ``__init__`` runs before it."""
    names = module.split(".")[:-1]
    if not names or names[0] != PACKAGE:
        return []
    dotted = [".".join(names[: n + 1]) for n in range(len(names))]
    found = ((name, _of_quantarena(name)) for name in dotted)
    return [(name, file) for name, file in found if file is not None]


@cache
def _library(module: str) -> dict[str, str]:
    """Version of the library that a module belongs to; nothing for the standard library."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names or top == PACKAGE:
        return {}
    for name in (top, _distributions().get(top, top)):
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
