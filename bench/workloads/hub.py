"""Models of the Hugging Face Hub: found where they were downloaded to, and downloaded by one verb.

Only ``fetch`` talks to the Hub. Everything else reads the cache of ``huggingface_hub``, so a run is
the same with and without a network, and never waits for one. No torch.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UnknownName

INDEX = "model_index.json"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WEIGHTS = (".safetensors", ".bin")


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id.

    >>> is_id("google/ddpm-cifar10-32"), is_id("./a/b"), is_id("a/b/c")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


def cache_folder() -> Path:
    """Where ``huggingface_hub`` keeps models."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(hub_id: str) -> Path | None:
    """The downloaded pipeline folder of a model, or None."""
    root = cache_folder() / f"models--{hub_id.replace('/', '--')}"
    named = root / "refs" / "main"
    if named.is_file():
        folder = root / "snapshots" / named.read_text().strip()
        if (folder / INDEX).is_file():
            return folder
    found = [file.parent for file in root.glob(f"snapshots/*/{INDEX}")]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def cached(hub_id: str, name: str = "") -> Path:
    """The downloaded pipeline folder of a model.

    Args:
        hub_id: such as ``google/ddpm-cifar10-32``.
        name: by which it was asked for, if another.

    Raises:
        UnknownName: it is not there; the line says what to download and where to put it.
        BrokenModel: the download is not complete.
    """
    folder = snapshot(hub_id)
    if folder is None:
        who = (
            f"workload {name} needs {hub_id}, which is not on this machine"
            if name
            else f"{hub_id} is no folder here and no downloaded model of the Hugging Face Hub"
        )
        raise UnknownName(f"{who}: {how_to_get(hub_id, name)}")
    missing = [part for part in components(folder) if not (folder / part).is_dir()]
    if missing:
        raise BrokenModel(
            f"{hub_id} in {folder} is not whole, {missing[0]} is missing: quantarena fetch {hub_id}"
        )
    return folder


def how_to_get(hub_id: str, name: str = "") -> str:
    """What to do about a model that is not here; part of a line."""
    give = f"--workload {name} --set model=DIR" if name else "--workload DIR"
    return (
        f"download it with quantarena fetch {hub_id} (it goes to {cache_folder()}), or copy its "
        f"folder from https://huggingface.co/{hub_id} and give {give}"
    )


def components(folder: Path) -> tuple[str, ...]:
    """Sub-folders that a pipeline's index asks for.

    Raises:
        BrokenModel: the index cannot be read.
    """
    try:
        return parts_of(json.loads((folder / INDEX).read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise BrokenModel(f"{folder / INDEX} cannot be read: {error}") from None


def parts_of(index: Mapping[str, Any]) -> tuple[str, ...]:
    """Components in the content of a ``model_index.json`` that are not left out."""
    return tuple(
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    )
