"""Which files a shared folder may hold, how large they may be, and which it does hold. No torch.

Nothing is opened here. Names come from a whitelist, so no name leads out of the folder, and links
are never followed. Which images are scored again follows from a hash, so that no side chooses.
"""

import hashlib
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
README = "README.md"
ROW_BYTES = 1 << 23
"""Largest row; those of real runs have some 10 kB."""
LIMITS = (
    (re.compile(r"manifest\.json"), 1 << 26),
    (re.compile(r"README\.md"), 1 << 16),
    (re.compile(r"rows/[0-9a-f]{16}\.json"), ROW_BYTES),
    (re.compile(r"scores/[0-9a-f]{16}\.npz"), 1 << 26),
    (re.compile(r"images/[0-9a-f]{16}/[0-9]{4,6}\.png"), 1 << 25),
)
"""Names of files, and the most bytes of each."""
FOLDERS = re.compile(r"rows|scores|images|images/[0-9a-f]{16}")
MOST_BYTES = 1 << 34
"""Most bytes of a whole submission."""
MOST_FILES = 1 << 19
MOST_IMAGES = 1 << 17
"""Most images of a row."""
SHARE = 0.01
"""Share of a row's images that are scored again; one at least is taken."""
SAMPLE_RULE = "the images whose sha256 of 'SEED/NUMBER' is least; SEED is the row's images_sha256"
_SHOWN = 160


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a shared folder.

    Attributes:
        where: file, relative to the folder.
        what: what is wrong with it, in one line.
    """

    where: str
    what: str

    def __str__(self) -> str:
        """One line of printable characters, whatever the file's name holds."""
        return f"{plain_line(self.where)}: {plain_line(self.what, 2 * _SHOWN)}"


def plain_line(text: str, most: int = _SHOWN) -> str:
    """Foreign text for a terminal: one line, no control characters, not longer than ``most``."""
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    line = line.encode("utf-8", "replace").decode()
    return line if len(line) <= most else line[: most - 1] + "…"


def limit(name: str) -> int | None:
    """The most bytes of a file of that relative name; None where no such file belongs there."""
    return next((most for pattern, most in LIMITS if pattern.fullmatch(name)), None)


def stray_name(name: str) -> str:
    """Why a name is none of a shared folder; empty where it is one."""
    if limit(name) is not None:
        return ""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0]:
        return "its name leads out of the folder"
    return "no file of that name belongs here"


def walk(root: Path) -> tuple[dict[str, int], list[Problem]]:
    """Bytes of each file below a folder by its relative name, and what does not belong there."""
    found: dict[str, int] = {}
    problems: list[Problem] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(root / inside) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                name = f"{inside}/{entry.name}" if inside else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    problems.append(Problem(name, "it is a link: only regular files are taken"))
                elif stat.S_ISDIR(mode):
                    if FOLDERS.fullmatch(name):
                        waiting.append(name)
                    else:
                        problems.append(Problem(name, "no folder of that name belongs here"))
                elif not stat.S_ISREG(mode):
                    problems.append(Problem(name, "it is no regular file"))
                elif why := stray_name(name):
                    problems.append(Problem(name, why))
                else:
                    found[name] = entry.stat(follow_symlinks=False).st_size
                if len(found) + len(problems) > MOST_FILES:
                    return found, [Problem(".", f"it holds more than {MOST_FILES} files")]
    problems += [
        Problem(name, f"it has {size} bytes, at most {most} are taken")
        for name, size in found.items()
        if size > (most := limit(name) or 0)
    ]
    if (total := sum(found.values())) > MOST_BYTES:
        problems.append(Problem(".", f"it has {total} bytes, at most {MOST_BYTES} are taken"))
    return found, problems


def is_plain_file(path: Path) -> bool:
    """Whether a path is a regular file itself, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def sampled(seed: str, count: int, share: float = SHARE) -> tuple[int, ...]:
    """Numbers of the images of a row that are scored again, in order.

    Args:
        seed: the row's ``images_sha256``, which is known only when all images are drawn.
        count: number of its images.
        share: share of them, 0 to 1.
    """
    wanted = min(count, max(1, math.ceil(share * count - 1e-9)))
    if wanted == count:
        return tuple(range(count))
    order = sorted(range(count), key=lambda number: _place(seed, number))
    return tuple(sorted(order[:wanted]))


def _place(seed: str, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()
