"""Committed weight files: their hash is checked before they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantarena.bench.errors import UserError

__sources__ = ("assets/*",)
"""The weights that ship with the metrics: a score's key holds them."""
ASSETS = Path(__file__).parent / "assets"
REMEDY = "install the package again, or derive the file anew (docs/metrics.md)"
_MANIFEST = "manifest.json"


class BrokenWeights(UserError):
    """A weight file that is missing, truncated, or not the published one."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hex digits. Raises OSError if it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verified(path: Path, sha256: str, remedy: str) -> Path:
    """Check that a file has the published bytes, and return its path.

    Args:
        path: the file.
        sha256: its expected hash, 64 hex digits.
        remedy: what the user can do, for the error message.

    Raises:
        BrokenWeights: the file is missing, unreadable, or has other bytes.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BrokenWeights(f"cannot read {path}: {why}; {remedy}") from None
    if found != sha256:
        size = path.stat().st_size
        raise BrokenWeights(
            f"{path} is damaged or another file ({size} bytes, sha256 {found[:12]}..., "
            f"expected {sha256[:12]}...); {remedy}"
        )
    return path


def stated_sha256(name: str, folder: Path = ASSETS) -> str:
    """The sha256 of a file according to the manifest beside it. Raises BrokenWeights."""
    path = folder / _MANIFEST
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenWeights(f"cannot read {name} in {path}: {error}; {REMEDY}") from None


def write_asset(folder: Path, name: str, blob: bytes, facts: Mapping[str, Any]) -> Path:
    """Write a file and its entry in the manifest, whose other entries stay; return its path.

    Args:
        folder: target folder, made if missing.
        name: name of the file.
        blob: its bytes.
        facts: further facts for the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, manifest = folder / name, folder / _MANIFEST
    path.write_bytes(blob)
    known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    known[name] = {"sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob), **facts}
    manifest.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return path
