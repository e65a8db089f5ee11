"""Models of the Hugging Face Hub: found where they were downloaded to, and downloaded by one verb.

Only ``fetch`` talks to the Hub. Everything else reads the cache of ``huggingface_hub``, so a run is
the same with and without a network, and never waits for one. No torch.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import BrokenModel, UnknownName, UserError

INDEX = "model_index.json"
TIMEOUT = 10.0
"""Seconds for the Hub's first answer; it is asked once."""
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = (".safetensors", ".bin")
_FOREIGN = (".msgpack", ".h5", ".onnx", ".onnx_data", ".ckpt", ".pb", ".xml", ".gguf", ".pt")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema)\b")


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


def wanted(files: Iterable[str]) -> tuple[str, ...]:
    """What a pipeline needs of the files of its repository: each weight once, in safetensors.

    Checkpoints beside the component folders, other frameworks' weights and variants in half
    precision are left out, unless there is nothing else.

    >>> wanted(["model_index.json", "v1.ckpt", "unet/d.safetensors", "unet/d.bin", "unet/c.json"])
    ('model_index.json', 'unet/c.json', 'unet/d.safetensors')
    """
    by_folder: dict[str, list[str]] = {}
    kept = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if name == "" or file.endswith(_FOREIGN) or "/" in folder:
            continue
        if not folder:
            kept += [file] if file in (INDEX, "workload.json", "README.md") else []
        elif name.endswith(_WEIGHTS) or name.endswith(".index.json"):
            by_folder.setdefault(folder, []).append(file)
        else:
            kept.append(file)
    for weights in by_folder.values():
        plain = [file for file in weights if not _VARIANT.search(file)] or weights
        safe = [file for file in plain if ".safetensors" in file]
        kept += safe or plain
    return tuple(sorted(kept))


def fetch(hub_id: str, folder: Path | None = None) -> Path:
    """Download a pipeline into the cache of ``huggingface_hub``, or into a folder.

    Raises:
        UserError: the Hub cannot be reached, or has no such model; one line.
    """
    if not is_id(hub_id):
        raise UserError(f"{hub_id!r} is no id of a model on the Hugging Face Hub, as owner/name is")
    from huggingface_hub import HfApi, errors, snapshot_download

    where = folder or cache_folder()
    try:
        info = HfApi().model_info(hub_id, timeout=TIMEOUT)
        files = wanted(sibling.rfilename for sibling in info.siblings or ())
        if INDEX not in files:
            raise BrokenModel(f"{hub_id} is no diffusers pipeline: it has no {INDEX}")
        found = snapshot_download(
            hub_id, revision=info.sha, local_dir=folder, allow_patterns=list(files)
        )
        if folder is None:
            _name_main(Path(found))
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(
            f"{hub_id} asks you to accept its licence: do so on https://huggingface.co/{hub_id}, "
            "then log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the Hugging Face Hub has no model {hub_id}, or it is private: see the spelling, or "
            "log in with: hf auth login"
        ) from None
    except Exception as error:  # sockets, proxies, offline mode, a full disk: each its own class
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot download {hub_id} to {where} ({type(error).__name__}: {first[:120]}): try "
            f"again with a network, or copy the folder of https://huggingface.co/{hub_id} to this "
            "machine and give its path"
        ) from None
    return Path(found)


def _name_main(folder: Path) -> None:
    """Downloads by revision leave no reference, by which other tools find the newest."""
    if folder.parent.name != "snapshots":
        return
    reference = folder.parent.parent / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(folder.name)
