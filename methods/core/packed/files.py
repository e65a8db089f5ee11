"""The files of a packed checkpoint: read, checked, and brought up to date."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from quantarena.methods.core.errors import BrokenModel
from quantarena.methods.core.json_files import read_object

FORMAT, VERSION = "quantarena-packed", 3
TENSORS, DOCUMENT = "packed.safetensors", "packed.json"
DIGEST = "layers_sha256"
DESCRIBED = ("layers", "schedule", "tables", "attention")
"""Entries of the document that describe the tensors, whose digest the tensors carry."""

Document = dict[str, Any]
Tensors = dict[str, Tensor]
Migration = Callable[[Document, Tensors], tuple[Document, Tensors]]


def _trees(document: Document, tensors: Tensors) -> tuple[Document, Tensors]:
    """Version 1 knew single layers and sums of them; tensors had the names that they have now."""
    layers = {}
    for name, layer in document["layers"].items():
        parts = [{"form": "packed", "meta": meta} for meta in layer["parts"]]
        split = {"form": "split", "ordered": False, "parts": parts}
        layers[name] = split if "splits" in layer else parts[0]
    empty: Document = {"schedule": None, "tables": [], "attention": {}}
    return {**document, **empty, "layers": layers}, tensors


def _covered(document: Document, tensors: Tensors) -> tuple[Document, Tensors]:
    """Version 2 had all that version 3 has; its digests did not cover ``meta`` and ``bytes``."""
    return document, tensors


MIGRATIONS: dict[int, Migration] = {1: _trees, 2: _covered}
"""By version, the function that turns a checkpoint of that version into one of the next."""


def read(folder: Path) -> tuple[Document, Tensors]:
    """The files of a checkpoint, checked and brought to the present version.

    Raises:
        BrokenModel: as ``load_packed``.
    """
    file = folder / DOCUMENT
    document = read_document(file)
    tensors, digest = _read_tensors(folder / TENSORS, document)
    if digest and digest != description_sha256(document):
        raise BrokenModel(
            f"{file} was edited: what it says of its layers, or of how the model was made, is not "
            "what was written with the tensors"
        )
    return migrate(document, tensors, file)


def migrate(document: Document, tensors: Tensors, file: Path | str) -> tuple[Document, Tensors]:
    """Bring a checkpoint of an older version to the present one, a version at a time.

    Raises:
        BrokenModel: there is no way from that version.
    """
    while (version := document["version"]) < VERSION:
        step = MIGRATIONS.get(version)
        if step is None:
            raise BrokenModel(f"{file} has version {version}, which is too old: quantize again")
        try:
            document, tensors = step(document, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BrokenModel(f"{file} is no checkpoint of version {version}: {text(error)}") from (
                None
            )
        document = {**document, "version": version + 1}
    if not isinstance(document.get("layers"), dict) or not document["layers"]:
        raise BrokenModel(f"{file} names no layers")
    return document, tensors


def read_document(file: Path) -> Document:
    """The ``packed.json`` of a checkpoint of any version that can be read.

    Raises:
        BrokenModel: there is none, or it is damaged, of another format or of a future version.
    """
    try:
        document = read_object(file)
    except FileNotFoundError:
        raise BrokenModel(f"{file.parent} is no packed checkpoint: it has no {file.name}") from None
    if document.get("format") != FORMAT:
        raise BrokenModel(f"{file} is not of the format {FORMAT}")
    require_version(document, file)
    return document


def require_version(document: Document, file: Path | str) -> None:
    """Check that this program reads the version of a description.

    Raises:
        BrokenModel: there is no version, or a future one.
    """
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BrokenModel(f"{file} does not say its version")
    if version > VERSION:
        raise BrokenModel(
            f"{file} has version {version}, this quantarena reads up to {VERSION}: upgrade it"
        )


def _read_tensors(file: Path, document: Document) -> tuple[Tensors, str]:
    if not file.is_file():
        raise BrokenModel(f"{file} is missing")
    try:
        size, expected = file.stat().st_size, int(document["bytes"]["file"])
        if size < expected:
            raise BrokenModel(f"{file} is truncated: {size} of {expected} bytes; fetch it again")
        if file_sha256(file) != document["sha256"]:
            raise BrokenModel(f"{file} is damaged or was edited: its sha256 is not {DOCUMENT}'s")
        with safe_open(file, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return tensors, str((stream.metadata() or {}).get(DIGEST, ""))
    except BrokenModel:
        raise
    except Exception as error:  # safetensors raises its own kinds
        raise BrokenModel(f"{file} cannot be read: {text(error)}") from None


def file_sha256(file: Path) -> str:
    """Hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def description_sha256(document: Document) -> str:
    """Hash of what a document says of its tensors; version 1 had layers only."""
    said = document.get("layers") if document.get("version") == 1 else vouched(document)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def vouched(document: Mapping[str, Any]) -> Document:
    """The entries of a document that its digest vouches for.

    From version 3 on these are the facts of how the model was made, too, and the sizes by purpose;
    the size of a file is compared with the file.
    """
    said: Document = {name: document.get(name) for name in DESCRIBED}
    version = document.get("version")
    if isinstance(version, int) and version >= 3:
        sizes = document.get("bytes")
        if isinstance(sizes, dict):
            sizes = {name: size for name, size in sizes.items() if name != "file"}
        said |= {"meta": document.get("meta"), "bytes": sizes}
    return said


def as_read(value: Any) -> Any:
    """A value as it is read back from JSON, whose hash does not change by writing it."""
    return json.loads(json.dumps(value))


def text(error: Exception) -> str:
    """The message of a low-level error, in words."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
