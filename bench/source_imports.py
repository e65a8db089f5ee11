"""The imports of one Python file, read from its syntax tree. No torch; nothing is imported."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantarena.bench.content import bytes_sha256


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
    reader = _ImportReader(package, tree, renames=b"importlib" in text)
    patterns = [p for node in tree.body for p in _patterns(node)]
    return Source(
        file,
        bytes_sha256(file),
        tuple(reader.imports(tree.body, True)),
        file.name != "__main__.py" and all(_is_facade_line(node) for node in tree.body),
        tuple(sorted(f for p in patterns for f in file.parent.glob(p) if f.is_file())),
    )


class _ImportReader:
    """Reads the imports of one module; knows its string constants and names of import_module."""

    def __init__(self, package: str, tree: ast.Module, *, renames: bool) -> None:
        self.package = package
        self.texts: dict[str, str] = {}
        self.callers = {"import_module", "__import__"}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                self.texts |= dict.fromkeys(names, str(node.value.value))
        # a walk takes as long as reading the imports, and few files can have such a name
        for inner in ast.walk(tree) if renames else ():
            if isinstance(inner, ast.ImportFrom) and inner.module == "importlib":
                aliases = (a for a in inner.names if a.name == "import_module")
                self.callers |= {a.asname for a in aliases if a.asname}

    def imports(self, nodes: Iterable[ast.AST], at_import: bool) -> Iterator[Import]:
        """Every import below these nodes, those for type checkers alone left out."""
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    yield Import(alias.name, "", name, at_import)
            elif isinstance(node, ast.ImportFrom):
                base = self.absolute(node.level, node.module or "")
                for alias in node.names:
                    name = "" if alias.name == "*" else alias.name
                    yield Import(base, name, alias.asname or alias.name, at_import)
            elif isinstance(node, ast.If) and _for_type_checkers(node.test):
                yield from self.imports(node.orelse, at_import)
            else:
                if isinstance(node, ast.Call) and (name := self.imported_by_call(node)):
                    yield Import(name, "", "", at_import)
                inside = at_import and not isinstance(
                    node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
                )
                yield from self.imports(ast.iter_child_nodes(node), inside)

    def absolute(self, level: int, module: str) -> str:
        """A module's dotted name, given how many packages up it is named from."""
        if not level:
            return module
        parts = self.package.split(".")
        base = parts[: len(parts) - level + 1]
        return ".".join([*base, *([module] if module else [])])

    def imported_by_call(self, node: ast.Call) -> str:
        """The module in ``import_module("name")``, also by a constant; empty for other calls."""
        function = node.func
        called = (
            function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        )
        if called not in self.callers:
            return ""
        named = [keyword.value for keyword in node.keywords if keyword.arg == "name"]
        first = next(iter([*node.args[:1], *named]), None)
        text = ""
        if isinstance(first, ast.Constant):
            text = str(first.value)
        elif isinstance(first, ast.Name):
            text = self.texts.get(first.id, "")
        level = len(text) - len(text.lstrip("."))
        return self.absolute(level, text[level:])


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_facade_line(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return [getattr(target, "id", "") for target in node.targets] == ["__all__"]
    return isinstance(node, ast.Import | ast.ImportFrom)


def _patterns(node: ast.stmt) -> list[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    if [getattr(target, "id", "") for target in targets] != ["__sources__"]:
        return []
    value = getattr(node, "value", None)
    return [str(pattern) for pattern in ast.literal_eval(value)] if value is not None else []


def forget_source(file: Path | None = None) -> None:
    """Drop what was read of one file, or of all."""
    for key in [key for key in _sources if file is None or key[0] == file]:
        del _sources[key]
