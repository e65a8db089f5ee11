"""Functions, methods and classes of libraries that a block replaces, and their return."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_PREFIXES = ("torch.nn.modules.", "diffusers.models.", "diffusers.schedulers.")
_MODULES = (
    "builtins",
    "io",
    "json",
    "json.decoder",
    "json.encoder",
    "os",
    "os.path",
    "pathlib",
    "random",
    "shutil",
    "tempfile",
    "time",
    "numpy",
    "numpy.random",
    "torch",
    "torch.linalg",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.optim",
)
_WITH_CLASSES = ("torch", "diffusers", "json", "pathlib")
_MISSING = object()


@contextlib.contextmanager
def undo_patches() -> Iterator[None]:
    """Put back what was replaced of torch, numpy, diffusers and the standard library's basics.

    That is each function, method and class of the modules in ``_MODULES`` and ``_PREFIXES``.

    A name that is new after the block stays, unless it hides a method of a base class: libraries
    import parts of themselves when these are first used. A module that the block imports first
    cannot be told from one that it has changed.
    """
    before = [(owner, _callables(owner)) for owner in _owners()]
    try:
        yield
    finally:
        for owner, values in before:
            present = dict(vars(owner))
            for name, value in values.items():
                if present.get(name, _MISSING) is not value:
                    with contextlib.suppress(Exception):
                        setattr(owner, name, value)
            for name in set(present) - set(values):
                with contextlib.suppress(Exception):
                    if callable(present[name]) and _is_inherited(owner, name):
                        delattr(owner, name)


def _owners() -> list[Any]:
    """The modules, and the classes that are defined in them."""
    modules = [
        module
        for name, module in tuple(sys.modules.items())
        if module is not None and (name in _MODULES or name.startswith(_PREFIXES))
    ]
    classes = [
        value
        for module in modules
        for value in tuple(vars(module).values())
        if isinstance(value, type) and value.__module__.startswith(_WITH_CLASSES)
    ]
    return modules + list(dict.fromkeys(classes))


def _is_inherited(owner: Any, name: str) -> bool:
    """Whether a class has the name from another class, which its own definition hides."""
    return isinstance(owner, type) and any(name in vars(base) for base in owner.__mro__[1:-1])


def _callables(owner: Any) -> dict[str, Any]:
    kinds = (staticmethod, classmethod, property)
    return {
        name: value
        for name, value in tuple(vars(owner).items())
        if callable(value) or isinstance(value, kinds)
    }
