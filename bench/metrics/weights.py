"""Weights that are proved whole before they are used: sha256 first, parsing second."""

import hashlib
from pathlib import Path

from quantarena.bench.errors import UserError

ASSETS = Path(__file__).parent / "assets"


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
