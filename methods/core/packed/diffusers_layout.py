"""The packed checkpoint as diffusers lays out a network: ``config.json`` beside weight files.

The entry ``quantization_config`` of ``config.json`` is the description of the tensors, as in
``packed.json``. It also lists the tensors' names, because diffusers asks for these before it reads
any, and holds one SHA-256 over the description, what is said of the model, and every tensor. That
hash knows nothing of files: diffusers may write the same tensors into one file or into several.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.json_files import read_object
from quantarena.methods.core.packed.files import (
    DOCUMENT,
    VERSION,
    Document,
    Tensors,
    as_read,
    migrate,
    read_document,
    require_version,
    text,
    vouched,
)

CONFIG, ENTRY = "config.json", "quantization_config"
WEIGHTS = "diffusion_pytorch_model"
METHOD_KEY, METHOD = "quant_method", "quantarena"
"""The key and the name by which diffusers finds the code that reads the description."""


def entry_of(
    described: Document, tensors: Tensors, sizes: Mapping[str, int], meta: Mapping[str, Any]
) -> Document:
    """The entry ``quantization_config`` of a packed network.

    Args:
        described: what ``checkpoint.described_of`` gives.
        tensors: what ``checkpoint.tensors_of`` gives.
        sizes: bytes by purpose.
        meta: facts for the reader, JSON types.
    """
    said = {"version": VERSION, "bytes": dict(sizes), "meta": as_read(meta), **described}
    return {
        METHOD_KEY: METHOD,
        "version": VERSION,
        "sha256": content_sha256(said, {n: tensor_sha256(t) for n, t in tensors.items()}),
        "bytes": said["bytes"],
        "meta": said["meta"],
        "tensors": _by_owner(tensors),
        **described,
    }


def is_entry(entry: Any) -> bool:
    """Whether a value is a ``quantization_config`` that describes a packed network of ours."""
    return isinstance(entry, Mapping) and entry.get(METHOD_KEY) == METHOD and "sha256" in entry


def description_file(folder: Path) -> Path | None:
    """The file that describes the packed network in a folder; None where there is no such network.

    Raises:
        BrokenModel: ``config.json`` cannot be read; one line.
    """
    if (folder / DOCUMENT).is_file():
        return folder / DOCUMENT
    try:
        config = read_object(folder / CONFIG, constants=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    entry = config.get(ENTRY)
    return folder / CONFIG if isinstance(entry, dict) and entry.get(METHOD_KEY) == METHOD else None


def packed_folders(root: Path) -> list[Path]:
    """The sub-folders of a pipeline folder that hold a packed network.

    Raises:
        BrokenModel: a component's ``config.json`` cannot be read; one line.
    """
    parts = sorted({file.parent for name in (DOCUMENT, CONFIG) for file in root.glob(f"*/{name}")})
    return [part for part in parts if description_file(part) is not None]


def read_entry(file: Path) -> Document:
    """The description in a ``config.json``.

    Raises:
        BrokenModel: there is none, or it is of a future version; one line.
    """
    try:
        entry = read_object(file, constants=True).get(ENTRY)
    except FileNotFoundError:
        raise BrokenModel(f"{file.parent} is no packed checkpoint: it has no {file.name}") from None
    if not isinstance(entry, dict) or entry.get(METHOD_KEY) != METHOD:
        raise BrokenModel(f"{file} has no {ENTRY} of {METHOD}")
    require_version(entry, file)
    return entry


def read_description(file: Path) -> Document:
    """What a file of :func:`description_file` says of its network, in either layout.

    Raises:
        BrokenModel: it is damaged, or of a future version; one line.
    """
    return read_entry(file) if file.name == CONFIG else read_document(file)


def read(folder: Path) -> tuple[Document, Tensors]:
    """A checkpoint, checked and brought to the present version.

    Raises:
        BrokenModel: files are missing, damaged or edited, or of a future version; one line.
    """
    file = folder / CONFIG
    entry = read_entry(file)
    weights = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
    if not weights:
        raise BrokenModel(f"{folder / WEIGHTS}.safetensors is missing")
    tensors: Tensors = {}
    for part in weights:
        try:
            with safe_open(part, framework="pt") as stream:
                tensors |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own kinds
            raise BrokenModel(f"{part} cannot be read: {text(error)}; fetch it again") from None
    return checked(entry, tensors, {n: tensor_sha256(t) for n, t in tensors.items()}, folder)


def checked(
    entry: Document, tensors: Tensors, digests: Mapping[str, str], folder: Path | str
) -> tuple[Document, Tensors]:
    """A description and its tensors, brought to the present version.

    Args:
        entry: the description.
        tensors: of the checkpoint, or a part of them.
        digests: of every tensor of the checkpoint, as ``tensor_sha256`` gives.
        folder: where they are from, for messages.

    Raises:
        BrokenModel: they do not belong together; one line.
    """
    require_version(entry, f"{folder}/{CONFIG}")
    if content_sha256(entry, digests) != entry.get("sha256"):
        raise BrokenModel(
            f"{folder} is damaged or was edited: the sha256 in {CONFIG} is not that of its "
            f"description and of {WEIGHTS}; fetch both again"
        )
    return migrate(entry, tensors, f"{folder}/{CONFIG}")


def content_sha256(described: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """Hash of a description of its version and of tensors, whatever files they are in."""
    content = [vouched(described), sorted(digests.items())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of a tensor's type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(data.numpy().data)
    return digest.hexdigest()


def names_of(entry: Mapping[str, Any], file: Path | str) -> set[str]:
    """The names of all tensors of a checkpoint.

    Raises:
        BrokenModel: the description does not list them; one line.
    """
    owners = entry.get("tensors")
    if not isinstance(owners, dict) or not all(isinstance(v, str) for v in owners.values()):
        raise BrokenModel(f"{file} does not list the names of its tensors")
    return {
        f"{owner}.{leaf}" if owner else leaf
        for owner, leaves in owners.items()
        for leaf in leaves.split()
    }


def _by_owner(tensors: Tensors) -> dict[str, str]:
    """Last parts of the tensors' names in one text for each module, which takes few lines."""
    owners: dict[str, list[str]] = {}
    for name in sorted(tensors):
        owner, _, leaf = name.rpartition(".")
        owners.setdefault(owner, []).append(leaf)
    return {owner: " ".join(leaves) for owner, leaves in owners.items()}
