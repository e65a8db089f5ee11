"""Finds downloaded models of the Hugging Face Hub in its cache on this machine. No torch.

This module never uses the network (``hub_download`` does), so a run is the same with and without
one, and never waits for one.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UnknownName
from quantarena.methods.core.json_files import read_object

INDEX = "model_index.json"
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
WEIGHTS = (".safetensors", ".bin")
USUAL_SLOTS = ("unet", "transformer")
"""Folders of a pipeline in which its denoiser usually is."""


def is_id(text: str) -> bool:
    """Whether a text has the form of a hub id.

    >>> is_id("google/ddpm-cifar10-32"), is_id("./a/b"), is_id("a/b/c")
    (True, False, False)
    """
    return _ID.fullmatch(text) is not None


def cache_folder() -> Path:
    """The folder in which ``huggingface_hub`` keeps models."""
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
    folders = [file.parent for file in root.glob(f"snapshots/*/{INDEX}")]
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def cached(hub_id: str, name: str = "") -> Path:
    """The downloaded pipeline folder of a model.

    Args:
        hub_id: such as ``google/ddpm-cifar10-32``.
        name: name of the workload that needs the model, if it has one.

    Raises:
        UnknownName: the model is not there. The message says how to get it.
        BrokenModel: the download is incomplete.
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
    """How to get a model that is not on this machine, as part of a message."""
    give = f"--workload {name} --set model=DIR" if name else "--workload DIR"
    return (
        f"download it with quantarena fetch {hub_id} (it goes to {cache_folder()}), or copy its "
        f"folder from https://huggingface.co/{hub_id} and give {give}"
    )


def components(folder: Path) -> tuple[str, ...]:
    """The sub-folders that a pipeline's index requires.

    Raises:
        BrokenModel: the index cannot be read.
    """
    try:
        return parts_of(read_object(folder / INDEX))
    except FileNotFoundError:
        raise BrokenModel(f"{folder} is no diffusers pipeline: it has no {INDEX}") from None


def parts_of(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components that the content of a ``model_index.json`` requires."""
    return tuple(
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None
    )
