"""Whether the locks in a folder hold on other machines, as its mount says. No torch."""

import contextlib
import os
import re
from pathlib import Path

MOUNTS = Path("/proc/mounts")
_SHARED = ("lustre", "nfs", "nfs4")
_LOCAL = ("localflock", "noflock", "nolock", "local_lock=all", "local_lock=flock")
"""Options under which a lock is one machine's own, or none at all."""
_OCTAL = re.compile(r"\\([0-7]{3})")


def local_locks(folder: Path, mounts: Path | None = None) -> str:
    """How a folder that machines share is mounted if its locks do not hold on other machines.

    Args:
        folder: it need not exist.
        mounts: the kernel's table, ``MOUNTS`` unless given; without one nothing is known.

    Returns:
        Such as ``lustre with localflock``, or "".
    """
    place, best, found = os.path.realpath(folder), "", ""
    with contextlib.suppress(OSError):
        for line in (
            (mounts or MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        ):
            fields = line.split(" ")
            if len(fields) < 4:
                continue
            root, kind, options = _plain(fields[1]), fields[2], fields[3].split(",")
            inside = place == root or place.startswith(root.rstrip("/") + "/")
            if not inside or len(root) < len(best):  # of two mounts in one place, the later is seen
                continue
            local = [option for option in options if option in _LOCAL]
            best, found = root, f"{kind} with {local[0]}" if kind in _SHARED and local else ""
    return found


def _plain(text: str) -> str:
    """A path of the table, where spaces and the like are octal numbers."""
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
