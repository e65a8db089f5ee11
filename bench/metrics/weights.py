"""Weights that are proved whole before they are used: sha256 first, parsing second."""

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
    """A weight file that is missing, cut short, or not the one that was published."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hex digits. Raises OSError as ``open`` does."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verified(path: Path, sha256: str, remedy: str) -> Path:
    """``path`` itself, once its bytes are known to be the published ones.

    Args:
        path: the file.
        sha256: 64 hex digits that it must have.
        remedy: what to do when it does not, for the message.

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
    """The sha256 that the manifest beside a file states. Raises BrokenWeights when it cannot."""
    path = folder / _MANIFEST
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))[name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenWeights(f"cannot read {name} in {path}: {error}; {REMEDY}") from None


def write_asset(folder: Path, name: str, blob: bytes, facts: Mapping[str, Any]) -> Path:
    """Write a file and its entry in the manifest; other entries stay. Returns the file's path.

    Args:
        folder: made when missing.
        name: of the file.
        blob: its bytes.
        facts: what else the manifest says of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, manifest = folder / name, folder / _MANIFEST
    path.write_bytes(blob)
    known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    known[name] = {"sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob), **facts}
    manifest.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return path
