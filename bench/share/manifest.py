"""The manifest of a submission: every file with its hash, and what made them. No torch."""

import dataclasses
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantarena.bench.documents import parse_json, read
from quantarena.bench.files import read_text, write_atomic
from quantarena.bench.share.layout import (
    LIMITS,
    MANIFEST,
    MOST_IMAGES,
    Problem,
    is_plain_file,
    stray_name,
)

FORMAT = "quantarena-submission"
VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Hash and size of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a submission says of itself.

    Attributes:
        format: ``quantarena-submission``.
        version: of this format.
        name: short name of the sender or the machine: letters, digits, ``.``, ``_``, ``-``.
        created: UTC in ISO 8601.
        row_schema: schema version of the rows.
        package: version of quantarena that wrote the submission.
        commits: commits of quantarena that the rows name; ``+`` ends those of a changed tree.
        machines: facts of each machine that measured rows.
        closures: SHA-256 of the code of each method, files and versions of libraries.
        share: share of the images that is included, by ``rule``.
        rule: how they were chosen, in words.
        images: by the key of a row, the hash of each of its images by file name, included or not.
        files: every file of the folder but this one.
    """

    format: str
    version: int
    name: str
    created: str
    row_schema: int
    package: str
    commits: tuple[str, ...]
    machines: tuple[dict[str, Any], ...]
    closures: dict[str, str]
    share: float
    rule: str
    images: dict[str, dict[str, str]]
    files: dict[str, FileEntry]


def is_name(name: str) -> bool:
    """Whether a text may name a submission: it becomes a part of file names and pages."""
    return _NAME.fullmatch(name) is not None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False)
    write_atomic(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a submission.

    Raises:
        ValueError: there is none, or it cannot be read; one line says why.
    """
    path = folder / MANIFEST
    if not is_plain_file(path):
        raise ValueError("there is no such file, or it is a link")
    try:
        document = parse_json(read_text(path, LIMITS[0][1]))
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"it is no manifest of a submission: its format is not {FORMAT!r}")
    if document.get("version") != VERSION:
        raise ValueError(
            f"it has version {document.get('version')!r}, but this quantarena reads {VERSION}"
        )
    manifest = read(Manifest, document)
    if not is_name(manifest.name):
        raise ValueError(f"the name {manifest.name[:40]!r} has other than letters, digits and ._-")
    return manifest


def is_numbered(names: Collection[str], images: int) -> bool:
    """Whether names are those of so many images, from ``0000.png`` on.

    The numbers are counted first: a row may state any, and names of so many fill the memory.
    """
    return len(names) == images and all(f"{n:04d}.png" in names for n in range(images))


def strange_entries(manifest: Manifest) -> list[Problem]:
    """What no manifest of ours says: foreign names, hashes that are none, images by other names."""
    problems = [
        Problem(name, why) for name in manifest.files if (why := _stray(name, manifest.files[name]))
    ]
    for key, listing in manifest.images.items():
        if len(listing) > MOST_IMAGES or not is_numbered(listing, len(listing)):
            problems.append(Problem(MANIFEST, f"images of {key} are not numbered from 0000.png"))
        if not all(_SHA256.fullmatch(value) for value in listing.values()):
            problems.append(Problem(MANIFEST, f"images of {key} have hashes that are no SHA-256"))
    return problems


def _stray(name: str, entry: FileEntry) -> str:
    if name == MANIFEST:
        return "a manifest cannot list itself"
    if not _SHA256.fullmatch(entry.sha256) or entry.bytes < 0:
        return "the manifest has no SHA-256 and size of it"
    return stray_name(name)
