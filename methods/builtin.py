"""The built-in methods, listed and described without importing them.

A built-in method is a class under ``@register("name")`` in a file of this folder, and a rival one
in a file of the folder ``rivals``. Plans and help
texts need its name, the widths that it is compared at and how much it learns; importing it would
import torch. So these facts are read from the syntax tree, where they are literals.
"""

import ast
import os
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from quantarena.methods.info import Capabilities

FP, RTN = "fp", "rtn"
"""Names of the full-precision reference and of the plainest baseline."""

SETTING = "fp@"
"""Start of the names of full precision's other settings, such as ``fp@bf16``."""

GROUP = "quantarena.methods"
"""The entry point group of methods in installed packages."""

_FOLDER = Path(__file__).parent
_PACKAGE = "quantarena.methods"
_RIVALS = "rivals"
INSTALL = "pip install 'quantarena[rivals]'"
"""What brings the libraries of rivals and of other runtimes."""
GGUF = ".gguf"
"""Ending of a single file of quantized weights."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """What is known of a built-in method before it is imported.

    Attributes:
        name: as registered.
        module: to import it from.
        paper: of its ``MethodInfo``; ``-`` for the baselines.
        most_iterations: of its ``Capabilities``.
        board_bits: of its ``Capabilities``.
        rival: whether it brings a network of its own instead of a model to be packed.
        own_widths: whether it has its paper's own layers and widths, for policy ``published``.
    """

    name: str
    module: str
    paper: str
    most_iterations: int | None
    board_bits: tuple[str, ...]
    rival: bool = False
    own_widths: bool = False


@cache
def builtins() -> dict[str, Builtin]:
    """Every built-in method by name: the baselines, the papers by their date, then the rivals."""
    files = [*_FOLDER.glob("*.py"), *(_FOLDER / _RIVALS).glob("*.py")]
    methods = [b for file in files for b in _read(file)]
    return {b.name: b for b in sorted(methods, key=_place)}


def full_precision_settings() -> tuple[str, ...]:
    """The settings of full precision, beside fp32, that the larger presets run."""
    return tuple(b.name for b in builtins().values() if b.name.startswith(SETTING) and b.board_bits)


def _place(found: Builtin) -> tuple[Any, ...]:
    of_paper, plain = found.paper != "-", found.name in (FP, RTN)
    return found.rival, of_paper, found.paper, not plain, found.name


def packaged_names() -> frozenset[str]:
    """The entry points of installed packages with methods, none of which is imported."""
    return frozenset(point.name for point in entry_points(group=GROUP))


def _read(file: Path) -> list[Builtin]:
    text = file.read_text(encoding="utf-8")
    if "\n@register(" not in text:
        return []
    rival = file.parent != _FOLDER
    package = f"{_PACKAGE}.{_RIVALS}" if rival else _PACKAGE
    methods = []
    for node in ast.parse(text).body:
        name = _registered_as(node)
        if name and isinstance(node, ast.ClassDef):
            info, supports = _literals(node, "info"), _literals(node, "supports")
            defaults = {field.name: field.default for field in fields(Capabilities)}
            methods.append(
                Builtin(
                    name,
                    f"{package}.{file.stem}",
                    info.get("paper", "-"),
                    supports.get("most_iterations", defaults["most_iterations"]),
                    supports.get("board_bits", defaults["board_bits"]),
                    rival,
                    _sets(node, "published"),
                )
            )
    return methods


def _registered_as(node: ast.stmt) -> str:
    for decorator in getattr(node, "decorator_list", ()):
        match decorator:
            case ast.Call(func=ast.Name(id="register"), args=[ast.Constant(value=str(name))]):
                return name
    return ""


def _sets(node: ast.ClassDef, attribute: str) -> bool:
    """Whether the class sets an attribute."""
    targets = [s.targets for s in node.body if isinstance(s, ast.Assign)]
    return any(isinstance(t, ast.Name) and t.id == attribute for some in targets for t in some)


def _literals(node: ast.ClassDef, attribute: str) -> dict[str, Any]:
    """The literal keyword arguments of the call that a class attribute is set to."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(keywords=keywords)):
                if name == attribute:
                    return {k.arg: value for k in keywords if k.arg for value in _literal(k.value)}
    return {}


def _literal(node: ast.expr) -> list[Any]:
    try:
        return [ast.literal_eval(node)]
    except ValueError:
        return []


def is_gguf(path: Path) -> bool:
    """Whether a path is a single file of weights in the format GGUF, by its name."""
    return path.suffix.lower() == GGUF and os.path.isfile(path)
