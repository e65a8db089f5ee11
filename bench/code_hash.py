"""Hashes of the code that makes numbers, so that caches never outlive it."""

import hashlib
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_SOURCES = (".py", ".cpp", ".h")


def file_sha256(path: Path) -> str:
    """Hash of one file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def package_sha256(name: str) -> str:
    """One hash over the sources of a package, sub-packages included."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return file_sha256(origin)
    digest = hashlib.sha256()
    for file in sorted(origin.parent.rglob("*")):
        if file.suffix in _SOURCES:
            digest.update(str(file.relative_to(origin.parent)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def class_sha256(kind: type) -> str:
    """Hash of the file that defines a class; of its name where there is no file."""
    module = inspect.getmodule(kind)
    path = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    if path is None:
        return hashlib.sha256(kind.__qualname__.encode()).hexdigest()
    return file_sha256(Path(path))
