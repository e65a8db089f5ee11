"""The code that a cluster's workers run: this package and the plug-ins, as folders that Ray sends.

Ray names a folder that it sends by the hash of its content and keeps it on each node, so that code
travels once and two versions never mix. Native libraries stay behind: each node builds its own.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from quantarena.bench import closure as code
from quantarena.bench.content import bytes_sha256
from quantarena.bench.errors import UserError

PACKAGE = code.PACKAGE
ROOMS = ("bench", "methods", "leaderboard")
METRICS = "QUANTARENA_METRICS"
_BUNDLE = f"{PACKAGE}_plugins_"
_LEFT_BEHIND = shutil.ignore_patterns("__pycache__", ".*", "libquantarena.*", "_root", "*.tmp")


@dataclass(frozen=True, slots=True)
class Baggage:
    """What travels.

    Attributes:
        folders: to send; each is a module or the folder of a distribution.
        plugins: for each plug-in, its place below the bundle's folder.
        metrics: the same for plug-ins of metrics that ``QUANTARENA_METRICS`` names.
        bundle: name of the folder of plug-ins, with the hash of their content; "" without any.
    """

    folders: tuple[str, ...]
    plugins: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    bundle: str = ""


def packed(plugins: Sequence[str], into: Path) -> Baggage:
    """Copy the running package and the plug-ins, with the files that they import.

    Args:
        plugins: absolute paths.
        into: an empty folder, which can go once Ray has sent what is in it.

    Raises:
        UserError: a plug-in needs a file that has no place beside it.
    """
    folders = [_package(into)]
    if (about := _distribution(into)) is not None:
        folders.append(about)
    metrics = [p for p in os.environ.get(METRICS, "").split(os.pathsep) if p]
    files = [Path(name).expanduser().resolve() for name in (*plugins, *metrics)]
    if not files:
        return Baggage(tuple(map(str, folders)))
    sources = [plugin_sources(file) for file in files]
    bundle = _BUNDLE + _hash(sources)
    places = []
    for number, (file, found) in enumerate(zip(files, sources, strict=True)):
        for name, source in found.items():
            target = into / bundle / str(number) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        places.append(f"{number}/{file.name}")
    folders.append(into / bundle)
    own, others = tuple(places[: len(plugins)]), tuple(places[len(plugins) :])
    return Baggage(tuple(map(str, folders)), own, others, bundle)


def unpacked(bundle: str) -> Path:
    """The folder of plug-ins that has arrived in this process.

    Raises:
        UserError: it has not.
    """
    for entry in sys.path:
        if entry and (Path(entry) / bundle).is_dir():
            return Path(entry) / bundle
    raise UserError(f"the plug-ins did not arrive on {os.uname().nodename}: no {bundle} is there")


def plugin_sources(file: Path) -> dict[str, Path]:
    """A plug-in and all files of its own that it imports, by their names beside it.

    Raises:
        UserError: a file that it names is in another place.
    """
    found = {file.name: file}
    for name in code.file_closure(file).files:
        name = name.partition(":")[0]  # what a facade binds: the facade has to be there, too
        ours = name.partition(".")[0] == PACKAGE or name.partition("/")[0] in ROOMS
        if ours or name == file.stem:
            continue
        if name.startswith("/"):  # what a module names in __sources__
            path = Path(name)
            if not path.is_relative_to(file.parent):
                raise UserError(
                    f"plug-in {file} needs {path}, which is not below its folder: put it there, so "
                    "that it can travel to the cluster's nodes"
                )
            found[str(path.relative_to(file.parent))] = path
            continue
        found |= _module(name, file)
    return found


def _module(name: str, file: Path) -> dict[str, Path]:
    """The file of a module, and those of the packages around it."""
    parts = name.split(".")
    around = _module(".".join(parts[:-1]), file) if parts[1:] else {}
    for base in (file.parent, *(Path(entry) for entry in sys.path if entry)):
        for place in (Path(*parts, "__init__.py"), Path(*parts).with_suffix(".py")):
            if (base / place).is_file():
                return {**around, str(place): base / place}
        if (base / Path(*parts)).is_dir():  # a package without a file of its own
            return around
    raise UserError(f"plug-in {file} imports {name}, whose file is not found: it cannot travel")


def _package(into: Path) -> Path:
    """A copy of the package, laid out as an installed one."""
    target = into / PACKAGE
    for room in ROOMS:
        source = Path(code.__file__).resolve().parent.parent / room
        shutil.copytree(source, target / room, ignore=_LEFT_BEHIND, copy_function=_link)
    shutil.copyfile(_init(), target / "__init__.py")
    (target / "py.typed").touch()
    return target


def _init() -> Path:
    """The package's own file: a source tree keeps it apart from the rooms."""
    rooms = Path(code.__file__).resolve().parent.parent
    kept = rooms / "bench" / "_root" / "__init__.py"
    return kept if kept.is_file() else rooms / "__init__.py"


def _distribution(into: Path) -> Path | None:
    """The version, which rows state, as Python's own folder of it; None if nothing is installed."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    target = into / f"{PACKAGE}-{version}.dist-info"
    target.mkdir()
    text = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n"
    (target / "METADATA").write_text(text, encoding="utf-8")
    return target


def _link(source: str, target: str) -> str:
    """A second name of a file, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _hash(sources: Sequence[Mapping[str, Path]]) -> str:
    digest = hashlib.sha256()
    for number, found in enumerate(sources):
        for name, file in sorted(found.items()):
            digest.update(f"{number}/{name}\0{bytes_sha256(file)}\n".encode())
    return digest.hexdigest()[:16]
