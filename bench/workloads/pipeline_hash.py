"""One hash over the files of a pipeline folder, checked against its manifest."""

import hashlib
import json
import os
import stat
from pathlib import Path

from quantarena.bench.content import file_sha256
from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads.hub import WEIGHTS
from quantarena.bench.workloads.registry import SETTINGS
from quantarena.methods.core.json_files import read_object

MANIFEST = "manifest.json"
_CONFIGS = (".json", ".txt", ".model")
_ASIDE = (MANIFEST, SETTINGS)


def pipeline_sha256(folder: Path) -> str:
    """The hash of a pipeline folder's weights and configurations, checked against its manifest.

    The configurations of the sampler and of the networks are included, since they decide the images
    as the weights do. The workload's settings are not: they enter keys by themselves.

    Raises:
        BrokenModel: there is no weight file, one differs from the manifest, or what should be a
            file is none.
    """
    require_files(folder)
    files = sorted(f for f in folder.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    if not files:
        raise BrokenModel(f"{folder} holds no weights (no .safetensors file)")
    found = {str(file.relative_to(folder)): file_sha256(file) for file in files}
    for name, expected in _manifest(folder).items():
        actual = found.get(name) or (
            file_sha256(folder / name) if os.path.isfile(folder / name) else "missing"
        )
        if actual != expected:
            raise BrokenModel(
                f"{folder / name} is damaged: sha256 {actual[:12]}, the manifest says "
                f"{expected[:12]}; install again or restore the file"
            )
    configs = (f for f in folder.rglob("*") if f.suffix in _CONFIGS and f.is_file())
    found |= {str(f.relative_to(folder)): file_sha256(f) for f in configs if f.name not in _ASIDE}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def require_files(folder: Path) -> None:
    """Refuse a pipe, a device or a circle of links in the place of a file: reading could block.

    Raises:
        BrokenModel: the line names the first one.
    """
    for path in sorted(folder.rglob("*")):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue  # a link to nowhere: whoever needs the file says that it is missing
        except OSError as error:
            raise BrokenModel(f"{path} cannot be read: {error.strerror or error}") from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BrokenModel(f"{path} cannot be read: it is no regular file")


def _manifest(folder: Path) -> dict[str, str]:
    file = folder / MANIFEST
    if not os.path.lexists(file):
        return {}
    try:
        document = read_object(file)
    except FileNotFoundError:
        raise BrokenModel(f"{file} cannot be read: it is a link to nowhere") from None
    files = document.get("files", document)
    if not isinstance(files, dict) or not files:
        raise BrokenModel(f"{file} names no files")
    hashes: dict[str, str] = {}
    for name, value in files.items():
        sha256 = value.get("sha256") if isinstance(value, dict) else value
        if not isinstance(sha256, str):
            raise BrokenModel(f"{file} has no sha256 of {name}")
        hashes[name] = sha256
    return hashes
