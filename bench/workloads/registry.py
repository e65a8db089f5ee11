"""Which workloads there are: the zoo of the package, and any pipeline folder. No torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench.errors import UserError
from quantarena.methods.core.errors import BrokenModel, UnknownName, did_you_mean

ZOO = Path(__file__).parent / "zoo"
DATA = Path(__file__).parent / "data"
SETTINGS = "workload.json"


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """A diffusers pipeline with everything that fixes what it draws.

    Attributes:
        name: of the zoo, or the folder's path.
        title: one line.
        path: pipeline folder.
        steps: sampler steps.
        guidance: classifier-free guidance scale; 1 is off.
        eta: DDIM's share of fresh noise.
        resolution: pixels a side.
        conditions: ``none``, ``class`` or ``prompt``.
        prompts: evaluation conditions, in order; empty for ``none``.
        reference: real images: ``SET/SPLIT`` of the data folder, a features file, a folder, or "".
        licence: of weights and data.
        megabytes: of the folder on disk.
    """

    name: str
    title: str
    path: Path
    steps: int
    guidance: float
    eta: float
    resolution: int
    conditions: str
    prompts: tuple[str, ...]
    reference: str
    licence: str
    megabytes: float

    @property
    def noise_name(self) -> str:
        """What the noise is named after: the folder's own name, however its path was spelled."""
        return self.path.resolve().name


def names() -> tuple[str, ...]:
    """Workloads of the zoo."""
    if not ZOO.is_dir():
        return ()
    folders = (f for f in ZOO.iterdir() if not f.name.startswith("."))
    return tuple(sorted(f.name for f in folders if (f / "model_index.json").is_file()))


def describe(name: str) -> WorkloadInfo:
    """A workload of the zoo.

    Raises:
        UnknownName: there is none of that name; the message suggests near names.
    """
    known = names()
    if name not in known:
        raise UnknownName(f"unknown workload {name!r}: {did_you_mean(name, known)}")
    return _read(ZOO / name, name)


def resolve(name_or_path: str) -> WorkloadInfo:
    """A workload of the zoo, or any diffusers pipeline folder.

    Raises:
        UnknownName: neither a zoo name nor an existing folder.
        BrokenModel: a folder that is no diffusers pipeline.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path in names() or not (folder.exists() or "/" in name_or_path):
        return describe(name_or_path)
    if not folder.is_dir():
        raise UnknownName(f"workload {name_or_path!r} is no folder and no name of the zoo")
    return _read(folder, str(folder))


def _read(folder: Path, name: str) -> WorkloadInfo:
    if not (folder / "model_index.json").is_file():
        raise BrokenModel(f"{folder} is no diffusers pipeline: it has no model_index.json")
    settings = _settings(folder)
    conditions = settings.get("conditions", {})
    kind = str(conditions.get("kind", "none"))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return WorkloadInfo(
        name=name,
        title=str(settings.get("title", folder.name)),
        path=folder,
        steps=int(settings.get("steps", 20)),
        guidance=float(settings.get("guidance", 1.0)),
        eta=float(settings.get("eta", 0.0)),
        resolution=int(settings.get("resolution", 0)),
        conditions=kind,
        prompts=_prompts(folder, conditions),
        reference=str(settings.get("reference", "")),
        licence=str(settings.get("licence", "not stated")),
        megabytes=size / 1e6,
    )


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{file} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise BrokenModel(f"{file} must hold one JSON object")
    return settings


def _prompts(folder: Path, conditions: dict[str, Any]) -> tuple[str, ...]:
    if "file" in conditions:
        file = folder / str(conditions["file"])
        try:
            lines = file.read_text().splitlines()
        except OSError as error:
            raise UserError(f"conditions file {file} cannot be read: {error}") from None
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(str(value) for value in conditions.get("values", ()))
