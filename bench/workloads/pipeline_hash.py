"""One hash over the files of a pipeline folder, checked against its manifest."""

import hashlib
import json
from pathlib import Path

from quantarena.bench.content import file_sha256
from quantarena.bench.errors import BrokenModel
from quantarena.bench.workloads.hub import WEIGHTS
from quantarena.bench.workloads.registry import SETTINGS

MANIFEST = "manifest.json"
_CONFIGS = (".json", ".txt", ".model")
_ASIDE = (MANIFEST, SETTINGS)


def pipeline_sha256(folder: Path) -> str:
    """The hash of a pipeline folder's weights and configurations, checked against its manifest.

    The configurations of the sampler and of the networks are included, since they decide the images
    as the weights do. The workload's settings are not: they enter keys by themselves.

    Raises:
        BrokenModel: there is no weight file, or one differs from the manifest.
    """
    files = sorted(f for f in folder.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    if not files:
        raise BrokenModel(f"{folder} holds no weights (no .safetensors file)")
    found = {str(file.relative_to(folder)): file_sha256(file) for file in files}
    for name, expected in _manifest(folder).items():
        actual = found.get(name) or (
            file_sha256(folder / name) if (folder / name).is_file() else "missing"
        )
        if actual != expected:
            raise BrokenModel(
                f"{folder / name} is damaged: sha256 {actual[:12]}, the manifest says "
                f"{expected[:12]}; install again or restore the file"
            )
    configs = (f for f in folder.rglob("*") if f.suffix in _CONFIGS and f.is_file())
    found |= {str(f.relative_to(folder)): file_sha256(f) for f in configs if f.name not in _ASIDE}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, str]:
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text())
        files = data.get("files", data)
        return {
            str(name): str(value["sha256"] if isinstance(value, dict) else value)
            for name, value in files.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
